"""The functions of DCNv3 in the compiled modules of InternImage and detrex."""

from typing import Any

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.compat.signatures import without_autocast


def geometry(*numbers: float) -> tuple[Any, Any, Any, Any, Any, Any, Any]:
    """Return the geometry arguments of dcnzoo's operators, from the numbers that a compiled function gets.

    These are height and width of kernel, stride, padding and dilation, then group, group_channels and
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
    *options: float,  # the numbers of geometry(), im2col_step, and since version 1.1 remove_center
) -> Tensor:  # [N, oH, oW, C]
    arguments, (_, *remove_center) = geometry(*options[:11]), options[11:]
    return dcnzoo.ops.dcnv3(input, offset, mask, *arguments, remove_center=any(remove_center))


def dcnv3_backward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    *options: Any,  # as in the forward, with grad_output [N, oH, oW, C] before im2col_step
) -> list[Tensor]:
    """Return the gradients of ``input``, ``offset`` and ``mask``."""
    arguments, (grad_output, _, *remove_center) = geometry(*options[:11]), options[11:]
    backward = torch.ops.dcnzoo._dcnv3_backward
    return list(backward(grad_output, input, offset, mask, *arguments, any(remove_center), [True] * 3))
