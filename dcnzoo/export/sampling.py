"""Sample maps at points with ONNX nodes. Deformable convolution reads the pixels around a point by itself.

:func:`read_rows` uses ``GatherND`` for rows of channels, which every runtime supports from opset 12 on. A
point outside the map, or at NaN, samples zero. Coordinates are computed in float32 (float64 for float64
inputs), whatever the input's type.
"""

from collections.abc import Iterator, Sequence
from itertools import product

from dcnzoo.export.graph import DOUBLE, FLOAT, INT64, Graph, Value

Neighbours = list[tuple[Value, Value]]  # (index, weight) of the pixels before and after a coordinate


def wide(kind: int) -> int:
    """Return the type for coordinates in maps of a type."""
    return DOUBLE if kind == DOUBLE else FLOAT


def neighbours(g: Graph, kind: int, coordinate: Value, size: Value) -> Neighbours:
    """Return the neighbours of coordinates, in pixels, on an axis of length ``size`` (int64)."""
    zero, one = (g.number(value, kind) for value in (0, 1))
    last = g.Cast(g.Sub(size, g.integer(1)), to=kind)
    before = g.Floor(coordinate)
    fraction = g.Sub(coordinate, before)
    pair = []
    for index, weight in ((before, g.Sub(one, fraction)), (g.Add(before, one), fraction)):
        # Where, not a product or Clip, so that NaN counts as outside and gives zero
        inside = g.And(g.GreaterOrEqual(index, zero), g.LessOrEqual(index, last))
        pair.append((g.Cast(g.Where(inside, index, zero), to=INT64), g.Where(inside, weight, zero)))
    return pair


def corners(g: Graph, axes: Sequence[Neighbours], sizes: Sequence[Value]) -> Iterator[tuple[Value, Value]]:
    """Yield (index in the flat map, weight) of each pixel around the points, slowest axis first."""
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
    count: int,
) -> Value:  # [N, G, points / count, C]
    """Return the weighted sums of the pixels around ``count`` points each."""
    indices, weights = zip(*corners(g, axes, sizes), strict=True)

    def together(parts: Sequence[Value], *shape: int) -> Value:
        flat = (g.reshape(part, 0, 0, -1, count) for part in parts)
        return g.reshape(g.Concat(*flat, axis=3), 0, 0, 0, *shape)

    rows = g.GatherND(maps, together(indices, -1, 1), batch_dims=2)
    # one product of matrices: to add the samples of each corner in turn takes twice the time
    return g.reshape(g.MatMul(g.Cast(together(weights, 1, -1), to=kind), rows), 0, 0, 0, -1)
