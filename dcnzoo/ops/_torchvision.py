"""torchvision's kernels for dcnzoo's operators, on devices for which dcnzoo has none, such as MPS and XPU.

:data:`CAPABILITIES` lists what they compute. Tests call it with another device's dispatch key; it was **not
run on these devices**. The reverse, dcnzoo's kernels for torchvision's operators: ``compat/torchvision_ops``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._arguments import keywords, takes

Result = Tensor | tuple[Tensor, ...]
DTYPES = (torch.float16, torch.float32, torch.float64)
# torchvision's operators and the dispatch keys for which dcnzoo registered its own kernels
# (dcnzoo.compat.torchvision_ops): they would call this module again
registered: set[tuple[str, str]] = set()


class Kernel(NamedTuple):
    name: str  # in torchvision
    fits: Callable[[Any], bool]  # for a call, a named tuple
    run: Callable[..., Result]  # of the call's arguments


def _convolution_fits(call: Any) -> bool:
    """Two dimensions, offsets, tensors of one dtype, and a mask in the groups of the offset."""
    if call.weight.dim() != 4 or call.offset is None:
        return False
    if len({tensor.dtype for tensor in call if isinstance(tensor, Tensor)}) > 1:
        return False
    return call.mask is None or 2 * call.mask.shape[1] == call.offset.shape[1]


def _deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step) -> Result:
    offset_groups = offset.shape[1] // (2 * weight.shape[2] * weight.shape[3])
    mask_or_empty = input.new_zeros(input.shape[0], 1) if mask is None else mask
    bias = input.new_zeros(weight.shape[0]) if bias is None else bias
    numbers = (*stride, *padding, *dilation, groups, offset_groups)
    convolve = torch.ops.torchvision.deform_conv2d
    return convolve(input, weight, offset, mask_or_empty, bias, *numbers, mask is not None)


def _nms(boxes, scores, iou_threshold) -> Result:
    return torch.ops.torchvision.nms(boxes, scores, iou_threshold)


def _roi_align(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned) -> Result:
    size = (output_h, output_w)
    pooled = torch.ops.torchvision.roi_align(input, rois, spatial_scale, *size, sampling_ratio, aligned)
    return pooled, *(input.new_empty(0, dtype=torch.promote_types(input.dtype, torch.float32)) for _ in "yx")


CAPABILITIES = {
    "deform_conv": Kernel("deform_conv2d", _convolution_fits, _deform_conv),
    "nms": Kernel("nms", lambda call: call.boxes.dtype == call.scores.dtype, _nms),
    # the average
    "roi_align": Kernel(
        "roi_align", lambda call: call.pool_mode == 1 and call.rois.dtype == call.input.dtype, _roi_align
    ),
}


def has(name: str, key: str) -> bool:
    """Whether torchvision has a kernel of its own for this device."""
    if name not in CAPABILITIES:
        return False
    other = CAPABILITIES[name].name
    return (
        (other, key) not in registered
        and hasattr(torch.ops.torchvision, other)
        and torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{other}", key)
    )


def fits(name: str, key: str, call: Any) -> bool:
    """Whether torchvision has a kernel for this device and these arguments."""
    if not has(name, key) or call[0].dtype not in DTYPES:
        return False
    kernel = CAPABILITIES[name]
    return kernel.fits(call) and takes(kernel.run, call)


def run(name: str, call: Any) -> Result:
    kernel = CAPABILITIES[name].run
    return kernel(**keywords(kernel, call))
