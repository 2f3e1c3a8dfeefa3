"""dcnzoo's operators in operators of torch, for compilers that know only these.

For :meth:`torch.export.ExportedProgram.run_decompositions` and backends of ``torch.compile``::

    program = torch.export.export(model, args).run_decompositions(dcnzoo.export.decompositions())

Samples are those of ``grid_sample``, whose tensors have at most five axes: Core ML refuses six. Coordinates
are computed in float32 (float64 for float64 inputs): a grid in float16 is off by .08 pixels at 168 columns.
"""

from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dcnzoo.ops  # noqa: F401  loads the operators

# without an equivalent of fixed size, or not written yet: they stay in the program
MISSING = ("nms", "roi_align", "roi_align_rotated", "deform_roi_pool", "deform_conv_transpose")


def decompositions() -> dict[Callable, Callable]:
    """Return the functions by operator: ``deform_conv``, ``dcnv3``, ``dcnv4`` and ``ms_deform_attn``.

    The last one reads by ``gather``, because its sizes are a tensor, and its sampling locations have six
    axes. The operators of :data:`MISSING` stay in the program.
    """
    operators = torch.ops.dcnzoo
    return {
        operators.deform_conv.default: _deform_conv,
        operators.dcnv3.default: _dcnv3,
        operators.dcnv4.default: _dcnv4,
        operators.ms_deform_attn.default: _ms_deform_attn,
    }


def _wide(kind: torch.dtype) -> torch.dtype:
    return torch.promote_types(kind, torch.float32)


def _steps(axis: int, sizes: Sequence[int], like: Tensor) -> Tensor:
    """Return the index along an axis of each element of a map of these sizes, [prod(sizes)]."""
    steps = torch.arange(sizes[axis], dtype=like.dtype, device=like.device)
    return steps.view([-1 if a == axis else 1 for a in range(len(sizes))]).expand(sizes).reshape(-1)


def _sample(maps: Tensor, points: Sequence[Tensor]) -> Tensor:
    """Read maps [B, C, *size] at points, per axis [B, K, P]: [B, C, K, P], zero outside and at NaN."""
    size = maps.shape[2:]
    grid: list[Tensor] = []
    for point, length in zip(points, size, strict=True):
        # far outside and at NaN, runtimes differ
        near = torch.where((point > -1) & (point < length), point, -2.0)
        grid.insert(0, (near * 2 + 1) / length - 1)  # x first
    if len(size) == 1:
        maps, grid = maps[:, :, None], [*grid, torch.zeros_like(grid[0])]
    stacked = torch.stack(grid, -1)
    stacked = stacked[:, None] if len(size) == 3 else stacked
    options: dict = dict(mode="bilinear", padding_mode="zeros", align_corners=False)
    samples = F.grid_sample(maps, stacked, **options)
    return samples[:, :, 0] if len(size) == 3 else samples


def _deform_conv(
    input: Tensor,  # [N, C, *in]
    weight: Tensor,  # [O, C / groups, *kernel]
    offset: Tensor | None,  # [N, G·K·rank, *out]
    mask: Tensor | None,  # [N, M·K, *out]
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    im2col_step: int | None = None,
) -> Tensor:
    kernel, (batch, channels), real = weight.shape[2:], input.shape[:2], _wide(input.dtype)
    rank, taps = len(kernel), prod(kernel)
    out = [
        (input.shape[2 + a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1
        for a in range(rank)
    ]
    pixels = prod(out)
    if offset is None:
        offset = input.new_zeros(batch, rank * taps, *out)
    split = offset.shape[1] // (rank * taps)
    moved = offset.to(real).reshape(batch * split, taps, rank, pixels)
    points = []
    for a in range(rank):
        first = _steps(a, out, moved) * stride[a] - padding[a]
        start = _steps(a, kernel, moved) * dilation[a]
        points.append(moved[:, :, a] + (first + start[:, None]))
    maps = input.to(real).reshape(batch * split, channels // split, *input.shape[2:])
    columns = _sample(maps, points)  # [N·G, C / G, K, P]
    if mask is not None:
        parts = mask.shape[1] // taps
        columns = columns.reshape(batch * parts, channels // parts, taps, pixels)
        columns = columns * mask.to(real).reshape(batch * parts, 1, taps, pixels)
    columns = columns.reshape(batch, channels * taps, pixels, 1)
    flat = weight.to(real).reshape(weight.shape[0], -1, 1, 1)
    result = F.conv2d(columns, flat, None if bias is None else bias.to(real), groups=groups)
    return result.reshape(batch, weight.shape[0], *out).to(input.dtype)


def _dcnv3(
    input: Tensor,  # [N, H, W, C]
    offset: Tensor,  # [N, oH, oW, group·P·2], (x, y)
    mask: Tensor,  # [N, oH, oW, group·P]
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool,
) -> Tensor:  # [N, oH, oW, C]
    batch, height, width, real = *input.shape[:3], _wide(input.dtype)
    out = offset.shape[1:3]
    pixels, count = out[0] * out[1], prod(kernel_size) - bool(remove_center)
    pairs = offset.to(real).reshape(batch, pixels, group, count, 2)
    points = []
    for a in (0, 1):
        middle = dilation[a] * (kernel_size[a] - 1) // 2
        first = (_steps(a, out, pairs) * stride[a] + (middle - padding[a]))[:, None]
        start = _steps(1 - a, kernel_size[::-1], pairs) * dilation[a] - middle  # taps are x-major
        if remove_center:
            start = torch.cat([start[: count // 2], start[count // 2 + 1 :]])
        moved = pairs[..., 1 - a].permute(0, 2, 1, 3)  # [N, group, oH·oW, P]
        points.append((first + (start + moved) * offset_scale).reshape(batch * group, pixels, count))
    maps = input.to(real).permute(0, 3, 1, 2).reshape(batch * group, group_channels, height, width)
    factors = mask.to(real).reshape(batch, pixels, group, count).permute(0, 2, 1, 3)
    read = _sample(maps, points) * factors.reshape(batch * group, 1, pixels, count)
    result = read.sum(-1).reshape(batch, group * group_channels, *out)
    return result.permute(0, 2, 3, 1).contiguous().to(input.dtype)


def _dcnv4(
    input: Tensor,
    offset_mask: Tensor,  # [N, oH, oW, group·3P, padded to a multiple of 8]
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool,
) -> Tensor:
    points = kernel_size[0] * kernel_size[1] - bool(remove_center)
    grouped = offset_mask[..., : group * points * 3].unflatten(-1, (group, points * 3))
    offset, mask = (part.flatten(3) for part in grouped.split([points * 2, points], dim=-1))
    geometry = (kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove_center)
    return _dcnv3(input, offset, mask, *geometry)


def _ms_deform_attn(
    value: Tensor,  # [N, S, heads, D]
    spatial_shapes: Tensor,  # [L, 2], (height, width)
    level_start_index: Tensor,  # [L]
    sampling_locations: Tensor,  # [N, Q, heads, L, P, 2], (x, y) in units of the level's size
    attention_weights: Tensor,  # [N, Q, heads, L, P]
) -> Tensor:  # [N, Q, heads·D]
    batch, tokens, heads, channels = value.shape
    queries, levels, points = *sampling_locations.shape[1:2], *sampling_locations.shape[3:5]
    real = _wide(value.dtype)
    rows = value.to(real).permute(0, 2, 1, 3).reshape(batch * heads, tokens, channels)
    places = sampling_locations.to(real).reshape(batch * queries, heads, levels, points * 2)

    def per_head(field: Tensor) -> Tensor:  # [N·Q, heads, L, P] -> [N·heads, Q, L·P]
        field = field.reshape(batch, queries, heads, levels * points).permute(0, 2, 1, 3)
        return field.reshape(batch * heads, queries, levels * points)

    def per_point(field: Tensor) -> Tensor:  # [L] -> [1, 1, L·P]
        return field.view(-1, 1).expand(levels, points).reshape(1, 1, levels * points)

    weights, start = per_head(attention_weights.to(real)), per_point(level_start_index)
    total = rows.new_zeros(())
    sizes = [per_point(spatial_shapes[:, a]) for a in (0, 1)]
    axes = [per_head(places[..., 1 - a :: 2]) * sizes[a].to(real) - 0.5 for a in (0, 1)]
    for corner in product((0, 1), repeat=2):
        weight, index = weights, start
        strides: tuple[Any, Any] = (sizes[1], 1)
        for point, size, side, step in zip(axes, sizes, corner, strides, strict=True):
            pixel = point.floor() + side
            inside = (pixel >= 0) & (pixel < size)  # not at NaN
            weight = weight * torch.where(inside, 1 - (point - pixel).abs(), 0)
            index = index + torch.where(inside, pixel, 0).long() * step
        flat = index.reshape(batch * heads, -1, 1).expand(-1, -1, channels)
        read = rows.gather(1, flat).reshape(batch * heads, queries, levels * points, channels)
        total = total + (read * weight[..., None]).sum(2)
    result = total.reshape(batch, heads, queries, channels).permute(0, 2, 1, 3)
    return result.reshape(batch, queries, heads * channels).to(value.dtype)
