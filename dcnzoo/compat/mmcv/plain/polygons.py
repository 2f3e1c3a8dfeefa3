"""Quadrilaterals, sets of points and their convex hulls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcnzoo.ops.reference_boxes import all_pairs, claimed_points, cross

SLACK = 1e-12  # an angle with a smaller sine counts as zero


def _hulls(points: Tensor) -> Tensor:  # (N, P, 2) -> (N, ≤ P, 2)
    """Vertices of convex hulls, counter-clockwise from the lowest; the last ones may repeat the first.

    Gift wrapping (Jarvis 1973), all sets at once. Among equal points it uses the first.
    """
    fixed = points.detach()
    lowest = fixed[..., 1] == fixed[..., 1].amin(1, keepdim=True)
    start = torch.where(lowest, fixed[..., 0], torch.inf).argmin(1)
    rows, order = torch.arange(len(points), device=points.device), [start]
    for _ in range(points.shape[1] - 1):
        to = fixed - fixed[rows, order[-1], None]
        length = to.norm(dim=-1)
        right = cross(to[:, :, None], to[:, None]) < -SLACK * length[:, :, None] * length[:, None]
        # the farthest point with no other point to the right of its line, or the current one if none exists
        following = torch.where(right.any(2) | (length == 0), -1.0, length).max(1)
        following = torch.where(following.values < 0, order[-1], following.indices)
        home = (fixed[rows, following] == fixed[rows, start]).all(-1) | (order[-1] == start) * (
            len(order) > 1
        )
        order.append(torch.where(home, start, following))
        if home.all():
            break
    return points.gather(1, torch.stack(order, 1)[..., None].expand(-1, -1, 2))


def _area(polygons: Tensor) -> Tensor:  # (N, P, 2) -> (N,), positive if counter-clockwise
    polygons = polygons - polygons[:, :1]
    return cross(polygons, polygons.roll(-1, 1)).sum(1) / 2


def _counter_clockwise(polygons: Tensor) -> Tensor:
    return torch.where(_area(polygons)[:, None, None] < 0, polygons.flip(1), polygons)


def _clip(polygons: Tensor, others: Tensor, closed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The part of each side of ``polygons`` inside ``others``: first t, last t, and whether it exists.

    Both must be convex and counter-clockwise. A side that lies on a side of the other polygon, in the same
    direction, counts as inside only if ``closed``. Set ``closed`` for one of two polygons, so that such a
    side counts once.
    """
    side, line = polygons.roll(-1, 1) - polygons, others.roll(-1, 1) - others
    # a point at t of a side is left of a line where height + t · slope > 0: [N, sides, lines]
    height = cross(line[:, None], polygons[:, :, None] - others[:, None])
    slope = cross(line[:, None], side[:, :, None])
    lengths = line.norm(dim=-1)[:, None] * side.norm(dim=-1)[:, :, None]
    parallel = slope.abs() <= SLACK * lengths
    where = -height / torch.where(parallel, 1.0, slope)
    enters, leaves = torch.where(slope > 0, where, 0.0), torch.where(slope < 0, where, 1.0)
    first = torch.where(parallel, 0.0, enters).amax(2).clamp(min=0)
    last = torch.where(parallel, 1.0, leaves).amin(2).clamp(max=1)
    scale = line.norm(dim=-1).amax(1)[:, None, None] + side.norm(dim=-1).amax(1)[:, None, None]
    along = height.abs() <= 1e-9 * line.norm(dim=-1)[:, None] * scale
    same_way = closed & ((line[:, None] * side[:, :, None]).sum(-1) > 0)
    outside = parallel & torch.where(along, ~same_way, height < 0) & (line.norm(dim=-1) > 0)[:, None]
    return first, last, ~outside.any(2) & (last > first)


def _inner_sides(polygons: Tensor, others: Tensor, closed: bool) -> Tensor:
    """Twice the area between the origin and the parts of the sides of ``polygons`` inside ``others``."""
    first, last, inside = _clip(polygons, others, closed)
    side = polygons.roll(-1, 1) - polygons
    begin, end = (polygons + side * t[..., None] for t in (first, last))
    return (cross(begin, end) * inside).sum(1)


def _shared(polygons: Tensor, others: Tensor) -> Tensor:  # (N, P, 2), (N, Q, 2) -> (N,)
    """The shared area of each pair of convex polygons, by Green's theorem along its border."""
    origin = polygons.detach()[:, :1]
    polygons, others = polygons - origin, others - origin
    area = _inner_sides(polygons, others, closed=True) + _inner_sides(others, polygons, closed=False)
    return area.clamp(min=0) / 2


def _shared_gradient(polygons: Tensor, others: Tensor) -> Tensor:  # (N, P, 2), (N, Q, 2) -> (N, P, 2)
    """The derivative of :func:`_shared` with respect to ``polygons``.

    The area changes only where a side inside the other polygon moves. (Autograd through the intersection
    points is wrong if a corner lies on a side: it mixes the two lines that intersect there.)
    """
    first, last, inside = _clip(polygons, others, closed=True)
    x, y = (polygons.roll(-1, 1) - polygons).unbind(-1)
    outwards = torch.stack([y, -x], -1)  # with the length of the side
    to_end = (last.square() - first.square()) / 2  # the integral of t
    to_begin = last - first - to_end
    to_begin, to_end = ((part * inside)[..., None] * outwards for part in (to_begin, to_end))
    return to_begin + to_end.roll(1, 1)


# Convex hulls of nine points (Guo et al. 2021, CFA) and convex quadrilaterals


def _split(pointsets: Tensor, polygons: Tensor) -> tuple[Tensor, Tensor]:
    return pointsets.double().view(-1, 9, 2), _counter_clockwise(polygons.double().view(-1, 4, 2))


def convex_iou(
    pointsets: Tensor,  # (N, 18)
    polygons: Tensor,  # (M, 8)
    ious: Tensor,  # (N, M), written
) -> None:
    points, quads = _split(pointsets, polygons)
    hulls = _hulls(points)
    pairs = hulls.repeat_interleave(len(quads), 0), quads.repeat(len(hulls), 1, 1)
    shared = _shared(*pairs).view(len(hulls), len(quads))
    ious.copy_(shared / (_area(hulls)[:, None] + _area(quads) - shared))


def convex_giou(
    pointsets: Tensor,  # (N, 18)
    polygons: Tensor,  # (N, 8)
    output: Tensor,  # (N, 19), written: the gradient of the points, and the generalised IoU
) -> None:
    points, quads = _split(pointsets, polygons)
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        hulls = _hulls(points)
        fixed = hulls.detach()
        moved = ((hulls - fixed) * _shared_gradient(fixed, quads)).sum((1, 2))  # zero, with a gradient
        shared = _shared(fixed, quads) + moved
        union = _area(hulls) + _area(quads) - shared
        around = _area(_hulls(torch.cat([points, quads], 1)))
        giou = shared / union - (around - union) / around
        (gradient,) = torch.autograd.grad(giou.sum(), points)
    output.copy_(torch.cat([gradient.flatten(1), giou.detach()[:, None]], 1))


def min_area_polygons(
    pointsets: Tensor,  # (N, 18)
    polygons: Tensor,  # (N, 8), written: the smallest rectangles around them
) -> None:
    """The smallest rectangle around each set of points: one of its sides lies on a side of the convex hull.

    The order of the corners is mmcv's: right top, left top, left bottom, right bottom. The axes are those of
    the screen, rotated by the angle of the side modulo 90°.
    """
    hulls = _hulls(pointsets.double().view(-1, 9, 2))
    side = hulls.roll(-1, 1) - hulls
    angle = torch.atan2(side[..., 1], side[..., 0]).remainder(math.pi / 2)[:, None]  # [N, 1, K]
    cos, sin = angle.cos(), angle.sin()
    x, y = hulls.unbind(-1)
    across, down = x[..., None] * cos + y[..., None] * sin, y[..., None] * cos - x[..., None] * sin
    left, right, top, bottom = across.amin(1), across.amax(1), down.amin(1), down.amax(1)  # [N, K]
    areas = torch.where(side.norm(dim=-1) > 0, (right - left) * (bottom - top), torch.inf)
    best = areas.argmin(1, keepdim=True)
    left, right, top, bottom, cos, sin = (
        t.gather(1, best) for t in (left, right, top, bottom, cos[:, 0], sin[:, 0])
    )
    u, v = torch.cat([right, left, left, right], 1), torch.cat([top, top, bottom, bottom], 1)
    polygons.copy_(torch.stack([u * cos - v * sin, u * sin + v * cos], -1).flatten(1))


# Overlap of quadrilaterals as in mmcv, which tests their corners as if they were rectangles


def _quad_overlap(quads: Tensor, others: Tensor, mode: int) -> Tensor:  # (N, 8), (N, 8) -> (N,)
    quads, others = (q[:, :8].double().view(-1, 4, 2) for q in (quads, others))
    middle = (quads + others).mean(1, keepdim=True) / 2  # for precision
    quads, others = quads - middle, others - middle

    def size(quads: Tensor) -> Tensor:
        corner = quads[:, 1:] - quads[:, :1]
        return cross(corner[:, :2], corner[:, 1:]).abs().sum(1) / 2

    area, areas, result = size(quads), size(others), quads.new_zeros(len(quads))
    low, high = (torch.stack([f(q, 1) for q in (quads, others)]) for f in (torch.amin, torch.amax))
    near = ((low.amax(0) <= high.amin(0)).all(1) & (area >= 1e-14) & (areas >= 1e-14)).nonzero()[:, 0]
    for pairs in near.split(1 << 14):
        points, count = claimed_points(quads[pairs], others[pairs])
        shared = torch.where(count > 2, _area(_hulls(points)), 0.0)
        result[pairs] = shared / (area[pairs] + areas[pairs] - shared if mode == 0 else area[pairs])
    return result


def box_iou_quadri(
    boxes1: Tensor,  # (M, 8)
    boxes2: Tensor,  # (N, 8)
    ious: Tensor,  # (M·N,), or (M,) if aligned
    mode_flag: int,  # 0 over the union, 1 over boxes1
    aligned: bool,
) -> None:
    boxes = (boxes1, boxes2) if aligned else all_pairs(boxes1, boxes2)
    ious.copy_(_quad_overlap(*boxes, mode_flag).view_as(ious))


def nms_quadri(
    dets: Tensor,  # (N, 8), or (N, 9) with a label behind
    scores: Tensor,
    order: Tensor,  # (N,), by score
    dets_sorted: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    # As in mmcv, a box is dropped at the threshold on the CPU, only above it on a GPU. Labels are ignored.
    exceeds = torch.gt if dets.is_cuda else torch.ge
    left, kept = order, []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        iou = _quad_overlap(dets[best].expand(len(left), -1), dets[left], 0)
        left = left[~exceeds(iou.to(dets.dtype), iou_threshold)]
    return torch.stack(kept) if kept else order


# Points in quadrilaterals: count crossings of a ray; for a point on the border, stop counting at that side


def points_in_polygons_forward(
    points: Tensor,  # (M, 2)
    polygons: Tensor,  # (N, 8)
    output: Tensor,  # (M, N), written: 1 inside
) -> None:
    corners = polygons.float().view(-1, 4, 2)
    x, y = points.float()[:, None].unbind(-1)  # (M, 1)
    crossings, ended = torch.zeros_like(output, dtype=torch.int), torch.zeros_like(output, dtype=torch.bool)
    for side in range(4):
        (ax, ay), (bx, by) = (corners[:, end].unbind(-1) for end in (side, side - 1))
        level = (y >= torch.minimum(ay, by)) & (y <= torch.maximum(ay, by))
        corner = ((ax == x) & (ay == y)) | ((bx == x) & (by == y))
        across = (ay < y) != (by < y)
        meets = ax + (y - ay) * (bx - ax) / (by - ay)
        ended |= level & (corner | (across & (meets == x)))
        crossings += ~ended & level & across & (meets > x)
    output.copy_(crossings % 2)


def diff_iou_rotated_sort_vertices_forward(
    vertices: Tensor,  # [B, N, 24, 2], around their mean; the last 16 are crossings of sides
    mask: Tensor,  # [B, N, 24], which of them are corners of the polygon that two boxes share
    num_valid: Tensor,  # [B, N]
) -> Tensor:
    """Indices of the polygon's corners in order: [B, N, 9], int32. The first corner follows the last one.

    Unused entries contain the index of a vertex that is not a corner. Corners at the same position count
    once, so at most eight remain.
    """
    angle = torch.atan2(vertices[..., 1], vertices[..., 0]).remainder(2 * math.pi)
    order = angle.masked_fill(~mask, torch.inf).argsort(dim=2, stable=True)
    places = vertices.gather(2, order[..., None].expand_as(vertices))
    reach = places.abs().amax((2, 3), keepdim=True)
    differs = ((places - places.roll(1, 2)).abs() > 1e-6 * reach).any(3)
    differs[..., 0] = True
    keep = differs & mask.gather(2, order) & (num_valid[..., None] >= 3)
    order = order.gather(2, keep.logical_not().to(torch.uint8).argsort(dim=2, stable=True))[..., :9]
    count = keep.sum(2, keepdim=True)
    none = 8 + mask[..., 8:].to(torch.uint8).argmin(2, keepdim=True)
    place = torch.arange(9, device=order.device).expand_as(order)
    order = torch.where(place == count, order[..., :1], torch.where(place < count, order, none))
    return torch.where(count > 0, order, none).int()
