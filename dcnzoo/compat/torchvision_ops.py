"""Kernels for torchvision's operators, and the operators themselves where its library does not load.

They have the arguments and results of torchvision's schemas, versions 0.20 to 0.29. Results are contiguous
and have the dtypes of torchvision's fake kernels, also under autocast. For ``roi_pool``,
``ps_roi_pool`` and ``ps_roi_align``, which dcnzoo lacks, an error names the command that repairs torchvision.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dcnzoo import ops

# The functions take the arguments of SCHEMAS by position.


def _arguments(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *numbers: int
) -> tuple[tuple, Tensor, tuple]:
    """The arguments of dcnzoo's operator: input, weight, offset and mask; the bias; the geometry.

    Under autocast on the CPU, the dtypes differ: convert the weight and the bias to the dtype of the input,
    and offset and mask to that dtype or a wider one.
    """
    offset, mask = (t.to(torch.promote_types(t.dtype, input.dtype)) for t in (offset, mask))
    use_mask = numbers[8]
    tensors = (input, weight.to(input.dtype), offset, mask if use_mask else None)
    stride, padding, dilation, (groups, _) = zip(numbers[:8:2], numbers[1:8:2], strict=True)
    geometry = (stride, padding, dilation, groups, None)
    return tensors, bias.to(input.dtype), geometry


def deform_conv2d(*arguments: Any) -> Tensor:
    """``torchvision::deform_conv2d``."""
    tensors, bias, geometry = _arguments(*arguments)
    with torch.autocast("cpu", enabled=False):
        return torch.ops.dcnzoo.deform_conv(*tensors, bias, *geometry).contiguous()


def _deform_conv2d_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    inputs, use_mask = arguments[:5], arguments[-1]
    tensors, _, geometry = _arguments(*arguments)
    output_mask = [True, True, True, use_mask, True]
    gradients = list(torch.ops.dcnzoo._deform_conv_backward(grad, *tensors, *geometry, output_mask))
    if not use_mask:
        gradients[3] = torch.zeros_like(inputs[3])
    return tuple(g.to(tensor.dtype).contiguous() for g, tensor in zip(gradients, inputs, strict=True))


def roi_align(input: Tensor, rois: Tensor, *options: Any) -> Tensor:
    """``torchvision::roi_align``."""
    scale, *size, ratio, aligned = options
    return ops.roi_align(input, rois, tuple(size), scale, max(ratio, 0), "avg", aligned).contiguous()


def _roi_align_backward(grad: Tensor, rois: Tensor, *options: Any) -> Tensor:
    scale, _height, _width, *size, ratio, aligned = options
    no_maxima = grad.new_empty(0, dtype=torch.promote_types(grad.dtype, torch.float32))
    arguments = (no_maxima, no_maxima, size, scale, max(ratio, 0), 1, aligned)
    return torch.ops.dcnzoo._roi_align_backward(grad, rois, *arguments).contiguous()


# Registration

_ROIS = "Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_MAPPED = _ROIS.replace("rois, float", "rois, Tensor channel_mapping, float")
_SIZE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_POINTS = "float input_scale, int input_zero_point, float rois_scale, int rois_zero_point"
_QUANTIZED = _ROIS.replace("rois,", f"rois, {_POINTS},")
_CONV = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask"
)
SCHEMAS = (
    f"deform_conv2d({_CONV}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_CONV}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align(Tensor input, {_ROIS}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward(Tensor grad, {_ROIS}, {_SIZE}, int sampling_ratio, bool aligned) -> Tensor",
    # names without a kernel, which the import of torchvision needs
    f"ps_roi_align(Tensor input, {_ROIS}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward(Tensor grad, {_MAPPED}, int sampling_ratio, {_SIZE}) -> Tensor",
    f"roi_pool(Tensor input, {_ROIS}) -> (Tensor, Tensor)",
    f"_roi_pool_backward(Tensor grad, {_MAPPED.replace('channel_mapping', 'argmax')}, {_SIZE}) -> Tensor",
    f"ps_roi_pool(Tensor input, {_ROIS}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward(Tensor grad, {_MAPPED}, {_SIZE}) -> Tensor",
    "box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"qroi_align(Tensor input, {_QUANTIZED}, int sampling_ratio, bool aligned) -> Tensor",
)
KERNELS: dict[str, Callable] = {
    "deform_conv2d": deform_conv2d,
    "_deform_conv2d_backward": _deform_conv2d_backward,
    "nms": ops.nms,
    "roi_align": roi_align,
    "_roi_align_backward": _roi_align_backward,
}
_library: torch.library.Library | None = None
registered: set[tuple[str, str]] = set()  # operators and dispatch keys with a kernel of this module


def _refuse(name: str, repair: str, *arguments: object) -> None:
    raise NotImplementedError(
        f"torchvision.ops.{name}: expected a torchvision whose operators load; to repair it: {repair}"
    )


def define_missing(with_autograd: bool, repair: str) -> None:
    """Define operators that torchvision lacks, and kernels that they lack for the CPU and CUDA.

    Args:
        with_autograd: operators that are defined get the derivatives of dcnzoo's operators. From version 0.28
            on, torchvision registers its own in Python.
        repair: the command that repairs torchvision, for errors.
    """
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    if not hasattr(torch.ops.torchvision, "_cuda_version"):
        _library.define("_cuda_version() -> int")
        _library.impl("_cuda_version", lambda: -1, "CompositeExplicitAutograd")
    for schema in SCHEMAS:
        name = schema.partition("(")[0]
        keys = ["CPU", "CUDA"]
        if not hasattr(torch.ops.torchvision, name):
            _library.define(schema)
            if with_autograd and f"_{name}_backward" in KERNELS:
                keys.append("Autograd")
        for key in keys:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{name}", key):
                _library.impl(name, KERNELS.get(name, partial(_refuse, name, repair)), key)
                registered.add((name, key))
