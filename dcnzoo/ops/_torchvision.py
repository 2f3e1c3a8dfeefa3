"""torchvision's kernels for devices on which dcnzoo has none, such as MPS and XPU.

:data:`CAPABILITIES` lists what they compute. Tests call it with another device's dispatch key; it was **not
run on these devices**.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Result = Tensor | tuple[Tensor, ...] | None  # None: torchvision does not support the arguments


def _deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step) -> Result:
    """In two dimensions, with offsets, tensors of one dtype, and a mask in the groups of the offset."""
    tensors = [t for t in (input, weight, offset, mask, bias) if t is not None]
    if weight.dim() != 4 or offset is None or len({t.dtype for t in tensors}) > 1:
        return None
    taps = weight.shape[2] * weight.shape[3]
    offset_groups = offset.shape[1] // (2 * taps)
    if mask is not None and mask.shape[1] != offset_groups * taps:
        return None
    mask_or_empty = input.new_zeros(input.shape[0], 1) if mask is None else mask
    bias = input.new_zeros(weight.shape[0]) if bias is None else bias
    numbers = (*stride, *padding, *dilation, groups, offset_groups)
    convolve = torch.ops.torchvision.deform_conv2d
    return convolve(input, weight, offset, mask_or_empty, bias, *numbers, mask is not None)


def _nms(boxes, scores, iou_threshold, offset=0) -> Result:
    return None if offset else torch.ops.torchvision.nms(boxes, scores, iou_threshold)


def _roi_align(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned) -> Result:
    """Average pooling, with RoIs in the dtype of the input."""
    if pool_mode != 1 or rois.dtype != input.dtype:
        return None
    size = (output_h, output_w)
    pooled = torch.ops.torchvision.roi_align(input, rois, spatial_scale, *size, sampling_ratio, aligned)
    return pooled, *(input.new_empty(0, dtype=torch.promote_types(input.dtype, torch.float32)) for _ in "yx")


# dcnzoo's operator → torchvision's, and a function with the arguments of dcnzoo's
CAPABILITIES: dict[str, tuple[str, Callable[..., Result]]] = {
    "deform_conv": ("deform_conv2d", _deform_conv),
    "nms": ("nms", _nms),
    "roi_align": ("roi_align", _roi_align),
}


def run(name: str, key: str, arguments: tuple) -> Result:
    """The result of torchvision's kernel, or None if it has none for this device and these arguments.

    Args:
        key: the dispatch key of the device. Not ``CPU`` and ``CUDA``, for which dcnzoo may have registered
            its own kernels (:mod:`dcnzoo.compat.torchvision_ops`).
    """
    other, call = CAPABILITIES.get(name, ("", None))
    if call is None or key in ("CPU", "CUDA") or not hasattr(torch.ops.torchvision, other):
        return None
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{other}", key):
        return None
    return call(*arguments)
