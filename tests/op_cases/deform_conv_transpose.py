"""Samples of deform_conv_transpose1d, 2d and 3d: the tensors are (input, weight, offset, mask, bias)."""

import sys
from collections.abc import Iterator
from functools import partial

import torch

import dcnzoo.ops
from dcnzoo.ops import reference as oracle
from tests.op_cases import Operator, Sample, call_function, deform_conv, wrong_calls
from tests.op_cases.deform_conv import (
    ASYMMETRIC,
    KERNEL,
    NAMES,
    SIZE,
    geometry,
    operator,
    random_convolution,
    rank_of,
    rows_of_both,
)

# Smaller than the stride, except on one axis of rank 3, where a larger dilation allows it.
OUTPUT_PADDING = {1: (1,), 2: (1, 0), 3: (1, 0, 2)}


def call(sample: Sample) -> torch.Tensor:
    return call_function(getattr(dcnzoo.ops, f"deform_conv_transpose{rank_of(sample)}d"), sample)


def reference(sample: Sample) -> torch.Tensor:
    lists = geometry(sample, stride=1, padding=0, output_padding=0, dilation=1)
    return oracle.deform_conv_transpose(*sample.tensors, *lists, sample.kwargs.get("groups", 1))


make = partial(deform_conv.make, channels=4, out_channels=6, size=(5, 7), transposed=True)
random_sample = partial(random_convolution, make, True)


def samples(rank: int = 2) -> Iterator[Sample]:
    given = partial(make, size={1: (7,), 2: (5, 7), 3: (3, 5, 4)}[rank], kernel=KERNEL[rank])
    asymmetric = {**ASYMMETRIC[rank], "output_padding": OUTPUT_PADDING[rank]}
    yield given("v2", padding=1)
    yield given("v1", mask_groups=None, stride=2)
    yield given("mask alone", offset_groups=None, padding=1)
    yield given("asymmetric", **asymmetric)
    yield given("neither", offset_groups=None, mask_groups=None, **asymmetric)
    yield given("asymmetric v1 without bias", mask_groups=None, bias=False, **asymmetric)
    yield given("1x1 kernel", kernel=(1,) * rank, channels=3, out_channels=5)
    yield given("depthwise", groups=6, channels=12, padding=1)
    yield given(
        "all groups differ", channels=4, out_channels=12, groups=2, offset_groups=3, mask_groups=4, padding=1
    )
    yield given("far outside", spread=12.0, padding=1)
    yield given("one image", batch=1, stride=2, output_padding=1)
    yield given("empty batch", batch=0, padding=1)
    yield given("batch 5, step 2", batch=5, im2col_step=2, padding=1)
    yield given("one input pixel", size=(1,) * rank)


def resized_samples(rank: int) -> Iterator[Sample]:
    for batch, size in ((5, (15, 7, 10)), (8, (6, 9, 13)), (9, (12, 14, 8))):
        yield make(f"{batch}", batch=batch, size=size[-rank:], kernel=KERNEL[rank], stride=2, padding=1)


def invalid(rank: int) -> list[tuple[Sample, str]]:
    good = make("good", size=SIZE[rank], kernel=KERNEL[rank], padding=1)
    input, weight, offset, _, _ = good.tensors
    size, kernel, name = input.shape[2], weight.shape[2], "output_padding"
    nothing = weight[:, :0]
    rows = [
        *rows_of_both(good, 4),
        (name, f"less than stride {(1,) * rank}, got {(1,) * rank}", {name: 1}),
        (name, "got", {name: -1}),
        (name, f"{rank} values, got {rank + 1}", {name: (0,) * (rank + 1)}),
        ("weight", f"got {tuple(weight[:3].shape)}", {"weight": weight[:3]}),
        ("weight", f"got {tuple(nothing.shape)}", {"weight": nothing}),
        ("bias", "shape (12,), got (6,)", {"groups": 2}),
        ("input", f"got {size}, which gives {size - 1 - 18 + kernel}", {"padding": 9}),
        ("input", f"got 0, which gives {kernel - 3}", {"input": input[:, :, :0], "offset": offset[:, :, :0]}),
    ]
    if rank > 1:
        rows.append(("mask", f"5 channels, got {rank} (", {"weight": weight[:, :5], "mask": offset.clone()}))
    if rank == 2:  # the dilation allows the value of the second axis, but not that of the first
        for got, output_padding in (("3", (3, 1)), ("-1", (-1, 1)), ("2 values, got 3", (0, 1, 2))):
            rows.append((name, got, {"stride": (2, 1), "dilation": (1, 2), name: output_padding}))
    return list(wrong_calls(f"deform_conv_transpose{rank}d", good, NAMES, rows))


OPERATORS: list[Operator] = [
    operator(f"deform_conv_transpose{rank}d", rank, sys.modules[__name__]) for rank in (1, 2, 3)
]
