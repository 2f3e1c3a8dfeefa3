"""``DCNv4.ext``, the compiled module of DCNv4.

The arguments ``im2col_step``, ``d_stride`` and ``block_thread``, which divide the work of the original's
kernels, have no effect.
"""

from typing import Any

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.compat.compiled.dcnv3 import geometry
from dcnzoo.compat.mmcv.plain import gradients
from dcnzoo.compat.signatures import without_autocast
from dcnzoo.utils.text import counted


@without_autocast
def dcnv4_forward(
    value: Tensor,  # [N, H, W, C]
    p_offset: Tensor,  # [N, oH, oW, group·3P, padded to a multiple of 8]
    *options: float,  # the numbers of geometry(), then those of the body's first line
) -> Tensor:  # [N, oH, oW, C]
    """``DCNv4.ext.dcnv4_forward``, without the option of a softmax, which the package never uses."""
    _im2col_step, remove_center, *kernel = options[11:]  # d_stride, block_thread, softmax
    if any(kernel[2:]):
        raise RuntimeError("dcnv4_forward: softmax: expected False (dcnzoo's DCNv4 has no softmax), got True")
    return dcnzoo.ops.dcnv4(value, p_offset, *geometry(*options[:11]), remove_center=bool(remove_center))


def dcnv4_backward(
    value: Tensor,
    p_offset: Tensor,
    *options: float,  # as in the forward, with grad_output [N, oH, oW, C] after im2col_step
) -> list[Tensor]:
    """Return the gradients of ``value`` and ``p_offset``."""
    _im2col_step, grad_output, remove_center, _d_stride, _block_thread, _softmax = options[11:]
    arguments = (*geometry(*options[:11]), bool(remove_center), [True] * 2)
    return list(torch.ops.dcnzoo._dcnv4_backward(grad_output, value, p_offset, *arguments))


@without_autocast
def flash_deform_attn_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, sampling_loc_attn: Tensor, im2col_step: int, K: int = 8, *_
) -> Tensor:  # [N, Q, heads·D]
    """Call :func:`dcnzoo.ops.flash_deform_attn`. ``K``, the number of points, is only checked."""
    expected, got = len(shapes) * K * 3, sampling_loc_attn.shape[-1]
    if got != expected:
        raise RuntimeError(
            f"flash_deform_attn: sampling_loc_attn: expected {counted(expected, 'values')} per head "
            f"({counted(len(shapes), 'levels')} · {counted(K, 'points')} · 3), got {got}"
        )
    return dcnzoo.ops.flash_deform_attn(value, shapes, starts, sampling_loc_attn)


def flash_deform_attn_backward(*arguments: Any) -> list[Tensor]:
    """Return the gradients of ``value`` and ``sampling_loc_attn``.

    Args: as in the forward, with ``grad_output`` ``[N, Q, heads·D]`` before im2col_step.
    """
    value, shapes, starts, sampling_loc_attn, grad_output, *options = arguments

    def attend(value: Tensor, sampling_loc_attn: Tensor) -> Tensor:
        return flash_deform_attn_forward(value, shapes, starts, sampling_loc_attn, *options)

    return list(gradients(attend, (value, sampling_loc_attn), grad_output))
