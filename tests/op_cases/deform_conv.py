"""Samples of deform_conv: the tensors are (input, weight, offset, mask, bias)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

import dcnzoo.ops
from dcnzoo.ops import reference as oracle

from . import Sample

NAME = "deform_conv2d"


def call(sample: Sample) -> torch.Tensor:
    return dcnzoo.ops.deform_conv2d(*sample.tensors, **sample.kwargs)


def reference(sample: Sample) -> torch.Tensor:
    kwargs = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **sample.kwargs}
    kwargs.pop("im2col_step", None)
    rank = sample.tensors[1].dim() - 2
    for name in ("stride", "padding", "dilation"):
        if isinstance(kwargs[name], int):
            kwargs[name] = (kwargs[name],) * rank
    return oracle.deform_conv(*sample.tensors, **kwargs)


def overload_calls(sample: Sample) -> Iterator[tuple[torch._ops.OpOverload, tuple]]:
    """The registered operators and their arguments for a sample: forward, then backward."""
    arguments = [
        [value] * 2 if isinstance(value := sample.kwargs.get(name, default), int) else list(value)
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    ]
    arguments += [sample.kwargs.get("groups", 1), sample.kwargs.get("im2col_step")]
    yield torch.ops.dcnzoo.deform_conv.default, (*sample.leaves().tensors, *arguments)
    *tensors, _bias = sample.tensors
    grad = torch.ones_like(reference(sample))
    wanted = [t is not None for t in sample.tensors]
    yield torch.ops.dcnzoo._deform_conv_backward.default, (grad, *tensors, *arguments, wanted)


def resized_samples() -> Iterator[Sample]:
    """The same call with other batches and spatial sizes."""
    # no size of the first equals another of its sizes: torch.compile would take the two for one
    for batch, size in ((5, (7, 10)), (8, (9, 13)), (9, (14, 8))):
        yield make(f"{batch} {size}", batch=batch, size=size, padding=1)


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
    **kwargs,
) -> Sample:
    """Random tensors of the right shapes; ``spread`` is the offsets' standard deviation in pixels."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    rank = len(kernel)

    def per_axis(key: str, default: int) -> tuple[int, ...]:
        value = kwargs.get(key, default)
        return (value,) * rank if isinstance(value, int) else value

    stride, padding, dilation = (
        per_axis("stride", 1),
        per_axis("padding", 0),
        per_axis("dilation", 1),
    )
    out = [
        (size[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in range(rank)
    ]
    taps = math.prod(kernel)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def points(groups: int) -> torch.Tensor:
        offset = normal(batch, groups * taps * rank, *out) * spread
        # Away from grid lines, where the interpolation has a kink and no derivative. A sample's
        # regular position is an integer, so its fraction is its offset's.
        return offset.floor() + 0.1 + 0.8 * (offset - offset.floor())

    return Sample(
        name,
        (
            normal(batch, channels, *size),
            normal(out_channels, channels // kwargs.get("groups", 1), *kernel),
            points(offset_groups) if offset_groups else None,
            normal(batch, mask_groups * taps, *out).sigmoid() if mask_groups else None,
            normal(out_channels) if bias else None,
        ),
        kwargs,
    )


def samples() -> Iterator[Sample]:
    asymmetric = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    yield make("v2", padding=1)
    yield make("v1", mask_groups=None, padding=1)
    yield make("mask alone", offset_groups=None, padding=1)
    yield make("asymmetric", **asymmetric)
    yield make("asymmetric v1 without bias", mask_groups=None, bias=False, **asymmetric)
    yield make("stride 1x3, dilation 2x1", stride=(1, 3), dilation=(2, 1), padding=(2, 0))
    yield make("1x1 kernel", kernel=(1, 1), channels=5, out_channels=3)
    yield make("groups", groups=2, channels=8, **asymmetric)
    yield make("depthwise", groups=6, out_channels=12, padding=1)
    yield make("offset groups", offset_groups=3, **asymmetric)
    yield make("mask groups", mask_groups=3, padding=1)
    yield make("all groups differ", channels=12, groups=2, offset_groups=3, mask_groups=4, padding=1)
    yield make(
        "offset groups across conv groups", channels=12, out_channels=9, groups=3, offset_groups=2, padding=1
    )
    yield make("far outside", spread=12.0, padding=1)
    yield make("one image", batch=1, padding=1)
    yield make("empty batch", batch=0, padding=1)
    yield make("batch 5, step 2", batch=5, im2col_step=2, padding=1)
    yield make("one output pixel", size=(3, 2), kernel=(3, 2))
    yield make("one column", size=(9, 1), kernel=(3, 1), padding=(1, 0))
    # channel counts around the vector and slice widths of the CPU kernels
    yield make("32 channels", channels=32, out_channels=33, padding=1)
    yield make("48 channels", channels=48, out_channels=16, padding=1, size=(4, 5))
    yield make("130 channels", channels=130, out_channels=5, padding=1, size=(4, 5))
    yield make("more rows than a tile", size=(13, 17), channels=3, padding=1)


def invalid() -> Iterator[tuple[Sample, str]]:
    good = make("good", padding=1)
    input, weight, offset, mask, bias = good.tensors

    def bad(name: str, message: str, tensors=good.tensors, **kwargs) -> tuple[Sample, str]:
        return Sample(name, tuple(tensors), {"padding": 1, **kwargs}), message

    yield bad(
        "offset channels",
        "deform_conv2d: offset: expected 12 channels (2 · 3·2 taps · 1 group), got 13",
        (input, weight, torch.cat([offset, offset[:, :1]], 1), mask, bias),
    )
    yield bad(
        "offset groups",
        "deform_conv2d: offset: expected a number of groups that divides the 6 input channels, got 4",
        (input, weight, offset.repeat(1, 4, 1, 1), mask, bias),
    )
    yield bad(
        "offset size",
        "deform_conv2d: offset: expected spatial size (7, 11) like the output, got (7, 10)",
        (input, weight, offset[..., :-1], mask, bias),
    )
    yield bad(
        "offset batch",
        "deform_conv2d: offset: expected batch 2 like input, got 1",
        (input, weight, offset[:1], mask, bias),
    )
    yield bad(
        "offset dimensions",
        "deform_conv2d: offset: expected 4 dimensions, got shape (12, 7, 11)",
        (input, weight, offset[0], mask, bias),
    )
    yield bad(
        "mask channels",
        "deform_conv2d: mask: expected 6 channels (3·2 taps · 1 group), got 5",
        (input, weight, offset, mask[:, :5], bias),
    )
    yield bad(
        "mask with the offset's channels",
        "deform_conv2d: mask: expected 12 channels (3·2 taps · 2 groups), got 13",
        (input, weight, offset, torch.cat([offset, mask[:, :1]], 1), bias),
    )
    yield bad(
        "mask size",
        "deform_conv2d: mask: expected spatial size (7, 11) like the output, got (6, 11)",
        (input, weight, offset, mask[:, :, 1:], bias),
    )
    yield bad(
        "mask batch",
        "deform_conv2d: mask: expected batch 2 like input, got 4",
        (input, weight, offset, mask.repeat(2, 1, 1, 1), bias),
    )
    yield bad(
        "input dimensions",
        "deform_conv2d: input: expected 4 dimensions (batch, channels, *size), got shape (6, 7, 10)",
        (input[0], weight, offset, mask, bias),
    )
    yield bad(
        "weight dimensions",
        "deform_conv2d: weight: expected 4 dimensions (out, in / groups, *kernel), got shape (4, 6, 3)",
        (input, weight[..., 0], offset, mask, bias),
    )
    yield bad(
        "weight channels",
        "deform_conv2d: weight: expected 6 input channels (6 / 1 group), got 5",
        (input, weight[:, :5], offset, mask, bias),
    )
    yield bad(
        "bias length",
        "deform_conv2d: bias: expected shape (4,), got (3,)",
        (input, weight, offset, mask, bias[:3]),
    )
    yield bad(
        "weight dtype",
        "deform_conv2d: weight: expected float64 like input, got float32",
        (input, weight.float(), offset, mask, bias),
    )
    yield bad(
        "offset dtype",
        "deform_conv2d: offset: expected float64 like input, got float32",
        (input, weight, offset.float(), mask, bias),
    )
    yield bad(
        "half input, double mask",
        "deform_conv2d: mask: expected bfloat16 like input or float32, got float64",
        (input.bfloat16(), weight.bfloat16(), offset.float(), mask, bias.bfloat16()),
    )
    yield bad(
        "integer input",
        "deform_conv2d: input: expected float64, float32, bfloat16 or float16, got Int",
        (input.int(), weight.int(), offset.int(), mask.int(), bias.int()),
    )
    yield bad("groups 0", "deform_conv2d: groups: expected at least 1, got 0", groups=0)
    yield bad(
        "groups that divide nothing",
        "deform_conv2d: groups: expected a divisor of the 6 input channels, got 4",
        groups=4,
    )
    yield bad(
        "groups and outputs",
        "deform_conv2d: groups: expected a divisor of the 4 output channels, got 3",
        groups=3,
    )
    yield bad("stride 0", "deform_conv2d: stride: expected at least 1, got (0, 1)", stride=(0, 1))
    yield bad("three strides", "deform_conv2d: stride: expected 2 values, got 3", stride=(1, 1, 1))
    yield bad("negative padding", "deform_conv2d: padding: expected at least 0, got (-1, -1)", padding=-1)
    yield bad("dilation 0", "deform_conv2d: dilation: expected at least 1, got (0, 0)", dilation=0)
    yield bad("im2col_step 0", "deform_conv2d: im2col_step: expected at least 1, got 0", im2col_step=0)
    yield bad(
        "kernel larger than the padded input",
        "deform_conv2d: input: expected size at least 15 on axis 2 (kernel 3, dilation 8, padding 1), got 7",
        dilation=8,
    )
