"""DCNv3, the operator of InternImage: function, fake kernel, autograd (twice), autocast, vmap."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._arguments import Int2, check_tensors, pair
from ._autocast import register_autocast
from ._autograd import register_derivatives
from ._vmap import register_vmap


def dcnv3(
    input: Tensor,  # [N, H, W, C]
    offset: Tensor,  # [N, oH, oW, group·P·2], (x, y) pairs, in input pixels
    mask: Tensor,  # [N, oH, oW, group·P]
    kernel_size: Int2,
    stride: Int2,
    padding: Int2,
    dilation: Int2,
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool = False,
    im2col_step: int | None = None,
) -> Tensor:  # [N, oH, oW, C]
    """DCNv3: for each group of channels, the sum of P bilinear samples weighted by ``mask``; channels last.

    The part of InternImage's ``DCNv3`` layer between the linear projections (Wang et al. 2023, eq. 2). It has
    no weights of its own.

    Args:
        input: ``(N, H, W, C)`` with ``C = group · group_channels``; float64, float32, bfloat16 or float16.
        offset: ``(N, oH, oW, group · P · 2)``: an (x, y) pair per group and tap, in input pixels. Taps are
            x-major: tap ``i·kH + j`` is in column i and row j of the kernel.
        mask: ``(N, oH, oW, group · P)``, used without an activation. (InternImage applies a softmax over each
            group's taps.)
        kernel_size, stride, padding, dilation: as in a convolution, an integer or a (height, width) pair. P
            is the number of taps.
        group, group_channels: number of channel groups, and channels of each. The channels of a group share
            their sampling points.
        offset_scale: scales the offsets, and the kernel about its middle tap.
        remove_center: leave out the middle tap of an odd kernel: ``P = kH·kW - 1``.
        im2col_step: no effect; accepted for compatibility with the official signature. Any value >= 1 works
            with any batch size.

    Returns:
        ``(N, oH, oW, C)``, contiguous.

    A sample with a coordinate <= -1, >= size or NaN is zero. Any other sample is bilinear on the map padded
    with zeros, as in :func:`deform_conv2d`.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid.
        TypeError: an argument is not a tensor, or not a number.
    """
    if not torch.jit.is_scripting():
        check_tensors("dcnv3", input=input, offset=offset, mask=mask)
    if im2col_step is not None and im2col_step < 1:
        raise RuntimeError(f"dcnv3: im2col_step: expected at least 1, got {im2col_step}")
    return torch.ops.dcnzoo.dcnv3(
        input,
        offset,
        mask,
        pair(kernel_size, "kernel_size"),
        pair(stride, "stride"),
        pair(padding, "padding"),
        pair(dilation, "dilation"),
        group,
        group_channels,
        float(offset_scale),
        bool(remove_center),
    )


@torch.library.register_fake("dcnzoo::dcnv3")
def _(input, offset, mask, *geometry):
    return input.new_empty((*offset.shape[:3], input.shape[3]))


register_derivatives("dcnv3", 3, (0, 1, 2), reference.dcnv3)
register_vmap("dcnv3", "mmm", "m")
register_vmap("_dcnv3_backward", "mmmm", "mmm")
register_autocast("dcnv3", float32_arguments=(1, 2))
