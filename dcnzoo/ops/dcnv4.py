"""DCNv4, the operator of FlashInternImage: function, fake kernel, autograd (twice), autocast, vmap."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._arguments import Int2, check_tensors, pair
from ._autocast import register_autocast
from ._autograd import register_derivatives
from ._vmap import register_vmap


def dcnv4(
    input: Tensor,  # [N, H, W, C]
    offset_mask: Tensor,  # [N, oH, oW, group·3P, padded to a multiple of 8]
    kernel_size: Int2,
    stride: Int2,
    padding: Int2,
    dilation: Int2,
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool = False,
) -> Tensor:  # [N, oH, oW, C]
    """DCNv4: :func:`dcnv3` with offsets and mask in one tensor.

    The part of the ``DCNv4`` layer between the linear projections (Xiong et al. 2024). Unlike DCNv3, the
    layer applies no softmax to the mask.

    Args:
        input: ``(N, H, W, C)`` with ``C = group · group_channels``; float64, float32, bfloat16 or float16.
        offset_mask: ``(N, oH, oW, ceil(group · 3P / 8) · 8)``: for each group P (x, y) pairs, then P mask
            values. The padding at the end is not read, and its gradient is zero.
        kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove_center: as in
            :func:`dcnv3`, with the same order of taps.

    Returns:
        ``(N, oH, oW, C)``, contiguous.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid.
        TypeError: an argument is not a tensor, or not a number.
    """
    if not torch.jit.is_scripting():
        check_tensors("dcnv4", input=input, offset_mask=offset_mask)
    return torch.ops.dcnzoo.dcnv4(
        input,
        offset_mask,
        pair(kernel_size, "kernel_size"),
        pair(stride, "stride"),
        pair(padding, "padding"),
        pair(dilation, "dilation"),
        group,
        group_channels,
        float(offset_scale),
        bool(remove_center),
    )


@torch.library.register_fake("dcnzoo::dcnv4")
def _(input, offset_mask, *geometry):
    return input.new_empty((*offset_mask.shape[:3], input.shape[3]))


register_derivatives("dcnv4", 2, (0, 1), reference.dcnv4)
register_vmap("dcnv4", "mm", "m")
register_vmap("_dcnv4_backward", "mmm", "mm")
register_autocast("dcnv4", float32_arguments=(1,))
