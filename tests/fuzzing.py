"""Strategies for tests/test_fuzz.py: random calls of the operators, good ones and broken ones.

A sample named ``zero …`` has a size of zero that an operator may refuse. A batch, RoIs, boxes, queries or
points of which there are none are drawn as well, and are no reason for an error.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from dcnzoo import ops

from . import op_cases, oracles
from .op_cases import Operator, Sample, dcnv3, dcnv4, deform_conv, deform_conv_transpose, ms_deform_attn

# around the widths of vectors, panels and slices of the CPU kernels
CHANNELS = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 31, 32, 33, 64, 65])
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# what no coordinate, weight or pixel should be, and what no integer should be cast from
EXTREME = (math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**31, -(2.0**31) - 1, 2.0**63, -0.0, 1e-40)
NUMBERS = st.sampled_from([-(2**62), -1, 0, 1, 3, 2**31, 2**62])


ZERO = 0.15  # of the samples


def zero(draw: st.DrawFn, *sizes: str) -> str:
    """The size that is zero in this sample; mostly none is."""
    return draw(st.sampled_from(sizes)) if draw(st.floats(0, 1)) > 1 - ZERO else ""


def emptied(draw: st.DrawFn, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """One of the sizes is zero, or all of them are."""
    axis = draw(st.integers(0, len(sizes)))
    return tuple(0 if axis in (a, len(sizes)) else size for a, size in enumerate(sizes))


def named(draw: st.DrawFn, nothing: str) -> str:
    """A name, from which the numbers in the tensors come."""
    return f"zero {nothing}" if nothing else str(draw(st.integers(0, 2**16)))


def divisors(number: int) -> list[int]:
    if number == 0:
        return [1, 2]
    return [d for d in range(1, number + 1) if number % d == 0]


def per_axis(rank: int, low: int, high: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(low, high)] * rank)


@st.composite
def convolution(draw: st.DrawFn, rank: int, transposed: bool) -> Sample:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 8]))
    channels, outputs = groups * draw(CHANNELS), groups * draw(st.sampled_from([1, 2, 5, 16, 17]))
    nothing = zero(draw, "channels", "outputs", "size", "size", "kernel")
    channels, outputs = 0 if nothing == "channels" else channels, 0 if nothing == "outputs" else outputs
    limits = ((1, 3), (1, 3), (0, 3), (1, 2))
    kernel, stride, padding, dilation = (draw(per_axis(rank, *limit)) for limit in limits)
    if nothing == "kernel":
        kernel = emptied(draw, kernel)
    reach = [dilation[a] * (kernel[a] - 1) + 1 for a in range(rank)]
    most = {1: 110, 2: 13, 3: 5}[rank]  # more output pixels than a tile has, now and then
    if transposed:
        least = [-(-max(1 + 2 * padding[a] - reach[a], 0) // stride[a]) + 1 for a in range(rank)]
        most = max(most // 2, 2)
        extra = {"output_padding": tuple(draw(st.integers(0, stride[a] - 1)) for a in range(rank))}
    else:
        least, extra = [max(reach[a] - 2 * padding[a], 1) for a in range(rank)], {}
    size = tuple(draw(st.integers(low, max(low, most))) for low in least)
    if nothing == "size":
        size = emptied(draw, size)
    sampled = outputs if transposed else channels
    fields = st.none() | st.sampled_from(divisors(sampled))
    make = deform_conv_transpose.make if transposed else deform_conv.make
    return make(
        named(draw, nothing),
        batch=draw(st.integers(0, 3)),
        channels=channels,
        out_channels=outputs,
        size=size,
        kernel=kernel,
        offset_groups=draw(fields),
        mask_groups=draw(fields),
        bias=draw(st.booleans()),
        spread=draw(st.sampled_from([0.0, 0.5, 3.0, 30.0])),
        groups=groups,
        stride=stride,
        padding=padding,
        dilation=dilation,
        im2col_step=draw(st.none() | st.integers(1, 4)),
        **extra,
    )


@st.composite
def aggregation(draw: st.DrawFn) -> Sample:
    kernel, stride, padding, dilation = (
        draw(per_axis(2, *limits)) for limits in ((1, 4), (1, 3), (0, 3), (1, 2))
    )
    least = [max(dilation[a] * (kernel[a] - 1) + 1 - 2 * padding[a], 1) for a in range(2)]
    nothing = zero(draw, "size", "kernel", "group", "channels")
    size = tuple(draw(st.integers(low, low + 9)) for low in least)
    size = emptied(draw, size) if nothing == "size" else size
    kernel = emptied(draw, kernel) if nothing == "kernel" else kernel
    odd = kernel[0] % 2 == kernel[1] % 2 == 1 and kernel != (1, 1)
    return dcnv3.make(
        named(draw, nothing),
        batch=draw(st.integers(0, 3)),
        size=size,
        spread=draw(st.sampled_from([0.0, 0.5, 3.0, 30.0])),
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        group=0 if nothing == "group" else draw(st.integers(1, 5)),
        group_channels=0 if nothing == "channels" else draw(CHANNELS),
        offset_scale=draw(st.sampled_from([0.5, 1.0, 2.0])),
        remove_center=odd and draw(st.booleans()),
    )


@st.composite
def attention(draw: st.DrawFn) -> Sample:
    level = st.tuples(st.integers(1, 9), st.integers(1, 9))
    levels = draw(st.lists(level, min_size=1, max_size=4))
    nothing = zero(draw, "level", "heads", "channels")
    if nothing == "level":
        levels[-1] = emptied(draw, levels[-1])
    return ms_deform_attn.make(
        named(draw, nothing),
        batch=draw(st.integers(0, 3)),
        queries=draw(st.integers(0, 20)),
        heads=0 if nothing == "heads" else draw(st.integers(1, 4)),
        channels=0 if nothing == "channels" else draw(CHANNELS),
        points=draw(st.integers(0, 17)),
        sizes=tuple(levels),
        spread=draw(st.sampled_from([0.1, 0.5, 3.0])),
        gap=draw(st.integers(0, 2)),
    )


def tensor(draw: st.DrawFn, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def boxes(draw: st.DrawFn, count: int, extent: int) -> Tensor:
    """Some large, some of no or negative size, some outside."""
    corner, size = tensor(draw, count, 2) * extent, tensor(draw, count, 2) * extent
    if draw(st.booleans()):
        size = size.abs()
    return torch.cat([corner, corner + size], dim=1)


@st.composite
def pooling(draw: st.DrawFn, deformable: bool) -> Sample:
    images, count = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    bins = draw(per_axis(2, 1, 4))
    size = draw(per_axis(2, 1, 9))
    nothing = zero(draw, "images", "channels", "size", "bins")
    bins = emptied(draw, bins) if nothing == "bins" else bins
    size = emptied(draw, size) if nothing == "size" else size
    count = 0 if nothing == "images" else count
    channels = 0 if nothing == "channels" else draw(CHANNELS)
    input = tensor(draw, 0 if nothing == "images" else images, channels, *size)
    image = torch.randint(images, (count, 1), generator=torch.Generator().manual_seed(count)).double()
    rois = torch.cat([image, boxes(draw, count, 8)], dim=1)
    settings = {
        "output_size": bins,
        "spatial_scale": draw(st.sampled_from([0.25, 1.0])),
        "sampling_ratio": draw(st.integers(0, 3)),
    }
    if deformable:
        offset = tensor(draw, count, 2, *bins)
        return Sample(named(draw, nothing), (input, rois, offset), {**settings, "gamma": 0.1})
    pool_mode, aligned = draw(st.sampled_from(["avg", "max"])), draw(st.booleans())
    more = {"pool_mode": pool_mode, "aligned": aligned}
    return Sample(named(draw, nothing), (input, rois), {**settings, **more})


@st.composite
def suppression(draw: st.DrawFn) -> Sample:
    count = draw(st.integers(0, 40))
    scores = tensor(draw, count)
    if draw(st.booleans()):
        scores = scores.round()  # ties
    threshold, offset = draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])), draw(st.integers(0, 1))
    made = boxes(draw, count, 8)
    if draw(st.booleans()):
        made = made.round()  # overlaps that are exactly the threshold
    return Sample("", (made, scores), {"iou_threshold": threshold, "offset": offset})


def plain(name: str, function, oracle) -> Operator:
    """An operator with another oracle than in tests/op_cases, or with none there."""

    def call(sample: Sample) -> Tensor:
        return function(*sample.tensors, **sample.kwargs)

    def by_definition(sample: Sample) -> Tensor:
        return oracle(*sample.tensors, **sample.kwargs)

    return Operator(name, call, by_definition, list, list, lambda _: iter(()), list)


def kept(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    return torch.tensor(oracles.nms(boxes, scores, iou_threshold, offset), dtype=torch.long)


OPERATORS = {op.name: op for op in op_cases.operators()}
OPERATORS |= {
    op.name: op
    for op in (
        plain("roi_align", ops.roi_align, oracles.roi_align),
        plain("nms", ops.nms, kept),
    )
}
SAMPLES = {
    **{f"deform_conv{rank}d": convolution(rank, transposed=False) for rank in (1, 2, 3)},
    **{f"deform_conv_transpose{rank}d": convolution(rank, transposed=True) for rank in (1, 2, 3)},
    "dcnv3": aggregation(),
    "dcnv4": aggregation().map(dcnv4.packed),
    "ms_deform_attn": attention(),
    "roi_align": pooling(deformable=False),
    "deform_roi_pool": pooling(deformable=True),
    "nms": suppression(),
}


# What is multiplied, by its place among the tensors: not the coordinates.
VALUES = {
    "dcnv3": (0, 2),
    "dcnv4": (0,),
    "ms_deform_attn": (0, 2),
    "roi_align": (0,),
    "deform_roi_pool": (0,),
}


def absolute(name: str, sample: Sample) -> Sample:
    """Every number that is multiplied without its sign: results are then what the terms of sums add up to."""
    values = VALUES.get(name, (0, 1, 3, 4))
    tensors = [t.abs() if t is not None and i in values else t for i, t in enumerate(sample.tensors)]
    if name == "dcnv4":  # offsets and factors in one
        group, points = sample.kwargs["group"], math.prod(dcnv3.pair(sample.kwargs["kernel_size"]))
        points -= sample.kwargs["remove_center"]
        fields = tensors[1].clone()
        for first in range(0, group * points * 3, points * 3):
            fields[..., first + points * 2 : first + points * 3].abs_()
        tensors[1] = fields
    return replace(sample, tensors=tuple(tensors))


def on_grid(sample: Sample) -> Sample:
    """Points exactly on pixels and on borders: every offset a whole number."""
    return sample.map(torch.round)


@st.composite
def with_extremes(draw: st.DrawFn, sample: Sample) -> Sample:
    """Some elements are values that no network should make."""
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
    """Every line begins one element after the one before."""
    if tensor.dim() < 2 or tensor.numel() == 0:
        return tensor
    stride = list(tensor.stride())
    stride[-2] = 1
    return tensor.contiguous().as_strided(tensor.shape, stride)


def offset_by_one(tensor: Tensor) -> Tensor:
    """Not where an allocation begins."""
    padded = torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])
    return padded[1:].view(tensor.shape)


LAYOUTS = (torch.clone, strided, transposed, channels_last, offset_by_one)


@st.composite
def laid_out(draw: st.DrawFn, sample: Sample) -> Sample:
    """Each tensor in a layout of its own."""
    is_pooling = "output_size" in sample.kwargs
    tensors = []
    for place, tensor in enumerate(sample.tensors):
        # these change values, which the numbers of images in rois do not bear
        layouts = LAYOUTS if is_pooling and place == 1 else (*LAYOUTS, expanded, overlapping)
        tensors.append(None if tensor is None else draw(st.sampled_from(layouts))(tensor))
    return replace(sample, tensors=tuple(tensors))


@st.composite
def broken(draw: st.DrawFn, sample: Sample) -> Sample:
    """One thing is wrong, or happens to be right all the same."""
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
