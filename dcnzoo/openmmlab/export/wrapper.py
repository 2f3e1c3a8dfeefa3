"""The base class of the wrappers of detectors, and the functions that they share."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from torch import Tensor, nn

from dcnzoo.export.postprocess import ABSENT, best, keep_boxes, roi_align_pyramid, soft_keep_boxes, take
from dcnzoo.ops import ms_deform_attn


class ExportWrapper(nn.Module):
    """Base class of the wrappers. ``forward`` maps images [N, 3, H, W] to the outputs in ``output_names``.

    ``dets`` is [N, K, 5]: (x1, y1, x2, y2, score) in pixels of the input, best first. ``labels`` is [N, K];
    -1 marks unused rows. ``masks``, if the detector predicts them, is [N, K, H, W], uint8: the probability
    times 255, so 128 and above is inside at the usual threshold of 0.5.
    """

    input_names: tuple[str, ...] = ("input",)
    output_names: tuple[str, ...] | None = ("dets", "labels")
    one_size = False  # the graph supports only the number and size of the example's images
    clips = True  # boxes are clipped to the image, so they must not extend into the padding

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector


def data_sample(size: tuple[int, int], padded: tuple[int, int]) -> DetDataSample:
    """Describe an image of a batch, which is neither resized nor in a border, to ``detector.predict``."""
    border = (0.0, 0.0, 0.0, 0.0)  # read by CenterNet
    shapes = dict(img_shape=size, ori_shape=size, pad_shape=padded, batch_input_shape=padded)
    return DetDataSample(metainfo=dict(shapes, scale_factor=(1.0, 1.0), border=border))


SOFT_NMS = dict(iou_threshold=0.3, sigma=0.5, min_score=1e-3, method="linear")  # mmcv's defaults


def check_nms(nms: dict, owner: str) -> str:
    """Return the type of NMS.

    Raises:
        ValueError: it cannot be exported.
    """
    kind = nms.get("type", "nms")
    if kind not in ("nms", "soft_nms") or nms.get("class_agnostic", False):
        kind = f"class_agnostic {kind}" if nms.get("class_agnostic", False) else kind
        raise ValueError(f"{owner}: nms: expected type='nms' or 'soft_nms', per class, got {kind!r}")
    return kind


def suppress(
    cfg: ConfigDict,  # the head's test_cfg
    owner: nn.Module,
    boxes: Tensor,  # [N, K, 4]
    scores: Tensor,  # [N, K], ABSENT for unused boxes
    labels: Tensor,  # [N, K]
    classes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the NMS of the config; return ``dets``, ``labels`` (see :class:`ExportWrapper`) and indices."""
    name, nms, count = type(owner).__name__, dict(cfg.nms), cfg.max_per_img
    if cfg.get("min_bbox_size", -1) >= 0:
        width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
        scores = torch.where((width > cfg.min_bbox_size) & (height > cfg.min_bbox_size), scores, ABSENT)
    if cfg.get("deploy_nms_pre", 0) > 0:
        scores, index = best(scores, cfg.deploy_nms_pre)
        boxes, labels = take(boxes, index), labels.gather(1, index)
    per_class = cfg.get("max_output_boxes_per_class", 0)
    if "iou_thr" in nms:
        nms["iou_threshold"] = nms["iou_thr"]
    if check_nms(nms, name) == "nms":
        return keep_boxes(boxes, scores, labels, nms["iou_threshold"], count, classes, per_class)
    if per_class:
        raise ValueError(f"{name}: max_output_boxes_per_class: expected 0 with soft_nms, got {per_class}")
    settings = {name: nms.get(name, default) for name, default in SOFT_NMS.items()}
    return soft_keep_boxes(boxes, scores, labels, max_boxes=count, **settings)


def best_pairs(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:  # [N, K, classes] -> [N, k] each
    """Select the ``count`` best pairs of prior and class, all if ``count`` ≤ 0: scores, priors, classes."""
    classes, scores = scores.shape[-1], scores.flatten(1)
    if count > 0:
        scores, pair = best(scores, count)
    else:
        pair = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[0], -1)
    return scores, pair // classes, pair % classes


def of_class(values: Tensor, labels: Tensor) -> Tensor:  # [N·K, classes, …], [N, K] -> [N·K, 1, …]
    """Select the values of each box's label, or the only ones if the head is class-agnostic."""
    if values.shape[1] == 1:
        return values
    index = labels.flatten().clamp(min=0).view(-1, 1, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, 1, *values.shape[2:]))


def pool(
    extractor: nn.Module,  # SingleRoIExtractor
    features: tuple[Tensor, ...],
    rois: Tensor,  # [K, 5], (image, x1, y1, x2, y2)
    roi_scale_factor: float | None = None,
) -> Tensor:
    """Replace ``SingleRoIExtractor.forward``. ``roi_scale_factor`` does not change an RoI's level."""
    layer, finest = extractor.roi_layers[0], float(extractor.finest_scale)
    if layer.pool_mode != "avg":  # ONNX's max takes the maximum of weighted neighbours, not of samples
        raise ValueError(f"RoIAlign: pool_mode: expected 'avg', got {layer.pool_mode!r}")
    if roi_scale_factor is not None and len(features) > 1:
        rois, finest = extractor.roi_rescale(rois, roi_scale_factor), finest * roi_scale_factor
    scales, size = [each.spatial_scale for each in extractor.roi_layers], list(layer.output_size)
    sampling = (layer.sampling_ratio, layer.pool_mode, layer.aligned)
    return roi_align_pyramid(list(features), rois, scales[: len(features)], size, finest, *sampling)


def attend(
    self: MultiScaleDeformableAttention,
    query: Tensor,  # [N, Q, C]
    value: Tensor,  # [N, S, C]
    query_pos: Tensor,
    key_padding_mask: Tensor,  # [N, S]
    reference_points: Tensor,  # [N, Q, L, 2 or 4], (x, y) or boxes
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    **_: Any,
) -> Tensor:
    """Replace the forward of mmcv's layer by one that calls ``dcnzoo.ops.ms_deform_attn``.

    mmcv's own compares sizes and slices the levels, which turns the sizes into constants.
    """
    batch, count = query.shape[:2]
    places = query + query_pos
    shape = (batch, count, self.num_heads, self.num_levels, self.num_points)
    values = self.value_proj(value).masked_fill(key_padding_mask[..., None], 0)
    offset = self.sampling_offsets(places).view(*shape, 2)
    weights = self.attention_weights(places).view(*shape[:3], -1).softmax(-1).view(shape)
    if reference_points.shape[-1] == 2:
        offset = offset / spatial_shapes.flip(1)[:, None]
    else:
        offset = offset / self.num_points * reference_points[:, :, None, :, None, 2:] * 0.5
    locations = reference_points[:, :, None, :, None, :2] + offset
    values = values.view(batch, -1, self.num_heads, values.shape[-1] // self.num_heads)
    read = ms_deform_attn(values, spatial_shapes, level_start_index, locations, weights)
    return self.output_proj(read) + query
