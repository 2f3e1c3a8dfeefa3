"""Samples of dcnv3: the tensors are (input, offset, mask)."""

from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

import torch

import dcnzoo.ops
from dcnzoo.ops import reference as oracle
from dcnzoo.ops.geometry import deform_attn_points
from tests.op_cases import (
    CHANNELS,
    Sample,
    absolute_at,
    call_function,
    emptied,
    output_size,
    per_axis,
    random_name,
    wrong_calls,
)

NAME = "dcnv3"
call = partial(call_function, dcnzoo.ops.dcnv3)
can_be_zero = ("size", "kernel", "group", "channels")
absolute = absolute_at(0, 2)


def reference(sample: Sample) -> torch.Tensor:
    return oracle.dcnv3(*sample.tensors, *geometry(sample))


def resized_samples() -> Iterator[Sample]:
    # the first call's sizes all differ: torch.compile would treat equal sizes as one symbol
    for batch, size in ((5, (7, 10)), (8, (9, 13)), (9, (14, 8))):
        yield make(f"{batch} {size}", batch=batch, size=size)


def pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def geometry(sample: Sample) -> list[Any]:
    """The arguments of the registered operators after the tensors."""
    k = sample.kwargs
    lists = [pair(k[name]) for name in ("kernel_size", "stride", "padding", "dilation")]
    return [*lists, k["group"], k["group_channels"], float(k["offset_scale"]), k.get("remove_center", False)]


GEOMETRY = {"kernel_size": (3, 2), "stride": 1, "padding": 1, "dilation": 1, "group": 2, "group_channels": 3}
GEOMETRY |= {"offset_scale": 1.0, "remove_center": False}


def make(
    name: str, batch: int = 2, size: tuple[int, int] = (7, 10), spread: float = 2.0, **changed: Any
) -> Sample:
    """Random tensors of valid shapes; ``spread`` is the standard deviation of displacements in pixels."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    kwargs = GEOMETRY | changed
    kernel, steps, pads, dilations = (
        pair(kwargs[n]) for n in ("kernel_size", "stride", "padding", "dilation")
    )
    group, remove_center = kwargs["group"], kwargs["remove_center"]
    out = output_size(size, kernel, steps, pads, dilations)
    points = kernel[0] * kernel[1] - remove_center

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # Keep points away from grid lines, where the interpolation has no derivative: the offsets move an
    # unscaled tap to its position plus `moved`.
    moved = normal(batch, *out, group, points, 2) * spread
    moved = moved.floor() + 0.1 + 0.8 * (moved - moved.floor())
    middle = [dilations[a] * (kernel[a] - 1) // 2 for a in (0, 1)]
    one = ((1, 1), kernel, (1, 1), middle, dilations, 1.0, remove_center)
    tap = deform_attn_points(*one, moved)[0, 0, 0]  # (taps, 2), (x, y) around the middle
    offset = (tap + moved) / kwargs["offset_scale"] - tap
    tensors = (
        normal(batch, *size, group * kwargs["group_channels"]),
        offset.flatten(3),
        normal(batch, *out, group * points).sigmoid(),
    )
    return Sample(name, tensors, kwargs)


def random_sample(rng: Random, nothing: str) -> Sample:
    limits = ((1, 4), (1, 3), (0, 3), (1, 2))
    kernel, stride, padding, dilation = (per_axis(rng, 2, *limit) for limit in limits)
    least = [max(dilation[a] * (kernel[a] - 1) + 1 - 2 * padding[a], 1) for a in range(2)]
    size = tuple(rng.randint(low, low + 9) for low in least)
    size = emptied(rng, size) if nothing == "size" else size
    kernel = emptied(rng, kernel) if nothing == "kernel" else kernel
    odd = kernel[0] % 2 == kernel[1] % 2 == 1 and kernel != (1, 1)
    return make(
        random_name(rng, nothing),
        batch=rng.randint(0, 3),
        size=size,
        spread=rng.choice((0.0, 0.5, 3.0, 30.0)),
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        group=0 if nothing == "group" else rng.randint(1, 5),
        group_channels=0 if nothing == "channels" else rng.choice(CHANNELS),
        offset_scale=rng.choice((0.5, 1.0, 2.0)),
        remove_center=odd and rng.randint(0, 1) == 1,
    )


def samples() -> Iterator[Sample]:
    asymmetric = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    yield make("3x2 kernel")
    yield make("asymmetric", **asymmetric)
    yield make("offset scale", offset_scale=1.75, **asymmetric)
    yield make("without center", kernel_size=3, remove_center=True)
    yield make("3x5 without center", kernel_size=(3, 5), remove_center=True, offset_scale=0.5, padding=(0, 2))
    yield make("1x1 kernel", kernel_size=1, padding=0)
    yield make("5x5 kernel", kernel_size=5, padding=2, dilation=(2, 1), group=3, offset_scale=2.0)
    yield make("far outside", spread=12.0)
    yield make("one image, one group", batch=1, group=1)
    yield make("empty batch", batch=0)
    yield make("step", batch=5, im2col_step=1)
    yield make("one output pixel", size=(3, 2), padding=0)
    yield make("one column", size=(9, 1), kernel_size=(3, 1), padding=(1, 0))
    # channels and points around the vector sizes
    for group_channels in (1, 16, 17, 40, 67):
        yield make(f"{group_channels} channels per group", size=(4, 5), group_channels=group_channels)
    yield make("groups that fill tasks", size=(12, 13), group=16, group_channels=2, kernel_size=3, batch=1)


def invalid() -> Iterator[tuple[Sample, str]]:
    good = make("good", kernel_size=3, group=2, group_channels=3)
    input, offset, mask = good.tensors
    rows = [
        ("offset", "got (2, 7, 10, 35)", dict(offset=offset[..., 1:])),
        ("mask", "got (2, 7, 10, 36)", dict(mask=offset)),
        ("offset", "32), got (2, 7, 10, 36)", dict(remove_center=True)),
        ("input", "got (2, 6, 7, 10)", dict(input=input.permute(0, 3, 1, 2))),
        ("input", "2·4), channels last, got (2, 7, 10, 6)", dict(group_channels=4)),
        ("input", "got (7, 10, 6)", dict(input=input[0])),
        ("offset", "got (7, 10, 36)", dict(offset=offset[0])),
        ("offset", "got (2, 7, 9, 36)", dict(offset=offset[:, :, 1:])),
        ("mask", "got (2, 7, 10, 18)", dict(offset=offset[:, :4], stride=(2, 1))),
        ("mask", "got (1, 7, 10, 18)", dict(mask=mask[:1])),
        ("offset", "got float32", dict(offset=offset.float())),
        ("mask", "got float64", dict(input=input.bfloat16(), offset=offset.float())),
        ("input", "got Int", dict(input=input.int(), offset=offset.int(), mask=mask.int())),
        ("input", "got (2, 0, 10, 6)", dict(input=input[:, :0])),
        ("input", "got 4294967296", dict(input=input[:1, :1, :1].expand(1, 2**16, 2**16, 6))),
        ("group", "got 0", dict(group=0)),
        ("group_channels", "got 0", dict(group_channels=0)),
        ("stride", "got (0, 1)", dict(stride=(0, 1))),
        ("stride", "2 values, got 3", dict(stride=(1, 1, 1))),
        ("kernel_size", "got (3, 0)", dict(kernel_size=(3, 0))),
        ("padding", "got (-1, -1)", dict(padding=-1)),
        ("dilation", "got (0, 0)", dict(dilation=0)),
        ("im2col_step", "got 0", dict(im2col_step=0)),
        ("offset_scale", "got nan", dict(offset_scale=float("nan"))),
        ("remove_center", "got (3, 2)", dict(kernel_size=(3, 2), remove_center=True)),
        ("remove_center", "got (1, 1)", dict(kernel_size=1, remove_center=True)),
        ("input", "15 on axis 1 (kernel 3, dilation 8, padding 1), got 7", dict(dilation=8)),
    ]
    return wrong_calls(NAME, good, ("input", "offset", "mask"), rows)
