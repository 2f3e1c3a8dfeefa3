"""Random calls of box_iou_rotated and nms_rotated: the tensors are (boxes1, boxes2), and (boxes, scores)."""

from functools import partial
from random import Random

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.ops import reference_boxes

from . import Operator, Sample, call_function, normal


def overlapping_boxes(count: int, seed: int = 0, dtype=torch.float64):
    """Boxes with many overlaps, and scores."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 5, generator=generator, dtype=torch.float64)
    boxes = boxes * torch.tensor([30, 30, 20, 8, 20]) + torch.tensor([0, 0, 1, 1, -10])
    return boxes.to(dtype), torch.rand(count, generator=generator, dtype=torch.float64).to(dtype)


def random_rotated_boxes(rng: Random, count: int) -> Tensor:  # [count, 5]
    """Some are elongated, have zero or negative size, are whole numbers, or equal another box."""
    size = (normal(rng, count, 2) * 8).abs() if rng.randint(0, 3) else normal(rng, count, 2) * 8
    boxes = torch.cat([normal(rng, count, 2) * 8, size, normal(rng, count, 1) * 3], dim=1)
    if rng.randint(0, 1):
        boxes = boxes.round()
    boxes[count // 2 :][: count // 4] = boxes[: count // 4]
    return boxes


def random_pair(rng: Random, nothing: str) -> Sample:
    aligned = rng.randint(0, 2) == 0
    count = rng.randint(0, 40)
    boxes = random_rotated_boxes(rng, count)
    others = boxes.flip(0) if aligned else random_rotated_boxes(rng, rng.randint(0, 40))
    settings = {"mode": rng.choice(("iou", "iof")), "aligned": aligned, "clockwise": rng.randint(0, 1) == 1}
    return Sample("", (boxes, others), settings)


def random_candidates(rng: Random, nothing: str) -> Sample:
    count = rng.randint(0, 40)
    scores = normal(rng, count)
    scores = scores.round() if rng.randint(0, 1) else scores
    # boxes of whole numbers never overlap by exactly these thresholds, where rounding decides
    settings = {"iou_threshold": rng.choice((0.0523, 0.3171, 0.6913)), "clockwise": rng.randint(0, 1) == 1}
    return Sample("", (random_rotated_boxes(rng, count), scores), settings)


OPERATORS = [
    Operator(
        "box_iou_rotated",
        partial(call_function, dcnzoo.ops.box_iou_rotated),
        partial(call_function, reference_boxes.box_iou_rotated),
        random_pair,
        # rounding errors scale with a whole box, not with the intersection: use equal boxes
        absolute=lambda sample: sample.map(torch.ones_like),
        differentiable=False,
    ),
    Operator(
        "nms_rotated",
        partial(call_function, dcnzoo.ops.nms_rotated),
        partial(call_function, reference_boxes.nms_rotated),
        random_candidates,
        differentiable=False,
        continuous=False,
    ),
]
