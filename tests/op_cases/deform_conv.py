"""Samples of deform_conv1d, 2d and 3d: the tensors are (input, weight, offset, mask, bias)."""

import math
import sys
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.ops import reference as oracle
from tests.op_cases import (
    CHANNELS,
    Operator,
    Sample,
    absolute_at,
    call_function,
    emptied,
    output_size,
    per_axis,
    random_name,
    wrong_calls,
)

# By rank. All axes differ, so that a mix-up shows.
SIZE = {1: (11,), 2: (7, 10), 3: (4, 6, 5)}
KERNEL = {1: (3,), 2: (3, 2), 3: (2, 3, 1)}
ASYMMETRIC = {
    1: {"stride": (2,), "padding": (3,), "dilation": (2,)},
    2: {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    3: {"stride": (1, 2, 3), "padding": (1, 2, 0), "dilation": (2, 1, 3)},
}


def rank_of(sample: Sample) -> int:
    return sample.tensors[1].dim() - 2


def call(sample: Sample) -> torch.Tensor:
    return call_function(getattr(dcnzoo.ops, f"deform_conv{rank_of(sample)}d"), sample)


def geometry(sample: Sample, **defaults: int) -> list[tuple[int, ...]]:
    """A sample's values, per axis, of the arguments in ``defaults``."""
    values = [sample.kwargs.get(name, default) for name, default in defaults.items()]
    return [(v,) * rank_of(sample) if isinstance(v, int) else tuple(v) for v in values]


def reference(sample: Sample) -> torch.Tensor:
    lists = geometry(sample, stride=1, padding=0, dilation=1)
    return oracle.deform_conv(*sample.tensors, *lists, sample.kwargs.get("groups", 1))


def call_operator(sample: Sample) -> torch.Tensor:
    """The operator, also without offset and mask, where the function calls torch's convolution."""
    defaults = {"stride": 1, "padding": 0, "dilation": 1}
    lists = dict(zip(defaults, geometry(sample, **defaults), strict=True))
    numbers = {"groups": 1, "im2col_step": None, **sample.kwargs, **lists}
    return torch.ops.dcnzoo.deform_conv(*sample.tensors, **numbers)


def tensors_of(
    name: str,
    input: tuple[int, ...],
    weight: tuple[int, ...],
    fields: tuple[int, ...],  # the spatial size of offset and mask
    outputs: int,
    offset_groups: int | None,
    mask_groups: int | None,
    bias: bool,
    spread: float,
) -> tuple[torch.Tensor | None, ...]:
    """Random tensors of these shapes; ``spread`` is the offsets' standard deviation in pixels."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    batch, taps, rank = input[0], math.prod(weight[2:]), len(fields)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def points(groups: int) -> torch.Tensor:
        offset = normal(batch, groups * taps * rank, *fields) * spread
        # Keep points away from grid lines, where the interpolation has no derivative. Without an offset,
        # positions are integers, so that the offset determines the fraction.
        return offset.floor() + 0.1 + 0.8 * (offset - offset.floor())

    return (
        normal(*input),
        normal(*weight),
        points(offset_groups) if offset_groups else None,
        normal(batch, mask_groups * taps, *fields).sigmoid() if mask_groups else None,
        normal(outputs) if bias else None,
    )


def make(
    name: str,
    batch: int = 2,
    channels: int = 6,
    out_channels: int = 4,
    size: tuple[int, ...] = (7, 10),
    kernel: tuple[int, ...] = (3, 2),
    offset_groups: int | None = 1,
    mask_groups: int | None = 1,
    bias: bool = True,
    spread: float = 2.0,
    transposed: bool = False,
    **kwargs,
) -> Sample:
    def per_axis(key: str, default: int) -> tuple[int, ...]:
        value = kwargs.get(key, default)
        return (value,) * len(kernel) if isinstance(value, int) else value

    groups = kwargs.get("groups", 1)
    if transposed:
        fields, weight = size, (channels, out_channels // groups, *kernel)
    else:
        geometry = (per_axis("stride", 1), per_axis("padding", 0), per_axis("dilation", 1))
        fields, weight = output_size(size, kernel, *geometry), (out_channels, channels // groups, *kernel)
    shapes = ((batch, channels, *size), weight, fields)
    numbers = (out_channels, offset_groups, mask_groups)
    return Sample(name, tensors_of(name, *shapes, *numbers, bias, spread), kwargs)


def samples(rank: int = 2) -> Iterator[Sample]:
    given = partial(make, size=SIZE[rank], kernel=KERNEL[rank])
    asymmetric = ASYMMETRIC[rank]
    yield given("v2", padding=1)
    yield given("v1", mask_groups=None, padding=1)
    yield given("mask alone", offset_groups=None, padding=1)
    yield given("asymmetric", **asymmetric)
    yield given("neither", offset_groups=None, mask_groups=None, **asymmetric)
    yield given("asymmetric v1 without bias", mask_groups=None, bias=False, **asymmetric)
    yield given("1x1 kernel", kernel=(1,) * rank, channels=5, out_channels=3)
    yield given("depthwise", groups=6, out_channels=12, padding=1)
    yield given("all groups differ", channels=12, groups=2, offset_groups=3, mask_groups=4, padding=1)
    yield given("far outside", spread=12.0, padding=1)
    yield given("one image", batch=1, padding=1)
    yield given("empty batch", batch=0, padding=1)
    yield given("batch 5, step 2", batch=5, im2col_step=2, padding=1)
    yield given("one output pixel", size=KERNEL[rank])
    if rank != 2:
        return
    yield make("stride 1x3, dilation 2x1", stride=(1, 3), dilation=(2, 1), padding=(2, 0))
    yield make("groups", groups=2, channels=8, **asymmetric)
    yield make("offset groups", offset_groups=3, **asymmetric)
    yield make("mask groups", mask_groups=3, padding=1)
    yield make(
        "offset groups across conv groups", channels=12, out_channels=9, groups=3, offset_groups=2, padding=1
    )
    yield make("one column", size=(9, 1), kernel=(3, 1), padding=(1, 0))
    # channel counts around the sizes of the CPU kernels' vectors and channel blocks
    yield make("32 channels", channels=32, out_channels=33, padding=1)
    yield make("20 channels", channels=20, out_channels=8, padding=1, size=(4, 5))
    yield make("40 channels", channels=40, out_channels=12, padding=1, size=(4, 5))
    yield make("48 channels", channels=48, out_channels=16, padding=1, size=(4, 5))
    yield make("130 channels", channels=130, out_channels=5, padding=1, size=(4, 5))
    yield make("more rows than a tile", size=(13, 17), channels=3, padding=1)
    yield make("more rows than a tile, over channels", size=(13, 17), channels=6, padding=1)
    # groups narrower than a vector: several share its lanes; some leave lanes empty
    yield make("groups of 6", channels=60, groups=10, out_channels=60, padding=1, size=(4, 5), mask_groups=5)
    yield make("groups of 3, of 5 outputs", channels=33, groups=11, out_channels=55, size=(4, 5))
    yield make("groups of 8", channels=64, groups=8, out_channels=24, padding=1, size=(4, 5))
    wide = dict(channels=80, groups=10, out_channels=40, padding=1, size=(4, 5))
    yield make("groups of 8, not all in whole panels", offset_groups=2, **wide)
    yield make("groups of 2, cut by offset groups", **(wide | dict(groups=40)), offset_groups=5)
    yield make("groups of 4 in and out", **(wide | dict(groups=20, out_channels=80)), offset_groups=2)
    yield make("groups of 8 in and out", **(wide | dict(out_channels=80)))
    # as many groups as channels and outputs: depthwise kernels
    yield make("one to one", groups=6, out_channels=6, padding=1)
    wide = dict(channels=70, out_channels=70, groups=70, size=(4, 5))
    yield make("one to one, 70 channels", offset_groups=2, **wide)
    wide = dict(channels=128, out_channels=128, groups=128, size=(4, 5))
    yield make("one to one, 128 channels", mask_groups=None, **wide)
    # points of few channels: samples over pixels
    own = partial(make, size=(9, 13), padding=1)
    yield own("own points", channels=20, offset_groups=20, mask_groups=20)
    yield own("own offsets, one mask", channels=6, offset_groups=6)
    yield own(
        "points of 2, groups of 6", channels=24, groups=4, out_channels=20, offset_groups=12, mask_groups=None
    )
    yield own("points of 3, groups of 12", channels=24, groups=2, offset_groups=8, mask_groups=8)
    yield own(
        "own points, one to two", channels=18, groups=18, out_channels=36, offset_groups=18, mask_groups=18
    )
    yield own(
        "points of 2, one to 17", channels=6, groups=6, out_channels=102, offset_groups=3, mask_groups=3
    )
    yield own(
        "points of 2, one to one", channels=18, groups=18, out_channels=18, offset_groups=9, mask_groups=9
    )


def resized_samples(rank: int) -> Iterator[Sample]:
    """The same call with different batch and spatial sizes."""
    # the first call's sizes and output sizes differ: torch.compile would treat equal sizes as one symbol
    for batch, size in ((5, (15, 7, 10)), (8, (6, 9, 13)), (9, (12, 14, 8))):
        yield make(f"{batch}", batch=batch, size=size[-rank:], kernel=KERNEL[rank], padding=1)


CAN_BE_ZERO = ("channels", "outputs", "size", "size", "kernel")


def random_convolution(make, transposed: bool, rank: int, rng: Random, nothing: str) -> Sample:
    groups = rng.choice((1, 1, 1, 2, 3, 4, 8))
    channels, outputs = groups * rng.choice(CHANNELS), groups * rng.choice((1, 2, 5, 16, 17))
    channels, outputs = 0 if nothing == "channels" else channels, 0 if nothing == "outputs" else outputs
    limits = ((1, 3), (1, 3), (0, 3), (1, 2))
    kernel, stride, padding, dilation = (per_axis(rng, rank, *limit) for limit in limits)
    if nothing == "kernel":
        kernel = emptied(rng, kernel)
    reach = [dilation[a] * (kernel[a] - 1) + 1 for a in range(rank)]
    most = {1: 110, 2: 13, 3: 5}[rank]  # sometimes more output pixels than a tile has
    if transposed:
        least = [-(-max(1 + 2 * padding[a] - reach[a], 0) // stride[a]) + 1 for a in range(rank)]
        most = max(most // 2, 2)
        extra = {"output_padding": tuple(rng.randint(0, stride[a] - 1) for a in range(rank))}
    else:
        least, extra = [max(reach[a] - 2 * padding[a], 1) for a in range(rank)], {}
    size = tuple(rng.randint(low, max(low, most)) for low in least)
    if nothing == "size":
        size = emptied(rng, size)
    sampled = outputs if transposed else channels
    fields = [None, *(d for d in range(1, sampled + 1) if sampled % d == 0)] if sampled else [None, 1, 2]
    return make(
        random_name(rng, nothing),
        batch=rng.randint(0, 3),
        channels=channels,
        out_channels=outputs,
        size=size,
        kernel=kernel,
        offset_groups=rng.choice(fields),
        mask_groups=rng.choice(fields),
        bias=rng.randint(0, 1) == 1,
        spread=rng.choice((0.0, 0.5, 3.0, 30.0)),
        groups=groups,
        stride=stride,
        padding=padding,
        dilation=dilation,
        im2col_step=rng.choice((None, 1, 2, 3, 4)),
        **extra,
    )


random_sample = partial(random_convolution, make, False)


NAMES = ("input", "weight", "offset", "mask", "bias")
Rows = Iterator[tuple[str, str, dict[str, Any]]]


def shape_of(tensor: Tensor) -> str:
    """The end of the message about a tensor of a wrong shape."""
    return f"got {tuple(tensor.shape)}"


def rows_of_both(good: Sample, inputs: int) -> Rows:
    """Wrong arguments for convolutions and transposed convolutions with ``inputs`` channels."""
    input, weight, offset, mask, bias = good.tensors
    rank, taps = rank_of(good), math.prod(weight.shape[2:])
    wrong: dict[str, list[Tensor]] = {
        "input": [input[0, 0], input.sum(), input[:, :0]],
        "weight": [weight[..., :0]],
        "bias": [bias[:-1], bias[None]],
    }
    for name, field in (("offset", offset), ("mask", mask)):
        more = torch.cat([field, field[:, :1]], 1)
        wrong[name] = [field[0], more, field[:, 1:], field[..., :-1], field[:1]]
    for name, tensors in wrong.items():
        for tensor in tensors:
            yield name, shape_of(tensor), {name: tensor}
    for tensor in (weight[0], weight.sum()):
        yield "weight", f"got shape {tuple(tensor.shape)}", {"weight": tensor}
    for name, tensor in zip(NAMES[1:], good.tensors[1:], strict=True):
        yield name, "float64, got float32", {name: tensor.float()}
    for name, tensor in (("weight", weight), ("bias", bias)):
        yield name, "got meta", {name: tensor.to("meta")}
    yield "input", "got Int", {n: t.int() for n, t in zip(NAMES, good.tensors, strict=True)}
    yield "input", "got ComplexDouble", {"input": input.to(torch.complex128)}
    yield "mask", "got the tensor of offset", {"mask": offset}
    half = {n: t.bfloat16() for n, t in zip(NAMES, good.tensors, strict=True)}
    yield "mask", "or float32, got float64", {**half, "mask": mask}

    for name, field, count in (("offset", offset, rank * taps), ("mask", mask, taps)):
        yield name, f"got 5 ({5 * count} / {count})", {name: field.repeat(1, 5, *[1] * rank)}

    for wrong in (0, -2, inputs - 1):
        yield "groups", f"got {wrong}", {"groups": wrong}
    for name, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
        for wrong in (least - 1, 2**31):
            yield name, f"got {(wrong,) * rank}", {name: wrong}
        one = [1] * (rank - 1) + [-2]
        yield name, f"got {tuple(one)}", {name: one}
        yield name, f"{rank} values, got {rank + 1}", {name: (1,) * (rank + 1)}
    for wrong in (0, -1):
        yield "im2col_step", f"got {wrong}", {"im2col_step": wrong}


def invalid(rank: int) -> list[tuple[Sample, str]]:
    good = make("good", size=SIZE[rank], kernel=KERNEL[rank], padding=1)
    input, weight, offset, _, _ = good.tensors
    size = input.shape[2]
    rows = [
        *rows_of_both(good, 6),
        ("groups", "4 output channels, got 3", {"groups": 3}),
        ("weight", shape_of(weight[:, :5]), {"weight": weight[:, :5]}),
        ("weight", shape_of(weight), {"groups": 2}),
        ("offset", "got", {"padding": 0}),
        (
            "input",
            f"on axis 2 (kernel {weight.shape[2]}, dilation 9, padding 1), got {size}",
            {"dilation": 9},
        ),
    ]
    long = torch.zeros(0, 6, 2**24 + 1, *input.shape[3:])
    fields = {name: value.float()[:0] for name, value in zip(NAMES[2:4], good.tensors[2:4], strict=True)}
    tensors = {"input": long, "weight": weight.float(), "bias": good.tensors[4].float(), **fields}
    rows.append(("input", f"got {2**24 + 1}", tensors))
    if rank > 1:  # with an even number of channels, it would be a valid mask of several groups
        five = {"input": input[:, :5], "weight": weight[:, :5], "mask": offset.clone()}
        rows.append(("mask", f"5 channels, got {rank} (", five))
    return list(wrong_calls(f"deform_conv{rank}d", good, NAMES, rows))


def operator(name: str, rank: int, module) -> Operator:
    """The operator of this name and rank that a module with these functions describes."""
    return Operator(
        name,
        partial(call_function, getattr(dcnzoo.ops, name)),
        module.reference,
        partial(module.random_sample, rank),
        CAN_BE_ZERO,
        absolute_at(0, 1, 3, 4),
        partial(module.samples, rank),
        partial(module.invalid, rank),
        getattr(module, "call_operator", None),
        partial(module.resized_samples, rank),
    )


OPERATORS = [operator(f"deform_conv{rank}d", rank, sys.modules[__name__]) for rank in (1, 2, 3)]
