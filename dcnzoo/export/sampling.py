"""Reading maps at points as ONNX nodes, and the operators that do little else: DCNv3, DCNv4, attention.

Rows of channels are read by ``GatherND``, which every runtime has, from opset 12 on. A point outside the map
reads zero, and so does one at NaN. Coordinates are computed in float32 (float64 for float64 inputs),
whatever the input's type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from dcnzoo.export.graph import DOUBLE, FLOAT, INT64, Graph, Value

Neighbours = list[tuple[Value, Value]]  # (index, weight) before and after a coordinate


def wide(g: Graph, value: Value) -> int:
    """The type of coordinates."""
    return DOUBLE if g.type_of(value) == DOUBLE else FLOAT


def neighbours(g: Graph, kind: int, coordinate: Value, size: Value) -> Neighbours:
    """Of coordinates, in pixels, on an axis that is ``size``, int64, long."""
    zero, one = (g.Cast(g.float(value), to=kind) for value in (0, 1))
    last = g.Cast(g.Sub(size, g.int(1)), to=kind)
    before = g.Floor(coordinate)
    fraction = g.Sub(coordinate, before)
    pair = []
    for index, weight in ((before, g.Sub(one, fraction)), (g.Add(before, one), fraction)):
        # a choice, not a product or a limit: NaN is outside as well, and gives zero
        inside = g.And(g.GreaterOrEqual(index, zero), g.LessOrEqual(index, last))
        pair.append((g.Cast(g.Where(inside, index, zero), to=INT64), g.Where(inside, weight, zero)))
    return pair


def corners(g: Graph, axes: Sequence[Neighbours], sizes: Sequence[Value]) -> Iterator[tuple[Value, Value]]:
    """The pixels around points: (index in the flat map, weight) of each, slowest axis first."""
    for corner in product((0, 1), repeat=len(axes)):
        index = weight = None
        for pair, side, size in zip(axes, corner, sizes, strict=True):
            i, w = pair[side]
            index = i if index is None else g.Add(g.Mul(index, size), i)
            weight = w if weight is None else g.Mul(weight, w)
        yield index, weight


def read_rows(
    g: Graph,
    kind: int,
    maps: Value,  # [N, G, pixels, C]
    axes: Sequence[Neighbours],  # of shape [N, G, …]
    sizes: Sequence[Value],
) -> Value:  # [N, G, points, C]
    total = None
    for index, weight in corners(g, axes, sizes):
        values = g.GatherND(maps, g.shaped(index, 0, 0, -1, 1), batch_dims=2)
        values = g.Mul(values, g.shaped(g.Cast(weight, to=kind), 0, 0, -1, 1))
        total = values if total is None else g.Add(total, values)
    return total


def dcnv3(
    g: Graph,
    input: Value,  # [N, H, W, C]
    offset: Value,  # [N, oH, oW, group·P·2], (x, y)
    mask: Value,  # [N, oH, oW, group·P]
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool,
) -> Value:  # [N, oH, oW, C]
    points = kernel_size[0] * kernel_size[1] - bool(remove_center)
    pairs = g.shaped(offset, 0, -1, group, points, 2)
    factors = g.shaped(mask, 0, -1, group, points)
    geometry = (kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove_center)
    return _aggregation(g, input, offset, pairs, factors, *geometry)


def dcnv4(
    g: Graph,
    input: Value,  # [N, H, W, C]
    offset_mask: Value,  # [N, oH, oW, group·3P, padded to a multiple of 8]
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool,
) -> Value:  # [N, oH, oW, C]
    points = kernel_size[0] * kernel_size[1] - bool(remove_center)

    def part(value: Value, start: int, end: int) -> Value:
        return g.Slice(value, g.ints(start), g.ints(end), g.ints(3))

    fields = g.shaped(part(offset_mask, 0, group * 3 * points), 0, -1, group, 3 * points)
    pairs = g.shaped(part(fields, 0, 2 * points), 0, -1, group, points, 2)
    factors = part(fields, 2 * points, 3 * points)
    geometry = (kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove_center)
    return _aggregation(g, input, offset_mask, pairs, factors, *geometry)


def _aggregation(
    g: Graph,
    input: Value,
    like: Value,  # [N, oH, oW, any]
    pairs: Value,  # [N, oH·oW, group, P, 2]
    factors: Value,  # [N, oH·oW, group, P]
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool,
) -> Value:
    kind, real = g.type_of(input), wide(g, input)
    middle = [dilation[a] * (kernel_size[a] - 1) // 2 for a in (0, 1)]
    taps = [(y, x) for x in range(kernel_size[1]) for y in range(kernel_size[0])]  # x-major
    if remove_center:
        del taps[len(taps) // 2]
    axes, sizes = [], []
    for axis in (0, 1):
        steps = g.Mul(g.range(like, 1 + axis), g.int(stride[axis]))
        steps = g.Add(steps, g.int(middle[axis] - padding[axis]))
        base = g.Expand(g.shaped(steps, *((-1, 1), (1, -1))[axis]), g.sizes(like, 1, 2))
        tap = g.Cast(g.floats(*(t[axis] * dilation[axis] - middle[axis] for t in taps)), to=real)
        moved = g.Transpose(g.Cast(g.Gather(pairs, g.int(1 - axis), axis=4), to=real), perm=[0, 2, 1, 3])
        stretched = g.Mul(g.Add(tap, moved), g.Cast(g.float(offset_scale), to=real))
        coordinate = g.Add(g.Cast(g.shaped(base, 1, 1, -1, 1), to=real), stretched)  # [N, group, oH·oW, P]
        sizes.append(g.Gather(g.Shape(input), g.int(1 + axis), axis=0))
        axes.append(neighbours(g, real, coordinate, sizes[axis]))
    factors = g.Transpose(g.Cast(factors, to=real), perm=[0, 2, 1, 3])
    axes[0] = [(index, g.Mul(weight, factors)) for index, weight in axes[0]]
    maps = g.Transpose(g.shaped(input, 0, -1, group, group_channels), perm=[0, 2, 1, 3])
    samples = g.shaped(read_rows(g, kind, maps, axes, sizes), 0, 0, -1, len(taps), group_channels)
    result = g.Transpose(g.sum(samples, 3), perm=[0, 2, 1, 3])
    return g.shaped(result, g.sizes(like, 0, 1, 2), group * group_channels)


def ms_deform_attn(
    g: Graph,
    value: Value,  # [N, S, heads, D]
    spatial_shapes: Value,  # [L, 2], (height, width)
    level_start_index: Value,  # [L]
    sampling_locations: Value,  # [N, Q, heads, L, P, 2], (x, y) in units of the level's size
    attention_weights: Value,  # [N, Q, heads, L, P]
) -> Value:  # [N, Q, heads·D]
    kind, real = g.type_of(value), wide(g, value)
    heads, channels = g.size(value, 2), g.size(value, 3)
    samples_each = g.size(sampling_locations, 3) * g.size(sampling_locations, 4)

    def per_head(field: Value) -> Value:  # [N, Q, heads, L, P] -> [N, heads, Q, L, P]
        return g.Transpose(g.Cast(field, to=real), perm=[0, 2, 1, 3, 4])

    axes, sizes = [], []
    half = g.Cast(g.float(0.5), to=real)
    for axis in (0, 1):
        size = g.shaped(g.Gather(spatial_shapes, g.int(axis), axis=1), -1, 1)  # [L, 1]
        location = per_head(g.Gather(sampling_locations, g.int(1 - axis), axis=5))
        coordinate = g.Sub(g.Mul(location, g.Cast(size, to=real)), half)
        axes.append(neighbours(g, real, coordinate, size))
        sizes.append(size)
    weights, start = per_head(attention_weights), g.shaped(level_start_index, -1, 1)
    axes[0] = [(index, g.Mul(weight, weights)) for index, weight in axes[0]]
    axes[1] = [(g.Add(index, start), weight) for index, weight in axes[1]]
    maps = g.Transpose(value, perm=[0, 2, 1, 3])
    samples = read_rows(g, kind, maps, axes, sizes)
    total = g.sum(g.shaped(samples, 0, 0, -1, samples_each, channels), 3)  # [N, heads, Q, D]
    return g.shaped(g.Transpose(total, perm=[0, 2, 1, 3]), 0, -1, heads * channels)
