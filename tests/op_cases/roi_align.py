"""Samples of roi_align: the tensors are (input, rois)."""

import itertools
import math
from collections.abc import Iterator
from functools import partial
from random import Random

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.ops import reference as oracle
from tests.op_cases import (
    CHANNELS,
    Sample,
    absolute_at,
    call_function,
    emptied,
    normal,
    per_axis,
    random_name,
    wrong_calls,
)

NAME = "roi_align"
call = partial(call_function, dcnzoo.ops.roi_align)
reference = partial(call_function, oracle.roi_align)
batched = autocasts = continuous = False
can_be_zero = ("images", "channels", "size", "bins")
absolute = absolute_at(0)


def make(
    name: str, rois: int = 4, size: tuple[int, int] = (9, 13), channels: int = 3, images: int = 2, **kwargs
) -> Sample:
    """Some RoIs cross every border of the map."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    maps = torch.randn(images, channels, *size, generator=generator, dtype=torch.float64)
    corner = torch.rand(rois, 2, generator=generator, dtype=torch.float64) * 24 - 6
    extent = torch.rand(rois, 2, generator=generator, dtype=torch.float64) * 20 + 1
    image = torch.arange(rois, dtype=torch.float64)[:, None] % images
    tensors = (maps, torch.cat([image, corner, corner + extent], 1))
    return Sample(name, tensors, {"output_size": (3, 2), "spatial_scale": 0.5, **kwargs}, constant=(1,))


def random_boxes(rng: Random, count: int) -> Tensor:  # [count, 4]
    """Some are large, some have zero or negative size, some are outside the map."""
    corner, size = normal(rng, count, 2) * 8, normal(rng, count, 2) * 8
    return torch.cat([corner, corner + (size.abs() if rng.randint(0, 1) else size)], dim=1)


def random_regions(rng: Random, nothing: str) -> Sample:
    """Arguments that all RoI pooling operators share."""
    bins, size = per_axis(rng, 2, 1, 4), per_axis(rng, 2, 1, 9)
    bins = emptied(rng, bins) if nothing == "bins" else bins
    size = emptied(rng, size) if nothing == "size" else size
    images, count = (0, 0) if nothing == "images" else (rng.randint(1, 3), rng.randint(0, 4))
    channels = 0 if nothing == "channels" else rng.choice(CHANNELS)
    image = torch.tensor([rng.randrange(images) for _ in range(count)], dtype=torch.float64)
    tensors = (
        normal(rng, images, channels, *size),
        torch.cat([image[:, None], random_boxes(rng, count)], dim=1),
    )
    settings = {
        "output_size": bins,
        "spatial_scale": rng.choice((0.25, 1.0)),
        "sampling_ratio": rng.randint(0, 3),
    }
    return Sample(random_name(rng, nothing), tensors, settings, constant=(1,))


def random_sample(rng: Random, nothing: str) -> Sample:
    sample = random_regions(rng, nothing)
    sample.kwargs.update(aligned=rng.randint(0, 1) == 1)
    return sample


def samples() -> Iterator[Sample]:
    for aligned, ratio in itertools.product((True, False), (0, 1, 3)):
        name = f"{ratio or 'as many'} samples{'' if aligned else ', not aligned'}"
        yield make(name, sampling_ratio=ratio, aligned=aligned)
    # around the block sizes of the kernels
    yield make("one pixel", size=(1, 1), channels=1)
    yield make("one row, 17 channels", size=(1, 40), channels=17)
    yield make("33 channels", size=(5, 70), channels=33)
    yield make("40 RoIs", rois=40, channels=10)
    yield make("no channels", channels=0)


def resized_samples() -> Iterator[Sample]:
    for rois, size in ((6, (9, 13)), (7, (10, 8)), (11, (5, 14))):
        yield make(f"{rois}", rois, size)


def region_rows(input: Tensor, rois: Tensor) -> list[tuple[str, str, dict]]:
    """Wrong values of the arguments that all RoI pooling operators share."""
    one = torch.eye(1, rois.shape[1], dtype=rois.dtype)
    return [
        ("input", "got (3, 9, 13)", dict(input=input[0])),
        ("input", "got Int", dict(input=input.int())),
        ("input", "got (2, 3, 0, 13)", dict(input=input[:, :, :0])),
        ("rois", f"got (4, {rois.shape[1] - 1})", dict(rois=rois[:, 1:])),
        ("rois", "got Bool", dict(rois=rois.bool())),
        # CUDA kernels return zeros: a check would synchronise with the device
        ("rois", "[0, 2), got 2 in row 1", dict(rois=rois + one)),
        ("rois", "[0, 2), got -1 in row 0", dict(rois=rois - one)),
        ("rois", "[0, 2), got nan in row 0", dict(rois=rois * math.nan)),
        ("output_size", "got (0, 2)", dict(output_size=(0, 2))),
        ("output_size", f"got ({2**15 + 1}, 2)", dict(output_size=(2**15 + 1, 2))),
        ("spatial_scale", "got 0", dict(spatial_scale=0.0)),
        ("sampling_ratio", "got 5000000", dict(sampling_ratio=5_000_000)),
    ]


def invalid() -> Iterator[tuple[Sample, str]]:
    good = make("good")
    rows = [*region_rows(*good.tensors), ("pool_mode", "got 'max'", dict(pool_mode="max"))]
    return wrong_calls(NAME, good, ("input", "rois"), rows)
