"""Deformable convolution, also transposed, as ONNX nodes: the standard operator, or a graph of others.

:mod:`dcnzoo.export.opsets` lists the forms. All treat borders as the operator does: a sample outside the map,
or at NaN, is zero. Coordinates are computed in float32 (float64 for float64 inputs), whatever the input's
type.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product

from dcnzoo.export.graph import EXPORTERS, Graph, Value, translates
from dcnzoo.export.opsets import FIRST
from dcnzoo.export.sampling import Neighbours, corners, neighbours, wide


@dataclass(frozen=True)
class _Call:
    """The arguments of a call; ``groups`` is the common number of groups of offset and mask.

    ``channels`` are those of the side that is displaced: the output of a transposed convolution.
    """

    input: Value  # [N, C, *size]
    weight: Value  # [out_channels, channels / conv_groups, *kernel]
    offset: Value  # [N, groups·K·rank, *out]
    mask: Value | None  # [N, groups·K, *out]
    bias: Value | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    kernel: Sequence[int]
    channels: int
    out_channels: int
    conv_groups: int
    groups: int
    kind: int  # type of the input's elements: reshaped values have none in torch's default exporter

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)


@translates("torchvision::deform_conv2d", EXPORTERS)
def _torchvision(
    g: Graph, input: Value, weight: Value, offset: Value, mask: Value, bias: Value, stride_h: int,
    stride_w: int, pad_h: int, pad_w: int, dilation_h: int, dilation_w: int, groups: int,
    offset_groups: int, use_mask: bool,
) -> Value:  # fmt: skip
    geometry = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), groups
    return deform_conv(g, input, weight, offset, mask if use_mask else None, bias, *geometry)


@translates("dcnzoo::deform_conv")
def deform_conv(
    g: Graph,
    input: Value,
    weight: Value,
    offset: Value,  # offset, mask and bias may be None
    mask: Value,
    bias: Value,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    im2col_step: Value = None,
) -> Value:
    rank, target = len(stride), g.deform_conv
    if target == "auto":
        target = "native" if rank <= 2 and g.opset >= FIRST["native"] else "gathernd"
    if rank > 2 and target == "native":
        raise ValueError(f"deform_conv: expected at most 2 axes for 'native', got {rank}; use 'gathernd'")
    call = _call(g, input, weight, offset, mask, bias, stride, padding, dilation, groups)
    if target in ("gathernd", "gatherelements"):
        return _product(g, call, _gather(g, call, target))
    as_2d = _with_two_axes(g, call) if rank == 1 else call
    if target == "native":
        result = _native(g, as_2d)
    else:  # of dcnzoo.export.aten_graph alone
        result = _product(g, as_2d, g.grid_sample(as_2d, _coordinates(g, as_2d)))
    if rank == 1:
        result = g.reshape(result, g.dims(input, 0), call.out_channels, -1)
    return result


@translates("dcnzoo::deform_conv_transpose")
def deform_conv_transpose(
    g: Graph,
    input: Value,
    weight: Value,
    offset: Value,  # offset, mask and bias may be None
    mask: Value,
    bias: Value,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    im2col_step: Value = None,
) -> Value:
    """Add the products of each input pixel and the weights to the pixels around their targets."""
    call = _call(g, input, weight, offset, mask, bias, stride, padding, dilation, groups)
    sizes = []
    for axis in range(call.rank):
        size = g.Mul(g.dim(input, 2 + axis), g.integer(stride[axis]))
        others = dilation[axis] * (call.kernel[axis] - 1) + output_padding[axis] + 1
        sizes.append(g.Add(size, g.integer(others - 2 * padding[axis] - stride[axis])))
    out = [g.reshape(size, 1) for size in sizes]
    batch, per_group = g.dims(input, 0), call.channels // call.groups
    inputs = call.out_channels // groups
    matrix = g.Transpose(g.reshape(weight, 1, groups, inputs, -1), perm=[0, 1, 3, 2])
    values = g.MatMul(matrix, g.reshape(input, batch, groups, inputs, -1))
    values = g.reshape(values, batch, call.groups, per_group, -1)  # [N, groups, O / groups, K·P]
    shape = g.Concat(batch, g.ints(call.groups, per_group), reduce(g.Mul, out), axis=0)
    total = g.Cast(g.Expand(g.number(0, call.kind), shape), to=call.kind)
    for index, factor in corners(g, _axes(g, call, sizes), sizes):
        index = g.Expand(g.reshape(index, 0, 0, 1, -1), g.ints(1, 1, per_group, 1))
        part = g.Mul(values, g.reshape(g.Cast(factor, to=call.kind), 0, 0, 1, -1))
        total = g.ScatterElements(total, index, part, axis=3, reduction="add")
    return _with_bias(g, call, g.reshape(total, batch, call.channels, *out))


def _call(
    g: Graph,
    input: Value,
    weight: Value,
    offset: Value,
    mask: Value,
    bias: Value,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> _Call:
    rank = len(stride)
    kernel = [g.fixed_size(weight, 2 + axis) for axis in range(rank)]
    taps = math.prod(kernel)
    offset_groups = 1 if offset is None else g.fixed_size(offset, 1) // (taps * rank)
    mask_groups = 1 if mask is None else g.fixed_size(mask, 1) // taps
    common = math.lcm(offset_groups, mask_groups)
    if offset is None:
        zero = g.number(0, g.type_of(mask))
        shape = g.Concat(g.dims(mask, 0), g.ints(rank * taps), g.dims(mask, *range(2, 2 + rank)), axis=0)
        offset, offset_groups = g.Expand(zero, shape), 1
    return _Call(
        input=input,
        weight=weight,
        offset=_repeat_groups(g, offset, offset_groups, common, rank),
        mask=None if mask is None else _repeat_groups(g, mask, mask_groups, common, rank),
        bias=bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        kernel=kernel,
        channels=groups * g.fixed_size(weight, 1),
        out_channels=g.fixed_size(weight, 0),
        conv_groups=groups,
        groups=common,
        kind=g.type_of(input),
    )


def _repeat_groups(g: Graph, value: Value, groups: int, wanted: int, rank: int) -> Value:
    """Repeat each group: ``[N, groups·X, *out]`` to ``[N, wanted·X, *out]``."""
    if groups == wanted:
        return value
    out = g.dims(value, *range(2, 2 + rank))
    per_group = g.fixed_size(value, 1) // groups
    split = g.reshape(value, 0, groups, 1, -1)
    many = g.Expand(split, g.ints(1, 1, wanted // groups, 1))
    return g.reshape(many, g.dims(value, 0), wanted * per_group, out)


def _with_two_axes(g: Graph, call: _Call) -> _Call:
    """Convert a 1-D call to a 2-D call on maps of height 1, with offsets of zero along y, NaN where x is."""
    x = g.reshape(call.offset, 0, call.groups * call.taps, 1, -1)
    pairs = g.Concat(g.Sub(x, x), x, axis=2)

    def flat(value: Value) -> Value:  # [N, C, L] -> [N, C, 1, L]
        return g.reshape(value, 0, 0, 1, -1)

    return replace(
        call,
        input=flat(call.input),
        weight=flat(call.weight),
        offset=g.reshape(pairs, 0, 2 * call.groups * call.taps, 1, -1),
        mask=None if call.mask is None else flat(call.mask),
        stride=[1, *call.stride],
        padding=[0, *call.padding],
        dilation=[1, *call.dilation],
        kernel=[1, *call.kernel],
    )


def _native(g: Graph, call: _Call) -> Value:
    bias = call.bias
    if bias is None:  # always given: TensorRT's parser requires it
        bias = g.Cast(g.floats(*[0] * call.out_channels), to=call.kind)

    def same_type(value: Value) -> Value:  # offset and mask may be float32 with a half input
        return g.Cast(value, to=call.kind)

    return g.DeformConv(
        call.input,
        call.weight,
        same_type(call.offset),
        bias,
        None if call.mask is None else same_type(call.mask),
        kernel_shape=list(call.kernel),
        strides=list(call.stride),
        pads=[*call.padding, *call.padding],
        dilations=list(call.dilation),
        group=call.conv_groups,
        offset_group=call.groups,
    )


def _coordinates(g: Graph, call: _Call) -> list[Value]:  # per axis [N, groups, K, P]
    """Compute the sampling position of each tap for each output pixel, in input pixels."""
    real = wide(call.kind)
    rank = call.rank
    out = g.dims(call.offset, *range(2, 2 + rank))
    offset = g.reshape(call.offset, 0, call.groups, call.taps, rank, -1)
    taps = list(product(*map(range, call.kernel)))
    coordinates = []
    for axis in range(rank):
        steps = g.Mul(g.arange(call.offset, 2 + axis), g.integer(call.stride[axis]))
        grid = g.reshape(steps, *(-1 if a == axis else 1 for a in range(rank)))
        pixels = g.Cast(g.reshape(g.Expand(grid, out), 1, 1, 1, -1), to=real)
        start = [tap[axis] * call.dilation[axis] - call.padding[axis] for tap in taps]
        regular = g.Add(pixels, g.reshape(g.Cast(g.floats(*start), to=real), 1, 1, -1, 1))
        moved = g.Cast(g.Gather(offset, g.integer(axis), axis=3), to=real)
        coordinates.append(g.Add(regular, moved))
    return coordinates


def _axes(g: Graph, call: _Call, sizes: Sequence[Value]) -> list[Neighbours]:
    """Return the neighbours of all taps on each axis of a map, with weights that include the mask."""
    real = wide(call.kind)
    axes = [neighbours(g, real, *pair) for pair in zip(_coordinates(g, call), sizes, strict=True)]
    if call.mask is not None:
        mask = g.Cast(g.reshape(call.mask, 0, call.groups, call.taps, -1), to=real)
        axes[0] = [(index, g.Mul(weight, mask)) for index, weight in axes[0]]
    return axes


def _gather(g: Graph, call: _Call, target: str) -> Value:  # [N, groups, C / groups, K·P]
    """Sample as the weighted sum of 2 neighbours per axis, each gathered by its index in the flat map."""
    kind, sizes = call.kind, [g.dim(call.input, 2 + axis) for axis in range(call.rank)]
    per_group = call.channels // call.groups
    maps = g.reshape(call.input, g.dims(call.input, 0), call.groups, per_group, -1)
    rows = g.Transpose(maps, perm=[0, 1, 3, 2])  # [N, groups, H·W, C / groups]
    total = None
    for index, weight in corners(g, _axes(g, call, sizes), sizes):
        if target == "gathernd":
            values, shape = g.GatherND(rows, g.reshape(index, 0, 0, -1, 1), batch_dims=2), (-1, 1)
        else:
            index = g.Expand(g.reshape(index, 0, 0, 1, -1), g.ints(1, 1, per_group, 1))
            values, shape = g.GatherElements(maps, index, axis=3), (1, -1)
        values = g.Mul(values, g.reshape(g.Cast(weight, to=kind), 0, 0, *shape))
        total = values if total is None else g.Add(total, values)
    return g.Transpose(total, perm=[0, 1, 3, 2]) if target == "gathernd" else total


def _product(g: Graph, call: _Call, samples: Value) -> Value:  # [N, O, *out]
    """Multiply the samples, in the order (N, channel, tap, pixel), by the weight."""
    batch = g.dims(call.input, 0)
    rows = call.channels // call.conv_groups * call.taps
    columns = g.reshape(samples, batch, call.conv_groups, rows, -1)
    weight = g.reshape(call.weight, 1, call.conv_groups, call.out_channels // call.conv_groups, rows)
    out = g.dims(call.offset, *range(2, 2 + call.rank))
    return _with_bias(g, call, g.reshape(g.MatMul(weight, columns), batch, call.out_channels, out))


def _with_bias(g: Graph, call: _Call, result: Value) -> Value:
    if call.bias is None:
        return result
    return g.Add(result, g.reshape(call.bias, 1, -1, *[1] * call.rank))
