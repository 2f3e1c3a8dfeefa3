"""DCNv3, DCNv4 and multi-scale deformable attention: functions and records."""

import torch
from torch import Tensor

from . import checks, flops, plain, reference
from ._arguments import Int2, check_integers, check_tensors, pair, shape_text
from ._autograd import with_backward
from .operator import Operator
from .register import register
from .tracing import is_traced


def dcnv3(
    input: Tensor,  # [N, H, W, C]
    offset: Tensor,  # [N, oH, oW, group·P·2], (x, y) pairs, in input pixels
    mask: Tensor,  # [N, oH, oW, group·P]
    kernel_size: Int2,
    stride: Int2,
    padding: Int2,
    dilation: Int2,
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool = False,
    im2col_step: int | None = None,
) -> Tensor:  # [N, oH, oW, C]
    """DCNv3: for each group of channels, the sum of P bilinear samples weighted by ``mask``; channels last.

    The part of InternImage's ``DCNv3`` layer between the linear projections (Wang et al. 2023, eq. 2). It has
    no weights of its own.

    Args:
        input: ``(N, H, W, C)`` with ``C = group · group_channels``; float64, float32, bfloat16 or float16.
        offset: ``(N, oH, oW, group · P · 2)``: an (x, y) pair per group and tap, in input pixels. Taps are
            x-major: tap ``i·kH + j`` is in column i and row j of the kernel.
        mask: ``(N, oH, oW, group · P)``, used without an activation. (InternImage applies a softmax over each
            group's taps.)
        kernel_size, stride, padding, dilation: as in a convolution, an integer or a (height, width) pair. P
            is the number of taps.
        group, group_channels: number of channel groups, and channels of each. The channels of a group share
            their sampling points.
        offset_scale: scales the offsets, and the kernel about its middle tap.
        remove_center: leave out the middle tap of an odd kernel: ``P = kH·kW - 1``.
        im2col_step: no effect; accepted for compatibility with the official signature. Any value >= 1 works
            with any batch size.

    Returns:
        ``(N, oH, oW, C)``, contiguous.

    A sample with a coordinate <= -1, >= size or NaN is zero. Any other sample is bilinear on the map padded
    with zeros, as in :func:`deform_conv2d`.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid.
        TypeError: an argument is not a tensor, or not a number.
    """
    if not torch.jit.is_scripting():
        check_tensors("dcnv3", input=input, offset=offset, mask=mask)
        check_integers("dcnv3", group=group, group_channels=group_channels)
    if im2col_step is not None and im2col_step < 1:
        raise RuntimeError(f"dcnv3: im2col_step: expected at least 1, got {im2col_step}")
    kernel = (pair("dcnv3", "kernel_size", kernel_size), pair("dcnv3", "stride", stride))
    padding, dilation = pair("dcnv3", "padding", padding), pair("dcnv3", "dilation", dilation)
    options = (group, group_channels, float(offset_scale), bool(remove_center))
    return torch.ops.dcnzoo.dcnv3(input, offset, mask, *kernel, padding, dilation, *options)


def dcnv4(
    input: Tensor,  # [N, H, W, C]
    offset_mask: Tensor,  # [N, oH, oW, group·3P, padded to a multiple of 8]
    kernel_size: Int2,
    stride: Int2,
    padding: Int2,
    dilation: Int2,
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool = False,
) -> Tensor:  # [N, oH, oW, C]
    """DCNv4: :func:`dcnv3` with offsets and mask in one tensor.

    The part of the ``DCNv4`` layer between the linear projections (Xiong et al. 2024). Unlike DCNv3, the
    layer applies no softmax to the mask.

    Args:
        input: ``(N, H, W, C)`` with ``C = group · group_channels``; float64, float32, bfloat16 or float16.
        offset_mask: ``(N, oH, oW, ceil(group · 3P / 8) · 8)``: for each group P (x, y) pairs, then P mask
            values. The padding at the end is not read, and its gradient is zero.
        kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove_center: as in
            :func:`dcnv3`, with the same order of taps.

    Returns:
        ``(N, oH, oW, C)``, contiguous.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid.
        TypeError: an argument is not a tensor, or not a number.
    """
    if not torch.jit.is_scripting():
        check_tensors("dcnv4", input=input, offset_mask=offset_mask)
        check_integers("dcnv4", group=group, group_channels=group_channels)
    kernel = (pair("dcnv4", "kernel_size", kernel_size), pair("dcnv4", "stride", stride))
    padding, dilation = pair("dcnv4", "padding", padding), pair("dcnv4", "dilation", dilation)
    options = (group, group_channels, float(offset_scale), bool(remove_center))
    return torch.ops.dcnzoo.dcnv4(input, offset_mask, *kernel, padding, dilation, *options)


def level_starts(spatial_shapes: Tensor) -> Tensor:  # [L, 2] -> [L]
    """Return the index of each level's first pixel in ``value``, which contains the levels one by one."""
    areas = spatial_shapes.prod(1)
    return areas.cumsum(0) - areas


def as_int64(integers: Tensor) -> Tensor:
    """Return an int32 tensor as int64, and any other tensor unchanged."""
    if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript skips the block only for a lone condition)
        if is_traced(integers):
            return integers
    return integers.long() if integers.dtype == torch.int32 else integers


def ms_deform_attn(
    value: Tensor,  # [N, S, heads, D]
    spatial_shapes: Tensor,  # [L, 2], (height, width)
    level_start_index: Tensor,  # [L]
    sampling_locations: Tensor,  # [N, Q, heads, L, P, 2], (x, y) in units of the level's size
    attention_weights: Tensor,  # [N, Q, heads, L, P]
) -> Tensor:  # [N, Q, heads·D]
    """For each query and head, the weighted sum of the samples at its points on all levels.

    Deformable DETR (Zhu et al. 2021, eq. 3), without the linear projections. Same layout and results as
    ``MultiScaleDeformableAttnFunction`` of mmcv.

    Args:
        value: the pixels of all levels, one level after the other: ``(N, S, heads, D)``; float64, float32,
            bfloat16 or float16.
        spatial_shapes: the levels' (height, width), int64 or int32.
        level_start_index: index in S of each level's first pixel, int64 or int32.
        sampling_locations: ``(N, Q, heads, L, P, 2)``, (x, y) normalised to the level's size. (0, 0) is the
            upper left corner of a level, (1, 1) the lower right one; pixel i has its centre at
            ``(i + 0.5) / size``.
        attention_weights: ``(N, Q, heads, L, P)``, used without an activation (apply the softmax yourself).

    Returns:
        ``(N, Q, heads · D)``, contiguous.

    A level is padded with zeros, as in ``F.grid_sample(align_corners=False)``: samples near the border
    interpolate to zero, and a coordinate <= -1 or >= size, in pixels from the first pixel's centre, gives
    zero.

    Raises:
        RuntimeError: a shape, dtype or device is invalid; on the CPU also if a level exceeds ``value``. On
            CUDA, where this check would stall the device, such a level reads as zeros.
        TypeError: an argument is not a tensor.
    """
    if not torch.jit.is_scripting():
        check_tensors(
            "ms_deform_attn",
            value=value,
            spatial_shapes=spatial_shapes,
            level_start_index=level_start_index,
            sampling_locations=sampling_locations,
            attention_weights=attention_weights,
        )
    levels = (as_int64(spatial_shapes), as_int64(level_start_index))
    return torch.ops.dcnzoo.ms_deform_attn(value, *levels, sampling_locations, attention_weights)


def flash_deform_attn(
    value: Tensor,  # [N, S, heads, D]
    spatial_shapes: Tensor,  # [L, 2], (height, width)
    level_start_index: Tensor,  # [L]
    sampling_loc_attn: Tensor,  # [N, Q, heads, L·P·3]
) -> Tensor:  # [N, Q, heads·D]
    """:func:`ms_deform_attn` with locations and logits in one tensor. It applies the softmax itself.

    The layout is that of DCNv4's ``FlashDeformAttn`` (Xiong et al. 2024): for each head the (x, y) locations
    of all L·P points, then their L·P logits. The softmax is over a head's points on all levels.

    Raises:
        RuntimeError: as in :func:`ms_deform_attn`, or the last axis is not a multiple of 3·L.
        TypeError: an argument is not a tensor.
    """
    traced = False
    if not torch.jit.is_scripting():
        check_tensors("flash_deform_attn", spatial_shapes=spatial_shapes, sampling_loc_attn=sampling_loc_attn)
        traced = is_traced(sampling_loc_attn)
    levels = spatial_shapes.shape[0]
    size = list(sampling_loc_attn.shape)
    if not traced and (len(size) != 4 or levels < 1 or size[3] % (3 * levels) != 0):
        raise RuntimeError(
            "flash_deform_attn: sampling_loc_attn: expected shape (batch, queries, heads, a multiple of "
            f"3 · {levels} levels), got {shape_text(size)}"
        )
    points = sampling_loc_attn.shape[3] // (3 * levels)
    locations, logits = sampling_loc_attn.split([levels * points * 2, levels * points], dim=3)
    return ms_deform_attn(
        value,
        spatial_shapes,
        level_start_index,
        locations.unflatten(3, (levels, points, 2)),
        logits.softmax(3).unflatten(3, (levels, points)),
    )


def _fake(input, field, *arguments):
    return input.new_empty((*field.shape[:3], input.shape[3]))


DCNV3 = Operator(
    "dcnv3",
    reference=reference.dcnv3,
    plain=plain.dcnv3,
    fake=_fake,
    check=checks.dcnv3,
    float32=("offset", "mask"),
    batched="mmm->m",
    flops=flops.deform_attn,
    fused=True,
)
register(*with_backward(DCNV3, ("input", "offset", "mask")))
DCNV4 = Operator(
    "dcnv4",
    reference=reference.dcnv4,
    plain=plain.dcnv4,
    fake=_fake,
    check=checks.dcnv4,
    float32=("offset_mask",),
    batched="mm->m",
    flops=flops.deform_attn,
    fused=True,
)
register(*with_backward(DCNV4, ("input", "offset_mask")))


def _fake_ms(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    return value.new_empty((value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3]))


MS_DEFORM_ATTN = Operator(
    "ms_deform_attn",
    reference=reference.ms_deform_attn,
    plain=plain.ms_deform_attn,
    fake=_fake_ms,
    check=checks.ms_deform_attn,
    check_numbers=checks.levels,
    float32=("sampling_locations", "attention_weights"),
    batched="mssmm->m",
    flops=flops.ms_deform_attn,
    fused=True,
)
register(*with_backward(MS_DEFORM_ATTN, ("value", "sampling_locations", "attention_weights")))
