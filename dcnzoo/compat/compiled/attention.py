"""Multi-scale deformable attention: ``MultiScaleDeformableAttention``, ``groundingdino._C``, ``adet._C``.

Any batch size works with any ``im2col_step``, and half precision works too. The modules' other functions,
such as adet's ``BezierAlign``, are not provided.
"""

from typing import Any

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.compat.signatures import without_autocast
from dcnzoo.ops.deform_attn import as_int64, level_starts


def _inputs(value: Tensor, shapes: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the five tensors of :func:`dcnzoo.ops.ms_deform_attn`.

    TrackFormer does not pass the levels' starts, which are the only tensor of one dimension: compute them.
    """
    if inputs[0].dim() > 1:  # the sampling locations
        inputs = (level_starts(shapes), *inputs)
    return value, as_int64(shapes), as_int64(inputs[0]), *inputs[1:]


@without_autocast
def ms_deform_attn_forward(*arguments: Any) -> Tensor:  # [N, Q, heads·D]
    """Call :func:`dcnzoo.ops.ms_deform_attn` with all arguments but the last, ``im2col_step``."""
    *inputs, _im2col_step = arguments
    return dcnzoo.ops.ms_deform_attn(*_inputs(*inputs))


def ms_deform_attn_backward(*arguments: Any) -> list[Tensor]:
    """Return the gradients of ``value``, ``sampling_locations`` and ``attention_weights``.

    Args: as in the forward, with ``grad_output`` ``[N, Q, heads·D]`` before ``im2col_step``.
    """
    *inputs, grad_output, _im2col_step = arguments
    backward = torch.ops.dcnzoo._ms_deform_attn_backward
    return list(backward(grad_output, *_inputs(*inputs), [True] * 3))
