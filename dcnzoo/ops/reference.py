"""Deformable operators in plain PyTorch: the oracle that the compiled kernels are tested against.

Written for readability, not for speed: explicit corners, no ``grid_sample``. Autograd can differentiate
everything twice, and everything runs on any device and in any floating dtype.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dcnzoo.ops._arguments import memory_format
from dcnzoo.ops.geometry import deform_attn_points, output_size, sampling_points, transposed_size

# Limit of a bin's samples along an axis, as in ops/common/roi_math.h. A RoI that needs more gives zeros.
MOST_SAMPLES = 1 << 22


def corners(points: Tensor, size: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the 2^rank pixels around each point: ``(flat index, weight, valid)``, each ``(B, P)``.

    Args:
        points: ``(B, rank, P)``, coordinates in pixels, slowest axis (z or y) first.
        size: size of the map.

    A corner outside the map is not valid: its weight is zero, and its index is an arbitrary pixel of the map.
    No corner is valid if a coordinate of the point is <= -1, >= size (the border rule of DCNv2) or NaN.
    """
    rank = len(size)
    extent = points.new_tensor(size).view(1, rank, 1)
    inside = ((points > -1) & (points < extent)).all(dim=1)  # (B, P); NaN compares false
    points = torch.where(inside[:, None], points, torch.zeros_like(points))
    low = points.detach().floor()
    fraction = points - low  # (B, rank, P)
    for corner in itertools.product((0, 1), repeat=rank):
        step = low.new_tensor(corner).view(1, rank, 1)
        position = low + step
        weight = torch.where(step > 0, fraction, 1 - fraction).prod(dim=1)  # (B, P)
        valid = inside & ((position >= 0) & (position < extent)).all(dim=1)
        weight = torch.where(valid, weight, torch.zeros_like(weight))  # also stops an Inf gradient
        index = torch.zeros_like(valid, dtype=torch.long)
        for axis in range(rank):
            index = index * size[axis] + position[:, axis].clamp(0, max(size[axis] - 1, 0)).long()
        yield index, weight, valid


def sample_multilinear(feature: Tensor, points: Tensor) -> Tensor:
    """Reads ``feature`` ``(B, C, *size)`` at ``points`` ``(B, rank, P)``: ``(B, C, P)``.

    Multilinear on the map padded with zeros; see :func:`corners`.
    """
    channels, flat = feature.shape[1], feature.flatten(2)
    out = feature.new_zeros(*feature.shape[:2], points.shape[2])
    for index, weight, valid in corners(points, feature.shape[2:]):
        values = flat.gather(2, index[:, None].expand(-1, channels, -1))
        values = torch.where(valid[:, None], values, torch.zeros_like(values))
        out = out + values * weight[:, None].to(values.dtype)
    return out


def spread_multilinear(values: Tensor, points: Tensor, size: Sequence[int]) -> Tensor:
    """Adds ``values`` ``(B, C, P)`` to a map ``(B, C, *size)`` of zeros at ``points`` ``(B, rank, P)``.

    Each value is distributed among the pixels around its point; see :func:`corners`. With deterministic
    algorithms, torch's ``index_put`` adds in a fixed order: it sorts the pixels, once for all channels.
    """
    batch, pixels = len(values), math.prod(size)
    rows = values.transpose(1, 2)  # (B, P, C)
    out = rows.new_zeros(batch * pixels, rows.shape[2])
    first = torch.arange(batch, device=values.device)[:, None] * pixels
    for index, weight, valid in corners(points, size):
        part = torch.where(valid[..., None], rows * weight[..., None].to(rows.dtype), rows.new_zeros(()))
        out = out.index_put(((first + index).flatten(),), part.flatten(0, 1), accumulate=True)
    return out.unflatten(0, (batch, pixels)).transpose(1, 2).unflatten(2, tuple(size))


def deform_conv(
    input: Tensor,  # (N, C, *in)
    weight: Tensor,  # (O, C / groups, *kernel)
    offset: Tensor | None,  # (N, G·K·rank, *out)
    mask: Tensor | None,  # (N, M·K, *out)
    bias: Tensor | None,  # (O,)
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    im2col_step: int | None = None,  # bounds the memory of kernels
) -> Tensor:
    """Deformable convolution of any rank.

    DCN (Dai et al. 2017, eq. 2) without ``mask``, DCNv2 (Zhu et al. 2019, eq. 1) with it::

        out[n, o, p] = bias[o] + sum_{c, k} weight[o, c, k] · mask[n, m(c), k, p]
                                 · input[n, c, p·stride - padding + k·dilation + offset[n, g(c), k, p]]
    """
    batch, channels = input.shape[:2]
    kernel = weight.shape[2:]
    rank, taps = len(kernel), math.prod(kernel)
    out_size = output_size(input.shape[2:], kernel, stride, padding, dilation)
    pixels = math.prod(out_size)
    accumulate = torch.promote_types(input.dtype, torch.float32)
    feature, kernel_weight = input.to(accumulate), weight.to(accumulate)

    points = sampling_points(offset, kernel, out_size, stride, padding, dilation, feature)
    points = _points_of_groups(points, batch)
    grouped = feature.unflatten(1, (points.shape[1], -1)).flatten(0, 1)
    columns = sample_multilinear(grouped, points.flatten(0, 1)).reshape(batch, channels, taps, pixels)
    columns = _weighted(columns, mask).reshape(batch, groups, channels // groups * taps, pixels)
    matrix = kernel_weight.reshape(groups, weight.shape[0] // groups, channels // groups * taps)
    out = torch.einsum("gok,ngkp->ngop", matrix, columns)
    out = out.reshape(batch, weight.shape[0], *out_size)
    if bias is not None:
        out = out + bias.to(accumulate).view(1, -1, *[1] * rank)
    return out.to(input.dtype).contiguous(memory_format=memory_format(input))


def deform_conv_transpose(
    input: Tensor,  # (N, C, *in)
    weight: Tensor,  # (C, O / groups, *kernel)
    offset: Tensor | None,  # (N, G·K·rank, *in)
    mask: Tensor | None,  # (N, M·K, *in)
    bias: Tensor | None,  # (O,)
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    im2col_step: int | None = None,
) -> Tensor:
    """Transposed deformable convolution of any rank. Every input pixel p adds ::

        weight[c, o, k] · mask[n, m(o), k, p] · input[n, c, p]

    to ``out[n, o]`` at ``p·stride - padding + k·dilation + offset[n, g(o), k, p]``, bilinearly.
    """
    batch, channels, *in_size = input.shape
    kernel = weight.shape[2:]
    rank, taps, pixels = len(kernel), math.prod(kernel), math.prod(in_size)
    outputs = weight.shape[1] * groups
    out_size = transposed_size(in_size, kernel, stride, padding, output_padding, dilation)
    accumulate = torch.promote_types(input.dtype, torch.float32)
    maps = input.to(accumulate).reshape(batch, groups, channels // groups, pixels)
    matrix = weight.to(accumulate).reshape(groups, channels // groups, outputs // groups * taps)
    columns = torch.einsum("gck,ngcp->ngkp", matrix, maps).reshape(batch, outputs, taps, pixels)

    points = sampling_points(offset, kernel, in_size, stride, padding, dilation, maps)
    points = _points_of_groups(points, batch)
    columns = _weighted(columns, mask).unflatten(1, (points.shape[1], -1)).flatten(0, 1).flatten(2)
    out = spread_multilinear(columns, points.flatten(0, 1), out_size).reshape(batch, outputs, *out_size)
    if bias is not None:
        out = out + bias.to(accumulate).view(1, -1, *[1] * rank)
    return out.to(input.dtype).contiguous(memory_format=memory_format(input))


def _points_of_groups(points: Tensor, batch: int) -> Tensor:  # (N or 1, G, K, rank, *out)
    """Return the points of each image and offset group: ``(N, G, rank, K·out)``."""
    return points.expand(batch, *points.shape[1:]).transpose(2, 3).flatten(3)


def _weighted(columns: Tensor, mask: Tensor | None) -> Tensor:  # (N, C, K, out), (N, M·K, *out)
    """Multiply the values of each mask group of channels by the mask."""
    if mask is None:
        return columns
    weights = mask.to(columns.dtype).flatten(2).unflatten(1, (-1, 1, columns.shape[2]))
    return (columns.unflatten(1, (weights.shape[1], -1)) * weights).flatten(1, 2)


def deform_roi_pool(
    input: Tensor,  # (N, C, H, W)
    rois: Tensor,  # (K, 5), (image, x1, y1, x2, y2)
    offset: Tensor | None,  # (K, 2, oH, oW), x and y
    output_size: Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Deformable RoI pooling (Dai et al. 2017, sec. 2.2), one RoI at a time.

    Along an axis on which the RoI is ``length`` pixels long, a bin is sampled at ``start + (bin + (sample +
    0.5) / samples) · length / bins + gamma · length · offset``.
    """
    return _pool_each(input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, aligned=True)


def roi_align(
    input: Tensor,  # (N, C, H, W)
    rois: Tensor,  # (K, 5), (image, x1, y1, x2, y2)
    output_size: Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign (He et al. 2017, sec. 3), one RoI at a time.

    Along an axis on which the RoI is ``length`` pixels long, a bin is sampled at ``start + (bin + (sample +
    0.5) / samples) · length / bins``.
    """
    return _pool_each(input, rois, None, output_size, spatial_scale, sampling_ratio, 0.0, aligned)


def box_in_pixels(rois: Tensor, spatial_scale: float, aligned: bool) -> tuple[Tensor, Tensor]:
    """Return the origins and the sizes of ``rois`` ``(…, 5)``: ``(…, 2)`` each, (y, x)."""
    corners = rois[..., 1:].unflatten(-1, (2, 2)).flip(-1) * spatial_scale - 0.5 * aligned
    low, high = corners.unbind(-2)
    return low, high - low if aligned else (high - low).clamp(min=1)


def displacement(reach: Tensor, offset: Tensor) -> Tensor:
    """Return how far ``offset`` moves a bin that an offset of 1 moves by ``reach`` pixels."""
    moved = reach * offset.to(reach.dtype)
    return torch.where(reach != 0, moved, moved.detach())  # 0 · Inf must not give a NaN gradient


def _pool_each(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    bins: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
    aligned: bool,
) -> Tensor:
    """Pools one RoI at a time: the mean of each bin's samples, and zero without samples."""
    accumulate = torch.promote_types(input.dtype, torch.float32)
    feature = input.to(accumulate)
    nothing = feature.new_zeros(1, input.shape[1], *bins)
    pooled = [nothing[:0]]
    for row, roi in enumerate(rois.to(accumulate)):
        origin, length = box_in_pixels(roi, spatial_scale, aligned)
        finite = roi.isfinite().all() & length.isfinite().all()
        samples: Any = (length / length.new_tensor(bins)).ceil()
        if sampling_ratio > 0:
            samples = [sampling_ratio] * 2
        if sampling_ratio <= 0 and not (finite and min(samples) > 0 and max(samples) <= MOST_SAMPLES):
            pooled.append(nothing)
            continue
        # vmap cannot branch on values: move a RoI that is not finite outside the map, where it gives zeros
        origin, length = torch.where(finite, origin, -2), torch.where(finite, length, 0)
        points = []
        for axis in range(2):
            steps = bin_samples(axis, bins, samples, origin) * length[axis] / bins[axis]
            points.append(origin[axis] + steps)
            if offset is not None:
                moved = displacement(gamma * length[axis], offset[row, 1 - axis])
                points[axis] = points[axis] + moved[..., None, None]
        maps = feature[roi[:1].long()][0]  # [C, H, W]
        values = interpolate_clamped(lambda y, x: maps[:, y, x], maps.shape[1:], *points)  # noqa: B023
        pooled.append(values.flatten(-2).mean(-1)[None])  # the mean of [C, oH, oW, n, n]
    return torch.cat(pooled).to(input.dtype)


def bin_samples(
    axis: int, bins: Sequence[int], samples: Sequence[float | Tensor], like: Tensor
) -> Tensor:  # (oH, 1, samples, 1) for axis 0, (1, oW, 1, samples) for axis 1
    """Return the evenly spaced samples of a RoI's bins along an axis, in bins from the RoI's start."""
    count = int(samples[axis])
    within = (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count
    places = torch.arange(bins[axis], device=like.device, dtype=like.dtype)[:, None] + within
    return places[:, None, :, None] if axis == 0 else places[None, :, None, :]


def interpolate_clamped(
    pixels: Callable[[Tensor, Tensor], Tensor], size: Sequence[int], y: Tensor, x: Tensor
) -> Tensor:
    """Return the bilinear mean of ``pixels(row, column)`` around ``(y, x)``, with RoIAlign's border rule.

    A point up to one pixel outside a map of ``size`` reads only the border pixel. A point further out, or
    NaN, gives zero and passes no gradient.
    """
    axes = []
    for point, extent in zip((y, x), size, strict=True):
        # logical_and, not &, which Core ML's converter lacks; NaN compares false
        on_axis = torch.logical_and(point >= -1, point <= extent)
        between = torch.logical_and(point >= 0, point < extent - 1)  # between two pixel centres
        low = torch.where(on_axis, point.detach(), torch.zeros_like(point)).clamp(0, extent - 1).floor()
        fraction = torch.where(between, point - low, torch.zeros_like(point))
        high = (low + 1).clamp(max=extent - 1)
        axes.append([(low.long(), 1 - fraction, on_axis), (high.long(), fraction, between)])
    values: Any = 0
    for row, row_weight, row_read in axes[0]:
        for column, column_weight, column_read in axes[1]:
            value, weight = pixels(row, column), row_weight * column_weight
            # a pixel that is not read, and its weight, get no gradient, even if they are Inf
            read = torch.logical_and(row_read, column_read)
            value = torch.where(read, value, torch.zeros_like(value))
            values = values + value * torch.where(read, weight, torch.zeros_like(weight))
    return values


def dcnv3(
    input: Tensor,  # (N, H, W, C)
    offset: Tensor,  # (N, oH, oW, group · P · 2), (x, y) pairs
    mask: Tensor,  # (N, oH, oW, group · P)
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool,
) -> Tensor:
    """DCNv3 (Wang et al. 2023, eq. 2), channels last. Taps are x-major::

        out[n, o, g] = sum_p mask[n, o, g, p] · input[n, at(n, o, g, p), g]
        at(n, o, g, p) = o·stride - padding + middle + (tap(p) - middle + offset[n, o, g, p]) · offset_scale

    on each axis. ``tap(p)`` is ``dilation`` times the tap's index in the kernel, and ``middle`` is half of
    the largest ``tap(p)``, rounded down. ``remove_center`` leaves out the tap in the middle of the kernel.
    """
    batch, out_size = input.shape[0], offset.shape[1:3]
    accumulate = torch.promote_types(input.dtype, torch.float32)
    feature = input.to(accumulate)
    grid = deform_attn_points(
        out_size, kernel_size, stride, padding, dilation, offset_scale, remove_center, feature
    )  # (oH, oW, 1, P, 2)
    taps = grid.shape[3]
    offset = offset.to(accumulate).reshape(batch, *out_size, group, taps, 2)
    points = grid + offset * offset_scale  # (N, oH, oW, group, P, 2)
    points = points.flip(-1).permute(0, 3, 5, 1, 2, 4).flatten(3).flatten(0, 1)
    maps = feature.reshape(batch, *input.shape[1:3], group, group_channels).permute(0, 3, 4, 1, 2)
    samples = sample_multilinear(maps.flatten(0, 1), points)
    samples = samples.reshape(batch, group, group_channels, *out_size, taps)
    weights = mask.to(accumulate).reshape(batch, *out_size, group, 1, taps).permute(0, 3, 4, 1, 2, 5)
    out = (samples * weights).sum(-1)  # (N, group, group_channels, oH, oW)
    return out.permute(0, 3, 4, 1, 2).flatten(3).contiguous().to(input.dtype)


def dcnv4(
    input: Tensor,  # (N, H, W, C)
    offset_mask: Tensor,  # (N, oH, oW, group · 3P, padded to a multiple of 8)
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool,
) -> Tensor:
    """DCNv4 (Xiong et al. 2024): :func:`dcnv3` with each group's offsets and mask in one tensor."""
    offset, mask = fields_of_dcnv4(offset_mask, kernel_size, group, remove_center)
    geometry = (kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove_center)
    return dcnv3(input, offset, mask, *geometry)


def fields_of_dcnv4(
    offset_mask: Tensor, kernel_size: Sequence[int], group: int, remove_center: bool
) -> tuple[Tensor, Tensor]:
    """Return offset and mask of :func:`dcnv3`."""
    points = kernel_size[0] * kernel_size[1] - remove_center
    grouped = offset_mask[..., : group * points * 3].unflatten(-1, (group, points * 3))
    offset, mask = grouped.split([points * 2, points], dim=-1)
    return offset.flatten(3), mask.flatten(3)


def ms_deform_attn(
    value: Tensor,  # (N, S, heads, D)
    spatial_shapes: Tensor,  # (L, 2), (height, width)
    level_start_index: Tensor,  # (L,)
    sampling_locations: Tensor,  # (N, Q, heads, L, P, 2), (x, y) in units of the level's size
    attention_weights: Tensor,  # (N, Q, heads, L, P)
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al. 2021, eq. 3) without its linear projections.

    ``value_l`` is the map of level l. A location of 0 is half a pixel before the first pixel's centre::

        out[n, q, h] = sum_{l, p} weights[n, q, h, l, p]
                                  · value_l[n, locations[n, q, h, l, p] · size_l - 0.5, h]
    """
    batch, _, heads, channels = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    accumulate = torch.promote_types(value.dtype, torch.float32)
    out = value.new_zeros(batch, heads, channels, queries, dtype=accumulate)
    levels = zip(spatial_shapes.tolist(), level_start_index.tolist(), strict=True)
    for level, ((height, width), start) in enumerate(levels):
        maps = value[:, start : start + height * width].to(accumulate)
        maps = maps.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        locations = sampling_locations[:, :, :, level].to(accumulate)  # (N, Q, heads, P, 2)
        at = (locations * locations.new_tensor([width, height]) - 0.5).flip(-1)
        at = at.permute(0, 2, 4, 1, 3).reshape(batch * heads, 2, queries * points)
        samples = sample_multilinear(maps, at).reshape(batch, heads, channels, queries, points)
        weights = attention_weights[:, :, :, level].to(accumulate).permute(0, 2, 1, 3)
        out = out + (samples * weights[:, :, None]).sum(-1)
    return out.permute(0, 3, 1, 2).flatten(2).contiguous().to(value.dtype)
