"""The official layer of Deformable DETR, ``from models.ops.modules import MSDeformAttn``.

With the argument ``ratio`` that ViT-Adapter added. Its state dicts load: the parameters have the same names.
"""

from __future__ import annotations

from dcnzoo.layers import MultiScaleDeformableAttention

__all__ = ["MSDeformAttn"]


class MSDeformAttn(MultiScaleDeformableAttention):
    """:class:`dcnzoo.layers.MultiScaleDeformableAttention` with the official arguments.

    Args:
        d_model: channels of queries, input and output.
        n_levels: of the pyramid.
        n_heads: a divisor of the projected channels.
        n_points: of a head on a level.
        ratio: of the projected channels to ``d_model`` (ViT-Adapter).

    Raises:
        ValueError: arguments that do not fit.
        RuntimeError: input that does not fit.
    """

    def __init__(
        self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4, ratio: float = 1.0
    ) -> None:
        super().__init__(d_model, n_heads, n_levels, n_points, value_proj_ratio=ratio)
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.ratio = ratio
