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


def dcnv3_forward(
    input: Tensor,  # [N, H, W, C]
    offset: Tensor,  # [N, oH, oW, group·P·2], (x, y) pairs, in input pixels
    mask: Tensor,  # [N, oH, oW, group·P]
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    im2col_step: int,
    remove_center: int = 0,
) -> Tensor:  # [N, oH, oW, C]
    geometry = ((kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w))
    with torch.autocast(input.device.type, enabled=False):
        return dcnzoo.ops.dcnv3(
            input, offset, mask, *geometry, group, group_channels, offset_scale, bool(remove_center)
        )


def dcnv3_backward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    grad_output: Tensor,  # [N, oH, oW, C]
    im2col_step: int,
    remove_center: int = 0,
) -> list[Tensor]:
    """The gradients of ``input``, ``offset`` and ``mask``."""
    geometry = ((kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w))
    return list(
        torch.ops.dcnzoo._dcnv3_backward(
            *(grad_output, input, offset, mask, *geometry, group, group_channels, offset_scale),
            bool(remove_center),
            [True] * 3,
        )
    )
