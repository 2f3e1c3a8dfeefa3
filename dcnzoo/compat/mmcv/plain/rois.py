"""Features of regions, one output per region and bin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcnzoo.compat.mmcv.plain.sampling import add_gradient, at_least_float32, corners, rows_of, weighted_sums

# RoIPool


def roi_pool_forward(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [R, 5]: image, x1, y1, x2, y2; the last pixel included
    output: Tensor,  # [R, C, pooled_height, pooled_width], of zeros
    argmax: Tensor,  # as output, of zeros; y · W + x, -1 for an empty bin
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """The largest value in each bin; of equal ones the first. Region by region: bins differ in size."""
    height, width = input.shape[2:]
    corner, end = at_least_float32(rois)[:, 1:3] * spatial_scale, (at_least_float32(rois)[:, 3:] + 1)
    extent = end * spatial_scale - corner  # [R, 2], x and y

    def edges(axis: int, bins: int, limit: int) -> list[list[tuple[int, int]]]:
        steps = torch.arange(bins + 1, device=rois.device) * (extent[:, axis, None] / bins)
        steps = steps + corner[:, axis, None]
        first, last = steps[:, :-1].floor().clamp(0, limit), steps[:, 1:].ceil().clamp(0, limit)
        return torch.stack([first, last], -1).long().tolist()

    regular = (extent > 0).all(1).tolist()
    images = rois[:, 0].long().tolist()
    columns, rows = edges(0, pooled_width, width), edges(1, pooled_height, height)
    for roi in range(len(rois)):
        if not regular[roi]:
            continue  # as they are, of zeros: mmcv leaves them, argmax included
        output[roi], argmax[roi] = 0, -1
        filled = [(j, x1, x2) for j, (x1, x2) in enumerate(columns[roi]) if x1 < x2]
        taken = [(i, y1, y2) for i, (y1, y2) in enumerate(rows[roi]) if y1 < y2]
        if not filled or not taken:
            continue
        image = input[images[roi]]
        first_row, last_row = taken[0][1], taken[-1][2]
        # along x, for every row, and then along y
        narrow = [image[:, first_row:last_row, x1:x2].max(2) for _, x1, x2 in filled]
        values = torch.stack([each.values for each in narrow], 2)
        places = torch.stack([x1 + n.indices for n, (_, x1, _) in zip(narrow, filled, strict=True)], 2)
        places += torch.arange(first_row, last_row, device=input.device)[:, None] * width
        where = torch.tensor([j for j, _, _ in filled], device=input.device)
        for i, y1, y2 in taken:
            value, y = values[:, y1 - first_row : y2 - first_row].max(1)
            place = places[:, y1 - first_row : y2 - first_row].gather(1, y[:, None])[:, 0]
            output[roi, :, i, where] = value
            argmax[roi, :, i, where] = place.to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    channels, height, width = grad_input.shape[1:]
    plane = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)  # [R, C]
    index = plane[:, :, None] * (height * width) + argmax.flatten(2).clamp(min=0)
    values = at_least_float32(torch.where(argmax < 0, torch.zeros_like(grad_output), grad_output))
    total = values.new_zeros(grad_input.numel()).scatter_add_(0, index.flatten(), values.flatten())
    grad_input.add_(total.view(grad_input.shape))


# Samples of a region's bins


def _samples(
    bins: Tensor,  # [R, 2], width and height
    area: int,  # bins of a region
    sampling_ratio: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Where each bin's samples begin; how many a region has in one; of each sample the bin, its place in it
    in steps, and the steps of the bin."""
    grid = (
        bins.ceil().clamp(min=0).long()
        if sampling_ratio <= 0
        else bins.new_full(bins.shape, sampling_ratio, dtype=torch.long)
    )
    per_bin = grid.prod(1)
    counts = per_bin.repeat_interleave(area)
    starts = counts.cumsum(0) - counts
    bin_of = torch.arange(len(counts), device=bins.device).repeat_interleave(counts)
    within = torch.arange(len(bin_of), device=bins.device) - starts[bin_of]
    grid = grid[bin_of // area]
    step = torch.stack([within % grid[:, 0], within // grid[:, 0]], 1)
    return starts, per_bin, bin_of, step + 0.5, grid


# BorderAlign (Qiu et al. 2020)


def _borders(boxes: Tensor, pool_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the borders of ``boxes`` [N, K, 4] begin and a step along them, y and x: [N, 4, K].

    Top, left, bottom, right: the first two begin at (x1, y1), the others at (x2, y2).
    """
    x1, y1, x2, y2 = at_least_float32(boxes).unbind(2)
    width, height, none = (x2 - x1) / pool_size, (y2 - y1) / pool_size, torch.zeros_like(x1)
    y, x = torch.stack([y1, y1, y2, y2], 1), torch.stack([x1, x1, x2, x2], 1)
    down, across = torch.stack([none, height, none, -height], 1), torch.stack([width, none, -width, none], 1)
    return y, x, down, across


def border_align_forward(
    input: Tensor,  # [N, 4·C, H, W]
    boxes: Tensor,  # [N, K, 4]
    output: Tensor,  # [N, C, K, 4], written
    argmax_idx: Tensor,  # as output, written: the step of the maximum
    pool_size: int,
) -> None:
    images, channels, count, _ = output.shape
    planes = input.view(images * 4, channels, *input.shape[2:])
    rows = rows_of(planes)
    plane = torch.arange(images * 4, device=input.device)[:, None, None] * (
        rows.shape[0] // (images * 4 or 1)
    )
    best, where = rows.new_full((images * 4 * count, channels), -torch.inf), None
    y, x, down, across = (each.flatten(0, 1) for each in _borders(boxes, pool_size))
    for step in range(pool_size + 1):
        index, weights = corners(y, x, *input.shape[2:])
        values = weighted_sums(rows, (index + plane).flatten(0, 1), weights.flatten(0, 1))
        where = torch.zeros_like(values, dtype=torch.int) if where is None else where
        where = torch.where(values > best, step, where)
        best = torch.maximum(best, values)
        y, x = y + down, x + across  # added up as in mmcv: rounding decides what is outside
    for target, values in ((output, best), (argmax_idx, where)):
        target.copy_(values.view(images, 4, count, channels).permute(0, 3, 2, 1))


def border_align_backward(
    grad_output: Tensor,  # [N, C, K, 4]
    boxes: Tensor,
    argmax_idx: Tensor,
    grad_input: Tensor,  # [N, 4·C, H, W]
    pool_size: int,
) -> None:
    images, channels, count, _ = grad_output.shape
    steps = argmax_idx.permute(0, 3, 2, 1)  # [N, 4, K, C]
    y, x, down, across = (each[..., None] for each in _borders(boxes, pool_size))
    index, weights = corners(y + down * steps, x + across * steps, *grad_input.shape[2:])
    values = at_least_float32(grad_output).permute(0, 3, 2, 1)[..., None] * weights
    # [N, 4·C, K·4 corners]
    index, values = (
        t.permute(0, 1, 3, 2, 4).reshape(images, 4 * channels, count * 4) for t in (index, values)
    )
    total = values.new_zeros(images, 4 * channels, grad_input.shape[2:].numel())
    grad_input.add_(total.scatter_add_(2, index, values).view(grad_input.shape))


# RoIAlign of rotated regions whose channels are orientations, which turn with them (Han et al. 2021, ReDet)


def _rotated_grid(
    rois: Tensor,  # [R, 6]: image, x, y, width, height, angle
    size: tuple[int, int],  # bins
    shape: torch.Size,  # of the maps
    spatial_scale: float,
    sampling_ratio: int,
    clockwise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled pixels and their weights, four by four; where each bin begins."""
    rois = at_least_float32(rois)
    image, centre = rois[:, 0].long(), rois[:, 1:3] * spatial_scale
    extent = (rois[:, 3:5] * spatial_scale).clamp(min=1)
    theta = -rois[:, 5] if clockwise else rois[:, 5]
    bins = extent / rois.new_tensor([size[1], size[0]])  # x and y
    starts, per_bin, bin_of, step, steps = _samples(bins, size[0] * size[1], sampling_ratio)
    step = step / steps
    roi, bin = bin_of // (size[0] * size[1]), bin_of % (size[0] * size[1])
    # from the region's centre
    u = (bin % size[1] + step[:, 0]) * bins[roi, 0] - extent[roi, 0] / 2
    v = (bin // size[1] + step[:, 1]) * bins[roi, 1] - extent[roi, 1] / 2
    cos, sin = theta.cos()[roi], theta.sin()[roi]
    y = v * cos - u * sin + centre[roi, 1]
    x = v * sin + u * cos + centre[roi, 0]
    index, weights = corners(y, x, *shape[2:])
    index = index + (image[roi] * (shape[2] * shape[3]))[:, None]
    weights = weights / per_bin[roi, None]
    return index, weights, starts * 4


def _riroi_align(
    input: Tensor,  # [N, C·orientations, H, W]
    rois: Tensor,  # [R, 6]
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    num_samples: int,
    num_orientations: int,
    clockwise: bool,
) -> Tensor:
    size, orientations = (pooled_height, pooled_width), num_orientations
    index, weights, starts = _rotated_grid(rois, size, input.shape, spatial_scale, num_samples, clockwise)
    sums = weighted_sums(rows_of(input), index.flatten(), weights.flatten(), starts)
    channels = input.shape[1] // orientations
    sums = sums.view(len(rois), *size, channels, orientations)  # [R, h, w, C, O]
    turn = at_least_float32(rois)[:, 5] * orientations / (2 * math.pi)
    whole = turn.floor()
    source = torch.arange(orientations, device=rois.device) - whole[:, None].long()  # [R, O]

    def turned(by: int) -> Tensor:
        index = (source + by).remainder(orientations)[:, None, None, None]
        return sums.gather(4, index.expand(sums.shape))

    part = (turn - whole).to(sums.dtype)[:, None, None, None, None]
    return ((1 - part) * turned(0) + part * turned(1)).flatten(3).permute(0, 3, 1, 2)


def riroi_align_rotated_forward(features: Tensor, rois: Tensor, output: Tensor, **options: float) -> None:
    output.copy_(_riroi_align(features, rois, **options))


def riroi_align_rotated_backward(
    top_grad: Tensor, rois: Tensor, bottom_grad: Tensor, **options: float
) -> None:
    add_gradient(bottom_grad, lambda input: _riroi_align(input, rois, **options), top_grad)


# BezierAlign (Liu et al. 2020, ABCNet): regions between two cubic curves


def _bezier_align(
    input: Tensor,
    rois: Tensor,  # [R, 17]: image, four points (x, y) of the upper curve, four of the lower from its end
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    size = (aligned_height, aligned_width)
    rois = at_least_float32(rois)
    points = (rois[:, 1:] * spatial_scale).view(-1, 2, 4, 2)
    points = torch.stack([points[:, 0], points[:, 1].flip(1)], 1)  # both from the left: [R, 2 curves, 4, 2]
    extent = (points[:, :, 0] - points[:, :, 3]).abs().amax(1)  # width and height
    if not aligned:
        extent = extent.clamp(min=1)
    bins = extent / rois.new_tensor([size[1], size[0]])
    starts, per_bin, bin_of, step, steps = _samples(bins, size[0] * size[1], sampling_ratio)

    v, u = (torch.arange(count, device=rois.device, dtype=rois.dtype) / count for count in size)
    powers = torch.stack([(1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u), u**3])  # [4, w]
    curves = torch.einsum("rcpx,pw->rcwx", points, powers)[:, :, None]  # [R, 2, 1, w, 2]
    v = v[:, None, None]
    centre = (curves[:, 1] * v + curves[:, 0] * (1 - v) - 0.5 * aligned).flatten(0, 2)
    roi = bin_of // (size[0] * size[1])
    # in mmcv's order: rounding decides what is outside
    x, y = (centre[bin_of] - 0.5 * bins[roi] + step * bins[roi] / steps).unbind(1)
    index, weights = corners(y, x, *input.shape[2:])
    index = index + (rois[roi, 0].long() * input.shape[2:].numel())[:, None]
    weights = weights / per_bin[roi, None]
    sums = weighted_sums(rows_of(input), index.flatten(), weights.flatten(), starts * 4)
    return sums.view(len(rois), *size, input.shape[1]).permute(0, 3, 1, 2)


def bezier_align_forward(input: Tensor, rois: Tensor, output: Tensor, **options: float) -> None:
    output.copy_(_bezier_align(input, rois, **options))


def bezier_align_backward(grad_output: Tensor, rois: Tensor, grad_input: Tensor, **options: float) -> None:
    add_gradient(grad_input, lambda input: _bezier_align(input, rois, **options), grad_output)


# Precise RoI pooling (Jiang et al. 2018): the mean of the bilinear surface over a bin, by its integral


def _prroi_pool(input: Tensor, rois: Tensor, size: tuple[int, int], spatial_scale: float) -> Tensor:
    """Differentiable in ``rois`` [R, 5] too. Pixels beyond the map are zero."""
    input, rois = at_least_float32(input), at_least_float32(rois)
    corner, end = rois[:, 1:3] * spatial_scale, rois[:, 3:] * spatial_scale
    extent = (end - corner).clamp(min=0)

    def integrals(axis: int, bins: int, limit: int) -> Tensor:  # [R, bins, limit], over a pixel's hat
        edges = torch.arange(bins + 1, device=rois.device) * (extent[:, axis, None] / bins)
        edges = edges + corner[:, axis, None]
        from_peak = (edges[..., None] - torch.arange(limit, device=rois.device)).clamp(-1, 1)
        return (from_peak - from_peak * from_peak.abs() / 2).diff(dim=1)

    across, down = integrals(0, size[1], input.shape[3]), integrals(1, size[0], input.shape[2])
    area = extent.prod(1) / (size[0] * size[1])
    outputs = [(input[:0].sum() + rois[:0].sum()).expand(0, input.shape[1], *size)]
    for roi, image in enumerate(rois[:, 0].long().tolist()):
        # the pixels that the region touches
        rows, columns = (weights[roi].detach().any(0).nonzero()[:, 0] for weights in (down, across))
        part = input[image][:, rows][:, :, columns]
        total = down[roi][:, rows] @ part @ across[roi][:, columns].t()
        outputs.append(torch.where(area[roi] > 0, total / area[roi].clamp(min=1e-30), 0.0)[None])
    return torch.cat(outputs)


def prroi_pool_forward(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [R, 5]: image, x1, y1, x2, y2
    output: Tensor,  # [R, C, pooled_height, pooled_width], written
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    output.copy_(_prroi_pool(input, rois, (pooled_height, pooled_width), spatial_scale))


def prroi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    size = (pooled_height, pooled_width)
    add_gradient(grad_input, lambda input: _prroi_pool(input, rois, size, spatial_scale), grad_output)


def prroi_pool_coor_backward(
    output: Tensor,
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    grad_rois: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    with torch.enable_grad():
        leaf = rois.detach().requires_grad_()
        pooled = _prroi_pool(input.detach(), leaf, (pooled_height, pooled_width), spatial_scale)
        (gradient,) = torch.autograd.grad(pooled, leaf, grad_output.to(pooled.dtype), materialize_grads=True)
    grad_rois.add_(gradient)
