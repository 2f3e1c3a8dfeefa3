"""Post-processing with outputs of a fixed size, for export.

The number of boxes after NMS, and of RoIs per level of a pyramid, depends on the data, which cannot be
traced. The operators here have outputs of a fixed size, and ONNX graphs of standard operators; unused
boxes have a negative score. For AOTInductor, which supports sizes that depend on the data, ``TRACEABLE``
has the same operators as functions.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.export.graph import INT64, Graph, Value
from dcnzoo.export.operators.roi_align import align

TINY = 1e-12  # avoids division by zero; smaller than the area of any box
ABSENT = -1.0  # the score of an unused box; real scores are at least zero


def _keep_boxes(
    boxes: Tensor,  # [N, M, 4]
    scores: Tensor,  # [N, M]
    labels: Tensor,  # [N, M]
    iou_threshold: float,
    max_boxes: int,
    classes: int,
    max_per_class: int,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, max_boxes, 5], [N, max_boxes] twice
    """Non-maximum suppression class by class: (x1, y1, x2, y2, score), best first, labels and indices.

    If fewer than ``max_boxes`` boxes remain, the other rows are zeros with label -1. ``max_per_class``
    limits the boxes of each class (0: no limit); ``classes`` is the number of classes.
    """
    left = []
    for box, score, label in zip(boxes.unbind(), scores.unbind(), labels.unbind(), strict=True):
        present = (score >= 0).nonzero()[:, 0]
        box, label = box[present], label[present]
        distance = torch.cat([box.flatten(), box.new_zeros(1)]).amax() + 1
        index = dcnzoo.ops.nms(box + label[:, None].to(box.dtype) * distance, score[present], iou_threshold)
        if max_per_class:
            same = label[index][:, None] == label[index]
            index = index[same.tril(-1).sum(1) < max_per_class]
        kept = torch.zeros_like(score, dtype=torch.bool).index_fill(0, present[index], True)
        left.append(torch.where(kept, score, ABSENT))
    return _first_boxes(boxes, torch.stack(left), labels, max_boxes)


def _first_boxes(
    boxes: Tensor, scores: Tensor, labels: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:  # [N, count, 5], [N, count] twice
    """Return the ``count`` best boxes; missing ones are zeros with label -1 and any valid index."""
    batch, last = boxes.shape[0], boxes.shape[1] - 1
    scores = torch.cat([scores, scores.new_full((batch, count), ABSENT)], 1)
    labels = torch.cat([labels, labels.new_full((batch, count), -1)], 1)
    values, index = (part[:, :count] for part in scores.sort(stable=True, descending=True))
    there = values >= 0
    boxes = torch.cat([boxes, boxes.new_zeros(batch, count, 4)], 1)
    kept = torch.cat([take(boxes, index), values[..., None]], -1)
    labels = torch.where(there, labels.gather(1, index), -1)
    return torch.where(there[..., None], kept, 0), labels, index.clamp(max=last)


# An operator, so that the exporter to ONNX can replace it; export_pt2 traces the function instead.
keep_boxes = torch.library.custom_op("dcnzoo::_keep_boxes", _keep_boxes, mutates_args=())


@keep_boxes.register_fake
def _(boxes, scores, labels, iou_threshold, max_boxes, classes, max_per_class):
    batch = boxes.shape[0]
    return boxes.new_empty(batch, max_boxes, 5), *(labels.new_empty(batch, max_boxes) for _ in range(2))


def keep_boxes_graph(
    g: Graph,
    boxes: Value,
    scores: Value,
    labels: Value,
    iou_threshold: float,
    max_boxes: int,
    classes: int,
    max_per_class: int,
) -> tuple[Value, Value, Value]:
    kind = g.type_of(boxes)
    constant = partial(g.number, kind=kind)
    boxes, scores, labels = _padded(g, boxes, scores, labels, max_boxes)
    if max_per_class and max_per_class < max_boxes:
        # [N, classes, M]: scores by class, so that the limit applies to each class
        of_class = g.Equal(g.shaped(labels, 0, 1, -1), g.shaped(g.ints(*range(classes)), 1, -1, 1))
        by_class = g.Where(of_class, g.shaped(scores, 0, 1, -1), constant(ABSENT))
        apart, limit = boxes, max_per_class
    else:
        # shift the boxes of each class apart, so that one call treats classes separately
        present = g.Where(g.GreaterOrEqual(g.shaped(scores, 0, 0, 1), constant(0)), boxes, constant(0))
        distance = g.Add(g.ReduceMax(present, g.ints(1, 2), keepdims=1), constant(1))
        apart = g.Add(present, g.Mul(g.Cast(g.shaped(labels, 0, 0, 1), to=kind), distance))
        by_class, limit = g.shaped(scores, 0, 1, -1), max_boxes
    chosen = g.NonMaxSuppression(
        g.Cast(apart, to=1),
        g.Cast(by_class, to=1),
        g.ints(limit),
        g.floats(iou_threshold),
        g.floats(ABSENT / 2),
    )  # [kept, 3]: image, class, box
    places = g.Gather(chosen, g.ints(0, 2), axis=1)
    marks = g.Expand(g.int(1), g.sizes(chosen, 0))
    marked = g.ScatterND(g.Mul(g.Cast(scores, to=INT64), g.int(0)), places, marks)
    left = g.Where(g.Equal(marked, g.int(1)), scores, constant(ABSENT))
    return _first(g, kind, boxes, left, labels, max_boxes)


def _padded(g: Graph, boxes: Value, scores: Value, labels: Value, count: int) -> tuple[Value, ...]:
    """Append ``count`` unused boxes, so that TopK always has enough to return."""
    kind = g.type_of(boxes)

    def padded(value: Value, filler: Value, *rest: int) -> Value:
        shape = g.Concat(g.sizes(boxes, 0), g.ints(count, *rest), axis=0)
        return g.Concat(value, g.Expand(filler, shape), axis=1)

    absent = g.number(ABSENT, kind)
    return padded(boxes, g.number(0, kind), 4), padded(scores, absent), padded(labels, g.int(-1))


def _first(
    g: Graph, kind: int, boxes: Value, scores: Value, labels: Value, count: int
) -> tuple[Value, Value, Value]:
    """Return the ``count`` best boxes. The last ``count`` boxes are padding (see ``_first_boxes``)."""
    zero = g.number(0, kind)
    best, index = g.TopK(scores, g.ints(count), axis=1)
    there = g.GreaterOrEqual(best, zero)
    columns = g.Expand(g.shaped(index, 0, 0, 1), g.ints(1, 1, 4))
    kept = g.Concat(g.GatherElements(boxes, columns, axis=1), g.shaped(best, 0, 0, 1), axis=2)
    kept = g.Where(g.shaped(there, 0, 0, 1), kept, zero)
    labels = g.Where(there, g.GatherElements(labels, index, axis=1), g.int(-1))
    return kept, labels, g.Min(index, g.Sub(g.sizes(boxes, 1), g.ints(count + 1)))


def soft_keep_boxes(
    boxes: Tensor,  # [N, M, 4]
    scores: Tensor,  # [N, M]
    labels: Tensor,  # [N, M]
    iou_threshold: float,
    max_boxes: int,
    method: str,
    sigma: float,
    min_score: float,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, max_boxes, 5], [N, max_boxes] twice
    """Like :func:`keep_boxes`, but by soft-NMS (Bodla et al. 2017), class by class.

    Takes the best box ``max_boxes`` times and lowers the scores of the boxes that it overlaps: with
    ``"gaussian"`` all by ``exp(-iou² / sigma)``; with an overlap of at least ``iou_threshold``, by ``1 -
    iou`` for ``"linear"`` and to zero for ``"naive"``. Boxes with a score below ``min_score`` are dropped.
    """

    # the loop's state: current scores, and scores at the time when a box was taken
    def step(
        left: Tensor, taken: Tensor, turn: Tensor, boxes: Tensor, area: Tensor, labels: Tensor
    ) -> list[Tensor]:
        best, index = left.max(1, keepdim=True)
        this = torch.arange(left.shape[1], device=index.device) == index
        taken = torch.where(this, torch.maximum(best, taken), taken)  # keeps its score if no box is left
        box = take(boxes, index)  # [N, 1, 4]
        low, high = torch.maximum(box[..., :2], boxes[..., :2]), torch.minimum(box[..., 2:], boxes[..., 2:])
        overlap = (high - low).clamp(min=0).prod(-1)
        iou = overlap / (area.gather(1, index) + area - overlap).clamp(min=TINY)
        if method == "gaussian":
            factor = torch.exp(-iou.square() / sigma)
        else:
            factor = torch.where(iou >= iou_threshold, 0 if method == "naive" else 1 - iou, 1)
        left = torch.where(labels.gather(1, index) == labels, left * factor, left)
        return [torch.where(this | (left < min_score), ABSENT, left), taken]

    scores = scores.contiguous()
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    states, turns = [scores, torch.full_like(scores, ABSENT)], [scores.new_zeros(max_boxes)]
    _, taken = torch.ops.higher_order.scan(step, states, turns, (boxes, area, labels))
    return _first_boxes(boxes, taken, labels, max_boxes)


def sort_graph(
    g: Graph, values: Value, stable: bool, dim: int = -1, descending: bool = False
) -> tuple[Value, Value]:
    """``torch.sort(stable=True)``, which torch's exporter lacks: TopK ranks equal values by index."""
    return g.TopK(values, g.sizes(values, dim), axis=dim, largest=int(descending))


def running_max(values: Tensor, axis: int) -> Tensor:
    """The values of ``torch.cummax``, for which torch's exporter has no translation."""

    def step(largest: Tensor, row: Tensor) -> list[Tensor]:
        largest = torch.maximum(largest, row)
        return [largest, largest.clone()]

    rows = values.movedim(axis, 0).contiguous()
    return torch.ops.higher_order.scan(step, [rows[0]], [rows], ())[1].movedim(0, axis)


def _roi_align_pyramid(
    levels: list[Tensor],  # each [N, C, H, W]
    rois: Tensor,  # [K, 5], (image, x1, y1, x2, y2)
    scales: list[float],
    output_size: list[int],
    finest_scale: float,
    sampling_ratio: int,
    pool_mode: str,
    aligned: bool,
) -> Tensor:  # [K, C, *output_size]
    """RoIAlign that reads each RoI from the level that fits its size (Lin et al. 2017, eq. 1)."""
    size = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    level = (size / finest_scale + 1e-6).log2().floor().clamp(0, len(levels) - 1)
    pooled = levels[0].new_zeros(len(rois), levels[0].shape[1], *output_size)
    for i, features in enumerate(levels):
        here = (level == i).nonzero()[:, 0]
        part = dcnzoo.ops.roi_align(
            features, rois[here], tuple(output_size), scales[i], sampling_ratio, pool_mode, aligned
        )
        pooled = pooled.index_copy(0, here, part)
    return pooled


roi_align_pyramid = torch.library.custom_op("dcnzoo::_roi_align_pyramid", _roi_align_pyramid, mutates_args=())


@roi_align_pyramid.register_fake
def _(levels, rois, scales, output_size, finest_scale, sampling_ratio, pool_mode, aligned):
    return levels[0].new_empty(rois.shape[0], levels[0].shape[1], *output_size)


TRACEABLE = {
    keep_boxes._opoverload: _keep_boxes,
    roi_align_pyramid._opoverload: _roi_align_pyramid,
}


def roi_align_pyramid_graph(
    g: Graph,
    levels: list[Value],
    rois: Value,
    scales: list[float],
    output_size: list[int],
    finest_scale: float,
    sampling_ratio: int,
    pool_mode: str,
    aligned: bool,
) -> Value:
    kind = g.type_of(rois)
    constant = partial(g.number, kind=kind)

    def at(features: Value, rois: Value, scale: float) -> Value:
        return align(g, features, rois, *output_size, scale, sampling_ratio, aligned)

    if len(levels) == 1:
        return at(levels[0], rois, scales[0])
    x1, y1, x2, y2 = (g.Gather(rois, g.int(i), axis=1) for i in range(1, 5))
    size = g.Sqrt(g.Mul(g.Sub(x2, x1), g.Sub(y2, y1)))
    octave = g.Div(g.Log(g.Add(g.Div(size, constant(finest_scale)), constant(1e-6))), constant(math.log(2)))
    level = g.Clip(g.Floor(octave), constant(0), constant(len(levels) - 1))
    # Row 0 is for RoIs that fit no level, because their size is NaN. ScatterND into a tensor of zeros would
    # store that tensor in the file if its size is fixed.
    nothing = g.Expand(constant(0), g.Concat(g.ints(1), g.sizes(levels[0], 1), g.ints(*output_size), axis=0))
    places, parts = [], [nothing]
    for i, (features, scale) in enumerate(zip(levels, scales, strict=True)):
        places.append(g.shaped(g.NonZero(g.Equal(level, constant(i))), -1))
        parts.append(at(features, g.Gather(rois, places[-1], axis=0), scale))
    place = g.Concat(*places, axis=0)
    rows = g.Add(g.range(place, 0), g.int(1))
    row = g.ScatterElements(g.Expand(g.int(0), g.sizes(rois, 0)), place, rows, axis=0)
    return g.Gather(g.Concat(*parts, axis=0), row, axis=0)


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` best scores of ``[N, M]`` and their indices; fewer if M is fixed and smaller."""
    available = scores.shape[1]
    if isinstance(available, int):
        count = min(count, available)
    else:  # M depends on the image's size and may be less than count: append unused boxes
        scores = torch.cat([scores, scores.new_full((scores.shape[0], count), ABSENT)], 1)
    values, index = scores.topk(count)
    return values, index.clamp(max=available - 1)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[n, index[n]]`` for values ``[N, M, D]`` and an index ``[N, K]``."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def clip_boxes(boxes: Tensor, size: Tensor) -> Tensor:  # [..., 4], [2] (height, width)
    limit = torch.stack([size[1], size[0], size[1], size[0]])
    return torch.minimum(boxes.clamp(min=0), limit)


def paste_masks(
    masks: Tensor,  # [K, h, w], probabilities
    boxes: Tensor,  # [K, 4]
    height: Any,
    width: Any,
) -> Tensor:  # [K, height, width]
    """Paste the masks of boxes into the image, by bilinear interpolation; zero outside the boxes.

    Bilinear resampling along the axes is a product with one matrix of hat functions per axis. This avoids
    coordinates per pixel, which would take twice the memory of the result.
    """

    def along(low: Tensor, high: Tensor, pixels: Any, taps: int) -> Tensor:  # [K, pixels, taps]
        centres = torch.arange(pixels, device=masks.device, dtype=masks.dtype) + 0.5
        # in the order of grid_sample's operations, for equal results
        place = (centres - low[:, None]) / (high - low)[:, None] * taps - 0.5
        distance = place[:, :, None] - torch.arange(taps, device=masks.device, dtype=masks.dtype)
        weights = (1 - distance.abs()).clamp(min=0)
        return torch.where(weights.isnan(), 0.0, weights)

    rows = along(boxes[:, 1], boxes[:, 3], height, masks.shape[1])
    columns = along(boxes[:, 0], boxes[:, 2], width, masks.shape[2])
    return rows @ masks @ columns.transpose(1, 2)
