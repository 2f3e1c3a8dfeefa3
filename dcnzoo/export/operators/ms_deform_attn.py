"""Multi-scale deformable attention as ONNX nodes."""

from dcnzoo.export.graph import Graph, Value, translates
from dcnzoo.export.sampling import neighbours, read_rows, wide


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
    heads, channels = g.size(value, 2), g.size(value, 3)
    levels, points = g.size(sampling_locations, 3), g.size(sampling_locations, 4)

    def per_head(field: Value) -> Value:  # [N, Q, heads, L, P] -> [N, heads, Q, L, P]
        return g.Transpose(g.Cast(field, to=real), perm=[0, 2, 1, 3, 4])

    def per_point(field: Value) -> Value:  # [L] -> [L, P], because onnxruntime takes long for [L, 1]
        return g.Expand(g.shaped(field, -1, 1), g.ints(1, points))

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
    total = read_rows(g, kind, maps, axes, sizes, levels * points)  # [N, heads, Q, D]
    return g.shaped(g.Transpose(total, perm=[0, 2, 1, 3]), 0, -1, heads * channels)
