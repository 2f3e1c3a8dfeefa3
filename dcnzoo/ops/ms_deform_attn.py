"""Multi-scale deformable attention: functions, fake kernel, autograd (twice), autocast, vmap."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._arguments import check_tensors, is_traced
from ._autocast import register_autocast
from ._autograd import register_derivatives
from ._vmap import register_vmap


def ms_deform_attn(
    value: Tensor,  # [N, S, heads, D]
    spatial_shapes: Tensor,  # [L, 2], (height, width)
    level_start_index: Tensor,  # [L]
    sampling_locations: Tensor,  # [N, Q, heads, L, P, 2], (x, y) in units of the level's size
    attention_weights: Tensor,  # [N, Q, heads, L, P]
) -> Tensor:  # [N, Q, heads·D]
    """For each query and head, the weighted sum of the samples at its points on all levels.

    Deformable DETR (Zhu et al. 2021, eq. 3), without the linear projections. Same layout and results as
    ``MultiScaleDeformableAttnFunction`` of mmcv.

    Args:
        value: the pixels of all levels, one level after the other: ``(N, S, heads, D)``; float64, float32,
            bfloat16 or float16.
        spatial_shapes: the levels' (height, width), int64.
        level_start_index: index in S of each level's first pixel, int64.
        sampling_locations: ``(N, Q, heads, L, P, 2)``, (x, y) normalised to the level's size. (0, 0) is the
            upper left corner of a level, (1, 1) the lower right one; pixel i has its centre at
            ``(i + 0.5) / size``.
        attention_weights: ``(N, Q, heads, L, P)``, used without an activation (apply the softmax yourself).

    Returns:
        ``(N, Q, heads · D)``, contiguous.

    A level is padded with zeros, as in ``F.grid_sample(align_corners=False)``: samples near the border
    interpolate to zero, and a coordinate <= -1 or >= size, in pixels from the first pixel's centre, gives
    zero.

    Raises:
        RuntimeError: a shape, dtype or device is invalid; on the CPU also if a level exceeds ``value``. On
            CUDA, where this check would stall the device, such a level reads as zeros.
        TypeError: an argument is not a tensor.
    """
    if not torch.jit.is_scripting():
        check_tensors(
            "ms_deform_attn",
            value=value,
            spatial_shapes=spatial_shapes,
            level_start_index=level_start_index,
            sampling_locations=sampling_locations,
            attention_weights=attention_weights,
        )
    return torch.ops.dcnzoo.ms_deform_attn(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    )


def flash_deform_attn(
    value: Tensor,  # [N, S, heads, D]
    spatial_shapes: Tensor,  # [L, 2], (height, width)
    level_start_index: Tensor,  # [L]
    sampling_loc_attn: Tensor,  # [N, Q, heads, L·P·3]
) -> Tensor:  # [N, Q, heads·D]
    """:func:`ms_deform_attn` with locations and logits in one tensor. It applies the softmax itself.

    The layout is that of DCNv4's ``FlashDeformAttn`` (Xiong et al. 2024): for each head the (x, y) locations
    of all L·P points, then their L·P logits. The softmax is over a head's points on all levels.

    Raises:
        RuntimeError: as in :func:`ms_deform_attn`, or the last axis is not a multiple of 3·L.
    """
    levels = spatial_shapes.shape[0]
    traced = False
    if not torch.jit.is_scripting():
        traced = is_traced(sampling_loc_attn)
    if not traced:
        _check_flash(sampling_loc_attn, levels)
    points = sampling_loc_attn.shape[3] // (3 * levels)
    locations, logits = sampling_loc_attn.split([levels * points * 2, levels * points], dim=3)
    return ms_deform_attn(
        value,
        spatial_shapes,
        level_start_index,
        locations.unflatten(3, (levels, points, 2)),
        logits.softmax(3).unflatten(3, (levels, points)),
    )


def _check_flash(sampling_loc_attn: Tensor, levels: int) -> None:
    if sampling_loc_attn.dim() != 4 or levels < 1 or sampling_loc_attn.shape[3] % (3 * levels) != 0:
        shape = ", ".join([str(size) for size in sampling_loc_attn.shape])
        raise RuntimeError(
            "flash_deform_attn: sampling_loc_attn: expected shape (batch, queries, heads, a multiple of "
            f"3 · {levels} levels), got ({shape})"
        )


@torch.library.register_fake("dcnzoo::ms_deform_attn")
def _(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    return value.new_empty((value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3]))


register_derivatives("ms_deform_attn", 5, (0, 3, 4), reference.ms_deform_attn)
register_vmap("ms_deform_attn", "mssmm", "m")
register_vmap("_ms_deform_attn_backward", "mmssmm", "mmm")
register_autocast("ms_deform_attn", float32_arguments=(3, 4))
