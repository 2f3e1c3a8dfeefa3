"""Samples of dcnv3: the tensors are (input, offset, mask)."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import torch

import dcnzoo.ops
from dcnzoo.ops import reference as oracle

from . import CHANNELS, Sample, absolute_at, emptied, per_axis, random_name

NAME = "dcnv3"
can_be_zero = ("size", "kernel", "group", "channels")
absolute = absolute_at(0, 2)


def call(sample: Sample) -> torch.Tensor:
    return dcnzoo.ops.dcnv3(*sample.tensors, **sample.kwargs)


def reference(sample: Sample) -> torch.Tensor:
    return oracle.dcnv3(*sample.tensors, *geometry(sample))


def overload_calls(sample: Sample) -> Iterator[tuple[torch._ops.OpOverload, tuple]]:
    arguments = geometry(sample)
    yield torch.ops.dcnzoo.dcnv3.default, (*sample.leaves().tensors, *arguments)
    grad = torch.ones_like(reference(sample))
    for wanted in ([True] * 3, [False, True, False]):
        yield torch.ops.dcnzoo._dcnv3_backward.default, (grad, *sample.tensors, *arguments, wanted)


def resized_samples() -> Iterator[Sample]:
    # no size of the first equals another of its sizes: torch.compile would take the two for one
    for batch, size in ((5, (7, 10)), (8, (9, 13)), (9, (14, 8))):
        yield make(f"{batch} {size}", batch=batch, size=size)


def pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def geometry(sample: Sample) -> list[Any]:
    """The operators' arguments behind the tensors."""
    k = sample.kwargs
    lists = [pair(k[name]) for name in ("kernel_size", "stride", "padding", "dilation")]
    return [*lists, k["group"], k["group_channels"], float(k["offset_scale"]), k.get("remove_center", False)]


def make(
    name: str,
    batch: int = 2,
    size: tuple[int, int] = (7, 10),
    spread: float = 2.0,
    *,
    kernel_size: int | tuple[int, int] = (3, 2),
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    group: int = 2,
    group_channels: int = 3,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    **kwargs,
) -> Sample:
    """Random tensors of the right shapes; ``spread`` is the displacements' standard deviation in pixels."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    kernel, steps, pads, dilations = map(pair, (kernel_size, stride, padding, dilation))
    out = [
        max((size[a] + 2 * pads[a] - dilations[a] * (kernel[a] - 1) - 1) // steps[a] + 1, 0)
        for a in range(len(size))
    ]
    points = kernel[0] * kernel[1] - remove_center

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # Away from grid lines, where the interpolation has a kink and no derivative: the offsets that take an
    # unscaled tap to its place displaced by `moved`.
    moved = normal(batch, *out, group, points, 2) * spread
    moved = moved.floor() + 0.1 + 0.8 * (moved - moved.floor())
    tap = torch.stack(
        [
            (torch.arange(kernel[a]) * dilations[a] - dilations[a] * (kernel[a] - 1) // 2)
            .double()
            .view((-1, 1) if a == 1 else (1, -1))
            .expand(kernel[1], kernel[0])
            .flatten()
            for a in (1, 0)
        ],
        dim=-1,
    )  # (taps, 2), x-major, (x, y)
    if remove_center:
        tap = torch.cat([tap[: len(tap) // 2], tap[len(tap) // 2 + 1 :]])
    offset = (tap + moved) / offset_scale - tap
    geometry = {
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "group": group,
        "group_channels": group_channels,
        "offset_scale": offset_scale,
        "remove_center": remove_center,
    }
    tensors = (
        normal(batch, *size, group * group_channels),
        offset.flatten(3),
        normal(batch, *out, group * points).sigmoid(),
    )
    return Sample(name, tensors, {**geometry, **kwargs})


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
    yield make("step", batch=5, im2col_step=2)
    yield make("one output pixel", size=(3, 2), padding=0)
    yield make("one column", size=(9, 1), kernel_size=(3, 1), padding=(1, 0))
    # channels and points around the widths of vectors
    for group_channels in (1, 16, 17, 40, 67):
        yield make(f"{group_channels} channels per group", size=(4, 5), group_channels=group_channels)
    yield make("groups that fill tasks", size=(12, 13), group=16, group_channels=2, kernel_size=3, batch=1)


def invalid() -> Iterator[tuple[Sample, str]]:
    good = make("good", kernel_size=3, group=2, group_channels=3)
    input, offset, mask = good.tensors

    def bad(name: str, message: str, tensors=good.tensors, **kwargs) -> tuple[Sample, str]:
        return Sample(name, tuple(tensors), {**good.kwargs, **kwargs}), message

    yield bad(
        "offset channels",
        "dcnv3: offset: expected 36 channels on the last axis (2 · 3·3 taps · 2 groups), got 35",
        (input, offset[..., 1:], mask),
    )
    yield bad(
        "mask channels",
        "dcnv3: mask: expected 18 channels on the last axis (3·3 taps · 2 groups), got 36",
        (input, offset, offset),
    )
    yield bad(
        "offset of the whole kernel",
        "dcnv3: offset: expected 32 channels on the last axis (2 · (3·3 - 1) taps · 2 groups), got 36",
        remove_center=True,
    )
    yield bad(
        "channels first",
        "dcnv3: input: expected 6 channels on the last axis (2 groups · 3), got 10 in shape (2, 6, 7, 10) "
        "(batch, height, width, channels)",
        (input.permute(0, 3, 1, 2), offset, mask),
    )
    yield bad(
        "group channels",
        "dcnv3: input: expected 8 channels on the last axis (2 groups · 4), got 6",
        group_channels=4,
    )
    yield bad(
        "input dimensions",
        "dcnv3: input: expected 4 dimensions (batch, height, width, channels), got shape (7, 10, 6)",
        (input[0], offset, mask),
    )
    yield bad(
        "offset dimensions",
        "dcnv3: offset: expected 4 dimensions (batch, height, width, channels), got shape (7, 10, 36)",
        (input, offset[0], mask),
    )
    yield bad(
        "offset size",
        "dcnv3: offset: expected height and width (7, 10) like the output, got (7, 9)",
        (input, offset[:, :, 1:], mask),
    )
    yield bad(
        "mask size",
        "dcnv3: mask: expected height and width (4, 10) like the output, got (7, 10)",
        (input, offset[:, :4], mask),
        stride=(2, 1),
    )
    yield bad("mask batch", "dcnv3: mask: expected batch 2 like input, got 1", (input, offset, mask[:1]))
    yield bad(
        "offset dtype",
        "dcnv3: offset: expected float64 like input, got float32",
        (input, offset.float(), mask),
    )
    yield bad(
        "half input, double mask",
        "dcnv3: mask: expected bfloat16 like input or float32, got float64",
        (input.bfloat16(), offset.float(), mask),
    )
    yield bad(
        "integer input",
        "dcnv3: input: expected float64, float32, bfloat16 or float16, got Int",
        (input.int(), offset.int(), mask.int()),
    )
    yield bad(
        "no pixels",
        "dcnv3: input: expected at least 1 pixel in height and width, got shape (2, 0, 10, 6)",
        (input[:, :0], offset, mask),
    )
    yield bad(
        "too many pixels",
        "dcnv3: input: expected at most 2147483647 pixels on the CPU, got 4294967296",
        (input[:1, :1, :1].expand(1, 2**16, 2**16, 6), offset, mask),
    )
    yield bad("group 0", "dcnv3: group: expected at least 1, got 0", group=0)
    yield bad("no group channels", "dcnv3: group_channels: expected at least 1, got 0", group_channels=0)
    yield bad("stride 0", "dcnv3: stride: expected at least 1, got (0, 1)", stride=(0, 1))
    yield bad("three strides", "dcnv3: stride: expected 2 values, got 3", stride=(1, 1, 1))
    yield bad("kernel 0", "dcnv3: kernel_size: expected at least 1, got (3, 0)", kernel_size=(3, 0))
    yield bad("negative padding", "dcnv3: padding: expected at least 0, got (-1, -1)", padding=-1)
    yield bad("dilation 0", "dcnv3: dilation: expected at least 1, got (0, 0)", dilation=0)
    yield bad("im2col_step 0", "dcnv3: im2col_step: expected at least 1, got 0", im2col_step=0)
    yield bad(
        "offset_scale",
        "dcnv3: offset_scale: expected a finite number, got nan",
        offset_scale=float("nan"),
    )
    yield bad(
        "center of an even kernel",
        "dcnv3: remove_center: expected an odd kernel_size of more than one tap, got (3, 2)",
        kernel_size=(3, 2),
        remove_center=True,
    )
    yield bad(
        "center of a single tap",
        "dcnv3: remove_center: expected an odd kernel_size of more than one tap, got (1, 1)",
        kernel_size=1,
        remove_center=True,
    )
    yield bad(
        "kernel larger than the padded input",
        "dcnv3: input: expected size at least 15 on axis 1 (kernel 3, dilation 8, padding 1), got 7",
        dilation=8,
    )
