"""The package ``DCNv4`` (FlashInternImage), or its compiled module ``DCNv4.ext`` if only that is missing.

All modules of the package load this file, which has the layers, the functions and the functions of
``DCNv4.ext``. The arguments ``im2col_step``, ``d_stride`` and ``block_thread``, which divide the work of the
original's kernels, have no effect.
"""

from __future__ import annotations

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.compat.deformable_detr import MSDeformAttn
from dcnzoo.compat.extensions import missing
from dcnzoo.compat.extensions.compiled import geometry
from dcnzoo.layers import DCNv4  # noqa: F401  a layer of the package

__getattr__ = missing(__name__)

FlashDeformAttn = MSDeformAttn  # same arguments, parameters and results; only the kernels differ


def dcnv4_forward(
    value: Tensor,  # [N, H, W, C]
    p_offset: Tensor,  # [N, oH, oW, group·3P, padded to a multiple of 8]
    *options: float,  # those of geometry(), then group, group_channels, offset_scale and the next line
) -> Tensor:  # [N, oH, oW, C]
    """``DCNv4.ext.dcnv4_forward``, without its softmax.

    Raises:
        RuntimeError: ``softmax`` is true (the package never sets it), or a tensor is invalid.
    """
    _im2col_step, remove_center, _d_stride, _block_thread, softmax = options[11:]
    _check_softmax("dcnv4_forward", softmax)
    with torch.autocast(value.device.type, enabled=False):
        return dcnzoo.ops.dcnv4(value, p_offset, *geometry(*options[:11]), bool(remove_center))


def dcnv4_backward(
    value: Tensor,
    p_offset: Tensor,
    *options: float,  # as in the forward, with grad_output [N, oH, oW, C] after im2col_step
) -> list[Tensor]:
    """The gradients of ``value`` and ``p_offset``."""
    _im2col_step, grad_output, remove_center, _d_stride, _block_thread, softmax = options[11:]
    _check_softmax("dcnv4_backward", softmax)
    arguments = (*geometry(*options[:11]), bool(remove_center), [True] * 2)
    return list(torch.ops.dcnzoo._dcnv4_backward(grad_output, value, p_offset, *arguments))


def _check_softmax(owner: str, softmax: bool) -> None:
    if softmax:
        raise RuntimeError(f"{owner}: softmax: expected False (dcnzoo's DCNv4 has no softmax), got True")


def flash_deform_attn_forward(
    value: Tensor,  # [N, S, heads, D]
    spatial_shapes: Tensor,  # [L, 2], (height, width)
    level_start_index: Tensor,  # [L]
    sampling_loc_attn: Tensor,  # [N, Q, heads, L·K·3]
    im2col_step: int,
    K: int,  # points of a head on a level
    d_stride: int,
    block_thread: int,
) -> Tensor:  # [N, Q, heads·D]
    expected = spatial_shapes.shape[0] * K * 3
    if sampling_loc_attn.shape[-1] != expected:
        raise RuntimeError(
            f"flash_deform_attn_forward: sampling_loc_attn: expected {expected} values per head "
            f"({spatial_shapes.shape[0]} levels · {K} points · 3), got {sampling_loc_attn.shape[-1]}"
        )
    with torch.autocast(value.device.type, enabled=False):
        return dcnzoo.ops.flash_deform_attn(value, spatial_shapes, level_start_index, sampling_loc_attn)


def flash_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc_attn: Tensor,
    grad_output: Tensor,  # [N, Q, heads·D]
    im2col_step: int,
    K: int,
    d_stride: int,
    block_thread: int,
) -> list[Tensor]:
    """The gradients of ``value`` and ``sampling_loc_attn``."""
    leaves = [tensor.detach().requires_grad_() for tensor in (value, sampling_loc_attn)]
    levels, kernel = (spatial_shapes, level_start_index), (im2col_step, K, d_stride, block_thread)
    with torch.enable_grad():
        output = flash_deform_attn_forward(leaves[0], *levels, leaves[1], *kernel)
    return list(torch.autograd.grad(output, leaves, grad_output))


class DCNv4Function:
    """``DCNv4.functions.DCNv4Function``: only ``apply``, with the same arguments."""

    @staticmethod
    def apply(
        input: Tensor,  # [N, H, W, C]
        offset_mask: Tensor,  # [N, oH, oW, group·3P, padded to a multiple of 8]
        *options: float,  # as in dcnv4_forward, up to remove_center
    ) -> Tensor:  # [N, oH, oW, C]
        _im2col_step, remove_center = options[11:]
        return dcnzoo.ops.dcnv4(input, offset_mask, *geometry(*options[:11]), bool(remove_center))


class FlashDeformAttnFunction:
    """``DCNv4.functions.FlashDeformAttnFunction``: only ``apply``, with the same arguments."""

    @staticmethod
    def apply(
        value: Tensor,  # [N, S, heads, D]
        value_spatial_shapes: Tensor,  # [L, 2], (height, width)
        value_level_start_index: Tensor,  # [L]
        sampling_loc_attn: Tensor,  # [N, Q, heads, L·K·3]
        im2col_step: int,
        K: int = 8,
    ) -> Tensor:  # [N, Q, heads·D]
        levels = (value_spatial_shapes, value_level_start_index)
        return flash_deform_attn_forward(value, *levels, sampling_loc_attn, im2col_step, K, 0, 0)
