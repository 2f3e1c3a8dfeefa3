"""Feature maps from feature maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dcnzoo.compat.mmcv.plain.sampling import add_gradient, at_least_float32, corners, rows_of, weighted_sums

# CARAFE (Wang et al. 2019): each output pixel is a weighted sum of the k×k pixels around its source


def _by_group(features: Tensor, groups: int) -> Tensor:  # -> [N, G, C/G, H, 1, W, 1]
    return at_least_float32(features).unflatten(1, (groups, -1))[..., None, :, None]


def _by_source(output: Tensor, groups: int, scale: int) -> Tensor:  # -> [N, G, C/G, H, s, W, s]
    output = at_least_float32(output).unflatten(1, (groups, -1))
    return output.unflatten(4, (-1, scale)).unflatten(3, (-1, scale))


def _taps(kernel_size: int, height: int, width: int) -> list[tuple[slice, slice]]:
    """Where the map, padded by half a kernel, is under each tap."""
    return [
        (slice(i, i + height), slice(j, j + width)) for i in range(kernel_size) for j in range(kernel_size)
    ]


def carafe_naive_forward(
    features: Tensor,  # [N, C, H, W]
    masks: Tensor,  # [N, G·k·k, s·H, s·W]
    output: Tensor,  # [N, C, s·H, s·W], written
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    half = kernel_size // 2
    padded = _by_group(F.pad(features, (half,) * 4), group_size)
    masks = _by_source(masks, group_size, scale_factor)  # [N, G, k·k, H, s, W, s]
    result = 0
    for tap, (rows, columns) in enumerate(_taps(kernel_size, *features.shape[2:])):
        result = result + padded[:, :, :, rows, :, columns] * masks[:, :, tap, None]
    output.copy_(result.reshape(output.shape))


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    half, (height, width) = kernel_size // 2, features.shape[2:]
    padded = _by_group(F.pad(features, (half,) * 4), group_size)
    gradient = _by_source(grad_output, group_size, scale_factor)
    masks = _by_source(masks, group_size, scale_factor)
    of_input, of_masks = torch.zeros_like(padded)[:, :, :, :, 0, :, 0], torch.zeros_like(masks)
    for tap, (rows, columns) in enumerate(_taps(kernel_size, height, width)):
        of_masks[:, :, tap] = (padded[:, :, :, rows, :, columns] * gradient).sum(2)
        of_input[..., rows, columns] += (masks[:, :, tap, None] * gradient).sum((4, 6))
    inner = of_input[..., half : half + height, half : half + width]
    grad_input.add_(inner.reshape(grad_input.shape))
    grad_masks.add_(of_masks.reshape(grad_masks.shape))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,  # written: all that the backward gets of the features
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    gradients, sizes = (grad_input, grad_masks), (kernel_size, group_size, scale_factor)
    carafe_naive_backward(grad_output, rfeatures, masks, *gradients, *sizes)


# Alignment to refined anchors (Yang et al. 2021, R3Det): features of an anchor's centre and corners, added


def _aligned(input: Tensor, boxes: Tensor, spatial_scale: float, points: int) -> Tensor:
    images, channels, height, width = input.shape
    scaled = at_least_float32(boxes).reshape(-1, 5)
    y, x, across, down = (scaled[:, :4] * spatial_scale).unbind(1)  # mmcv reads y first
    cos, sin = scaled[:, 4].cos(), scaled[:, 4].sin()
    half = x.new_tensor([[0, 0], [1, 1], [-1, 1], [-1, -1], [1, -1]])[:points] / 2
    u, v = half[:, 0] * across[:, None], half[:, 1] * down[:, None]
    y, x = y[:, None] + sin[:, None] * u + cos[:, None] * v, x[:, None] + cos[:, None] * u - sin[:, None] * v
    index, weights = corners(y, x, height, width)  # [N·H·W, points, 4]
    image = torch.arange(images, device=input.device).repeat_interleave(height * width)
    index = index + (image * (height * width))[:, None, None]
    rows = rows_of(input)
    sums = rows + weighted_sums(rows, index.flatten(1), weights.flatten(1))
    return sums.view(images, height, width, channels).permute(0, 3, 1, 2)


def rotated_feature_align_forward(
    features: Tensor,  # [N, C, H, W]
    best_bboxes: Tensor,  # [N, H, W, 5]
    output: Tensor,  # [N, C, H, W], written
    spatial_scale: float,
    points: int,  # 1 or 5
) -> None:
    output.copy_(_aligned(features, best_bboxes, spatial_scale, points))


def rotated_feature_align_backward(
    grad_output: Tensor, best_bboxes: Tensor, grad_input: Tensor, spatial_scale: float, points: int
) -> None:
    add_gradient(grad_input, lambda input: _aligned(input, best_bboxes, spatial_scale, points), grad_output)


# Rotated filters (Zhou et al. 2017, ORN): a filter's taps and orientations in another order per rotation


def _by_rotation(output: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """``output`` as [planes, rotations, inputs, entries], and the place of each entry in it."""
    places = indices.flatten(0, 2).long().t() - 1  # [rotations, entries]
    output = output.view(-1, len(places), output.shape[1] // indices.shape[0], places.shape[1])
    return output, places[:, None].expand_as(output)


def active_rotated_filter_forward(
    input: Tensor,  # [planes, inputs, orientations, h, w]
    indices: Tensor,  # [orientations, h, w, rotations], from 1
    output: Tensor,  # [planes · rotations, inputs · orientations, h, w], written
) -> None:
    output, places = _by_rotation(output, indices)
    output.scatter_(3, places, input.flatten(2)[:, None].expand_as(output))


def active_rotated_filter_backward(grad_out: Tensor, indices: Tensor, grad_in: Tensor) -> None:
    gradient, places = _by_rotation(grad_out.contiguous(), indices)
    grad_in.copy_(gradient.gather(3, places).sum(1).view(grad_in.shape))
