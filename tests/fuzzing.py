"""Strategies for tests/test_fuzz.py: random valid and broken calls of the operators.

A sample named ``zero …`` has a size of zero that an operator may reject. Empty batches and empty sets of
RoIs, boxes, queries or points are drawn as well, but must not be rejected.
"""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import torch
from hypothesis import strategies as st
from torch import Tensor

from . import op_cases
from .op_cases import Operator, Sample

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# invalid as a coordinate, weight or pixel, or undefined when cast to an integer
EXTREME = (math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**31, -(2.0**31) - 1, 2.0**63, -0.0, 1e-40)
NUMBERS = st.sampled_from([-(2**62), -1, 0, 1, 3, 2**31, 2**62])


OPERATORS = {op.name: op for op in op_cases.operators(differentiable=False)}


def random_samples(op: Operator) -> st.SearchStrategy[Sample]:
    """One of seven samples has a size of zero."""

    def sample(rng: Random) -> Sample:
        nothing = rng.choice(op.can_be_zero) if op.can_be_zero and rng.randint(0, 6) == 6 else ""
        return op.random_sample(rng, nothing)

    return st.randoms(use_true_random=False).map(sample)


SAMPLES = {name: random_samples(op) for name, op in OPERATORS.items()}


def on_grid(sample: Sample) -> Sample:
    """Round all offsets, so that points are exactly on pixels and borders."""
    return sample.map(torch.round)


@st.composite
def with_extremes(draw: st.DrawFn, sample: Sample) -> Sample:
    """Replace some elements by extreme values."""
    tensors = [None if t is None else t.clone() for t in sample.tensors]
    for _ in range(draw(st.integers(1, 5))):
        chosen = draw(st.sampled_from([t for t in tensors if t is not None]))
        if chosen.numel():
            chosen.view(-1)[draw(st.integers(0, chosen.numel() - 1))] = draw(st.sampled_from(EXTREME))
    return replace(sample, tensors=tuple(tensors))


def strided(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() > 2 else tensor


def expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor) if tensor.shape[0] else tensor


def overlapping(tensor: Tensor) -> Tensor:
    """Rows that start one element apart and so overlap in memory."""
    if tensor.dim() < 2 or tensor.numel() == 0:
        return tensor
    stride = list(tensor.stride())
    stride[-2] = 1
    return tensor.contiguous().as_strided(tensor.shape, stride)


def offset_by_one(tensor: Tensor) -> Tensor:
    """A tensor that does not start at the beginning of an allocation."""
    padded = torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])
    return padded[1:].view(tensor.shape)


LAYOUTS = (torch.clone, strided, transposed, channels_last, offset_by_one)


@st.composite
def laid_out(draw: st.DrawFn, sample: Sample) -> Sample:
    """Each tensor in its own memory layout."""
    tensors = []
    for place, tensor in enumerate(sample.tensors):
        # expanded and overlapping change values, which image numbers in rois do not allow
        layouts = LAYOUTS if place in sample.constant else (*LAYOUTS, expanded, overlapping)
        tensors.append(None if tensor is None else draw(st.sampled_from(layouts))(tensor))
    return replace(sample, tensors=tuple(tensors))


@st.composite
def broken(draw: st.DrawFn, sample: Sample) -> Sample:
    """Change one argument, which is then wrong or valid by chance."""
    places = [i for i, t in enumerate(sample.tensors) if t is not None]
    numbers = [name for name, value in sample.kwargs.items() if type(value) in (int, tuple)]
    what = draw(st.sampled_from(["size", "dimension", "dtype", *["number"] * bool(numbers)]))
    if what == "number":
        name, value = draw(st.sampled_from(numbers)), draw(NUMBERS)
        old = sample.kwargs[name]
        if isinstance(old, tuple):
            axis = draw(st.integers(0, len(old) - 1))
            value = (*old[:axis], value, *old[axis + 1 :])
        return replace(sample, kwargs={**sample.kwargs, name: value})
    tensors = list(sample.tensors)
    place = draw(st.sampled_from(places))
    tensor = tensors[place]
    if what == "dtype":
        dtypes = [torch.int64, torch.bool, torch.complex64, torch.float32]
        tensors[place] = tensor.to(draw(st.sampled_from(dtypes)))
    elif what == "dimension":
        tensors[place] = tensor[None] if draw(st.booleans()) else tensor.flatten()
    else:
        axis = draw(st.integers(0, tensor.dim() - 1))
        size = draw(st.sampled_from([0, tensor.shape[axis] + 1, max(tensor.shape[axis] - 1, 0)]))
        shape = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
        tensors[place] = torch.ones(shape, dtype=tensor.dtype)
    return replace(sample, tensors=tuple(tensors))
