"""Bilinear sampling with RoIAlign's border rule, as weighted sums of a few pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def add_gradient(grad_input: Tensor, function: Callable[[Tensor], Tensor], grad_output: Tensor) -> None:
    """Add the gradient of the input of ``function``, which must be linear: zeros serve as the input."""
    with torch.enable_grad():
        zeros = at_least_float32(torch.zeros_like(grad_input)).requires_grad_()
        (gradient,) = torch.autograd.grad(function(zeros), zeros, at_least_float32(grad_output))
    grad_input.add_(gradient)


def corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point, as indices ``y · width + x``, and their weights: [..., 4].

    The weights are zero below -1 and above the size. Other points outside the map read the border pixel.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y = torch.where(inside, y, torch.zeros_like(y)).clamp(0, height - 1)
    x = torch.where(inside, x, torch.zeros_like(x)).clamp(0, width - 1)
    top, left = y.long(), x.long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, across = y - top, x - left
    up, back = inside * (1 - down), 1 - across
    down = inside * down
    indices = (top * width + left, top * width + right, bottom * width + left, bottom * width + right)
    weights = (up * back, up * across, down * back, down * across)
    return torch.stack(indices, -1), torch.stack(weights, -1)


def rows_of(input: Tensor) -> Tensor:  # [N, C, H, W] -> [N·H·W, C]
    return at_least_float32(input).permute(0, 2, 3, 1).flatten(0, 2)


def weighted_sums(
    rows: Tensor,  # [M, C]
    index: Tensor,  # [P, k]
    weights: Tensor,  # as index
) -> Tensor:
    """``Σ weights · rows[index]`` over the last dimension: [P, C]."""
    if not index.numel():
        return rows[:0].sum(0) + rows.new_zeros(len(index), rows.shape[1])
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights.to(rows.dtype))
