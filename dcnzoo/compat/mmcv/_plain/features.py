"""Features from feature maps, and focal loss."""

import functools
import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

import dcnzoo.ops
from dcnzoo.compat.mmcv._plain import at_least_float32, forward_and_backward, gradients
from dcnzoo.ops import reference

# CARAFE (Wang et al. 2019): each output pixel is a weighted sum of the k×k pixels around its source


def _carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    def by_group(values: Tensor) -> Tensor:  # [N, G·X, H, W] -> [N·G, X, H, W]
        return at_least_float32(values).unflatten(1, (group_size, -1)).flatten(0, 1)

    height, width = masks.shape[2:]
    # four axes: with eight, an exported mask head gave other masks in OpenVINO than in ONNX Runtime
    near = F.interpolate(by_group(F.pad(features, (kernel_size // 2,) * 4)), scale_factor=scale_factor)
    masks = by_group(masks)  # [N·G, k·k, s·H, s·W]
    steps = range(0, kernel_size * scale_factor, scale_factor)
    terms = (
        near[:, :, y : y + height, x : x + width] * masks[:, tap, None]
        for tap, (y, x) in enumerate(itertools.product(steps, steps))
    )
    result = functools.reduce(torch.add, terms)
    return result.unflatten(0, (-1, group_size)).flatten(1, 2)


def carafe_forward(
    features: Tensor,  # [N, C, H, W]
    masks: Tensor,  # [N, G·k·k, s·H, s·W]
    rfeatures: Tensor,  # written: a copy of the features for the backward
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,  # [N, C, s·H, s·W], written
    **options: int,
) -> None:
    rfeatures.copy_(features)
    output.copy_(_carafe(features, masks, **options))


def carafe_backward(
    grad_output: Tensor, rfeatures: Tensor, masks: Tensor, *rest: Tensor, **options: int
) -> None:
    inputs = (rfeatures, masks)
    results = gradients(lambda x, m: _carafe(x, m, **options), inputs, grad_output)
    for target, gradient in zip(rest[-2:], results, strict=True):
        target.add_(gradient)


# Alignment to refined anchors (Yang et al. 2021, R3Det): features of an anchor's centre and corners, added


def _aligned(
    input: Tensor,  # [N, C, H, W]
    boxes: Tensor,  # [N, H, W, 5]
    spatial_scale: float,
    points: int,  # 1 or 5
) -> Tensor:  # [N, C, H, W]
    images, _, height, width = input.shape
    maps, scaled = at_least_float32(input), at_least_float32(boxes).reshape(images, height, width, 5, 1)
    y, x, across, down = (scaled[..., :4, :] * spatial_scale).unbind(3)  # mmcv reads y first
    cos, sin = scaled[..., 4, :].cos(), scaled[..., 4, :].sin()
    half = x.new_tensor([[0, 0], [1, 1], [-1, 1], [-1, -1], [1, -1]])[:points] / 2
    u, v = half[:, 0] * across, half[:, 1] * down  # [N, H, W, points]
    y, x = y + sin * u + cos * v, x + cos * u - sin * v
    sums = [reference.sample_clamped(*image).sum(-1) for image in zip(maps, y, x, strict=True)]
    return maps + torch.stack(sums)


rotated_feature_align_forward, rotated_feature_align_backward = forward_and_backward(_aligned)


# Rotated filters (Zhou et al. 2017, ORN): each rotation permutes a filter's taps and orientations


def _rotated_filters(
    input: Tensor,  # [planes, inputs, orientations, h, w]
    indices: Tensor,  # [orientations, h, w, rotations], from 1
) -> Tensor:  # [planes · rotations, inputs · orientations, h, w]
    places = (indices.flatten(0, 2).long().t() - 1)[:, None]  # [rotations, 1, entries]
    entries = input.flatten(2)[:, None].expand(-1, len(places), -1, -1)
    rotated = torch.zeros_like(entries).scatter(3, places.expand_as(entries), entries)
    return rotated.unflatten(3, indices.shape[:3]).flatten(2, 3).flatten(0, 1)


active_rotated_filter_forward, active_rotated_filter_backward = forward_and_backward(_rotated_filters)


# Point-wise spatial attention (Zhao et al. 2018): a mask around each pixel, extended to the whole map


def _psa_mask(
    input: Tensor,  # [N, h_mask·w_mask, H, W]
    psa_type: int,  # 0: collected from the others, 1: distributed to them
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
    **sizes: int,  # those of input
) -> Tensor:  # [N, H·W, H, W]
    images, _, height, width = input.shape
    mask, half = (h_mask, w_mask), (half_h_mask, half_w_mask)

    def taps(size: int, mask: int, half: int) -> tuple[Tensor, Tensor]:
        """The mask's tap at one position that covers another, [position, other], and whether it exists."""
        places = torch.arange(size, device=input.device)
        tap = places - places[:, None] + half
        return tap.clamp(0, mask - 1), (tap >= 0) & (tap < mask)

    (rows, in_rows), (columns, in_columns) = map(taps, (height, width), mask, half)
    y, x = (torch.arange(size, device=input.device) for size in (height, width))
    tap = (rows[:, None, :, None], columns[None, :, None, :])
    place = (slice(None), *tap, y[:, None, None, None], x[None, :, None, None])
    values = input.unflatten(1, mask)[place]  # [N, y, x, other y, other x]
    values = values * (in_rows[:, None, :, None] & in_columns[None, :, None, :])
    if psa_type == 0:
        values = values.permute(0, 3, 4, 1, 2)
    return values.reshape(images, height * width, height, width)


psamask_forward, psamask_backward = forward_and_backward(_psa_mask)


# RoIAlign that rotates the orientation channels with the region (Han et al. 2021, ReDet)


def _riroi_align(
    input: Tensor,  # [N, C·orientations, H, W]
    rois: Tensor,  # [R, 6]: image, x, y, width, height, angle
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    num_samples: int,
    num_orientations: int,
    clockwise: bool,
) -> Tensor:
    input, rois, size = at_least_float32(input), at_least_float32(rois), (pooled_height, pooled_width)
    options = dict(aligned=False, clockwise=clockwise)
    pooled = dcnzoo.ops.roi_align_rotated(input, rois, size, spatial_scale, num_samples, **options)
    pooled = pooled.unflatten(1, (-1, num_orientations))  # [R, C, orientations, h, w]
    turn = rois[:, 5] * num_orientations / (2 * math.pi)
    steps = turn.floor()
    source = torch.arange(num_orientations, device=rois.device) - steps[:, None].long()  # [R, orientations]

    def turned(by: int) -> Tensor:
        index = (source + by).remainder(num_orientations)[:, None, :, None, None]
        return pooled.gather(2, index.expand(pooled.shape))

    part = (turn - steps).to(pooled.dtype)[:, None, None, None, None]
    return ((1 - part) * turned(0) + part * turned(1)).flatten(1, 2)


riroi_align_rotated_forward, riroi_align_rotated_backward = forward_and_backward(_riroi_align)


# Focal loss (Lin et al. 2017), per element


def _focal_loss(
    input: Tensor,  # (N, C) logits
    target: Tensor,  # (N,) class, C for background
    weight: Tensor,  # (C,) or empty
    gamma: float,
    alpha: float,
) -> Tensor:  # (N, C)
    input = at_least_float32(input)
    p, is_target = input.sigmoid(), target[:, None] == torch.arange(input.shape[1], device=input.device)
    foreground = -alpha * (1 - p) ** gamma * F.logsigmoid(input)
    loss = torch.where(is_target, foreground, (alpha - 1) * p**gamma * F.logsigmoid(-input))
    if weight.numel():  # 1 for background, for which mmcv reads past the end
        loss = loss * torch.cat([weight, weight.new_ones(1)])[target.clamp(max=len(weight)), None]
    return loss


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, **options: float
) -> None:
    output.copy_(_focal_loss(input, target, weight, **options))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, **options: float
) -> None:
    ones = torch.ones_like(input)
    (gradient,) = gradients(lambda x: _focal_loss(x, target, weight, **options), [input], ones)
    grad_input.copy_(gradient)
