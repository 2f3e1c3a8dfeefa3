"""DCNv4 as ONNX nodes."""

from collections.abc import Sequence

from dcnzoo.export.graph import Graph, Value, translates
from dcnzoo.export.operators.dcnv3 import dcnv3


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

    grouped = g.shaped(part(offset_mask, 0, group * 3 * points), 0, -1, group, 3 * points)

    def flat(value: Value, width: int) -> Value:  # [N, oH, oW, group·width]
        return g.shaped(value, g.sizes(offset_mask, 0, 1, 2), group * width)

    offset = flat(part(grouped, 0, 2 * points), 2 * points)
    mask = flat(part(grouped, 2 * points, 3 * points), points)
    geometry = (kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove_center)
    return dcnv3(g, input, offset, mask, *geometry)
