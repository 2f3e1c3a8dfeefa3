"""Deformable operators in plain PyTorch: the oracle that the compiled kernels are tested against.

Written to be read, not to be fast: explicit corners, no ``grid_sample``. Everything is
differentiable (twice) by autograd and runs on any device and dtype.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def sample_multilinear(feature: Tensor, points: Tensor) -> Tensor:
    """Reads ``feature`` at real-valued points, multilinearly, on the map padded with zeros.

    Args:
        feature: ``(B, C, *size)``.
        points: ``(B, rank, P)``, coordinates in pixels, slowest axis (z or y) first.

    Returns:
        ``(B, C, P)``. A point with a coordinate <= -1 or >= size is zero (the border rule of
        DCNv2), and so is one that is NaN: neither passes a gradient.
    """
    batch, channels = feature.shape[:2]
    size = feature.shape[2:]
    rank = len(size)
    extent = points.new_tensor(size).view(1, rank, 1)
    inside = ((points > -1) & (points < extent)).all(dim=1)  # (B, P); NaN compares false
    points = torch.where(inside[:, None], points, torch.zeros_like(points))
    low = points.detach().floor()
    fraction = points - low  # (B, rank, P)
    flat = feature.flatten(2)
    out = feature.new_zeros(batch, channels, points.shape[2])
    for corner in itertools.product((0, 1), repeat=rank):
        step = low.new_tensor(corner).view(1, rank, 1)
        position = low + step
        weight = torch.where(step > 0, fraction, 1 - fraction).prod(dim=1)  # (B, P)
        valid = inside & ((position >= 0) & (position < extent)).all(dim=1)
        index = torch.zeros_like(valid, dtype=torch.long)
        for axis in range(rank):
            index = index * size[axis] + position[:, axis].clamp(0, max(size[axis] - 1, 0)).long()
        values = flat.gather(2, index[:, None].expand(-1, channels, -1))
        values = torch.where(valid[:, None], values, torch.zeros_like(values))
        out = out + values * weight[:, None].to(values.dtype)
    return out


def sampling_points(
    offset: Tensor | None,  # (N, G·K·rank, *out)
    kernel: Sequence[int],
    out_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    like: Tensor,
) -> Tensor:
    """Where each tap of each output position reads: ``(N or 1, G or 1, K, rank, *out)``, in pixels."""
    rank = len(kernel)
    axes = []
    for axis in range(rank):
        tap = torch.arange(kernel[axis], device=like.device, dtype=like.dtype) * dilation[axis]
        out = torch.arange(out_size[axis], device=like.device, dtype=like.dtype) * stride[axis]
        tap_shape = [1] * (2 * rank)
        tap_shape[axis] = -1
        out_shape = [1] * (2 * rank)
        out_shape[rank + axis] = -1
        position = tap.view(tap_shape) + out.view(out_shape) - padding[axis]
        axes.append(position.expand(*kernel, *out_size).reshape(-1, *out_size))
    grid = torch.stack(axes, dim=1)[None, None]  # (1, 1, K, rank, *out)
    if offset is None:
        return grid
    taps = math.prod(kernel)
    groups = offset.shape[1] // (taps * rank)
    return grid + offset.reshape(offset.shape[0], groups, taps, rank, *out_size).to(like.dtype)


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
) -> Tensor:
    """Deformable convolution of any rank, written out.

    DCN (Dai et al. 2017, eq. 2) without ``mask``, DCNv2 (Zhu et al. 2019, eq. 1) with it::

        out[n, o, p] = bias[o] + sum_{c, k} weight[o, c, k] · mask[n, m(c), k, p]
                                 · input[n, c, p·stride - padding + k·dilation + offset[n, g(c), k, p]]
    """
    batch, channels = input.shape[:2]
    kernel = weight.shape[2:]
    rank, taps = len(kernel), math.prod(kernel)
    out_size = [
        (input.shape[2 + a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1
        for a in range(rank)
    ]
    pixels = math.prod(out_size)
    accumulate = torch.promote_types(input.dtype, torch.float32)
    feature, kernel_weight = input.to(accumulate), weight.to(accumulate)

    points = sampling_points(offset, kernel, out_size, stride, padding, dilation, feature)
    points = points.expand(batch, *points.shape[1:])  # (N, G, K, rank, *out)
    offset_groups = points.shape[1]
    points = points.transpose(2, 3).reshape(batch * offset_groups, rank, taps * pixels)
    grouped = feature.reshape(batch * offset_groups, channels // offset_groups, *input.shape[2:])
    columns = sample_multilinear(grouped, points).reshape(batch, channels, taps, pixels)
    if mask is not None:
        mask_groups = mask.shape[1] // taps
        weights = mask.to(accumulate).reshape(batch, mask_groups, 1, taps, pixels)
        columns = columns.reshape(batch, mask_groups, channels // mask_groups, taps, pixels) * weights
    columns = columns.reshape(batch, groups, channels // groups * taps, pixels)
    matrix = kernel_weight.reshape(groups, weight.shape[0] // groups, channels // groups * taps)
    out = torch.einsum("gok,ngkp->ngop", matrix, columns)
    out = out.reshape(batch, weight.shape[0], *out_size)
    if bias is not None:
        out = out + bias.to(accumulate).view(1, -1, *[1] * rank)
    return out.to(input.dtype)


def deform_roi_pool(
    input: Tensor,  # (N, C, H, W)
    rois: Tensor,  # (K, 5), (image, x1, y1, x2, y2)
    offset: Tensor | None,  # (K, 2, oH, oW), x and y
    output_size: Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Deformable RoI pooling (Dai et al. 2017, sec. 2.2), written out, a RoI at a time.

    A bin of a RoI that is ``length`` pixels long along an axis is sampled at ``start + (bin + (sample + 0.5)
    / samples) · length / bins + gamma · length · offset`` on that axis.
    """
    accumulate = torch.promote_types(input.dtype, torch.float32)
    feature = input.to(accumulate)
    bins = tuple(output_size)
    if offset is None:
        offset = feature.new_zeros(len(rois), 2, *bins)
    pooled = [feature.new_zeros(0, input.shape[1], *bins)]
    for roi, shift in zip(rois.to(accumulate), offset.to(accumulate), strict=True):
        low, high = roi[1:].view(2, 2).flip(1) * spatial_scale - 0.5  # (y, x) each
        length = high - low
        samples = [sampling_ratio] * 2 if sampling_ratio > 0 else (length / length.new_tensor(bins)).ceil()
        if not length.isfinite().all() or min(samples) <= 0:
            pooled.append(feature.new_zeros(1, input.shape[1], *bins))
            continue
        points = []
        for axis in range(2):
            count = int(samples[axis])
            sample = (torch.arange(count, device=input.device, dtype=accumulate) + 0.5) / count
            bin = torch.arange(bins[axis], device=input.device, dtype=accumulate)
            grid = low[axis] + (bin[:, None] + sample) * length[axis] / bins[axis]  # (bins, samples)
            grid = grid[:, None, :, None] if axis == 0 else grid[None, :, None, :]
            moved = gamma * length[axis] * shift[1 - axis]
            points.append(grid + moved[..., None, None])
        values = sample_clamped(feature[int(roi[0])], *points)  # (C, oH, oW, samples y, samples x)
        pooled.append(values.mean((-2, -1))[None])
    return torch.cat(pooled).to(input.dtype)


def sample_clamped(feature: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Reads ``feature`` bilinearly, with RoIAlign's border rule.

    Args:
        feature: ``(C, H, W)``.
        y, x: coordinates in pixels, of shapes that broadcast.

    Returns:
        ``(C, *shape)``. Up to one pixel outside the map the border pixel is read. A point further out is
        zero, and so is one that is NaN: neither passes a gradient.
    """
    inside = torch.ones_like(y + x, dtype=torch.bool)
    corners = []
    for point, size in ((y, feature.shape[1]), (x, feature.shape[2])):
        on_axis = (point >= -1) & (point <= size)  # NaN compares false
        inside = inside & on_axis
        point = torch.where(on_axis, point, torch.zeros_like(point)).clamp(0, size - 1)
        low = point.detach().floor()
        high = (low + 1).clamp(max=size - 1)
        corners.append([(low.long(), 1 - (point - low)), (high.long(), point - low)])
    values = sum(
        feature[:, row, column] * (row_weight * column_weight)
        for row, row_weight in corners[0]
        for column, column_weight in corners[1]
    )
    return torch.where(inside, values, torch.zeros_like(values))
