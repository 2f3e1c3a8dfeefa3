"""Random calls of nms: the tensors are (boxes, scores)."""

from collections.abc import Iterator
from functools import partial
from random import Random

import torch

import dcnzoo.ops
from dcnzoo.ops import reference_boxes
from tests.op_cases import Sample, call_function, normal, wrong_calls
from tests.op_cases.roi_align import random_boxes

NAME = "nms"
call = partial(call_function, dcnzoo.ops.nms)
reference = partial(call_function, reference_boxes.nms)
differentiable = continuous = False


def random_sample(rng: Random, nothing: str) -> Sample:
    count = rng.randint(0, 40)
    boxes, scores = random_boxes(rng, count), normal(rng, count)
    # ties, and overlaps equal to the threshold
    boxes, scores = (t.round() if rng.randint(0, 1) else t for t in (boxes, scores))
    settings = {"iou_threshold": rng.choice((0.0, 0.3, 0.5, 1.0)), "offset": rng.randint(0, 1)}
    return Sample("", (boxes, scores), settings)


def invalid() -> Iterator[tuple[Sample, str]]:
    boxes, scores = torch.zeros(5, 4), torch.zeros(5)
    good = Sample("good", (boxes, scores), {"iou_threshold": 0.5, "offset": 0})
    rows = [
        ("boxes", "got (5, 3)", {"boxes": boxes[:, 1:]}),
        ("boxes", "got (4,)", {"boxes": boxes[0]}),
        ("boxes", "got Long", {"boxes": boxes.long()}),
        ("scores", "got (4,)", {"scores": scores[1:]}),
        *(("iou_threshold", f"got {wrong}", {"iou_threshold": wrong}) for wrong in (float("nan"), 1.5, -0.5)),
        ("offset", "got 2", {"offset": 2}),
    ]
    return wrong_calls(NAME, good, ("boxes", "scores"), rows)
