"""The operators that have Triton kernels, and the functions that launch these."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from . import deform_attn, deform_conv, nms, roi_pooling
from .launch import current

# operator -> function of a call, which returns the function that runs calls with the same key
MAKERS: dict[str, Callable[[Any], Callable[[Any], Tensor | tuple[Tensor, ...]]]] = {
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


def make_run(name: str, call: Any) -> Callable[[Any], Tensor | tuple[Tensor, ...]]:
    run, device = MAKERS[name](call), call[0].device

    def run_on_device(call: Any) -> Tensor | tuple[Tensor, ...]:
        with current(device):
            return run(call)

    return run_on_device
