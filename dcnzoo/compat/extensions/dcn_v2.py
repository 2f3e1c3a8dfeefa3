"""The functions of ``_ext``, the compiled module of DCNv2 and its forks (CenterNet, CenterTrack, FairMOT).

Deformable PSRoI pooling (``dcn_v2_psroi_pooling_…``) is not provided: these projects' networks do not use it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcnzoo.compat.extensions.missing import missing
from dcnzoo.compat.mmcv._ext import modulated_deform_conv_backward, modulated_deform_conv_forward

__all__ = ["dcn_v2_backward", "dcn_v2_forward"]
__getattr__ = missing(__name__, __all__)


def dcn_v2_forward(
    input: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [O, C, kernel_h, kernel_w]
    bias: Tensor,  # [O]
    offset: Tensor,  # [N, deformable_group·2·kH·kW, oH, oW], (y, x) pairs, in input pixels
    mask: Tensor,  # [N, deformable_group·kH·kW, oH, oW]
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    deformable_group: int,
) -> Tensor:  # [N, O, oH, oW]
    height = (input.shape[2] + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) // stride_h + 1
    width = (input.shape[3] + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) // stride_w + 1
    output, unused = input.new_empty(input.shape[0], weight.shape[0], height, width), input.new_empty(0)
    geometry = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    tensors = (input, weight, bias, unused, offset, mask, output, unused)
    modulated_deform_conv_forward(*tensors, *geometry, 1, deformable_group, True)
    return output


def dcn_v2_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor,
    mask: Tensor,
    grad_output: Tensor,  # [N, O, oH, oW]
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    deformable_group: int,
) -> list[Tensor]:
    """The gradients of ``input``, ``offset``, ``mask``, ``weight`` and ``bias``, in this order."""
    gradients = [torch.zeros_like(tensor) for tensor in (input, offset, mask, weight, bias)]
    grad_input, grad_offset, grad_mask, grad_weight, grad_bias = gradients
    written = (grad_input, grad_weight, grad_bias, grad_offset, grad_mask)
    unused = input.new_empty(0)
    geometry = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    tensors = (input, weight, bias, unused, offset, mask, unused, *written, grad_output)
    modulated_deform_conv_backward(*tensors, *geometry, 1, deformable_group, True)
    return gradients
