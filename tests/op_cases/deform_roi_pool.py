"""Samples of deform_roi_pool: the tensors are (input, rois, offset)."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from random import Random

import torch

import dcnzoo.ops
from dcnzoo.ops import reference as oracle
from tests.op_cases import Sample, call_function, normal, roi_align, wrong_calls
from tests.op_cases.roi_align import absolute as absolute
from tests.op_cases.roi_align import can_be_zero as can_be_zero
from tests.op_cases.roi_align import random_regions, region_rows

NAME = "deform_roi_pool"
call = partial(call_function, dcnzoo.ops.deform_roi_pool)
reference = partial(call_function, oracle.deform_roi_pool)
batched = autocasts = continuous = False


def make(name: str, rois: int = 4, size: tuple[int, int] = (9, 13), channels: int = 3, **kwargs) -> Sample:
    """Some RoIs cross every border of the map, and some bins move beyond it."""
    sample = roi_align.make(name, rois, size, channels, **kwargs)
    generator = torch.Generator().manual_seed(1)
    offset = torch.randn(rois, 2, 3, 2, generator=generator, dtype=torch.float64)
    return replace(sample, tensors=(*sample.tensors, offset))


def random_sample(rng: Random, nothing: str) -> Sample:
    sample = random_regions(rng, nothing)
    offset = normal(rng, len(sample.tensors[1]), 2, *sample.kwargs["output_size"])
    return replace(sample, tensors=(*sample.tensors, offset))


def samples() -> Iterator[Sample]:
    for gamma in (0.3, -0.4):
        for ratio in (0, 1, 3):
            yield make(f"{ratio or 'as many'} samples, gamma {gamma}", sampling_ratio=ratio, gamma=gamma)
    # around the block sizes of the kernels
    yield make("one pixel", size=(1, 1), channels=1)
    yield make("one column, 5 channels", size=(40, 1), channels=5)
    yield make("one row, 17 channels", size=(1, 40), channels=17)
    yield make("34 channels", size=(5, 70), channels=34)
    yield make("40 RoIs", rois=40, channels=4)
    yield make("no channels", channels=0)


def resized_samples() -> Iterator[Sample]:
    for rois, size in ((6, (9, 13)), (7, (10, 8)), (11, (5, 14))):
        yield make(f"{rois}", rois, size)


def invalid() -> Iterator[tuple[Sample, str]]:
    good = make("good")
    input, rois, offset = good.tensors
    rows = [
        *region_rows(input, rois),
        ("offset", "got (4, 2, 2, 3)", dict(offset=offset.mT)),
        ("offset", "got (3, 2, 3, 2)", dict(offset=offset[1:])),
        ("offset", "got (48,)", dict(offset=offset.flatten())),
        ("offset", "got Int", dict(offset=offset.int())),
        ("gamma", "got nan", dict(gamma=math.nan)),
    ]
    return wrong_calls(NAME, good, ("input", "rois", "offset"), rows)
