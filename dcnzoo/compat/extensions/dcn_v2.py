"""The module ``dcn_v2`` of DCNv2 and its forks, and the functions of its compiled module ``_ext``.

CenterTrack and FairMOT import ``DCN`` from it. The layers have the original arguments and parameters, so
state dicts load.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcnzoo.compat.extensions import missing
from dcnzoo.compat.mmcv._ext import modulated_deform_conv_backward
from dcnzoo.compat.mmcv.deform_conv import (
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    Pair,
    modulated_deform_conv2d,
)
from dcnzoo.compat.signatures import takes

__getattr__ = missing(__name__)


def dcn_v2_conv(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, deformable_groups·2·kH·kW, oH, oW], (y, x) pairs, in input pixels
    mask: Tensor,  # [N, deformable_groups·kH·kW, oH, oW]
    weight: Tensor,  # [O, C, kH, kW]
    bias: Tensor,  # [O]
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    deformable_groups: int,
) -> Tensor:  # [N, O, oH, oW]
    geometry = (stride, padding, dilation, 1, deformable_groups)
    return modulated_deform_conv2d(input, offset, mask, weight, bias, *geometry)


ARGUMENTS = "self in_channels out_channels kernel_size stride padding dilation deformable_groups"


class DCNv2(ModulatedDeformConv2d):
    """Deformable convolution v2, with offset and mask as inputs: ``forward(x, offset, mask)``."""

    @takes(ARGUMENTS)
    def __init__(self, **options: object) -> None:
        super().__init__(**options)


class DCN(ModulatedDeformConv2dPack):
    """Deformable convolution v2 that predicts its own offsets and mask.

    State dicts with the original name of the prediction, ``conv_offset_mask``, load.
    """

    @takes(ARGUMENTS)
    def __init__(self, **options: object) -> None:
        super().__init__(**options)


def dcn_v2_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor,
    mask: Tensor,
    *geometry: int,  # (height, width) of kernel, stride, padding and dilation; deformable_group
) -> Tensor:  # [N, O, oH, oW]
    _, _, *sides, deformable_group = geometry
    sides = (sides[:2], sides[2:4], sides[4:])
    return dcn_v2_conv(input, offset, mask, weight, bias, *sides, deformable_group)


def dcn_v2_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor,
    mask: Tensor,
    grad_output: Tensor,  # [N, O, oH, oW]
    *geometry: int,  # as in the forward
) -> list[Tensor]:
    """The gradients of ``input``, ``offset``, ``mask``, ``weight`` and ``bias``, in this order."""
    gradients = [torch.zeros_like(tensor) for tensor in (input, offset, mask, weight, bias)]
    grad_input, grad_offset, grad_mask, grad_weight, grad_bias = gradients
    written = (grad_input, grad_weight, grad_bias, grad_offset, grad_mask)
    unused = input.new_empty(0)
    tensors = (input, weight, bias, unused, offset, mask, unused, *written, grad_output)
    *sides, deformable_group = geometry
    modulated_deform_conv_backward(*tensors, *sides, 1, deformable_group, True)
    return gradients
