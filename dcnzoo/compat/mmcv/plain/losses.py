"""Focal loss (Lin et al. 2017), per element, as in mmcv's CUDA kernels; Chamfer distance."""

from __future__ import annotations

import torch
from torch import Tensor

from dcnzoo.compat.mmcv.plain import at_least_float32


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=torch.finfo(torch.float32).tiny).log()


def _class_weight(weight: Tensor, target: Tensor) -> Tensor | float:
    """The weight of each sample's class; 1 for background, for which mmcv reads past the end."""
    if not weight.numel():
        return 1.0
    return torch.cat([weight, weight.new_ones(1)])[target.clamp(max=len(weight))]


def _is_target(input: Tensor, target: Tensor) -> Tensor:  # (N, C), (N,) -> (N, C)
    return target[:, None] == torch.arange(input.shape[1], device=input.device)


def _sigmoid_focal(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float, foreground: Tensor, rest: Tensor
) -> Tensor:
    loss = torch.where(_is_target(input, target), -alpha * foreground, (alpha - 1) * rest)
    scale = _class_weight(weight, target)
    return loss * (scale[:, None] if isinstance(scale, Tensor) else scale)


def sigmoid_focal_loss_forward(
    input: Tensor,  # (N, C) logits
    target: Tensor,  # (N,) class, C for background
    weight: Tensor,  # (C,) or empty
    output: Tensor,  # (N, C)
    gamma: float,
    alpha: float,
) -> None:
    p = at_least_float32(input).sigmoid()
    foreground = (1 - p) ** gamma * _log(p)
    rest = p**gamma * _log(1 - p)
    output.copy_(_sigmoid_focal(input, target, weight, alpha, foreground, rest))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    p = at_least_float32(input).sigmoid()
    foreground = (1 - p) ** gamma * (1 - p - gamma * p * _log(p))
    rest = p**gamma * (gamma * (1 - p) * _log(1 - p) - p)
    grad_input.copy_(_sigmoid_focal(input, target, weight, alpha, foreground, rest))


# Chamfer distance of points in the plane


def chamfer_distance_forward(
    xyz1: Tensor,  # [B, N, 2]
    xyz2: Tensor,  # [B, M, 2]
    dist1: Tensor,  # [B, N], written: squared distances to the nearest of the others
    dist2: Tensor,  # [B, M]
    idx1: Tensor,  # [B, N], written: which that is, the first of equal ones
    idx2: Tensor,  # [B, M]
) -> None:
    squares = (xyz1[:, :, None] - xyz2[:, None]).square().sum(-1)  # [B, N, M]
    for dim, distance, index in ((2, dist1, idx1), (1, dist2, idx2)):
        nearest = squares.min(dim)
        distance.copy_(nearest.values)
        index.copy_(nearest.indices)


def chamfer_distance_backward(
    xyz1: Tensor,
    xyz2: Tensor,
    idx1: Tensor,
    idx2: Tensor,
    graddist1: Tensor,
    graddist2: Tensor,
    gradxyz1: Tensor,
    gradxyz2: Tensor,
) -> None:
    leaves = [points.detach().requires_grad_() for points in (xyz1, xyz2)]
    with torch.enable_grad():
        distances = [
            (points - others.gather(1, index.long()[..., None].expand_as(points))).square().sum(-1)
            for points, others, index in ((*leaves, idx1), (*leaves[::-1], idx2))
        ]
    gradients = torch.autograd.grad(distances, leaves, (graddist1, graddist2))
    gradxyz1.add_(gradients[0])
    gradxyz2.add_(gradients[1])
