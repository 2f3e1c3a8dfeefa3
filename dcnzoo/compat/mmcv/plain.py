"""Operators of ``mmcv._ext`` in PyTorch, with mmcv's arguments: box suppression, CARAFE, focal loss.

As in mmcv, tensors named ``output``, and ``grad_…`` of inputs, belong to the caller and are written in place.
Half precision is computed in float32. mmcv passes all arguments except tensors by keyword: the ``**options``
of a function are the arguments of the private function that it calls.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dcnzoo.ops.reference_boxes import iou_with


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of ``function(*inputs)`` with respect to ``inputs``."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        output = function(*leaves)
    return torch.autograd.grad(output, leaves, grad_output.to(output.dtype), materialize_grads=True)


# Boxes


def softnms(
    boxes: Tensor,  # (N, 4)
    scores: Tensor,  # (N,)
    dets: Tensor,  # (N, 5), written: the boxes that remain and their new scores
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,  # 0 naive, 1 linear, 2 gaussian
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al. 2017). Returns the indices of the remaining boxes, best first.

    Among equal scores, the first box in ``indices`` wins. ``indices`` has the order of mmcv's array, in which
    the first box moves to the place of the best one, and the last box to the place of a dropped one.
    """
    indices, scores = torch.arange(len(boxes), device=boxes.device), scores.clone()
    selected: list[Tensor] = []
    while len(indices):
        best = 0 if scores[0].isnan() else scores.nan_to_num(nan=-torch.inf).argmax()  # nothing exceeds a NaN
        index, score = indices[best].clone(), scores[best].clone()
        dets[len(selected), :4], dets[len(selected), 4] = boxes[index], score
        selected.append(index)
        indices[best], scores[best] = indices[0].clone(), scores[0].clone()
        indices, scores = indices[1:], scores[1:]
        scores = scores * _decay(iou_with(boxes[index], boxes[indices], offset), iou_threshold, sigma, method)
        order = _close_gaps(scores < min_score)
        indices, scores = indices[order], scores[order]
    return torch.stack(selected) if selected else indices


def _decay(iou: Tensor, threshold: float, sigma: float, method: int) -> Tensor:
    """Return the factors for the scores of the other boxes, from their overlaps with the best one."""
    if method == 2:
        return torch.exp(-iou.square() / sigma)
    decay = torch.zeros_like(iou) if method == 0 else 1 - iou
    return torch.where(iou >= threshold, decay, torch.ones_like(iou))


def _close_gaps(dropped: Tensor) -> Tensor:
    """Return the indices that remain. To close the gaps, the last index fills the first gap, and so on."""
    places = torch.arange(len(dropped), device=dropped.device)
    count = int((~dropped).sum())
    front, back = places[:count], places[count:]
    front[dropped[:count]] = back[~dropped[count:]].flip(0)
    return front


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group ``dets`` (N, 5). A group is a kept box and the boxes that it suppresses, best first."""
    indices = dets[:, 4].sort(descending=True).indices  # mmcv orders equal scores like this
    groups = []
    while len(indices):
        match = iou_with(dets[indices[0], :4], dets[indices, :4]) >= iou_threshold
        match[0] = True
        groups.append(indices[match].tolist())
        indices = indices[~match]
    return groups


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
    if weight.numel():  # the background's weight is 1; mmcv reads past the end instead
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
