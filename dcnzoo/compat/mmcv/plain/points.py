"""Sets of points: features by index, neighbours, boxes around them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gather_points_forward(
    features: Tensor,  # [B, C, N]
    indices: Tensor,  # [B, M]
    output: Tensor,  # [B, C, M], written
    **sizes: int,
) -> None:
    output.copy_(features.gather(2, indices.long()[:, None].expand_as(output)))


def gather_points_backward(grad_out: Tensor, indices: Tensor, grad_features: Tensor, **sizes: int) -> None:
    grad_features.scatter_add_(2, indices.long()[:, None].expand_as(grad_out), grad_out)


def group_points_forward(
    features: Tensor,  # [B, C, N]
    indices: Tensor,  # [B, M, S]
    output: Tensor,  # [B, C, M, S], written
    **sizes: int,
) -> None:
    gather_points_forward(features, indices.flatten(1), output.flatten(2))


def group_points_backward(grad_out: Tensor, indices: Tensor, grad_features: Tensor, **sizes: int) -> None:
    gather_points_backward(grad_out.flatten(2), indices.flatten(1), grad_features)


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
    m: int,
    **sizes: int,
) -> None:
    """With fewer than three points in ``source``, infinity and 0 stand for the rest, as in mmcv."""
    near, where = _squares(target, source).sort(dim=2, stable=True)
    dist2.fill_(torch.inf)
    idx.zero_()
    dist2[..., :m], idx[..., :m] = near[..., :3], where[..., :3].to(idx.dtype)


# Neighbours, in the order of their index where distances are equal


def _squares(targets: Tensor, sources: Tensor) -> Tensor:  # [B, M, 3], [B, N, 3] -> [B, M, N]
    return (targets[:, :, None] - sources[:, None]).square().sum(-1)


def knn_forward(
    xyz_tensor: Tensor,  # [B, N, 3]
    new_xyz_tensor: Tensor,  # [B, M, 3]
    idx_tensor: Tensor,  # [B, M, nsample], written, nearest first
    dist2_tensor: Tensor,  # as idx, written: squared distances
    n: int,
    nsample: int,
    **sizes: int,
) -> None:
    """Where there are fewer than ``nsample`` points, 0 at a squared distance of 1e10 stands for the rest."""
    near, where = _squares(new_xyz_tensor, xyz_tensor).sort(dim=2, stable=True)
    idx_tensor.zero_()
    dist2_tensor.fill_(1e10)
    idx_tensor[..., :n], dist2_tensor[..., :n] = where[..., :nsample].int(), near[..., :nsample]


def ball_query_forward(
    new_xyz_tensor: Tensor,  # [B, M, 3]
    xyz_tensor: Tensor,  # [B, N, 3]
    idx_tensor: Tensor,  # [B, M, nsample], written where a ball has points
    b: int,
    n: int,
    m: int,
    min_radius: float,
    max_radius: float,
    nsample: int,
) -> None:
    """The first ``nsample`` points of each ball; where it has fewer its first stands for the rest."""
    least, most = (torch.tensor(r, dtype=torch.float32).square().item() for r in (min_radius, max_radius))
    squares = _squares(new_xyz_tensor, xyz_tensor)
    within = (squares == 0) | ((squares >= least) & (squares < most))
    order = torch.where(within, torch.arange(n, device=squares.device), n).sort(2).values[..., :nsample]
    order = torch.cat([order, order.new_full((b, m, nsample - order.shape[2]), n)], 2)
    order = torch.where(order < n, order, order[..., :1])
    idx_tensor.copy_(torch.where(order < n, order.int(), idx_tensor))


def _sample_furthest(squares_to: Callable, temp: Tensor, idx: Tensor) -> None:
    """Of equally far points mmcv takes the one that is first by the thread that looks at it."""
    count = temp.shape[1]
    threads = min(1 << max(count.bit_length() - 1, 0), 1024)
    order = torch.arange(count, device=temp.device)
    order = order[(order % threads).sort(stable=True).indices]
    last = torch.zeros(len(temp), dtype=torch.long, device=temp.device)
    for j in range(idx.shape[1]):
        if j:
            temp.copy_(torch.minimum(temp, squares_to(last)))
            last = order[temp[:, order].argmax(1)]
        idx[:, j] = last.to(idx.dtype)


def furthest_point_sampling_forward(
    points_tensor: Tensor,  # [B, N, 3]
    temp_tensor: Tensor,  # [B, N], of large values; written: squared distances to all but the last
    idx_tensor: Tensor,  # [B, M], written, 0 first
    **sizes: int,
) -> None:
    rows = torch.arange(len(points_tensor), device=points_tensor.device)

    def squares_to(last: Tensor) -> Tensor:
        return (points_tensor - points_tensor[rows, last, None]).square().sum(-1)

    _sample_furthest(squares_to, temp_tensor, idx_tensor)


def furthest_point_sampling_with_dist_forward(
    points_tensor: Tensor,  # [B, N, N], distances
    temp_tensor: Tensor,
    idx_tensor: Tensor,
    **sizes: int,
) -> None:
    rows = torch.arange(len(points_tensor), device=points_tensor.device)
    _sample_furthest(lambda last: points_tensor[rows, last], temp_tensor, idx_tensor)


# Chamfer distance of points in the plane


def chamfer_distance_forward(
    xyz1: Tensor,  # [B, N, 2]
    xyz2: Tensor,  # [B, M, 2]
    dist1: Tensor,  # [B, N], written: squared distances to the nearest of the others
    dist2: Tensor,  # [B, M]
    idx1: Tensor,  # [B, N], written: which that is, the first of equal ones
    idx2: Tensor,  # [B, M]
) -> None:
    squares = _squares(xyz1, xyz2)
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
    one, other = (xyz1, idx1, graddist1, gradxyz1), (xyz2, idx2, graddist2, gradxyz2)
    for (points, index, gradient, of_points), (others, _, _, of_others) in ((one, other), (other, one)):
        index = index.long()[..., None].expand_as(points)
        pull = 2 * gradient[..., None] * (points - others.gather(1, index))
        pull = pull.to(of_points.dtype)
        of_points.add_(pull)
        of_others.scatter_add_(1, index, -pull)


# Points in boxes: (x, y, z, x_size, y_size, z_size, angle), z of the bottom, upright


def _in_boxes(points: Tensor, boxes: Tensor) -> Tensor:  # [..., M, 3], [..., N, 7] -> [..., M, N]
    x, y, z = (points[..., :, None, :] - boxes[..., None, :, :3]).unbind(-1)
    width, depth, height, angle = boxes[..., None, :, 3:].unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    along, aside = x * cos + y * sin, y * cos - x * sin
    level = (z - height / 2).abs() <= height / 2
    return level & (along.abs() < width / 2) & (aside.abs() < depth / 2)


def points_in_boxes_part_forward(
    boxes_tensor: Tensor,  # [B, N, 7]
    pts_tensor: Tensor,  # [B, M, 3]
    box_idx_of_points_tensor: Tensor,  # [B, M], of -1; written: the first box around each
) -> None:
    if boxes_tensor.shape[1]:
        inside, first = _in_boxes(pts_tensor, boxes_tensor).to(torch.uint8).max(2)
        target = box_idx_of_points_tensor
        target.copy_(torch.where(inside.bool(), first.to(target.dtype), target))


def points_in_boxes_all_forward(
    boxes_tensor: Tensor,
    pts_tensor: Tensor,
    box_idx_of_points_tensor: Tensor,  # [B, M, N], of zeros; 1 is written
) -> None:
    box_idx_of_points_tensor.masked_fill_(_in_boxes(pts_tensor, boxes_tensor), 1)


def points_in_boxes_cpu_forward(
    boxes_tensor: Tensor,  # [N, 7]
    pts_tensor: Tensor,  # [M, 3]
    pts_indices_tensor: Tensor,  # [N, M], written: 1 inside
) -> None:
    pts_indices_tensor.copy_(_in_boxes(pts_tensor, boxes_tensor).t())
