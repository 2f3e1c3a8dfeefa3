"""``D3D``, the compiled module of D3Dnet: deformable convolution v1 in three dimensions."""

import torch
from torch import Tensor

import dcnzoo.ops


def _geometry(numbers: tuple[int, ...]) -> tuple:
    # kernel, stride, padding, dilation (3 numbers each), groups, deformable groups, im2col_step. The kernel
    # size and the deformable groups follow from the tensors.
    return *(list(numbers[start : start + 3]) for start in (3, 6, 9)), numbers[12], None


def deform_conv_forward(
    input: Tensor,  # [N, C, D, H, W]
    weight: Tensor,  # [O, C / groups, kD, kH, kW]
    bias: Tensor,  # [O]
    offset: Tensor,  # [N, deformable_groups·3·K, oD, oH, oW], (z, y, x), in input voxels
    *numbers: int,
) -> Tensor:  # [N, O, oD, oH, oW]
    """``D3D.deform_conv_forward``."""
    return dcnzoo.ops.deform_conv3d(input, weight, offset, None, bias, *_geometry(numbers))


def deform_conv_backward(
    input: Tensor, weight: Tensor, bias: Tensor, offset: Tensor, grad_output: Tensor, *numbers: int
) -> list[Tensor]:
    """The gradients of ``input``, ``offset``, ``weight`` and ``bias``, in this order."""
    needed = [True, True, True, False, True]
    backward = torch.ops.dcnzoo._deform_conv_backward
    input, weight, offset, _, bias = backward(
        grad_output, input, weight, offset, None, *_geometry(numbers), needed
    )
    return [input, offset, weight, bias]
