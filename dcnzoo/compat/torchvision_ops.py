"""Kernels for torchvision's operators, and the operators themselves where its library does not load.

They have the arguments and results of torchvision's schemas, versions 0.20 to 0.29. Results are contiguous
and have the dtypes of torchvision's fake kernels, also under autocast. RoI pooling and position-sensitive
RoIAlign are in plain PyTorch.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dcnzoo import ops
from dcnzoo.compat.mmcv.plain import at_least_float32


def _arguments(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, stride_h: int, stride_w: int,
    pad_h: int, pad_w: int, dilation_h: int, dilation_w: int, groups: int, offset_groups: int, use_mask: bool,
) -> tuple[tuple, Tensor, tuple]:  # fmt: skip
    """The arguments of dcnzoo's operator: input, weight, offset and mask; the bias; the geometry.

    Under autocast on the CPU, the dtypes differ: convert the weight and the bias to the dtype of the input,
    and offset and mask to that dtype or a wider one.
    """
    offset, mask = (t.to(torch.promote_types(t.dtype, input.dtype)) for t in (offset, mask))
    tensors = (input, weight.to(input.dtype), offset, mask if use_mask else None)
    geometry = ((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), groups, None)
    return tensors, bias.to(input.dtype), geometry


def deform_conv2d(*arguments: Tensor | int) -> Tensor:
    tensors, bias, geometry = _arguments(*arguments)
    with torch.autocast("cpu", enabled=False):
        return torch.ops.dcnzoo.deform_conv(*tensors, bias, *geometry).contiguous()


def _deform_conv2d_backward(grad: Tensor, *arguments: Tensor | int) -> tuple[Tensor, ...]:
    inputs, use_mask = arguments[:5], arguments[-1]
    tensors, _, geometry = _arguments(*arguments)
    output_mask = [True, True, True, use_mask, True]
    gradients = list(torch.ops.dcnzoo._deform_conv_backward(grad, *tensors, *geometry, output_mask))
    if not use_mask:
        gradients[3] = torch.zeros_like(inputs[3])
    return tuple(g.to(tensor.dtype).contiguous() for g, tensor in zip(gradients, inputs, strict=True))


def roi_align(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int,
    sampling_ratio: int, aligned: bool,
) -> Tensor:  # fmt: skip
    size = (pooled_height, pooled_width)
    return ops.roi_align(
        input, rois, size, spatial_scale, max(sampling_ratio, 0), "avg", aligned
    ).contiguous()


def _roi_align_backward(
    grad: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int, batch_size: int,
    channels: int, height: int, width: int, sampling_ratio: int, aligned: bool,
) -> Tensor:  # fmt: skip
    no_maxima = grad.new_empty(0, dtype=torch.promote_types(grad.dtype, torch.float32))
    size = [batch_size, channels, height, width]
    arguments = (size, spatial_scale, max(sampling_ratio, 0), 1, aligned)
    return torch.ops.dcnzoo._roi_align_backward(grad, rois, no_maxima, no_maxima, *arguments).contiguous()


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return ops.nms(dets, scores, iou_threshold)


# Position-sensitive RoIAlign (Dai et al. 2016): bin (i, j) reads its own channel of each group of channels


def _channels(input_channels: int, height: int, width: int) -> Tensor:
    """The input channel of each output value, ``[C, height, width]``."""
    return torch.arange(input_channels, dtype=torch.int32).view(-1, height, width)


def ps_roi_align(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int,
    sampling_ratio: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pooled = roi_align(input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, True)
    channels = _channels(input.shape[1], pooled_height, pooled_width).to(input.device)
    channels = channels.expand(len(rois), *channels.shape).contiguous()
    return pooled.gather(1, channels.long()), channels


def _ps_roi_align_backward(
    grad: Tensor, rois: Tensor, channel_mapping: Tensor, spatial_scale: float, pooled_height: int,
    pooled_width: int, sampling_ratio: int, batch_size: int, channels: int, height: int, width: int,
) -> Tensor:  # fmt: skip
    pooled = grad.new_zeros(len(rois), channels, pooled_height, pooled_width)
    pooled.scatter_(1, channel_mapping.long(), grad)
    geometry = (spatial_scale, pooled_height, pooled_width, batch_size, channels, height, width)
    return _roi_align_backward(pooled, rois, *geometry, sampling_ratio, True)


# RoI pooling (Girshick 2015), and its position-sensitive form


def _bins(
    rois: Tensor, spatial_scale: float, pooled: tuple[int, int], size: tuple[int, int], inclusive: bool
) -> Iterator[tuple[int, int, tuple[int, int], tuple[slice, slice]]]:
    """Yield each bin with pixels: the RoI, its image, the bin, and the slices of the bin's rows and columns.

    Args:
        inclusive: whether the end of a RoI, and the last row and column of the map, belong to it.
    """
    scaled = at_least_float32(rois)[:, 1:] * spatial_scale
    corners = torch.where(scaled < 0, (scaled - 0.5).ceil(), (scaled + 0.5).floor())  # as C++ rounds
    slices = []
    for axis in (0, 1):  # y, x
        start, end = corners[:, 1 - axis, None], corners[:, 3 - axis, None]
        step = (end - start + inclusive).clamp(min=1) / pooled[axis]
        edge = torch.arange(pooled[axis] + 1, device=rois.device)
        last = size[axis] - (not inclusive)
        low = ((edge[:-1] * step).floor() + start).clamp(0, last).long().tolist()
        high = ((edge[1:] * step).ceil() + start).clamp(0, last).long().tolist()
        slices.append(
            [[slice(*ends) for ends in zip(*roi, strict=True)] for roi in zip(low, high, strict=True)]
        )
    for roi, image in enumerate(rois[:, 0].long().tolist()):
        for i, rows in enumerate(slices[0][roi]):
            for j, columns in enumerate(slices[1][roi]):
                if rows.start < rows.stop and columns.start < columns.stop:
                    yield roi, image, (i, j), (rows, columns)


def roi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    """The largest value of each bin, and its place in the map (−1 for a bin without pixels)."""
    size = (pooled_height, pooled_width)
    output = input.new_zeros(len(rois), input.shape[1], *size)
    argmax = torch.full_like(output, -1, dtype=torch.int32)
    for roi, image, (i, j), (rows, columns) in _bins(rois, spatial_scale, size, input.shape[2:], True):
        values, index = input[image, :, rows, columns].flatten(1).max(1)
        width = columns.stop - columns.start
        output[roi, :, i, j] = values
        place = (rows.start + index // width) * input.shape[3] + columns.start + index % width
        argmax[roi, :, i, j] = place.to(torch.int32)
    return output, argmax


def _roi_pool_backward(
    grad: Tensor, rois: Tensor, argmax: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int,
    batch_size: int, channels: int, height: int, width: int,
) -> Tensor:  # fmt: skip
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    place = plane[:, :, None, None] * height * width + argmax
    has_pixels = argmax >= 0
    result = grad.new_zeros(batch_size, channels, height, width)
    result.view(-1).index_add_(0, place[has_pixels], grad[has_pixels])
    return result


def ps_roi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    """The mean of each bin, and its channel."""
    size = (pooled_height, pooled_width)
    channels = _channels(input.shape[1], *size).to(input.device)
    output = input.new_zeros(len(rois), *channels.shape)
    maps = input.unflatten(1, channels.shape)  # [N, C, pooled_height, pooled_width, H, W]
    for roi, image, (i, j), (rows, columns) in _bins(rois, spatial_scale, size, input.shape[2:], False):
        output[roi, :, i, j] = maps[image, :, i, j, rows, columns].mean((1, 2))
    return output, channels.expand_as(output).contiguous()


def _ps_roi_pool_backward(
    grad: Tensor, rois: Tensor, channel_mapping: Tensor, spatial_scale: float, pooled_height: int,
    pooled_width: int, batch_size: int, channels: int, height: int, width: int,
) -> Tensor:  # fmt: skip
    """The derivative. (torchvision's own backward spreads some gradients over a row or column more.)"""
    size = (pooled_height, pooled_width)
    result = grad.new_zeros(batch_size, channels, height, width)
    maps = result.view(batch_size, -1, *size, height, width)
    for roi, image, (i, j), (rows, columns) in _bins(rois, spatial_scale, size, (height, width), False):
        pixels = (rows.stop - rows.start) * (columns.stop - columns.start)
        maps[image, :, i, j, rows, columns] += (grad[roi, :, i, j] / pixels)[:, None, None]
    return result


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
    f"roi_pool(Tensor input, {_ROIS}) -> (Tensor, Tensor)",
    f"_roi_pool_backward(Tensor grad, {_MAPPED.replace('channel_mapping', 'argmax')}, {_SIZE}) -> Tensor",
    f"ps_roi_align(Tensor input, {_ROIS}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward(Tensor grad, {_MAPPED}, int sampling_ratio, {_SIZE}) -> Tensor",
    f"ps_roi_pool(Tensor input, {_ROIS}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward(Tensor grad, {_MAPPED}, {_SIZE}) -> Tensor",
    # without a kernel: the import of torchvision needs the names
    "box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"qroi_align(Tensor input, {_QUANTIZED}, int sampling_ratio, bool aligned) -> Tensor",
)
registered: set[tuple[str, str]] = set()  # operators and dispatch keys with a kernel of this module
_library: torch.library.Library | None = None


def define_missing(with_autograd: bool) -> None:
    """Define operators that torchvision lacks, and kernels that they lack for the CPU and CUDA.

    Args:
        with_autograd: register the derivatives of operators that are defined. From version 0.28 on,
            torchvision does that in Python.
    """
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    if not hasattr(torch.ops.torchvision, "_cuda_version"):
        _library.define("_cuda_version() -> int")
        _library.impl("_cuda_version", lambda: -1, "CompositeExplicitAutograd")
    defined = []
    for schema in SCHEMAS:
        name = schema.partition("(")[0]
        if not hasattr(torch.ops.torchvision, name):
            _library.define(schema)
            defined.append(name)
        for key in ("CPU", "CUDA"):
            has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{name}", key)
            if name in globals() and not has_kernel:
                _library.impl(name, globals()[name], key)
                registered.add((name, key))
    for name in defined:
        if with_autograd and f"_{name}_backward" in globals():
            _register_autograd(name)


def _register_autograd(name: str) -> None:
    backward_function: Callable = getattr(torch.ops.torchvision, f"_{name}_backward")
    before_size = 4 if name == "ps_roi_align" else 3

    def setup_context(ctx, inputs, output):
        ctx.tensors = sum(isinstance(value, Tensor) for value in inputs)
        others = () if isinstance(output, Tensor) else output[1:]
        ctx.save_for_backward(*inputs[: ctx.tensors], *others)
        ctx.numbers = inputs[ctx.tensors :]

    def backward(ctx, grad, *_):
        if name == "deform_conv2d":
            gradients = backward_function(grad, *ctx.saved_tensors, *ctx.numbers)
        else:
            input, *tensors = ctx.saved_tensors
            numbers = (*ctx.numbers[:before_size], *input.shape, *ctx.numbers[before_size:])
            gradients = (backward_function(grad, *tensors, *numbers), None)
        return *gradients, *[None] * len(ctx.numbers)

    torch.library.register_autograd(
        f"torchvision::{name}", backward, setup_context=setup_context, lib=_library
    )
