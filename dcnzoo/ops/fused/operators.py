"""The operators that have Triton kernels: which calls these support, and their plans."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from . import deform_attn, deform_conv, nms, roi_pooling
from .launch import DTYPES, current

# operator -> function of a call that returns its plan, a function of calls with the same key
PLANS: dict[str, Callable[[Any], Callable[[Any], Tensor | tuple[Tensor, ...]]]] = {
    "deform_conv": deform_conv.deform_conv,
    "_deform_conv_backward": deform_conv.deform_conv_backward,
    "dcnv3": partial(deform_attn.forward, deform_attn.dcnv3),
    "_dcnv3_backward": partial(deform_attn.backward, deform_attn.dcnv3),
    "dcnv4": partial(deform_attn.forward, deform_attn.dcnv4),
    "_dcnv4_backward": partial(deform_attn.backward, deform_attn.dcnv4),
    "ms_deform_attn": partial(deform_attn.forward, deform_attn.ms_deform_attn),
    "_ms_deform_attn_backward": partial(deform_attn.backward, deform_attn.ms_deform_attn),
    "nms": nms.nms,
    "roi_align": roi_pooling.forward,
    "_roi_align_backward": roi_pooling.backward,
    "deform_roi_pool": roi_pooling.forward,
    "_deform_roi_pool_backward": roi_pooling.backward,
}


def plan(name: str, call: Any) -> Callable[[Any], Tensor | tuple[Tensor, ...]]:
    run, device = PLANS[name](call), call[0].device

    def run_on_device(call: Any) -> Tensor | tuple[Tensor, ...]:
        with current(device):
            return run(call)

    return run_on_device


def unsupported(name: str, call: Any) -> str:
    """Return a feature of the call that the kernels do not support; empty if they can run the call."""
    first = call[0]  # the input, or the gradient of the output, which has its type and rank
    if first.dtype not in DTYPES:
        return str(first.dtype)
    if "deform_conv" in name and first.dim() not in (3, 4):
        return "three dimensions"
    if "deform_conv" in name and call.weight.numel() == 0:
        return "an empty weight"
    return ""


def is_measured(call: Any) -> bool:
    """Return whether deform_conv's kernels were measured for such groups; the call is one that is listed."""
    return deform_conv.Sizes(call).is_wide
