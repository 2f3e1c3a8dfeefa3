"""The official layer of Deformable DETR, ``from models.ops.modules import MSDeformAttn``.

It also has the argument ``ratio`` of ViT-Adapter. The parameters have the same names, so state dicts load.
"""

from dcnzoo.compat.signatures import renames
from dcnzoo.layers import MultiScaleDeformableAttention

__all__ = ["MSDeformAttn"]


class MSDeformAttn(MultiScaleDeformableAttention):
    """:class:`dcnzoo.layers.MultiScaleDeformableAttention` with the official arguments.

    Args:
        d_model: channels of queries, input and output.
        n_levels: number of levels of the pyramid.
        n_heads: number of heads, a divisor of the projected channels.
        n_points: number of points per head and level.
        ratio: ratio of the projected channels to ``d_model`` (ViT-Adapter).

    Raises:
        ValueError: an argument is invalid.
        RuntimeError: an input is invalid.
    """

    def __init__(
        self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4, ratio: float = 1.0
    ) -> None:
        super().__init__(d_model, n_heads, n_levels, n_points, value_proj_ratio=ratio)
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.ratio = ratio

    forward = renames(  # the official names
        input_flatten="value",
        input_spatial_shapes="spatial_shapes",
        input_level_start_index="level_start_index",
        input_padding_mask="key_padding_mask",
    )(MultiScaleDeformableAttention.forward)
