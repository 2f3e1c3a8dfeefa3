"""Random calls of nms: the tensors are (boxes, scores)."""

from functools import partial
from random import Random

import dcnzoo.ops
from dcnzoo.ops import reference_boxes

from . import Sample, call_function, normal
from .roi_align import random_boxes

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
