"""The operators that have fused kernels: which calls these support, and where they were measured."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _backend
from . import deform_attn, deform_conv, nms, roi_pooling
from .launch import DTYPES


def _problem(name: str, arguments: tuple) -> deform_conv.Problem:
    """A call of deform_conv, or of its backward, in the form of the kernels: in two dimensions."""
    tensors = arguments[1:5] if name.endswith("_backward") else arguments[:4]
    stride, padding, dilation, groups = arguments[5:9]
    axes = len(stride)
    if tensors[0].dim() == 3:
        tensors = tuple(None if tensor is None else tensor.unsqueeze(2) for tensor in tensors)
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    input, weight, offset, mask = tensors
    numbers = (stride, padding, dilation, groups, _backend.tf32(), axes)
    return deform_conv.Problem(input, weight, offset, mask, *numbers)


def _in_place_of_views(problem: deform_conv.Problem, result: Tensor) -> Tensor:
    """The result of a call in one dimension: a tensor of its own."""
    if problem.axes == 2 or result.dim() < 4:
        return result
    return result.squeeze(2).clone(memory_format=torch.contiguous_format)


def _deform_conv(*arguments) -> Tensor:
    problem = _problem("deform_conv", arguments)
    return _in_place_of_views(problem, deform_conv.forward(problem, bias=arguments[4]))


def _deform_conv_backward(*arguments) -> tuple[Tensor, ...]:
    grad_output, needed = arguments[0], arguments[-1]
    problem = _problem("_deform_conv_backward", arguments)
    results = deform_conv.backward(
        problem, grad_output.unsqueeze(2) if problem.axes == 1 else grad_output, needed
    )
    return tuple(_in_place_of_views(problem, result) for result in results)


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


def run(name: str, arguments: tuple) -> Tensor | tuple[Tensor, ...]:
    return FUNCTIONS[name](*arguments)


def fits(name: str, arguments: tuple) -> bool:
    """Whether the kernels support a call of an operator or of its backward."""
    first = arguments[0]  # the input, or the gradient of the output, which has its type and rank
    if name not in FUNCTIONS or first.dtype not in DTYPES:
        return False
    if "deform_conv" in name:
        return first.dim() in (3, 4) and arguments[2 if name.startswith("_") else 1].numel() > 0
    if "roi_align" in name:
        return arguments[-2] == 1  # the average
    return True


def is_measured(name: str, arguments: tuple) -> bool:
    """Whether a GPU has shown the kernels to be fast: the matrix products of wide channel groups."""
    return "deform_conv" in name and arguments[0].dim() == 4 and _problem(name, arguments).is_wide


def measured_faster(name: str, arguments: tuple) -> bool:
    """Whether the table lists the kernels as faster than the compiled ones for a valid call."""
    problem = _problem(name, arguments)
    least_pixels = problem.least_pixels(name.endswith("_backward"))
    return least_pixels is not None and problem.is_wide and problem.pixels >= least_pixels
