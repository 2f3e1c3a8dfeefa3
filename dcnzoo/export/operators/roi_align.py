"""RoIAlign as an ONNX node.

:func:`align` is also the node of a pyramid's levels, in :mod:`dcnzoo.export.fixed_size`, and of deformable
RoI pooling.
"""

from dcnzoo.export.graph import EXPORTERS, INT64, Graph, Value, translates


def align(
    g: Graph,
    features: Value,  # [N, C, H, W]
    rois: Value,  # [K, 5]
    output_h: int,
    output_w: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Value:  # [K, C, output_h, output_w]
    """The operator ``RoiAlign`` with average pooling."""
    image = g.Cast(g.reshape(g.Gather(rois, g.ints(0), axis=1), -1), to=INT64)
    return g.RoiAlign(
        features,
        g.Gather(rois, g.ints(1, 2, 3, 4), axis=1),
        image,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        mode="avg",
        output_height=output_h,
        output_width=output_w,
        sampling_ratio=max(sampling_ratio, 0),
        spatial_scale=float(spatial_scale),
    )


@translates("dcnzoo::roi_align", EXPORTERS)
def roi_align(
    g: Graph,
    input: Value,
    rois: Value,
    output_h: int,
    output_w: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Value:
    rois = g.Cast(rois, to=g.type_of(input))
    return align(g, input, rois, output_h, output_w, spatial_scale, sampling_ratio, aligned)
