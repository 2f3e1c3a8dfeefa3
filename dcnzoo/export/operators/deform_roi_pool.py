"""Deformable RoI pooling as ONNX nodes.

Each bin becomes an RoI of :mod:`dcnzoo.export.operators.roi_align`.
"""

from functools import partial

from dcnzoo.export.graph import EXPORTERS, Graph, Value, translates
from dcnzoo.export.operators.roi_align import align


@translates("dcnzoo::deform_roi_pool", EXPORTERS)
def deform_roi_pool(
    g: Graph,
    input: Value,  # [N, C, H, W]
    rois: Value,  # [K, 5], (image, x1, y1, x2, y2)
    offset: Value,  # [K, 2, oH, oW], (x, y)
    output_h: int,
    output_w: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Value:  # [K, C, oH, oW]
    """Treat every bin as a separate RoI, shifted by its offset, and pool it to one pixel by RoIAlign."""
    kind = g.type_of(input)
    rois = g.Cast(rois, to=kind)
    constant = partial(g.number, kind=kind)
    bins, finite = [], None
    for axis, count in ((0, output_w), (1, output_h)):  # x, y
        low, high = (
            g.Mul(g.reshape(g.Gather(rois, g.integer(i), axis=1), -1, 1, 1), constant(spatial_scale))
            for i in (1 + axis, 3 + axis)
        )
        length = g.Sub(high, low)  # [K, 1, 1]
        extent = g.Div(length, constant(count))
        number = g.Cast(g.floats(*range(count)), to=kind)
        number = g.reshape(number, 1, *((1, -1), (-1, 1))[axis])
        moved = g.Mul(
            g.Mul(g.Cast(g.Gather(offset, g.integer(axis), axis=1), to=kind), constant(gamma)), length
        )
        start = g.Add(g.Add(low, g.Mul(number, extent)), moved)  # [K, oH, oW]
        near = g.And(g.Less(g.Abs(start), constant(1e30)), g.Less(g.Abs(length), constant(1e30)))
        finite = near if finite is None else g.And(finite, near)
        if sampling_ratio <= 0:
            # RoIAlign rounds the bin's size up to get the number of samples: rounding errors must not change
            # it
            samples = g.Ceil(extent)
            slack = g.Mul(g.Add(g.Abs(start), g.Add(g.Abs(extent), constant(1))), constant(3e-7))
            extent = g.Min(g.Max(extent, g.Add(g.Sub(samples, constant(1)), slack)), g.Sub(samples, slack))
        bins.append((start, g.Add(start, extent)))
    image = g.Expand(g.reshape(g.Gather(rois, g.integer(0), axis=1), -1, 1, 1), g.Shape(bins[0][0]))
    columns = [image, *(bins[axis][side] for side in (0, 1) for axis in (0, 1))]
    columns = [g.reshape(column, -1, 1) for column in columns]
    flat = g.reshape(finite, -1, 1)
    each_bin = g.Concat(columns[0], *(g.Where(flat, c, constant(0)) for c in columns[1:]), axis=1)
    pooled = align(g, input, each_bin, 1, 1, 1.0, sampling_ratio, True)  # [K·oH·oW, C, 1, 1]
    pooled = g.Where(g.reshape(finite, -1, 1, 1, 1), pooled, constant(0))
    pooled = g.reshape(pooled, g.dims(rois, 0), output_h, output_w, g.dims(input, 1))
    return g.Transpose(pooled, perm=[0, 3, 1, 2])
