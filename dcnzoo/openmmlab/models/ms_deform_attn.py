"""Multi-scale deformable attention in OpenMMLab's registry; replaces mmcv's."""

from importlib import import_module
from typing import Any

from mmcv.ops import MultiScaleDeformableAttention as MmcvAttention
from mmengine.model import BaseModule
from mmengine.utils import deprecated_api_warning
from torch import Tensor, nn

from dcnzoo import layers
from dcnzoo.layers.base import refuse
from dcnzoo.openmmlab.patches.devices import largest_step, runs_on_dcnzoo


# mmcv's class is a base too: MMDetection's detectors test for it when they initialise weights.
class MultiScaleDeformableAttention(layers.MultiScaleDeformableAttention, MmcvAttention):
    """:class:`dcnzoo.layers.MultiScaleDeformableAttention` with the dropout and shortcut of mmcv's layer.

    Accepts the arguments of mmcv's layer. ``im2col_step`` need not divide the batch size; ``norm_cfg`` has no
    effect, as in mmcv.

    Raises:
        ValueError: an argument is not valid.
        RuntimeError: an input of ``forward`` is not valid.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
        value_proj_ratio: float = 1.0,
    ) -> None:
        BaseModule.__init__(self, init_cfg)
        layers.MultiScaleDeformableAttention.__init__(
            self, embed_dims, num_heads, num_levels, num_points, value_proj_ratio
        )
        self.im2col_step = im2col_step
        self.norm_cfg = norm_cfg
        self.batch_first = batch_first
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        self.reset_parameters()
        self._is_init = True

    def _attend(
        self, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
    ) -> Tensor:
        if runs_on_dcnzoo("multi_scale_deform_attn", value.device):
            return super()._attend(value, shapes, starts, locations, weights)
        mmcvs = import_module("mmcv.ops.multi_scale_deform_attn")
        if not value.is_cuda:
            return mmcvs.multi_scale_deformable_attn_pytorch(
                value, shapes, locations.type_as(value), weights.type_as(value)
            )
        step = largest_step(value.shape[0], self.im2col_step)
        function = mmcvs.MultiScaleDeformableAttnFunction
        return function.apply(value.contiguous(), shapes, starts, locations, weights, step)

    @deprecated_api_warning({"residual": "identity"}, cls_name="MultiScaleDeformableAttention")
    def forward(
        self,
        query: Tensor,  # [Q, N, C], or [N, Q, C] with batch_first
        key: Tensor | None = None,
        value: Tensor | None = None,  # [S, N, C], or [N, S, C]
        identity: Tensor | None = None,  # like query
        query_pos: Tensor | None = None,  # like query
        key_padding_mask: Tensor | None = None,  # [N, S]
        reference_points: Tensor | None = None,  # [N, Q, L, 2 or 4]
        spatial_shapes: Tensor | None = None,  # [L, 2]
        level_start_index: Tensor | None = None,  # [L]
        **kwargs: object,
    ) -> Tensor:  # like query
        """Return the attention of ``query + query_pos``, plus ``identity``, as mmcv's layer does.

        Args:
            key: not used, as in mmcv.
            value, identity: default to ``query`` (without ``query_pos``).
            key_padding_mask, reference_points, spatial_shapes, level_start_index: see
                :meth:`dcnzoo.layers.MultiScaleDeformableAttention.forward`.
        """
        if reference_points is None:
            refuse(self, "reference_points", "a tensor", None, RuntimeError)
        if spatial_shapes is None:
            refuse(self, "spatial_shapes", "a tensor", None, RuntimeError)
        spatial_shapes = spatial_shapes.long()  # mmcv's function for the CPU takes any type
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.bool()  # mmcv documents a ByteTensor
        output = super().forward(
            query, reference_points, value, spatial_shapes, level_start_index, key_padding_mask
        )
        return self.dropout(output if self.batch_first else output.transpose(0, 1)) + identity
