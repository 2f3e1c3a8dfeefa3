"""Focal losses (Lin et al. 2017), per element, as in mmcv's CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from dcnzoo.compat.mmcv.plain.sampling import at_least_float32


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=torch.finfo(torch.float32).tiny).log()


def _class_weight(weight: Tensor, target: Tensor) -> Tensor | float:
    """Each sample's weight by its class; 1 for background (mmcv reads past the end there)."""
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


def _of_label(softmax: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each sample has a label, which, and its probability: (N,)."""
    label = target.clamp(min=0)
    return target >= 0, label, at_least_float32(softmax).gather(1, label[:, None])[:, 0]


def softmax_focal_loss_forward(
    softmax: Tensor,  # (N, C) probabilities
    target: Tensor,  # (N,) class; a negative one has no loss
    weight: Tensor,  # (C,) or empty
    output: Tensor,  # (N,)
    gamma: float,
    alpha: float,
) -> None:
    labelled, label, p = _of_label(softmax, target)
    loss = -alpha * (1 - p) ** gamma * _log(p) * _class_weight(weight, label)
    output.copy_(torch.where(labelled, loss, torch.zeros_like(loss)))


def softmax_focal_loss_backward(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    labelled, label, p = _of_label(softmax, target)
    # of a probability of 1 mmcv's slope is NaN for gamma < 1
    power = (1 - p).clamp(min=torch.finfo(torch.float32).tiny) ** (gamma - 1)
    slope = gamma * power * p * _log(p) - (1 - p) ** gamma
    slope = torch.where(labelled, alpha * slope * _class_weight(weight, label), torch.zeros_like(p))
    grad_input.copy_(slope[:, None] * (_is_target(softmax, label).to(p.dtype) - at_least_float32(softmax)))
