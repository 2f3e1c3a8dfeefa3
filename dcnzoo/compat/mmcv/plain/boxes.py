"""Overlaps and suppression of boxes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _iou(box: Tensor, boxes: Tensor, offset: int = 0) -> Tensor:  # (4,), (N, 4) -> (N,)
    overlap, area, areas = _overlap(box, boxes, offset)
    return overlap / (area + areas - overlap)


def _overlap(boxes: Tensor, others: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """What boxes share, and their areas."""

    def area(boxes: Tensor) -> Tensor:
        return (boxes[..., 2:] - boxes[..., :2] + offset).prod(-1)

    low, high = torch.max(boxes[..., :2], others[..., :2]), torch.min(boxes[..., 2:], others[..., 2:])
    return (high - low + offset).clamp(min=0).prod(-1), area(boxes), area(others)


def bbox_overlaps(
    boxes1: Tensor,  # (M, 4)
    boxes2: Tensor,  # (N, 4)
    ious: Tensor,  # (M, N), or (M,) if aligned
    mode: int,  # 0 over the union, 1 over boxes1
    aligned: bool,
    offset: int,
) -> None:
    overlap, area1, area2 = _overlap(boxes1 if aligned else boxes1[:, None], boxes2, offset)
    ious.copy_(overlap / (area1 + area2 - overlap if mode == 0 else area1))


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
    """Soft-NMS (Bodla et al. 2017). Returns the indices of the boxes that remain, best first.

    Of equal scores the first goes first, in mmcv's order: the best box changes places with the first
    one, and the place of a box that falls out is taken by the last.
    """
    left = torch.arange(len(boxes), device=boxes.device)
    scores, kept = scores.clone(), []
    while len(left):
        comparable = scores.nan_to_num(nan=-torch.inf)
        best = comparable.argmax() if not scores[0].isnan() else 0  # nothing exceeds a NaN
        index, score = left[best].clone(), scores[best].clone()
        dets[len(kept), :4], dets[len(kept), 4] = boxes[index], score
        kept.append(index)
        left[best], scores[best] = left[0].clone(), scores[0].clone()
        left, scores = left[1:], scores[1:]
        iou = _iou(boxes[index], boxes[left], offset)
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
    left = dets[:, 4].sort(descending=True).indices  # of equal scores, in mmcv's order
    groups = []
    while len(left):
        match = _iou(dets[left[0], :4], dets[left, :4]) >= iou_threshold
        match[0] = True
        groups.append(left[match].tolist())
        left = left[~match]
    return groups


# Rotated boxes: (x, y, width, height, angle in radians, clockwise with y downwards)


def _vertices(boxes: Tensor) -> Tensor:  # (N, 5) -> (N, 4, 2), in turn
    centre, size, angle = boxes[:, None, :2], boxes[:, None, 2:4], boxes[:, 4, None]
    signs = boxes.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    x, y = (signs * size / 2).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return centre + torch.stack([x * cos - y * sin, x * sin + y * cos], -1)


def cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


SLACK = 1e-9  # of a side; in float64, for vertices that lie on the other's sides


def _inside(points: Tensor, box: Tensor) -> Tensor:  # (N, 4, 2), (N, 4, 2) -> (N, 4)
    sides = torch.stack([box[:, 1] - box[:, 0], box[:, 3] - box[:, 0]], 1)  # (N, 2, 2)
    along = ((points - box[:, :1])[:, :, None] * sides[:, None]).sum(-1)
    length = sides.square().sum(-1)[:, None]
    return ((along >= -SLACK * length) & (along <= (1 + SLACK) * length)).all(-1)


def claimed_points(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:  # (N, 4, 2), (N, 4, 2) -> (N, 24, 2), (N,)
    """Where sides of pairs of rectangles cross and their inner vertices, and how many these are.

    In place of points that there are not stand copies of one that is; all are relative to their mean.
    """
    side_a, side_b = a.roll(-1, 1) - a, b.roll(-1, 1) - b
    determinant = cross(side_a[:, :, None], side_b[:, None])  # (N, 4, 4)
    between = b[:, None] - a[:, :, None]
    on_a = cross(between, side_b[:, None]) / determinant
    on_b = cross(between, side_a[:, :, None]) / determinant
    meet = (on_a >= 0) & (on_a <= 1) & (on_b >= 0) & (on_b <= 1) & (determinant.abs() > 1e-14)
    crossings = a[:, :, None] + side_a[:, :, None] * on_a[..., None]

    points = torch.cat([crossings.flatten(1, 2), a, b], 1)  # (N, 24, 2)
    valid = torch.cat([meet.flatten(1), _inside(a, b), _inside(b, a)], 1)
    points = torch.where(valid[..., None], points, torch.zeros_like(points))
    count = valid.sum(1)
    points = points - (points.sum(1) / count.clamp(min=1)[:, None])[:, None]
    first = points.gather(1, valid.to(torch.uint8).argmax(1)[:, None, None].expand(-1, 1, 2))
    return torch.where(valid[..., None], points, first), count


def _shared_area(a: Tensor, b: Tensor) -> Tensor:  # (N, 4, 2), (N, 4, 2) -> (N,)
    """The area that pairs of rectangles share: their points in turn."""
    points, count = claimed_points(a, b)
    order = torch.atan2(points[..., 1], points[..., 0]).argsort(1)
    points = points.gather(1, order[..., None].expand_as(points))
    area = cross(points, points.roll(-1, 1)).sum(1).abs() / 2
    return torch.where(count > 2, area, torch.zeros_like(area))


def _rotated_overlap(boxes: Tensor, others: Tensor, mode: int) -> Tensor:  # (N, 5), (N, 5) -> (N,)
    boxes, others = boxes.double(), others.double()
    area, areas = boxes[:, 2] * boxes[:, 3], others[:, 2] * others[:, 3]
    # circles around boxes that do not touch: most pairs
    reach = (boxes[:, 2:4].norm(dim=1) + others[:, 2:4].norm(dim=1)) / 2
    near = (boxes[:, :2] - others[:, :2]).norm(dim=1) <= reach * (1 + SLACK)
    near = (near & (area >= 1e-14) & (areas >= 1e-14)).nonzero()[:, 0]
    result = boxes.new_zeros(len(boxes))
    for pairs in near.split(1 << 16):
        shift = (boxes[pairs, :2] + others[pairs, :2])[:, None] / 2  # for precision
        shared = _shared_area(_vertices(boxes[pairs]) - shift, _vertices(others[pairs]) - shift)
        result[pairs] = shared / (area[pairs] + areas[pairs] - shared if mode == 0 else area[pairs])
    return result


def box_iou_rotated(
    boxes1: Tensor,  # (M, 5)
    boxes2: Tensor,  # (N, 5)
    ious: Tensor,  # (M·N,), or (M,) if aligned
    mode_flag: int,  # 0 over the union, 1 over boxes1
    aligned: bool,
) -> None:
    boxes = (boxes1, boxes2) if aligned else all_pairs(boxes1, boxes2)
    ious.copy_(_rotated_overlap(*boxes, mode_flag).view_as(ious))


def all_pairs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:  # (M, k), (N, k) -> (M·N, k) each
    return boxes1.repeat_interleave(len(boxes2), 0), boxes2.repeat(len(boxes1), 1)


def nms_rotated(
    dets: Tensor,  # (N, 5), or (N, 6) with a label behind
    scores: Tensor,
    order: Tensor,  # (N,), by score
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    return suppress(
        dets, order, iou_threshold, lambda *boxes: _rotated_overlap(*(b[:, :5] for b in boxes), 0)
    )


def suppress(dets: Tensor, order: Tensor, threshold: float, overlap: Callable) -> Tensor:
    """A box falls out at the threshold on the CPU, above it on a GPU, whatever its label: as in mmcv."""
    exceeds = torch.gt if dets.is_cuda else torch.ge
    left, kept = order, []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        iou = overlap(dets[best].expand(len(left), -1), dets[left])
        left = left[~exceeds(iou.to(dets.dtype), threshold)]
    return torch.stack(kept) if kept else order
