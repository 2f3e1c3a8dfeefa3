"""The operators by PyTorch's own kernels, for devices and types that dcnzoo has no kernels for.

Each output is a sum of a few pixels of a map, each times a weight: its bilinear weight, times a mask, an
attention weight or a sample's share of a bin. ``F.embedding_bag`` computes such sums, and the gradient of the
map, without a copy of the pixels. The functions have first derivatives only. :mod:`.reference` is their
oracle, and describes them. Only an infinite mask differs: it gives NaN, not Inf, at points without fraction.

A map is a table ``(R, C)`` with a row for each pixel; if channels are in groups with points of their own, a
row for each group: ``(image · pixels + pixel) · groups + group``. Row R is a pixel that does not exist.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arguments import memory_format
from .geometry import deform_attn_points, output_size, sampling_points, transposed_size
from .reference import MOST_SAMPLES, bin_samples, box_in_pixels, displacement, fields_of_dcnv4
from .reference_boxes import iou_with

BLOCK = 64  # boxes of NMS that are compared with all others at once
MOST_SORTED = 1 << 21  # rows: bounds the memory of a sort


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _integer_type(most: int) -> torch.dtype:
    return torch.int32 if most < 2**31 - 1 else torch.int64  # a sort of the first takes half the time


# Sums of bags. Bag b has the rows from starts[b] to starts[b + 1].


class BagSums(torch.autograd.Function):
    """The weighted sums ``(B, C)`` of a table's rows ``(n,)`` in each bag."""

    @staticmethod
    def forward(table, rows, weights, starts):
        return F.embedding_bag(rows, _with_zeros(table), starts, mode="sum", per_sample_weights=weights)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        table, rows, weights, starts = ctx.saved_tensors
        bags, grad_table, grad_weights = _bags(rows, starts), None, None
        if ctx.needs_input_grad[0]:
            grad_table = spread(grad, rows, weights, bags, len(table))
        if ctx.needs_input_grad[2]:
            grad_weights = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                grad, _with_zeros(table), rows, starts, bags, mode=0
            )
        return grad_table, None, grad_weights, None


def _with_zeros(table: Tensor) -> Tensor:
    """Append row R. A weight of zero for another row would turn Inf into NaN."""
    return torch.cat([table, table.new_zeros(1, table.shape[1])])


def _bags(rows: Tensor, starts: Tensor) -> Tensor:
    """Return the number of each row's bag."""
    return torch.repeat_interleave(torch.diff(starts, append=starts.new_full((1,), len(rows))))


def spread(values: Tensor, rows: Tensor, weights: Tensor, bags: Tensor, count: int) -> Tensor:
    """Add each bag's value ``(B, C)`` to the bag's rows, with their weights: a table ``(count, C)``.

    The bags that a row belongs to become a bag of that row. The order of additions is fixed.
    """
    targets = torch.arange(count + 1, dtype=rows.dtype, device=rows.device)

    def spread_some(rows: Tensor, weights: Tensor, bags: Tensor) -> Tensor:
        rows, order = rows.sort(stable=True)
        starts = torch.searchsorted(rows, targets).to(rows.dtype)
        order = order[: int(starts[-1])]  # without pixels that do not exist
        return F.embedding_bag(
            bags[order], values, starts[:-1], mode="sum", per_sample_weights=weights[order]
        )

    parts = zip(*(tensor.split(MOST_SORTED) for tensor in (rows, weights, bags)), strict=True)
    return reduce(torch.add, itertools.starmap(spread_some, parts))


def corners(
    points: Sequence[Tensor],  # coordinates in pixels, the slowest axis first: (N, bags, groups, points) each
    size: Sequence[Any],  # of the maps: integers, or tensors with a size for each point
    pixels: int,  # of an image
    factor: Tensor | None,  # (N, bags, groups, points)
    start: Tensor | int = 0,  # each point's map begins at this pixel
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, weights and starts for :class:`BagSums`: the pixels of ``reference.corners``."""
    batch, bags, groups, count = points[0].shape
    none, entries = batch * pixels * groups, points[0].numel() << len(points)
    dtype = _integer_type(max(none, entries))
    integers = partial(torch.arange, dtype=dtype, device=points[0].device)
    row = integers(batch).view(-1, 1, 1, 1) * (pixels * groups)
    row = row + integers(groups).view(-1, 1) + start * groups
    inside = reduce(
        torch.logical_and, [(p > -1) & (p < extent) for p, extent in zip(points, size, strict=True)]
    )
    step: Any = groups
    axes: list[list[tuple]] = []
    for point, extent in zip(reversed(points), reversed(size), strict=True):
        point = torch.where(inside, point, 0)
        low = point.detach().floor()
        fraction = point - low
        row = row + low.to(row.dtype) * step
        axes.insert(0, [(0, 1 - fraction, low >= 0), (step, fraction, low < extent - 1)])
        step = step * extent
    rows, weights = [], []
    for corner in itertools.product(*axes):
        steps, fractions, on_map = zip(*corner, strict=True)
        exists = reduce(torch.logical_and, on_map, inside)
        weight = torch.where(exists, math.prod(fractions[1:], start=fractions[0]), 0)
        rows.append(torch.where(exists, row + sum(steps), none))
        weights.append(weight if factor is None else weight * factor)
    starts = integers(batch * bags * groups) * (count << len(points))
    return torch.stack(rows, -1).flatten(), torch.stack(weights, -1).flatten(), starts


# Convolution


def deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step):
    batch, channels, *size = input.shape
    kernel, outputs = weight.shape[2:], len(weight)
    out_size = output_size(size, kernel, stride, padding, dilation)
    maps = at_least_float32(input)
    parts, *bags = _taps(maps, offset, mask, kernel, out_size, size, stride, padding, dilation)
    table = maps.flatten(2).transpose(1, 2).reshape(-1, channels // parts)
    columns = BagSums.apply(table, *bags)
    columns = columns.view(batch, math.prod(out_size), math.prod(kernel), groups, channels // groups)
    matrix = at_least_float32(weight).flatten(2).unflatten(0, (groups, outputs // groups))
    return _output(torch.einsum("npkgc,gock->npgo", columns, matrix), out_size, bias, input)


def deform_conv_transpose(
    input, weight, offset, mask, bias, stride, padding, output_padding, dilation, groups, im2col_step
):
    batch, channels, *size = input.shape
    kernel, outputs = weight.shape[2:], weight.shape[1] * groups
    out_size = transposed_size(size, kernel, stride, padding, output_padding, dilation)
    maps = at_least_float32(input)
    parts, rows, *others = _taps(maps, offset, mask, kernel, size, out_size, stride, padding, dilation)
    weights, starts = others
    matrix = at_least_float32(weight).flatten(2).unflatten(0, (groups, channels // groups))
    maps = maps.flatten(2).unflatten(1, (groups, channels // groups))
    columns = torch.einsum("ngcp,gcok->npkgo", maps, matrix).reshape(-1, outputs // parts)
    pixels = math.prod(out_size)
    out = spread(columns, rows, weights, _bags(rows, starts), batch * pixels * parts)
    return _output(out.view(batch, pixels, outputs), out_size, bias, input)


def _taps(maps, offset, mask, kernel, places, size, stride, padding, dilation):
    """Return the number of parts of channels with points of their own, and a bag for each place, tap, part.

    Args:
        places: the size of the tensor whose pixels have taps.
        size: the size of the map on which the taps are.
    """
    batch, taps = len(maps), math.prod(kernel)
    points = sampling_points(offset, kernel, places, stride, padding, dilation, maps).flatten(4)
    mask_groups = 1 if mask is None else mask.shape[1] // taps
    parts = math.lcm(points.shape[1], mask_groups)
    points = points.expand(batch, -1, -1, -1, -1).permute(3, 0, 4, 2, 1)  # (rank, N, places, taps, G)
    points = points.repeat_interleave(parts // points.shape[4], 4).flatten(2, 3)[..., None]
    if mask is not None:
        mask = mask.to(maps.dtype).flatten(2).unflatten(1, (mask_groups, taps)).transpose(1, 3)
        mask = mask.repeat_interleave(parts // mask_groups, 3).flatten(1, 2)[..., None]
    return parts, *corners(points.unbind(), size, math.prod(size), mask)


def _output(out, size, bias, input):
    """Return ``(N, pixels, groups, O / groups)`` as the output of a convolution."""
    out = out.flatten(2)
    if bias is not None:
        out = out + bias.to(out.dtype)
    out = out.transpose(1, 2).unflatten(2, tuple(size))
    return out.to(input.dtype).contiguous(memory_format=memory_format(input))


# Attention


def ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    maps = at_least_float32(value)
    height, width, start = (
        level.to(_integer_type(maps[..., 0].numel())).repeat_interleave(sampling_locations.shape[4])
        for level in (*spatial_shapes.unbind(1), level_start_index)
    )
    x, y = sampling_locations.to(maps.dtype).flatten(3, 4).unbind(-1)
    points, factor = (y * height - 0.5, x * width - 0.5), attention_weights.to(maps.dtype).flatten(3)
    bags = corners(points, (height, width), maps.shape[1], factor, start)
    out = BagSums.apply(maps.flatten(0, 2), *bags)
    return out.view(*x.shape[:2], math.prod(maps.shape[2:])).to(value.dtype)


def dcnv3(
    input, offset, mask, kernel, stride, padding, dilation, group, group_channels, offset_scale, remove_center
):
    size, out_size, maps = input.shape[1:3], offset.shape[1:3], at_least_float32(input)
    grid = deform_attn_points(out_size, kernel, stride, padding, dilation, offset_scale, remove_center, maps)
    factor = mask.to(maps.dtype).reshape(len(maps), *out_size, group, grid.shape[3])
    points = grid + offset.to(maps.dtype).reshape(*factor.shape, 2) * offset_scale
    x, y = points.flatten(1, 2).unbind(-1)
    bags = corners((y, x), size, math.prod(size), factor.flatten(1, 2))
    out = BagSums.apply(maps.reshape(-1, group_channels), *bags)
    return out.view(*offset.shape[:3], group * group_channels).to(input.dtype)


def dcnv4(input, offset_mask, kernel, stride, padding, dilation, group, *others):
    fields = fields_of_dcnv4(offset_mask, kernel, group, others[-1])
    return dcnv3(input, *fields, kernel, stride, padding, dilation, group, *others)


# Regions


def roi_align(input, rois, output_h, output_w, spatial_scale=1.0, sampling_ratio=0, aligned=True):
    return _pool(input, rois, None, (output_h, output_w), spatial_scale, sampling_ratio, 0.0, aligned)


def deform_roi_pool(input, rois, offset, output_h, output_w, spatial_scale=1.0, sampling_ratio=0, gamma=0.1):
    return _pool(input, rois, offset, (output_h, output_w), spatial_scale, sampling_ratio, gamma, True)


def _pool(input, rois, offset, bins, spatial_scale, sampling_ratio, gamma, aligned):
    """Pool all RoIs by one sum, because each sum copies the maps."""
    batch, channels, *size = input.shape
    maps, rois = at_least_float32(input), rois.detach()
    rois = rois.to(maps.dtype)
    low, length = box_in_pixels(rois, spatial_scale, aligned)
    is_valid = rois.isfinite().all(1) & length.isfinite().all(1) & (rois[:, 0] >= 0) & (rois[:, 0] < batch)
    low = torch.where(is_valid[:, None], low, -2)  # outside the map
    length = torch.where(is_valid[:, None], length, 0)
    counts = (length / length.new_tensor(bins)).ceil().clamp(max=MOST_SAMPLES + 1).long()
    if sampling_ratio > 0:
        counts = torch.full_like(counts, sampling_ratio)
    members: dict[tuple[int, ...], list[int]] = {}  # numbers of samples -> RoIs
    for number, samples in enumerate(counts.tolist()):
        if 0 < min(samples) <= max(samples) <= MOST_SAMPLES:
            members.setdefault(tuple(samples), []).append(number)

    order, rows, weights, lengths = [], [], [], []
    for samples, numbers in members.items():
        chosen, axes = torch.tensor(numbers, device=rois.device), []
        for axis in range(2):
            side = length[chosen, axis].view(-1, 1, 1, 1)
            steps = bin_samples(axis, bins, samples, side).flatten(2)  # (oH or 1, oW or 1, samples)
            points = low[chosen, axis].view(-1, 1, 1, 1) + steps * side / bins[axis]
            if offset is not None:
                points = points + displacement(gamma * side, offset[chosen, 1 - axis, ..., None])
            axes.append(_axis_pixels(points, size[axis], merge=sampling_ratio <= 0))
        (y, y_weight, y_exists), (x, x_weight, x_exists) = axes
        exists = y_exists[..., None] & x_exists[..., None, :]  # (k, oH, oW, pixels of y, pixels of x)
        row = (rois[chosen, 0].long().view(-1, 1, 1, 1) * size[0] + y)[..., None] * size[1] + x[..., None, :]
        weight = y_weight[..., None] * x_weight[..., None, :] / math.prod(samples)
        order += numbers
        rows.append(torch.where(exists, row, batch * math.prod(size)).flatten())
        weights.append(torch.where(exists, weight, 0).flatten())
        lengths += [exists[0, 0, 0].numel()] * exists[..., 0, 0].numel()
    out = maps.new_zeros(len(rois), math.prod(bins), channels)
    if order and channels:  # embedding_bag needs some
        starts = torch.tensor([0, *itertools.accumulate(lengths[:-1])], device=rois.device)
        table = maps.flatten(2).transpose(1, 2).flatten(0, 1)
        sums = BagSums.apply(table, torch.cat(rows), torch.cat(weights), starts)
        out = out.index_copy(
            0, torch.tensor(order, device=rois.device), sums.view(len(order), *out.shape[1:])
        )
    return out.mT.unflatten(2, bins).to(input.dtype).contiguous()


def _axis_pixels(points: Tensor, extent: int, merge: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels around samples ``(…, n)`` on an axis, their weights, and whether they are read.

    The rule is that of :func:`reference.interpolate_clamped`. Samples that are at most one pixel apart have
    n + 1 different pixels: ``merge`` returns each of these once.
    """
    on_axis = (points >= -1) & (points <= extent)
    between = (points >= 0) & (points < extent - 1)
    low = torch.where(on_axis, points.detach(), 0).clamp(0, extent - 1).floor()
    fraction = torch.where(between, points - low, 0)
    at = torch.cat([low, (low + 1).clamp(max=extent - 1)], -1).long()
    weight, exists = torch.cat([1 - fraction, fraction], -1), torch.cat([on_axis, between], -1)
    if not merge:
        return at, weight, exists
    shape = (*points.shape[:-1], points.shape[-1] + 1)
    first = torch.where(exists, at, extent).amin(-1, keepdim=True)
    lines = torch.arange(first.numel(), device=at.device).view(first.shape) * shape[-1]
    places = (lines + (at - first).clamp(0, shape[-1] - 1)).flatten()
    nothing = weight.new_zeros(math.prod(shape))  # index_add: on a GPU, scatter_add has no fixed order
    weight = nothing.index_add(0, places, torch.where(exists, weight, 0).flatten()).view(shape)
    exists = nothing.index_add(0, places, exists.flatten().to(weight.dtype)).view(shape) > 0
    return first + torch.arange(shape[-1], device=at.device), weight, exists


def nms(boxes, scores, iou_threshold, offset=0):
    """See :func:`reference_boxes.nms`; a block of boxes is compared with the others at once."""
    boxes = at_least_float32(boxes)
    left = scores.sort(stable=True, descending=True).indices
    kept = [left[:0]]
    while len(left):
        block, left = left[:BLOCK], left[BLOCK:]
        overlaps = (iou_with(boxes[block, None], boxes[block], offset) > iou_threshold).tolist()
        best: list[int] = []
        for number, row in enumerate(overlaps):
            if not any(row[other] for other in best):
                best.append(number)
        kept.append(block[best])
        left = left[~(iou_with(boxes[kept[-1], None], boxes[left], offset) > iou_threshold).any(0)]
    return torch.cat(kept)
