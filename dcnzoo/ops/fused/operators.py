"""The operators that have fused kernels: which calls these support, and where they were measured."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from . import available, deform_attn, deform_conv, nms, roi_pooling
from .launch import DTYPES


def _problem(
    input, weight, offset, mask, stride, padding, dilation, groups, **_: object
) -> deform_conv.Problem:
    """Return a call of deform_conv or its backward in the form that kernels take, in two dimensions."""
    axes = len(stride)
    if axes == 1:
        tensors = (input, weight, offset, mask)
        input, weight, offset, mask = (None if t is None else t.unsqueeze(2) for t in tensors)
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    return deform_conv.Problem(
        input, weight, offset, mask, stride, padding, dilation, groups, available.tf32(), axes
    )


def _of_axes(problem: deform_conv.Problem, result: Tensor) -> Tensor:
    return result if problem.axes == 2 or result.dim() < 4 else result.squeeze(2)


def _deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step) -> Tensor:
    problem = _problem(input, weight, offset, mask, stride, padding, dilation, groups)
    return _of_axes(problem, deform_conv.forward(problem, bias=bias))


def _deform_conv_backward(
    grad_output, input, weight, offset, mask, stride, padding, dilation, groups, im2col_step, output_mask
) -> tuple[Tensor, ...]:
    problem = _problem(input, weight, offset, mask, stride, padding, dilation, groups)
    results = deform_conv.backward(
        problem, grad_output.unsqueeze(2) if problem.axes == 1 else grad_output, output_mask
    )
    return tuple(_of_axes(problem, result) for result in results)


FUNCTIONS: dict[str, Callable] = {
    "deform_conv": _deform_conv,
    "_deform_conv_backward": _deform_conv_backward,
    "dcnv3": deform_attn.forward(deform_attn.dcnv3),
    "_dcnv3_backward": deform_attn.backward(deform_attn.dcnv3),
    "dcnv4": deform_attn.forward(deform_attn.dcnv4),
    "_dcnv4_backward": deform_attn.backward(deform_attn.dcnv4),
    "ms_deform_attn": deform_attn.forward(deform_attn.ms_deform_attn),
    "_ms_deform_attn_backward": deform_attn.backward(deform_attn.ms_deform_attn),
    "nms": nms.nms,
    "roi_align": roi_pooling.roi_align,
    "_roi_align_backward": roi_pooling.roi_align_backward,
    "deform_roi_pool": roi_pooling.deform_roi_pool,
    "_deform_roi_pool_backward": roi_pooling.deform_roi_pool_backward,
}


@cache
def _taken(name: str) -> frozenset[str]:
    """Return the arguments of an operator that its kernel takes; others must have their defaults."""
    return frozenset({*inspect.signature(FUNCTIONS[name]).parameters, "grad_output", "output_mask"})


def run(name: str, call: Any) -> Tensor | tuple[Tensor, ...]:
    taken = _taken(name)
    return FUNCTIONS[name](**{field: value for field, value in call._asdict().items() if field in taken})


def unsupported(name: str, call: Any) -> str:
    """Return a feature of the call that the kernels do not support; empty if they can run the call."""
    first = call[0]  # the input, or the gradient of the output, which has its type and rank
    if first.dtype not in DTYPES:
        return str(first.dtype)
    defaults, taken = call._field_defaults, _taken(name)
    for field, value in zip(call._fields, call, strict=True):
        if field not in taken and (field not in defaults or value != defaults[field]):
            return f"{field}={value}"
    if "deform_conv" in name and first.dim() not in (3, 4):
        return "three dimensions"
    if "deform_conv" in name and call.weight.numel() == 0:
        return "an empty weight"
    return ""


def is_measured(call: Any) -> bool:
    """Return whether deform_conv's kernels were measured for such a call: 2-D, with wide groups."""
    return call.input.dim() == 4 and _problem(**call._asdict()).is_wide
