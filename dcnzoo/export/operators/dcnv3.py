"""DCNv3 as ONNX nodes."""

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
    pairs = g.shaped(offset, 0, -1, group, len(taps), 2)
    factors = g.shaped(mask, 0, -1, group, len(taps))
    axes, sizes = [], []
    for axis in (0, 1):
        steps = g.Mul(g.range(offset, 1 + axis), g.integer(stride[axis]))
        steps = g.Add(steps, g.integer(middle[axis] - padding[axis]))
        base = g.Expand(g.shaped(steps, *((-1, 1), (1, -1))[axis]), g.sizes(offset, 1, 2))
        tap = g.Cast(g.floats(*(t[axis] * dilation[axis] - middle[axis] for t in taps)), to=real)
        moved = g.Transpose(g.Cast(g.Gather(pairs, g.integer(1 - axis), axis=4), to=real), perm=[0, 2, 1, 3])
        stretched = g.Mul(g.Add(tap, moved), g.number(offset_scale, real))
        coordinate = g.Add(g.Cast(g.shaped(base, 1, 1, -1, 1), to=real), stretched)  # [N, group, oH·oW, P]
        sizes.append(g.length(input, 1 + axis))
        axes.append(neighbours(g, real, coordinate, sizes[axis]))
    factors = g.Transpose(g.Cast(factors, to=real), perm=[0, 2, 1, 3])
    axes[0] = [(index, g.Mul(weight, factors)) for index, weight in axes[0]]
    maps = g.Transpose(g.shaped(input, 0, -1, group, group_channels), perm=[0, 2, 1, 3])
    result = g.Transpose(read_rows(g, kind, maps, axes, sizes, len(taps)), perm=[0, 2, 1, 3])
    return g.shaped(result, g.sizes(offset, 0, 1, 2), group * group_channels)
