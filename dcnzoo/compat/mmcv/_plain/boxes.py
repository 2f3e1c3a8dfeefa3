"""Boxes, quadrilaterals, sets of points and their convex hulls: overlaps and suppression."""

import math

import torch
from torch import Tensor

from dcnzoo.ops.reference_boxes import SLACK, all_pairs, clip, cross, iou_with, polygon_area, shared_area


def softnms(
    boxes: Tensor,  # (N, 4)
    scores: Tensor,  # (N,)
    dets: Tensor,  # (N, 5), written: the boxes that remain and their new scores
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,  # 0 naive, 1 linear, 2 gaussian
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al. 2017). Returns the indices of the remaining boxes, best first.

    Among equal scores the first box comes first, in mmcv's order: the best box is swapped with the first one,
    and the last box replaces a dropped box.
    """
    left = torch.arange(len(boxes), device=boxes.device)
    scores = scores.clone()
    kept: list[Tensor] = []
    while len(left):
        comparable = scores.nan_to_num(nan=-torch.inf)
        best = comparable.argmax() if not scores[0].isnan() else 0  # nothing exceeds a NaN
        index, score = left[best].clone(), scores[best].clone()
        dets[len(kept), :4], dets[len(kept), 4] = boxes[index], score
        kept.append(index)
        left[best], scores[best] = left[0].clone(), scores[0].clone()
        left, scores = left[1:], scores[1:]
        iou = iou_with(boxes[index], boxes[left], offset)
        if method == 2:
            scores = scores * torch.exp(-iou.square() / sigma)
        else:
            decay = torch.zeros_like(iou) if method == 0 else 1 - iou
            scores = torch.where(iou >= iou_threshold, scores * decay, scores)
        places = torch.arange(len(left), device=left.device)
        remains = ~(scores < min_score)
        count = int(remains.sum())
        places[:count][~remains[:count]] = places[count:][remains[count:]].flip(0)
        left, scores = left[places[:count]], scores[places[:count]]
    return torch.stack(kept) if kept else left


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups ``dets`` (N, 5): each kept box with the boxes that it suppresses, best first."""
    left = dets[:, 4].sort(descending=True).indices  # mmcv's order of equal scores
    groups = []
    while len(left):
        match = iou_with(dets[left[0], :4], dets[left, :4]) >= iou_threshold
        match[0] = True
        groups.append(left[match].tolist())
        left = left[~match]
    return groups


# Convex polygons


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
        farthest = torch.where(right.any(2) | (length == 0), -1.0, length).max(1)
        following = torch.where(farthest.values < 0, order[-1], farthest.indices)
        stays = (order[-1] == start) * (len(order) > 1)
        home = (fixed[rows, following] == fixed[rows, start]).all(-1) | stays
        order.append(torch.where(home, start, following))
        if home.all():
            break
    return points.gather(1, torch.stack(order, 1)[..., None].expand(-1, -1, 2))


def _shared_gradient(polygons: Tensor, others: Tensor) -> Tensor:  # (N, P, 2), (N, Q, 2) -> (N, P, 2)
    """The derivative of :func:`shared_area` with respect to ``polygons``.

    The area changes only where a side inside the other polygon moves. (Autograd through the intersection
    points is wrong if a corner lies on a side: it mixes the two lines that intersect there.)
    """
    first, last, inside = clip(polygons, others, closed=True)
    x, y = (polygons.roll(-1, 1) - polygons).unbind(-1)
    outwards = torch.stack([y, -x], -1)  # with the length of the side
    to_end = (last.square() - first.square()) / 2  # the integral of t
    to_begin = last - first - to_end
    to_begin, to_end = ((part * inside)[..., None] * outwards for part in (to_begin, to_end))
    return to_begin + to_end.roll(1, 1)


# Convex hulls of nine points (Guo et al. 2021, CFA) and convex quadrilaterals


def convex_iou(
    pointsets: Tensor,  # (N, 18)
    polygons: Tensor,  # (M, 8)
    ious: Tensor,  # (N, M), written
) -> None:
    hulls = _hulls(pointsets.double().view(-1, 9, 2)).flatten(1)
    ious.copy_(_overlap(*all_pairs(hulls, _quads(polygons))).view_as(ious))


def convex_giou(
    pointsets: Tensor,  # (N, 18)
    polygons: Tensor,  # (N, 8)
    output: Tensor,  # (N, 19), written: the gradient of the points, and the generalised IoU
) -> None:
    quads = _quads(polygons).unflatten(1, (-1, 2))
    with torch.enable_grad():
        points = pointsets.detach().double().view(-1, 9, 2).requires_grad_()
        hulls = _hulls(points)
        fixed = hulls.detach()
        moved = ((hulls - fixed) * _shared_gradient(fixed, quads)).sum((1, 2))  # zero, with a gradient
        shared = shared_area(fixed, quads) + moved
        union = polygon_area(hulls) + polygon_area(quads) - shared
        around = polygon_area(_hulls(torch.cat([points, quads], 1)))
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
    bounds = (left, right, top, bottom, cos[:, 0], sin[:, 0])
    left, right, top, bottom, cos, sin = (t.gather(1, best) for t in bounds)
    u, v = torch.cat([right, left, left, right], 1), torch.cat([top, top, bottom, bottom], 1)
    polygons.copy_(torch.stack([u * cos - v * sin, u * sin + v * cos], -1).flatten(1))


# Overlap and suppression of convex quadrilaterals


def _quads(boxes: Tensor) -> Tensor:  # (N, 8 or more) -> (N, ≤ 8)
    return _hulls(boxes[:, :8].double().view(-1, 4, 2)).flatten(1)


def _overlap(quads: Tensor, others: Tensor, over_first: bool = False) -> Tensor:  # results of _quads -> (N,)
    quads, others = quads.unflatten(1, (-1, 2)), others.unflatten(1, (-1, 2))
    low, high = (torch.stack([f(q, 1) for q in (quads, others)]) for f in (torch.amin, torch.amax))
    near = (low.amax(0) <= high.amin(0)).all(1).nonzero()[:, 0]
    shared = quads.new_zeros(len(quads))
    for pairs in near.split(1 << 14):
        shared[pairs] = shared_area(quads[pairs], others[pairs])
    area = polygon_area(quads)
    whole = area if over_first else area + polygon_area(others) - shared
    return torch.where(shared > 0, shared / whole, 0.0)


def box_iou_quadri(
    boxes1: Tensor,  # (M, 8), or (M, 9) with a score in the last column, as in mmrotate
    boxes2: Tensor,  # (N, 8)
    ious: Tensor,  # (M·N,), or (M,) if aligned
    mode_flag: int,  # 0 over the union, 1 over boxes1
    aligned: bool,
) -> None:
    quads, others = _quads(boxes1), _quads(boxes2)
    pairs = (quads, others) if aligned else all_pairs(quads, others)
    ious.copy_(_overlap(*pairs, mode_flag == 1).view_as(ious))


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
    quads, left, kept = _quads(dets), order, []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        iou = _overlap(quads[best].expand(len(left), -1), quads[left])
        left = left[~exceeds(iou.to(dets.dtype), iou_threshold)]
    return torch.stack(kept) if kept else order


# Points in quadrilaterals: the sides that a ray to the right crosses


def points_in_polygons_forward(
    points: Tensor,  # (M, 2)
    polygons: Tensor,  # (N, 8)
    output: Tensor,  # (M, N), written: 1 inside
) -> None:
    corners = polygons.float().view(-1, 4, 2)
    (ax, ay), (bx, by) = corners.unbind(-1), corners.roll(1, 1).unbind(-1)  # (N, 4)
    x, y = points.float()[:, None, None].unbind(-1)  # (M, 1, 1)
    crossed = ((ay > y) != (by > y)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    output.copy_(crossed.sum(2) % 2)


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
    position = torch.arange(9, device=order.device).expand_as(order)
    order = torch.where(position == count, order[..., :1], torch.where(position < count, order, none))
    return torch.where(count > 0, order, none).int()
