"""The functions of ``MultiScaleDeformableAttention`` (Deformable DETR) and other modules of the same source.

The backward returns its gradients, unlike mmcv's, which writes them into tensors. Any batch size works with
any ``im2col_step``. The originals support float32 and float64, these functions also half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcnzoo.compat.extensions.missing import missing
from dcnzoo.compat.mmcv._ext import ms_deform_attn_forward

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_forward"]
__getattr__ = missing(__name__, __all__)


def ms_deform_attn_backward(
    value: Tensor,  # [N, S, heads, D]
    spatial_shapes: Tensor,  # [L, 2], (height, width)
    level_start_index: Tensor,  # [L]
    sampling_locations: Tensor,  # [N, Q, heads, L, P, 2]
    attention_weights: Tensor,  # [N, Q, heads, L, P]
    grad_output: Tensor,  # [N, Q, heads·D]
    im2col_step: int,
) -> list[Tensor]:
    """The gradients of ``value``, ``sampling_locations`` and ``attention_weights``."""
    inputs = (value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    return list(torch.ops.dcnzoo._ms_deform_attn_backward(grad_output, *inputs, [True] * 3))
