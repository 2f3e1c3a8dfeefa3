"""NMS and overlaps of boxes in plain PyTorch: the oracle that the compiled kernels are tested against.

For rotated boxes its algorithm differs from the kernels': it clips the sides of each box to the inside of the
other one. The functions of convex polygons serve :mod:`dcnzoo.compat.mmcv` too.
"""

import torch
from torch import Tensor

SLACK = 1e-12  # an angle with a smaller sine counts as zero
LEAST_AREA = 1e-14  # a smaller box overlaps nothing
WITHOUT_FLOAT64 = ("mps",)  # types of devices


def box_iou_rotated(
    boxes1: Tensor,  # (M, 5), (x, y, width, height, angle in radians)
    boxes2: Tensor,  # (N, 5)
    mode: str = "iou",
    aligned: bool = False,
    clockwise: bool = True,
) -> Tensor:  # (M, N), or (M,) if aligned
    boxes, others = (boxes1, boxes2) if aligned else all_pairs(boxes1, boxes2)
    widest = torch.float32 if boxes.device.type in WITHOUT_FLOAT64 else torch.float64
    boxes, others = boxes.to(widest), others.to(widest)
    area, areas = boxes[:, 2] * boxes[:, 3], others[:, 2] * others[:, 3]
    # skip pairs whose circumscribed circles do not touch: these are most pairs
    reach = (boxes[:, 2:4].norm(dim=1) + others[:, 2:4].norm(dim=1)) / 2
    near = (boxes[:, :2] - others[:, :2]).norm(dim=1) <= reach * (1 + 1e-9)
    near = (near & (area >= LEAST_AREA) & (areas >= LEAST_AREA)).nonzero()[:, 0]
    shared = boxes.new_zeros(len(boxes))
    for pairs in near.split(1 << 16):
        shared[pairs] = shared_area(*(_vertices(each[pairs], clockwise) for each in (boxes, others)))
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


def polygon_area(polygons: Tensor) -> Tensor:  # (N, P, 2) -> (N,), positive if counter-clockwise
    polygons = polygons - polygons[:, :1]
    return cross(polygons, polygons.roll(-1, 1)).sum(1) / 2


def clip(polygons: Tensor, others: Tensor, closed: bool) -> tuple[Tensor, Tensor, Tensor]:
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
    first, last, inside = clip(polygons, others, closed)
    side = polygons.roll(-1, 1) - polygons
    begin, end = (polygons + side * t[..., None] for t in (first, last))
    return (cross(begin, end) * inside).sum(1)


def shared_area(polygons: Tensor, others: Tensor) -> Tensor:  # (N, P, 2), (N, Q, 2) -> (N,)
    """The shared area of each pair of convex polygons, by Green's theorem along its border."""
    origin = polygons.detach()[:, :1]
    polygons, others = polygons - origin, others - origin
    area = _inner_sides(polygons, others, closed=True) + _inner_sides(others, polygons, closed=False)
    return area.clamp(min=0) / 2
