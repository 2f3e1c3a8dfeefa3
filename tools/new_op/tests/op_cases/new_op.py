"""Samples of new_op: the tensors are (input, weight)."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import torch
from torch import Tensor

import dcnzoo.ops

from . import CHANNELS, Sample, absolute_at, emptied, per_axis, random_name, wrong_calls

NAME = "new_op"
can_be_zero = ("channels", "size")
absolute = absolute_at(0, 1)


def call(sample: Sample) -> Tensor:
    return dcnzoo.ops.new_op(*sample.tensors)


def reference(sample: Sample) -> Tensor:
    """Compute the result independently of the operator's file."""
    input, weight = sample.tensors
    return torch.einsum("nchw,c->nchw", input, weight)


def make(name: str, batch: int = 2, channels: int = 3, size: tuple[int, ...] = (7, 10)) -> Sample:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    input = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    return Sample(name, (input, torch.randn(channels, generator=generator, dtype=torch.float64)))


def samples() -> Iterator[Sample]:
    yield make("ordinary")
    yield make("17 channels", channels=17)
    yield make("one pixel", size=(1, 1))
    yield make("empty batch", batch=0)


def random_sample(rng: Random, nothing: str) -> Sample:
    size = per_axis(rng, 2, 1, 12)
    return make(
        random_name(rng, nothing),
        batch=rng.randint(0, 3),
        channels=0 if nothing == "channels" else rng.choice(CHANNELS),
        size=emptied(rng, size) if nothing == "size" else size,
    )


def overload_calls(sample: Sample) -> Iterator[tuple[torch._ops.OpOverload, tuple]]:
    yield torch.ops.dcnzoo.new_op.default, sample.leaves().tensors
    grad = torch.ones_like(reference(sample))
    for output_mask in ([True, True], [True, False], [False, True]):
        yield torch.ops.dcnzoo._new_op_backward.default, (grad, *sample.tensors, output_mask)


def resized_samples() -> Iterator[Sample]:
    # all sizes of the first sample differ: torch.compile would assume that equal sizes stay equal
    for batch, size in ((5, (7, 10)), (8, (9, 13)), (9, (14, 8))):
        yield make(f"{batch}", batch=batch, size=size)


def invalid() -> Iterator[tuple[Sample, str]]:
    good = make("good")
    input, weight = good.tensors
    rows = [
        ("input", "got shape (3, 7, 10)", dict(input=input[0])),
        ("weight", "got (2,)", dict(weight=weight[1:])),
        ("weight", "float64 like input, got float32", dict(weight=weight.float())),
        ("weight", "device cpu like input, got meta", dict(weight=weight.to("meta"))),
    ]
    return wrong_calls(NAME, good, ("input", "weight"), rows)
