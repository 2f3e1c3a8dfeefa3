"""Samples of dcnv4: the tensors are (input, offset_mask)."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from random import Random

import torch

import dcnzoo.ops
from dcnzoo.ops import reference as oracle
from tests.op_cases import Sample, call_function, dcnv3, wrong_calls
from tests.op_cases.dcnv3 import can_be_zero as can_be_zero
from tests.op_cases.dcnv3 import geometry

NAME = "dcnv4"
call = partial(call_function, dcnzoo.ops.dcnv4)


def reference(sample: Sample) -> torch.Tensor:
    return oracle.dcnv4(*sample.tensors, *geometry(sample))


def resized_samples() -> Iterator[Sample]:
    for sample in dcnv3.resized_samples():
        yield packed(sample)


def packed(sample: Sample) -> Sample:
    """The same sample with dcnv4's combined offset and mask, whose padding is not zero."""
    input, offset, mask = sample.tensors
    group = sample.kwargs["group"]
    points = mask.shape[3] // max(group, 1)
    parts = [offset.unflatten(3, (group, points * 2)), mask.unflatten(3, (group, points))]
    fields = torch.cat(parts, dim=4).flatten(3)
    padding = -fields.shape[3] % 8
    fields = torch.cat([fields, torch.full((*fields.shape[:3], padding), 7.0, dtype=fields.dtype)], dim=3)
    kwargs = {name: value for name, value in sample.kwargs.items() if name != "im2col_step"}
    return Sample(sample.name, (input, fields), kwargs)


def random_sample(rng: Random, nothing: str) -> Sample:
    return packed(dcnv3.random_sample(rng, nothing))


def absolute(sample: Sample) -> Sample:
    input, fields = sample.tensors
    points = math.prod(dcnv3.pair(sample.kwargs["kernel_size"])) - sample.kwargs["remove_center"]
    fields = fields.clone()
    for first in range(0, sample.kwargs["group"] * points * 3, points * 3):
        fields[..., first + points * 2 : first + points * 3].abs_()  # the mask
    return replace(sample, tensors=(input.abs(), fields))


def samples() -> Iterator[Sample]:
    chosen = ("asymmetric", "without center", "far outside", "empty batch", "17 channels per group")
    for sample in dcnv3.samples():
        if sample.name in chosen:
            yield packed(sample)


def invalid() -> Iterator[tuple[Sample, str]]:
    good = packed(dcnv3.make("good", kernel_size=3, group=2, group_channels=3))
    input, fields = good.tensors
    rows = [
        ("offset_mask", "56), got (2, 7, 10, 54)", dict(offset_mask=fields[..., :54])),
        ("offset_mask", "48), got", dict(remove_center=True)),
        ("offset_mask", "got (2, 7, 10, 56)", dict(stride=2)),
        ("offset_mask", "got (1, 7, 10, 56)", dict(offset_mask=fields[:1])),
        ("input", "got (2, 6, 7, 10)", dict(input=input.permute(0, 3, 1, 2))),
        ("offset_mask", "got float32", dict(offset_mask=fields.float())),
        ("group", "got 0", dict(group=0)),
    ]
    return wrong_calls(NAME, good, ("input", "offset_mask"), rows)
