"""Suppression of boxes: Soft-NMS and NMS that returns matches."""

from __future__ import annotations

import torch
from torch import Tensor

from dcnzoo.ops.reference_boxes import iou_with


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

    Among equal scores the first box comes first, in mmcv's order: the best box is swapped with the first one,
    and the last box replaces a dropped box.
    """
    left = torch.arange(len(boxes), device=boxes.device)
    scores, kept = scores.clone(), []
    while len(left):
        comparable = scores.nan_to_num(nan=-torch.inf)
        best = comparable.argmax() if not scores[0].isnan() else 0  # nothing exceeds a NaN
        index, score = left[best].clone(), scores[best].clone()
        dets[len(kept), :4], dets[len(kept), 4] = boxes[index], score
        kept.append(index)
        left[best], scores[best] = left[0].clone(), scores[0].clone()
        left, scores = left[1:], scores[1:]
        iou = iou_with(boxes[index], boxes[left], offset)
        if method == 2:
            scores = scores * torch.exp(-iou.square() / sigma)
        else:
            decay = torch.zeros_like(iou) if method == 0 else 1 - iou
            scores = torch.where(iou >= iou_threshold, scores * decay, scores)
        places = torch.arange(len(left), device=left.device)
        remains = ~(scores < min_score)
        count = int(remains.sum())
        places[:count][~remains[:count]] = places[count:][remains[count:]].flip(0)
        left, scores = left[places[:count]], scores[places[:count]]
    return torch.stack(kept) if kept else left


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups ``dets`` (N, 5): each kept box with the boxes that it suppresses, best first."""
    left = dets[:, 4].sort(descending=True).indices  # mmcv's order of equal scores
    groups = []
    while len(left):
        match = iou_with(dets[left[0], :4], dets[left, :4]) >= iou_threshold
        match[0] = True
        groups.append(left[match].tolist())
        left = left[~match]
    return groups
