"""The functions of ``DCNv3``, the compiled module of InternImage (``ops_dcnv3``).

The last argument ``remove_center`` is optional, so calls of versions 1.0 (without it) and 1.1 (with it) both
work. Any batch size works with any ``im2col_step``.
"""

from __future__ import annotations

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.compat.extensions.missing import missing

__all__ = ["dcnv3_backward", "dcnv3_forward"]
__getattr__ = missing(__name__, __all__)


def geometry(
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    *rest: float,
) -> tuple:
    """The arguments of a compiled function after its tensors, as those of dcnzoo's operators."""
    return (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), *rest


def dcnv3_forward(
    input: Tensor,  # [N, H, W, C]
    offset: Tensor,  # [N, oH, oW, group·P·2], (x, y) pairs, in input pixels
    mask: Tensor,  # [N, oH, oW, group·P]
    *options: float,  # those of geometry(), group, group_channels, offset_scale, im2col_step, remove_center
) -> Tensor:  # [N, oH, oW, C]
    arguments, (_, *remove_center) = geometry(*options[:11]), options[11:]
    with torch.autocast(input.device.type, enabled=False):
        return dcnzoo.ops.dcnv3(input, offset, mask, *arguments, any(remove_center))


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
