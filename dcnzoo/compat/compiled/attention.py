"""Multi-scale deformable attention: ``MultiScaleDeformableAttention``, ``groundingdino._C``, ``adet._C``.

Any batch size works with any ``im2col_step``, and half precision too. The modules' other functions, such as
adet's ``BezierAlign``, are missing.
"""

from typing import Any

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.compat.mmcv._ext import without_autocast
from dcnzoo.ops.deform_attn import level_starts


def _inputs(value: Tensor, shapes: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The five tensors of :func:`dcnzoo.ops.ms_deform_attn`, and those behind them.

    TrackFormer's functions have no argument for the levels' starts, the only tensor of one dimension.
    """
    if inputs[0].dim() > 1:  # the sampling locations
        inputs = (level_starts(shapes), *inputs)
    return value, shapes, *inputs


@without_autocast
def ms_deform_attn_forward(*arguments: Any) -> Tensor:  # [N, Q, heads·D]
    """Args: those of :func:`dcnzoo.ops.ms_deform_attn`, and ``im2col_step``."""
    *inputs, _im2col_step = arguments
    return dcnzoo.ops.ms_deform_attn(*_inputs(*inputs))


def ms_deform_attn_backward(*arguments: Any) -> list[Tensor]:
    """The gradients of ``value``, ``sampling_locations`` and ``attention_weights``.

    Args: as in the forward, with ``grad_output`` ``[N, Q, heads·D]`` before ``im2col_step``.
    """
    *inputs, grad_output, _im2col_step = arguments
    backward = torch.ops.dcnzoo._ms_deform_attn_backward
    return list(backward(grad_output, *_inputs(*inputs), [True] * 3))
