"""Samples of roi_align_rotated: the tensors are (input, rois)."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from random import Random

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.ops import reference as oracle

from . import Sample, call_function, normal, roi_align, wrong_calls
from .roi_align import absolute as absolute
from .roi_align import can_be_zero as can_be_zero
from .roi_align import random_regions, region_rows

NAME = "roi_align_rotated"
call = partial(call_function, dcnzoo.ops.roi_align_rotated)
reference = partial(call_function, oracle.roi_align_rotated)
batched = autocasts = continuous = False


def turned(rois: Tensor, angle: Tensor) -> Tensor:  # [K, 5], [K] -> [K, 6]
    corner, end = rois[:, 1:3], rois[:, 3:]
    return torch.cat([rois[:, :1], (corner + end) / 2, end - corner, angle[:, None]], dim=1)


def make(name: str, rois: int = 4, size: tuple[int, int] = (9, 13), channels: int = 3, **kwargs) -> Sample:
    """Some regions cross every border of the map; angles range from -π to beyond 2π."""
    sample = roi_align.make(name, rois, size, channels, **kwargs)
    input, boxes = sample.tensors
    angle = torch.linspace(-3.1, 7.3, rois, dtype=torch.float64)
    return replace(sample, tensors=(input, turned(boxes, angle)))


def random_sample(rng: Random, nothing: str) -> Sample:
    sample = random_regions(rng, nothing)
    input, boxes = sample.tensors
    # no angle that puts samples exactly on the border of the map, where rounding decides
    angle = normal(rng, len(boxes)) * 2 + 0.1
    sample.kwargs.update(aligned=rng.randint(0, 1) == 1, clockwise=rng.randint(0, 1) == 1)
    return replace(sample, tensors=(input, turned(boxes, angle)))


def samples() -> Iterator[Sample]:
    for clockwise, aligned, ratio in itertools.product((False, True), (True, False), (0, 1, 3)):
        name = f"{ratio or 'as many'} samples{'' if aligned else ', not aligned'}{', clockwise' * clockwise}"
        yield make(name, sampling_ratio=ratio, aligned=aligned, clockwise=clockwise)
    # around the block sizes of the kernels
    yield make("one pixel", size=(1, 1), channels=1)
    yield make("one row, 17 channels", size=(1, 40), channels=17)
    yield make("33 channels", size=(5, 70), channels=33)
    yield make("257 channels", size=(3, 4), channels=257)
    yield make("40 RoIs", rois=40, channels=10)
    yield make("no channels", channels=0)


def resized_samples() -> Iterator[Sample]:
    # not 6 RoIs, the numbers per region: torch.compile would treat equal sizes as one symbol
    for rois, size in ((8, (9, 13)), (7, (10, 8)), (11, (5, 14))):
        yield make(f"{rois}", rois, size)


def invalid() -> Iterator[tuple[Sample, str]]:
    good = make("good")
    rows = [
        *region_rows(*good.tensors),
        ("sampling_ratio", "got 5000000", dict(sampling_ratio=5_000_000)),
        ("spatial_scale", "got nan", dict(spatial_scale=math.nan)),
    ]
    return wrong_calls(NAME, good, ("input", "rois"), rows)
