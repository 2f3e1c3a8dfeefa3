"""Functions of the compiled modules of Deformable DETR, InternImage, BasicSR, EDVR, detectron2 and detrex.

The deformable convolutions are the functions of :mod:`dcnzoo.compat.mmcv._ext`, because mmcv's code has the
same origin: tensors named ``output`` and ``grad_…`` are written in place; ``columns`` and ``ones`` are not
used. The other backwards return their gradients. Any batch size works with any ``im2col_step``, and half
precision too.
"""

from typing import Any

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.compat.mmcv._ext import (  # noqa: F401  some are only provided
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    get_compiler_version,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    without_autocast,
)
from dcnzoo.ops.deform_attn import level_starts

# Multi-scale deformable attention. TrackFormer's module has no argument for the levels' starts.


def _attention_inputs(value: Tensor, shapes: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The five tensors of :func:`dcnzoo.ops.ms_deform_attn`, and those behind them."""
    if inputs[0].dim() > 1:  # the sampling locations
        inputs = (level_starts(shapes), *inputs)
    return value, shapes, *inputs


@without_autocast
def ms_deform_attn_forward(*arguments: Any) -> Tensor:  # [N, Q, heads·D]
    """Args: those of :func:`dcnzoo.ops.ms_deform_attn`, and ``im2col_step``."""
    *inputs, _im2col_step = arguments
    return dcnzoo.ops.ms_deform_attn(*_attention_inputs(*inputs))


def ms_deform_attn_backward(*arguments: Any) -> list[Tensor]:
    """The gradients of ``value``, ``sampling_locations`` and ``attention_weights``.

    Args: as in the forward, with ``grad_output`` ``(N, Q, heads · D)`` before ``im2col_step``.
    """
    *inputs, grad_output, _im2col_step = arguments
    tensors = (grad_output, *_attention_inputs(*inputs))
    return list(torch.ops.dcnzoo._ms_deform_attn_backward(*tensors, [True] * 3))


# DCNv3. remove_center, the last argument, is new in version 1.1 of ops_dcnv3.


def geometry(*numbers: float) -> tuple[Any, Any, Any, Any, Any, Any, Any]:
    """The arguments of a compiled function after its tensors, as those of dcnzoo's operators.

    They are (height, width) of kernel, stride, padding and dilation, then group, group_channels and
    offset_scale.
    """
    kernel, stride, padding, dilation = zip(numbers[:8:2], numbers[1:8:2], strict=True)
    group, group_channels, offset_scale = numbers[8:]
    return kernel, stride, padding, dilation, group, group_channels, offset_scale


@without_autocast
def dcnv3_forward(
    input: Tensor,  # [N, H, W, C]
    offset: Tensor,  # [N, oH, oW, group·P·2], (x, y) pairs, in input pixels
    mask: Tensor,  # [N, oH, oW, group·P]
    *options: float,  # those of geometry(), im2col_step, remove_center
) -> Tensor:  # [N, oH, oW, C]
    """``DCNv3.dcnv3_forward``."""
    arguments, (_, *remove_center) = geometry(*options[:11]), options[11:]
    return dcnzoo.ops.dcnv3(input, offset, mask, *arguments, remove_center=any(remove_center))


def dcnv3_backward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    *options: float,  # as in the forward, with grad_output [N, oH, oW, C] before im2col_step
) -> list[Tensor]:
    """The gradients of ``input``, ``offset`` and ``mask``."""
    arguments, (grad_output, _, *remove_center) = geometry(*options[:11]), options[11:]
    backward = torch.ops.dcnzoo._dcnv3_backward
    return list(backward(grad_output, input, offset, mask, *arguments, any(remove_center), [True] * 3))
