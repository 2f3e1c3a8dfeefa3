"""NMS in plain PyTorch: the oracle that the compiled kernels are tested against."""

import torch
from torch import Tensor


def nms(
    boxes: Tensor,  # (N, 4), (x1, y1, x2, y2)
    scores: Tensor,  # (N,)
    iou_threshold: float,
    offset: int = 0,
) -> Tensor:  # (kept,)
    """Return the indices of the boxes that greedy NMS keeps (Ren et al. 2015, sec. 3.3), best first."""
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    left, kept = scores.sort(stable=True, descending=True).indices, []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[~(iou_with(boxes[best], boxes[left], offset) > iou_threshold)]
    return torch.stack(kept) if kept else left


def iou_with(box: Tensor, boxes: Tensor, offset: int = 0) -> Tensor:  # (…, 4), (N, 4) -> (…, N)
    """Return the intersection over union of each ``box`` with each of ``boxes``, all (x1, y1, x2, y2)."""

    def area(boxes: Tensor) -> Tensor:
        return (boxes[..., 2:] - boxes[..., :2] + offset).prod(-1)

    low, high = boxes.T.contiguous().split(2)  # adjacent values of a coordinate, for speed
    sides = [
        torch.min(box[..., axis + 2], high[axis]) - torch.max(box[..., axis], low[axis]) + offset
        for axis in range(2)
    ]
    shared = sides[0].clamp(min=0) * sides[1].clamp(min=0)
    return shared / (area(box) + area(boxes) - shared)
