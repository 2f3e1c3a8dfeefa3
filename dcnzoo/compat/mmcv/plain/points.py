"""Sets of points: features by index."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_points_forward(
    features: Tensor,  # [B, C, N]
    indices: Tensor,  # [B, M]
    output: Tensor,  # [B, C, M], written
    b: int,
    c: int,
    n: int,
    npoints: int,
) -> None:
    output.copy_(features.gather(2, indices.long()[:, None].expand_as(output)))


def gather_points_backward(
    grad_out: Tensor, indices: Tensor, grad_features: Tensor, b: int, c: int, n: int, npoints: int
) -> None:
    grad_features.scatter_add_(2, indices.long()[:, None].expand_as(grad_out), grad_out)


def group_points_forward(
    features: Tensor,  # [B, C, N]
    indices: Tensor,  # [B, M, S]
    output: Tensor,  # [B, C, M, S], written
    b: int,
    c: int,
    n: int,
    npoints: int,
    nsample: int,
) -> None:
    gather_points_forward(features, indices.flatten(1), output.flatten(2), b, c, n, npoints * nsample)


def group_points_backward(
    grad_out: Tensor,
    indices: Tensor,
    grad_features: Tensor,
    b: int,
    c: int,
    n: int,
    npoints: int,
    nsample: int,
) -> None:
    gather_points_backward(grad_out.flatten(2), indices.flatten(1), grad_features, b, c, n, npoints * nsample)


def three_interpolate_forward(
    features: Tensor,  # [B, C, M]
    indices: Tensor,  # [B, N, 3]
    weight: Tensor,  # [B, N, 3]
    output: Tensor,  # [B, C, N], written
    b: int,
    c: int,
    m: int,
    n: int,
) -> None:
    index = indices.long().flatten(1)[:, None].expand(b, c, 3 * n)
    output.copy_((features.gather(2, index).unflatten(2, (n, 3)) * weight[:, None]).sum(3))


def three_interpolate_backward(
    grad_out: Tensor, indices: Tensor, weight: Tensor, grad_features: Tensor, b: int, c: int, n: int, m: int
) -> None:
    index = indices.long().flatten(1)[:, None].expand(b, c, 3 * n)
    grad_features.scatter_add_(2, index, (grad_out[..., None] * weight[:, None]).flatten(2))


def three_nn_forward(
    target: Tensor,  # [B, N, 3]
    source: Tensor,  # [B, M, 3]
    dist2: Tensor,  # [B, N, 3], written: squared distances, nearest first
    idx: Tensor,  # [B, N, 3], written
    b: int,
    n: int,
    m: int,
) -> None:
    """With fewer than three points in ``source``, infinity and 0 stand for the rest, as in mmcv."""
    squares = (target[:, :, None] - source[:, None]).square().sum(-1)
    near, where = squares.sort(dim=2, stable=True)
    dist2.fill_(torch.inf)
    idx.zero_()
    dist2[..., :m], idx[..., :m] = near[..., :3], where[..., :3].to(idx.dtype)
