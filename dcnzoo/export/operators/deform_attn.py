"""DCNv3, DCNv4 and multi-scale deformable attention as ONNX nodes.

Each computes the coordinates of its samples. :mod:`dcnzoo.export.sampling` reads them, all points of a pixel
or a query at once.
"""

from collections.abc import Sequence

from dcnzoo.export.graph import Graph, Value, translates
from dcnzoo.export.sampling import neighbours, read_rows, wide


@translates("dcnzoo::dcnv3")
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
    kind = g.type_of(input)
    real = wide(kind)
    middle = [dilation[a] * (kernel_size[a] - 1) // 2 for a in (0, 1)]
    taps = [(y, x) for x in range(kernel_size[1]) for y in range(kernel_size[0])]  # x-major
    if remove_center:
        del taps[len(taps) // 2]
    pairs = g.reshape(offset, 0, -1, group, len(taps), 2)
    factors = g.reshape(mask, 0, -1, group, len(taps))
    axes, sizes = [], []
    for axis in (0, 1):
        steps = g.Mul(g.arange(offset, 1 + axis), g.integer(stride[axis]))
        steps = g.Add(steps, g.integer(middle[axis] - padding[axis]))
        base = g.Expand(g.reshape(steps, *((-1, 1), (1, -1))[axis]), g.dims(offset, 1, 2))
        tap = g.Cast(g.floats(*(t[axis] * dilation[axis] - middle[axis] for t in taps)), to=real)
        moved = g.Transpose(g.Cast(g.Gather(pairs, g.integer(1 - axis), axis=4), to=real), perm=[0, 2, 1, 3])
        stretched = g.Mul(g.Add(tap, moved), g.number(offset_scale, real))
        coordinate = g.Add(g.Cast(g.reshape(base, 1, 1, -1, 1), to=real), stretched)  # [N, group, oH·oW, P]
        sizes.append(g.dim(input, 1 + axis))
        axes.append(neighbours(g, real, coordinate, sizes[axis]))
    factors = g.Transpose(g.Cast(factors, to=real), perm=[0, 2, 1, 3])
    axes[0] = [(index, g.Mul(weight, factors)) for index, weight in axes[0]]
    maps = g.Transpose(g.reshape(input, 0, -1, group, group_channels), perm=[0, 2, 1, 3])
    result = g.Transpose(read_rows(g, kind, maps, axes, sizes, len(taps)), perm=[0, 2, 1, 3])
    return g.reshape(result, g.dims(offset, 0, 1, 2), group * group_channels)


@translates("dcnzoo::dcnv4")
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

    grouped = g.reshape(part(offset_mask, 0, group * 3 * points), 0, -1, group, 3 * points)

    def flat(value: Value, width: int) -> Value:  # [N, oH, oW, group·width]
        return g.reshape(value, g.dims(offset_mask, 0, 1, 2), group * width)

    offset = flat(part(grouped, 0, 2 * points), 2 * points)
    mask = flat(part(grouped, 2 * points, 3 * points), points)
    geometry = (kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove_center)
    return dcnv3(g, input, offset, mask, *geometry)


@translates("dcnzoo::ms_deform_attn")
def ms_deform_attn(
    g: Graph,
    value: Value,  # [N, S, heads, D]
    spatial_shapes: Value,  # [L, 2], (height, width)
    level_start_index: Value,  # [L]
    sampling_locations: Value,  # [N, Q, heads, L, P, 2], (x, y) in units of the level's size
    attention_weights: Value,  # [N, Q, heads, L, P]
) -> Value:  # [N, Q, heads·D]
    kind = g.type_of(value)
    real = wide(kind)
    heads, channels = g.fixed_size(value, 2), g.fixed_size(value, 3)
    levels, points = g.fixed_size(sampling_locations, 3), g.fixed_size(sampling_locations, 4)

    def per_head(field: Value) -> Value:  # [N, Q, heads, L, P] -> [N, heads, Q, L, P]
        return g.Transpose(g.Cast(field, to=real), perm=[0, 2, 1, 3, 4])

    def per_point(field: Value) -> Value:  # [L] -> [L, P], because onnxruntime takes long for [L, 1]
        return g.Expand(g.reshape(field, -1, 1), g.ints(1, points))

    axes, sizes = [], []
    half = g.number(0.5, real)
    for axis in (0, 1):
        size = per_point(g.Gather(spatial_shapes, g.integer(axis), axis=1))
        location = per_head(g.Gather(sampling_locations, g.integer(1 - axis), axis=5))
        coordinate = g.Sub(g.Mul(location, g.Cast(size, to=real)), half)
        axes.append(neighbours(g, real, coordinate, size))
        sizes.append(size)
    weights, start = per_head(attention_weights), per_point(level_start_index)
    axes[0] = [(index, g.Mul(weight, weights)) for index, weight in axes[0]]
    axes[1] = [(g.Add(index, start), weight) for index, weight in axes[1]]
    maps = g.Transpose(value, perm=[0, 2, 1, 3])
    total: Value = None  # [N, heads, Q, D]
    for level in range(levels):  # all at once take twice the memory, and as long
        number = g.integer(level)
        of_level = [[tuple(g.Gather(v, number, axis=3) for v in pair) for pair in axis] for axis in axes]
        size_of_level = [g.Gather(size, number, axis=0) for size in sizes]
        read = read_rows(g, kind, maps, of_level, size_of_level, points)
        total = read if total is None else g.Add(total, read)
    return g.reshape(g.Transpose(total, perm=[0, 2, 1, 3]), 0, -1, heads * channels)
