"""Post-processing with outputs of a fixed size, for export.

The number of boxes after NMS, and of RoIs per level of a pyramid, depends on the data, which cannot be
traced. The operators here have outputs of a fixed size, and ONNX graphs of standard operators. A row without
a box has the score ``ABSENT``: :func:`is_used` tests it in code of torch, and :func:`scaled` multiplies
scores that may be ``ABSENT``.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.export.graph import DYNAMO, FLOAT, INT64, Graph, Value, translates
from dcnzoo.export.operators.nms import LEAST_IOU
from dcnzoo.export.operators.roi_align import align
from dcnzoo.export.vmap import row_by_row
from dcnzoo.ops._transforms import fold, unfold

TINY = 1e-12  # avoids division by zero; smaller than the area of any box
ABSENT = -1.0  # the score of a row without a box


def is_used(scores: Tensor) -> Tensor:
    """Return which rows have a box. Real scores may be negative: scores of masks are scaled by IoUs."""
    return scores != ABSENT


def scaled(scores: Tensor, factors: Tensor) -> Tensor:
    """Multiply the scores of the rows that have a box."""
    return torch.where(is_used(scores), scores * factors, ABSENT)


def keep_boxes(
    boxes: Tensor,  # [N, M, 4]
    scores: Tensor,  # [N, M]
    labels: Tensor,  # [N, M]
    iou_threshold: float,
    max_boxes: int,
) -> tuple[Tensor, Tensor]:  # [N, max_boxes, 5], [N, max_boxes]
    """Non-maximum suppression class by class: (x1, y1, x2, y2, score), best first, and the boxes' indices."""
    present = torch.where(is_used(scores)[..., None], boxes, 0)
    # shift the boxes of each class apart, so that those of two classes do not overlap
    apart = present + labels[..., None].to(boxes.dtype) * (present.amax((1, 2), keepdim=True) + 1)
    remains = select_boxes(apart, scores, iou_threshold, max_boxes)
    return _topk_boxes(boxes, torch.where(remains, scores, ABSENT), max_boxes)


def _topk_boxes(
    boxes: Tensor, scores: Tensor, count: int
) -> tuple[Tensor, Tensor]:  # [N, count, 5], [N, count]
    """Return the ``count`` best boxes; missing ones are zeros with the score ``ABSENT`` and a valid index."""
    values, index = _padded(scores, count).topk(count)
    index = index.clamp(max=boxes.shape[1] - 1)
    rows = torch.where(is_used(values)[..., None], take(boxes, index), 0)
    return torch.cat([rows, values[..., None]], -1), index


def _padded(scores: Tensor, count: int) -> Tensor:  # [N, M] -> [N, M + count]
    return torch.cat([scores, scores.new_full((scores.shape[0], count), ABSENT)], 1)


def _select_boxes(
    boxes: Tensor,  # [N, M, 4]
    scores: Tensor,  # [N, M]
    iou_threshold: float,
    max_boxes: int,
) -> Tensor:  # [N, M], bool
    """Non-maximum suppression of each image; return which boxes remain."""
    masks = []
    for box, score in zip(boxes.unbind(), scores.unbind(), strict=True):
        present = is_used(score).nonzero()[:, 0]
        index = present[dcnzoo.ops.nms(box[present], score[present], iou_threshold)][:max_boxes]
        masks.append(torch.zeros_like(score, dtype=torch.bool).index_fill(0, index, True))
    return torch.stack(masks)


# An operator, so that the exporter to ONNX can replace it.
select_boxes = torch.library.custom_op("dcnzoo::_select_boxes", _select_boxes, mutates_args=())


@select_boxes.register_fake
def _(boxes, scores, iou_threshold, max_boxes):
    return torch.empty_like(scores, dtype=torch.bool)


select_boxes.register_vmap(row_by_row(select_boxes, inputs=2))


@translates("dcnzoo::_select_boxes", [DYNAMO])
def select_boxes_graph(g: Graph, boxes: Value, scores: Value, iou_threshold: float, max_boxes: int) -> Value:
    chosen = g.NonMaxSuppression(
        g.Cast(boxes, to=FLOAT),
        g.reshape(g.Cast(scores, to=FLOAT), 0, 1, -1),
        g.ints(max_boxes),
        g.floats(max(iou_threshold, LEAST_IOU)),
        g.floats(ABSENT / 2),
    )  # [kept, 3]: image, class, box
    places = g.Gather(chosen, g.ints(0, 2), axis=1)
    none = g.Expand(g.integer(0), g.dims(boxes, 0, 1))
    marked = g.ScatterND(none, places, g.Expand(g.integer(1), g.dims(chosen, 0)))
    return g.Equal(marked, g.integer(1))


def _soft_keep_boxes(
    boxes: Tensor,  # [N, M, 4]
    scores: Tensor,  # [N, M]
    labels: Tensor,  # [N, M]
    iou_threshold: float,
    max_boxes: int,
    method: str,
    sigma: float,
    min_score: float,
) -> tuple[Tensor, Tensor]:  # [N, max_boxes, 5], [N, max_boxes]
    """Like :func:`keep_boxes`, but by soft-NMS (Bodla et al. 2017), class by class.

    ``max_boxes`` times, a step takes the best of the remaining boxes, with its current score, and lowers the
    scores of the boxes of its class by :func:`_soft_factors`. Boxes below ``min_score`` are dropped.
    """

    # What a step reads is one of its arguments, and what it returns is a copy: OpenVINO reads no other values
    # in a loop. Its results are its first four arguments for the next step.
    def step(
        remaining: Tensor,  # [N, M], current scores; ABSENT for boxes that are taken or dropped
        taken: Tensor,  # [N, M], scores of the boxes that are taken; ABSENT for the others
        boxes: Tensor,
        labels: Tensor,
        least: Tensor,  # the minimum score
    ) -> list[Tensor]:
        score, index = remaining.max(1, keepdim=True)
        is_best = torch.arange(remaining.shape[1], device=index.device) == index
        taken = torch.where(is_best & is_used(score), score, taken)  # nothing changes if no box remains
        factors = _soft_factors(_ious(take(boxes, index), boxes), method, iou_threshold, sigma)
        of_class = labels.gather(1, index) == labels
        remaining = torch.where(of_class, scaled(remaining, factors), remaining)
        remaining = torch.where(is_best | (remaining < least), ABSENT, remaining)
        return [remaining, taken, boxes.clone(), labels.clone()]

    states = [scores.contiguous(), torch.full_like(scores, ABSENT), boxes.contiguous(), labels.contiguous()]
    # the number of steps; OpenVINO takes one step if the step does not read its row
    rows = [scores.new_full((max_boxes,), min_score)]
    _, taken, *_ = torch.ops.higher_order.scan(step, states, rows, ())
    return _topk_boxes(boxes, taken, max_boxes)


def _ious(box: Tensor, boxes: Tensor) -> Tensor:  # [N, 1, 4], [N, M, 4] -> [N, M]
    low, high = torch.maximum(box[..., :2], boxes[..., :2]), torch.minimum(box[..., 2:], boxes[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    area, areas = ((each[..., 2:] - each[..., :2]).prod(-1) for each in (box, boxes))
    return overlap / (area + areas - overlap).clamp(min=TINY)


def _soft_factors(ious: Tensor, method: str, iou_threshold: float, sigma: float) -> Tensor:
    """Return the factors for scores of boxes with these overlaps, by a method of ``mmcv.ops.soft_nms``."""
    if method == "gaussian":
        return torch.exp(-ious.square() / sigma)
    return torch.where(ious >= iou_threshold, 0 if method == "naive" else 1 - ious, 1)


# An operator, because torch's vmap rule for scan turns the number of images into a constant.
soft_keep_boxes = torch.library.custom_op("dcnzoo::_soft_keep_boxes", _soft_keep_boxes, mutates_args=())
soft_keep_boxes.register_vmap(row_by_row(soft_keep_boxes, inputs=3))


@soft_keep_boxes.register_fake
def _(boxes, scores, labels, iou_threshold, max_boxes, *settings):
    batch = boxes.shape[0]
    return boxes.new_empty(batch, max_boxes, 5), labels.new_empty(batch, max_boxes)


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
    pooled = levels[0].new_zeros(rois.shape[0], levels[0].shape[1], *output_size)
    for i, features in enumerate(levels):
        here = (level == i).nonzero()[:, 0]
        part = dcnzoo.ops.roi_align(
            features, rois[here], list(output_size), scales[i], sampling_ratio, pool_mode, aligned
        )
        pooled = pooled.index_copy(0, here, part)
    return pooled


roi_align_pyramid = torch.library.custom_op("dcnzoo::_roi_align_pyramid", _roi_align_pyramid, mutates_args=())


@roi_align_pyramid.register_fake
def _(levels, rois, scales, output_size, finest_scale, sampling_ratio, pool_mode, aligned):
    return levels[0].new_empty(rois.shape[0], levels[0].shape[1], *output_size)


@roi_align_pyramid.register_vmap
def _(info, dims, levels, rois, *settings):
    size = info.batch_size
    levels = [fold(level, dim, size, 0) for level, dim in zip(levels, dims[0], strict=True)]
    images = levels[0].shape[0] // size
    rois = fold(rois, dims[1], size, 0).unflatten(0, (size, -1))
    image = rois[..., :1] + images * torch.arange(size, device=rois.device)[:, None, None]
    rois = torch.cat([image, rois[..., 1:]], -1).flatten(0, 1)
    return unfold(roi_align_pyramid(levels, rois, *settings), size, 0), 0


@translates("dcnzoo::_roi_align_pyramid", [DYNAMO])
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
    height, width = output_size
    if len(levels) == 1:
        return align(g, levels[0], rois, height, width, scales[0], sampling_ratio, aligned)
    constant = partial(g.number, kind=g.type_of(rois))
    x1, y1, x2, y2 = (g.Gather(rois, g.integer(i), axis=1) for i in range(1, 5))
    size = g.Sqrt(g.Mul(g.Sub(x2, x1), g.Sub(y2, y1)))
    # onnxruntime fails for a RoI of negative width; for NaN, it reads outside of the map. Both become zeros.
    # LessOrEqual, because OpenVINO's GreaterOrEqual is true for NaN where the CPU has AVX-512.
    nowhere = g.Cast(g.floats(0, -999, -999, -998, -998), to=g.type_of(rois))
    rois = g.Where(g.reshape(g.LessOrEqual(constant(0), size), -1, 1), rois, nowhere)
    ratio = g.Add(g.Div(size, constant(finest_scale)), constant(1e-6))
    level = g.integer(0)
    for i in range(1, len(levels)):
        level = g.Add(level, g.Cast(g.GreaterOrEqual(ratio, constant(2**i)), to=INT64))
    places, parts = [], []  # RoIs level by level
    for i, (features, scale) in enumerate(zip(levels, scales, strict=True)):
        places.append(g.reshape(g.NonZero(g.Equal(level, g.integer(i))), -1))
        selected = g.Gather(rois, places[-1], axis=0)
        parts.append(align(g, features, selected, height, width, scale, sampling_ratio, aligned))
    order = g.Concat(*places, axis=0)
    row = g.ScatterElements(order, order, g.arange(rois, 0), axis=0)  # of each RoI in the parts
    return g.Gather(g.Concat(*parts, axis=0), row, axis=0)


LOOPS: dict[Callable, Callable] = {torch.ops.dcnzoo._soft_keep_boxes.default: _soft_keep_boxes}


def dynamic_topk(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` best scores of ``[N, M]`` and their indices; fewer if M is fixed and smaller."""
    available = scores.shape[1]
    if isinstance(available, int):
        count = min(count, available)
    else:  # M depends on the image's size and may be less than count: append unused boxes
        scores = _padded(scores, count)
    values, index = scores.topk(count)
    return values, index.clamp(max=available - 1)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[n, index[n]]`` for values ``[N, M, D]`` and an index ``[N, K]``."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
