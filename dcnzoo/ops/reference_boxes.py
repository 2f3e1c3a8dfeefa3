"""NMS and overlaps of boxes in plain PyTorch: the oracle that the compiled kernels are tested against.

For rotated boxes its algorithm differs from the kernels': it collects the intersections of the sides, and
the corners of each box inside the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = 1e-9  # relative to a side, in float64: tolerance for vertices on the sides of the other box
LEAST_AREA = 1e-14  # a smaller box overlaps nothing


def box_iou_rotated(
    boxes1: Tensor,  # (M, 5), (x, y, width, height, angle in radians)
    boxes2: Tensor,  # (N, 5)
    mode: str = "iou",
    aligned: bool = False,
    clockwise: bool = True,
) -> Tensor:  # (M, N), or (M,) if aligned
    boxes, others = (boxes1, boxes2) if aligned else all_pairs(boxes1, boxes2)
    boxes, others = boxes.double(), others.double()
    area, areas = boxes[:, 2] * boxes[:, 3], others[:, 2] * others[:, 3]
    # skip pairs whose circumscribed circles do not touch: these are most pairs
    reach = (boxes[:, 2:4].norm(dim=1) + others[:, 2:4].norm(dim=1)) / 2
    near = (boxes[:, :2] - others[:, :2]).norm(dim=1) <= reach * (1 + SLACK)
    near = (near & (area >= LEAST_AREA) & (areas >= LEAST_AREA)).nonzero()[:, 0]
    shared = boxes.new_zeros(len(boxes))
    for pairs in near.split(1 << 16):
        shift = (boxes[pairs, :2] + others[pairs, :2])[:, None] / 2  # for precision
        corners = (_vertices(each[pairs], clockwise) - shift for each in (boxes, others))
        shared[pairs] = _shared_area(*corners)
    small = (area < LEAST_AREA) | (areas < LEAST_AREA)
    ratios = shared / (area + areas - shared if mode == "iou" else area)
    ratios = torch.where(small, 0.0, ratios).to(boxes1.dtype)
    return ratios if aligned else ratios.view(len(boxes1), len(boxes2))


def nms(
    boxes: Tensor,  # (N, 4), (x1, y1, x2, y2)
    scores: Tensor,  # (N,)
    iou_threshold: float,
    offset: int = 0,
) -> Tensor:  # (kept,)
    """Greedy NMS (Ren et al. 2015, sec. 3.3): indices of the kept boxes, best first."""
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    left, kept = scores.sort(stable=True, descending=True).indices, []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[~(iou_with(boxes[best], boxes[left], offset) > iou_threshold)]
    return torch.stack(kept) if kept else left


def iou_with(box: Tensor, boxes: Tensor, offset: int = 0) -> Tensor:  # (4,), (N, 4) -> (N,)
    """Intersection over union of a box with each of the others, all (x1, y1, x2, y2)."""

    def area(boxes: Tensor) -> Tensor:
        return (boxes[..., 2:] - boxes[..., :2] + offset).prod(-1)

    low, high = torch.max(box[:2], boxes[:, :2]), torch.min(box[2:], boxes[:, 2:])
    shared = (high - low + offset).clamp(min=0).prod(-1)
    return shared / (area(box) + area(boxes) - shared)


def nms_rotated(
    boxes: Tensor,  # (N, 5)
    scores: Tensor,  # (N,)
    iou_threshold: float,
    clockwise: bool = True,
) -> Tensor:  # (kept,)
    ratios = box_iou_rotated(boxes, boxes, clockwise=clockwise)
    kept: list[int] = []
    for candidate in scores.sort(stable=True, descending=True).indices.tolist():
        if not (ratios[kept, candidate] > iou_threshold).any():
            kept.append(candidate)
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


def all_pairs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:  # (M, k), (N, k) -> (M·N, k) each
    return boxes1.repeat_interleave(len(boxes2), 0), boxes2.repeat(len(boxes1), 1)


def cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _vertices(boxes: Tensor, clockwise: bool) -> Tensor:  # (N, 5) -> (N, 4, 2), in turn
    centre, size = boxes[:, None, :2], boxes[:, None, 2:4]
    angle = boxes[:, 4, None] if clockwise else -boxes[:, 4, None]
    signs = boxes.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    x, y = (signs * size / 2).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return centre + torch.stack([x * cos - y * sin, x * sin + y * cos], -1)


def _inside(points: Tensor, box: Tensor) -> Tensor:  # (N, 4, 2), (N, 4, 2) -> (N, 4)
    sides = torch.stack([box[:, 1] - box[:, 0], box[:, 3] - box[:, 0]], 1)  # (N, 2, 2)
    along = ((points - box[:, :1])[:, :, None] * sides[:, None]).sum(-1)
    length = sides.square().sum(-1)[:, None]
    return ((along >= -SLACK * length) & (along <= (1 + SLACK) * length)).all(-1)


def claimed_points(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:  # (N, 4, 2), (N, 4, 2) -> (N, 24, 2), (N,)
    """Corners of the intersection of each pair of rectangles, and their number.

    These are the intersections of the sides and the vertices of each rectangle inside the other. Unused
    entries repeat a valid point. All points are relative to the mean of the valid ones.
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
    """The shared area of each pair of rectangles: the shoelace formula on corners sorted by angle."""
    points, count = claimed_points(a, b)
    order = torch.atan2(points[..., 1], points[..., 0]).argsort(1)
    points = points.gather(1, order[..., None].expand_as(points))
    area = cross(points, points.roll(-1, 1)).sum(1).abs() / 2
    return torch.where(count > 2, area, torch.zeros_like(area))
