"""Deterministic gradients for ``torch.use_deterministic_algorithms``, where the kernels add atomically."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import reference
from ._arguments import memory_format


def deterministic(tensor: Tensor) -> bool:
    """Whether deterministic algorithms are required on a device whose kernels add atomically."""
    return tensor.device.type not in ("cpu", "meta") and torch.are_deterministic_algorithms_enabled()


def grad_input_in_order(
    grad_output: Tensor,  # [N, O, *out]
    input: Tensor,  # [N, C, *in]
    weight: Tensor,  # [O, C / groups, *kernel]
    offset: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:  # [N, C, *in]
    """The gradient of deformable convolution's input, bitwise identical at every call.

    torch's accumulating ``index_put_`` sorts the target pixels, once for all channels of an offset group, and
    adds the contributions to each pixel in this order. It processes one image at a time, which needs twice
    the memory of the image's columns: 2 · C · taps · pixels values.
    """
    wide = torch.promote_types(input.dtype, torch.float32)
    channels, in_size = input.shape[1], input.shape[2:]
    taps, outputs = math.prod(weight.shape[2:]), weight.shape[0]
    matrices = weight.to(wide).reshape(groups, outputs // groups, channels // groups * taps)
    gradients = torch.empty(
        input.shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input)
    )
    for image in range(input.shape[0]):
        grad = grad_output[image].to(wide).reshape(groups, outputs // groups, -1)
        columns = (matrices.transpose(1, 2) @ grad).reshape(channels, -1)  # [C, taps · pixels]
        if mask is not None:
            factors = mask[image].to(wide).reshape(mask.shape[1] // taps, 1, columns.shape[1])
            columns = (columns.unflatten(0, (len(factors), -1)) * factors).flatten(0, 1)
        shifts = None if offset is None else offset[image : image + 1]
        points = reference.sampling_points(
            shifts, weight.shape[2:], grad_output.shape[2:], stride, padding, dilation, columns
        )[0]  # [G, taps, rank, *out]
        points = points.transpose(1, 2).flatten(3).flatten(2)  # [G, rank, taps · pixels]
        rows = columns.unflatten(0, (len(points), -1)).transpose(1, 2)  # [G, taps · pixels, C / G]
        sums = rows.new_zeros(len(points) * math.prod(in_size), rows.shape[2])
        first = torch.arange(len(points), device=input.device)[:, None] * math.prod(in_size)
        for place, share, valid in reference.corners(points, in_size):
            parts = torch.where(valid[..., None], rows * share[..., None], rows.new_zeros(()))
            sums.index_put_(((first + place).flatten(),), parts.flatten(0, 1), accumulate=True)
        gradients[image] = sums.unflatten(0, (len(points), -1)).transpose(1, 2).reshape(input.shape[1:])
    return gradients


def pooling_grad_input_in_order(
    pool: Callable,  # of (maps, rois, *per_roi), linear in the maps, in plain PyTorch
    grad_output: Tensor,  # [K, C, oH, oW]
    input_size: Sequence[int],  # (N, C, H, W)
    rois: Tensor,  # [K, 5 or 6]
    *per_roi: Tensor,  # [K, …]
) -> Tensor:  # [N, C, H, W]
    """The gradient of the input of a RoI pooling, bitwise identical at every call.

    Differentiates ``pool``, whose derivative is torch's ``index_put_``, one RoI at a time, which bounds the
    memory.
    """
    wide = torch.promote_types(grad_output.dtype, torch.float32)
    total = grad_output.new_zeros(input_size, dtype=wide)
    for roi in range(len(rois)):
        one = [tensor[roi : roi + 1] for tensor in (rois, *per_roi)]
        pull = torch.func.vjp(lambda maps, one=one: pool(maps, *one), torch.zeros_like(total))[1]
        total = total + pull(grad_output[roi : roi + 1].to(wide))[0]
    return total.to(grad_output.dtype)
