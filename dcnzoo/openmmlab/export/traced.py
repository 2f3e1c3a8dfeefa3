"""Export of MMDetection's own ``predict``, for detectors without a wrapper in ``detectors.py``.

The functions in it whose results have a size that depends on the data (selection by score, NMS, RoIAlign of
a pyramid) are replaced by functions with results of a fixed size, in which a negative score marks unused
boxes. The rest is traced as it is, for images of one number and size, which fill the input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import MultiScaleDeformableAttention, batched_nms
from mmdet.models.dense_heads import RPNHead, RTMDetInsHead, SOLOHead, SOLOV2Head
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.layers import MSDeformAttnPixelDecoder, mask_matrix_nms, multiclass_nms
from mmdet.models.roi_heads import SCNetRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
from mmdet.models.utils import filter_scores_and_topk
from mmdet.structures.bbox import get_box_tensor, get_box_wh
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from dcnzoo.compat.patches import Changes
from dcnzoo.export.postprocess import ABSENT, paste_masks
from dcnzoo.openmmlab.export.wrapper import (
    ExportWrapper,
    attend,
    best_pairs,
    data_sample,
    of_class,
    pool,
    suppress,
)


class Traced(ExportWrapper):
    """Any detector whose ``predict`` consists of the functions in ``REPLACED`` and of traceable ones."""

    one_size = True

    @staticmethod
    def supports(detector: nn.Module) -> bool:
        """Return whether all parts of the detector with their own prediction were tested."""
        parts = parts_of(detector)
        needs_proposals = hasattr(detector, "roi_head") and not detector.with_rpn  # Fast R-CNN
        return bool(parts) and parts <= TESTED and not needs_proposals and not is_panoptic(detector)

    def __init__(self, detector: nn.Module) -> None:
        super().__init__(detector)
        roi, mask_head = (getattr(detector, part, None) for part in ("roi_head", "mask_head"))
        if (roi is not None and roi.with_mask) or mask_head is not None or parts_of(detector) & WITH_MASKS:
            self.output_names = ("dets", "labels", "masks")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = tuple(images.shape[-2:])
        samples = [data_sample(size, size) for _ in range(len(images))]
        found = [torch.tensor(True)] * len(images)
        with Changes() as changes:
            replace_functions(changes)
            if getattr(self.detector, "with_rpn", False):
                changes.wrap(self.detector.rpn_head, "predict", partial(fill_proposals, found))
            samples = self.detector.predict(images, samples, rescale=False)
        outputs = (self.of_image(s.pred_instances, any_) for s, any_ in zip(samples, found, strict=True))
        return tuple(torch.stack(parts) for parts in zip(*outputs, strict=True))

    def of_image(self, found: InstanceData, any_proposal: Tensor) -> tuple[Tensor, ...]:
        # not scores >= 0: the IoU that scores a mask may be negative
        there = (found.scores != ABSENT) & (found.labels >= 0) & any_proposal
        _, index = torch.where(there, found.scores, -torch.inf).topk(len(there))
        there = there[index]
        dets = torch.cat([get_box_tensor(found.bboxes), found.scores[:, None]], 1)[index]
        outputs = [torch.where(there[:, None], dets, 0), torch.where(there, found.labels[index], -1)]
        if len(self.output_names) > 2:
            masks = (found.masks[index].to(dets.dtype) * 255).round().to(torch.uint8)
            outputs.append(torch.where(there[:, None, None], masks, 0))
        return tuple(outputs)


def parts_of(detector: nn.Module) -> set[str]:
    parts = (getattr(detector, name, None) for name in PARTS)
    return {type(part).__name__ for part in parts if part is not None}


def is_panoptic(detector: nn.Module) -> bool:
    """Return whether a MaskFormer predicts more than instances."""
    fusion = getattr(detector, "panoptic_fusion_head", None)
    return fusion is not None and (
        fusion.test_cfg.get("panoptic_on", True) or fusion.test_cfg.get("semantic_on", False)
    )


def replace_functions(changes: Changes) -> None:
    for original, replacement in REPLACED.items():
        replace_everywhere(changes, original, replacement)
    for (owner, name), replacement in METHODS.items():
        changes.set(owner, name, replacement)
    changes.wrap(RTMDetInsHead, "_bbox_mask_post_process", mark_small)


def replace_everywhere(changes: Changes, original: Callable, replacement: Callable) -> None:
    """Replace a function in all of MMDetection's modules that import it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mmdet.") and vars(module).get(original.__name__) is original:
            changes.set(module, original.__name__, replacement)


def first_pairs(scores: Tensor, score_thr: float, topk: int, results: Any = None) -> tuple:
    """Replace ``filter_scores_and_topk``. Scores below the threshold become ``ABSENT``."""
    scores = torch.where(scores > score_thr, scores, ABSENT)
    scores, index, labels = (part[0] for part in best_pairs(scores[None], topk))
    if results is not None:
        results = torch.utils._pytree.tree_map(lambda value: value[index], results)
    return scores, labels, index, results


def keep(
    nms: dict, boxes: Tensor, scores: Tensor, labels: Tensor, count: int, **cfg: Any
) -> tuple[Tensor, Tensor, Tensor]:  # [count, 5], [count], [count]
    """Apply NMS to the boxes of one image; return :func:`suppress`'s results."""
    nms = dict(nms)
    if nms.pop("class_agnostic", False):
        labels = torch.zeros_like(labels)
    cfg = ConfigDict(cfg, nms=nms, max_per_img=count)
    return tuple(part[0] for part in suppress(cfg, "nms", boxes[None], scores[None], labels[None], 0))


def keep_all(
    boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: dict | None, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """Replace ``batched_nms``. Return as many results as boxes: boxes that NMS drops come last."""
    if nms_cfg is None:
        scores, index = scores.topk(len(scores))
        return torch.cat([boxes[index], scores[:, None]], 1), index
    nms = dict(nms_cfg, class_agnostic=class_agnostic or nms_cfg.get("class_agnostic", False))
    dets, labels, index = keep(nms, boxes, scores, idxs.long(), len(boxes))
    return torch.where(labels[:, None] >= 0, dets, ABSENT), index


def keep_best(
    multi_bboxes: Tensor,  # [M, 4] or [M, classes·4]
    multi_scores: Tensor,  # [M, classes + 1]
    score_thr: float,
    nms_cfg: dict,
    max_num: int = -1,
    score_factors: Tensor | None = None,
    return_inds: bool = False,
    box_dim: int = 4,
) -> tuple[Tensor, ...]:
    """Replace ``multiclass_nms``."""
    count, classes = len(multi_scores), multi_scores.shape[1] - 1
    boxes = multi_bboxes.reshape(count, -1, 4).expand(-1, classes, -1).reshape(-1, 4)
    scores = multi_scores[:, :-1]
    there = scores > score_thr
    if score_factors is not None:
        scores = scores * score_factors[:, None]
    scores = torch.where(there, scores, ABSENT).flatten()
    labels = torch.arange(classes, device=scores.device).repeat(count)
    dets, kept, index = keep(nms_cfg, boxes, scores, labels, max_num if max_num > 0 else len(boxes))
    kept = torch.where(kept >= 0, labels[index], -1)
    return (dets, kept, index) if return_inds else (dets, kept)


def post_process(
    self: BaseDenseHead, results: InstanceData, cfg: ConfigDict, **_: Any
) -> InstanceData:  # also of RPNHead
    scores = results.scores
    if "score_factors" in results:
        scores = torch.where(scores >= 0, scores * results.pop("score_factors"), ABSENT)
    labels = results.level_ids if "level_ids" in results else results.labels
    boxes = get_box_tensor(results.bboxes)
    small = cfg.get("min_bbox_size", -1)
    dets, kept, index = keep(cfg.nms, boxes, scores, labels, cfg.max_per_img, min_bbox_size=small)
    there = kept >= 0
    rest = {
        name: value[index]
        for name, value in results.items()
        if name not in ("bboxes", "scores", "labels", "level_ids")
    }
    kept = torch.zeros_like(index) if "level_ids" in results else labels[index]
    return InstanceData(
        bboxes=dets[:, :4],
        scores=torch.where(there, dets[:, 4], ABSENT),
        labels=torch.where(there, kept, -1),
        **rest,
    )


def fill_proposals(any_of_image: list[Tensor], predict: Any, *args: Any, **kwargs: Any) -> list[InstanceData]:
    """Call ``rpn_head.predict``. Fill unused rows with the first proposal: NMS removes these copies later."""
    proposals = predict(*args, **kwargs)
    for i, found in enumerate(proposals):
        if "scores" in found:
            there, boxes = found.scores >= 0, get_box_tensor(found.bboxes)
            found.bboxes = torch.where(there[:, None], boxes, boxes[:1])
            any_of_image[i] = there.any()
    return proposals


def mark_small(
    function: Callable,
    self: RTMDetInsHead,
    results: InstanceData,
    mask_feat: Tensor,
    cfg: ConfigDict,
    **options: Any,
) -> InstanceData:
    """Call ``RTMDetInsHead._bbox_mask_post_process``. Mark small boxes instead of removing them."""
    width, height = get_box_wh(results.bboxes)
    smallest = cfg.pop("min_bbox_size", -1)
    results.scores = torch.where((width > smallest) & (height > smallest), results.scores, ABSENT)
    return function(self, results, mask_feat, cfg, **options)


def refine(
    self: BBoxHead, sampling_results: list, bbox_results: dict, batch_img_metas: list[dict]
) -> list[InstanceData]:
    """Replace ``BBoxHead.refine_bboxes``, without ground truth, for equal numbers of RoIs per image."""
    scores, labels = bbox_results["cls_score"], bbox_results["bbox_targets"][0]
    if self.custom_activation:
        scores = self.loss_cls.get_activation(scores)
    labels = torch.where(labels == self.num_classes, scores[:, : self.num_classes].argmax(1), labels)
    rois = bbox_results["rois"][:, 1:]
    boxes = self.regress_by_class(rois, labels, bbox_results["bbox_pred"], batch_img_metas[0])
    return [InstanceData(bboxes=part) for part in boxes.chunk(len(batch_img_metas))]


def add_context(self: SCNetRoIHead, roi_feats: Tensor, glbctx_feat: Tensor, rois: Tensor) -> Tensor:
    """Replace ``SCNetRoIHead._fuse_glbctx``, which loops over the images that have RoIs."""
    return roi_feats + glbctx_feat[rois[:, 0].long()]


def paste(
    self: FCNMaskHead,
    mask_preds: Tensor,  # [K, classes, h, w]
    bboxes: Tensor,
    labels: Tensor,
    img_meta: dict,
    rcnn_test_cfg: ConfigDict,
    rescale: bool = False,
    activate_map: bool = False,
) -> Tensor:
    """Replace ``FCNMaskHead._predict_by_feat_single``. Return probabilities [K, H, W]."""
    masks = of_class(mask_preds, labels)[:, 0]
    return paste_masks(masks if activate_map else masks.sigmoid(), bboxes, *img_meta["img_shape"])


def decode_pixels(self: MSDeformAttnPixelDecoder, feats: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Replace ``MSDeformAttnPixelDecoder.forward``. Sizes are numbers, not tensors."""
    levels, sizes = [], []
    for i in range(self.num_encoder_levels):
        level = self.num_input_levels - i - 1
        feature = feats[level]
        height, width = feature.shape[-2:]
        padding = feature.new_zeros((len(feature), height, width), dtype=torch.bool)
        position = self.postional_encoding(padding) + self.level_encoding.weight[i].view(1, -1, 1, 1)
        place = self.point_generator.single_level_grid_priors((height, width), level, device=feature.device)
        place = place / (place.new_tensor([width, height]) * self.strides[level])
        tokens = (part.flatten(2).transpose(1, 2) for part in (self.input_convs[i](feature), position))
        levels.append((*tokens, padding.flatten(1), place.expand(len(feature), -1, -1)))
        sizes.append((height, width))
    query, position, padding, place = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
    counts = [height * width for height, width in sizes]
    memory = self.encoder(
        query=query,
        query_pos=position,
        key_padding_mask=padding,
        spatial_shapes=torch.tensor(sizes, device=query.device),
        reference_points=place[:, :, None].expand(-1, -1, len(sizes), -1),
        level_start_index=torch.tensor([sum(counts[:i]) for i in range(len(counts))], device=query.device),
        valid_ratios=query.new_ones(len(query), len(sizes), 2),
    )
    parts = memory.transpose(1, 2).split(counts, -1)
    outputs = [part.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
    for i in reversed(range(self.num_input_levels - self.num_encoder_levels)):
        above = F.interpolate(outputs[-1], feats[i].shape[-2:], mode="bilinear", align_corners=False)
        outputs.append(self.output_convs[i](self.lateral_convs[i](feats[i]) + above))
    return self.mask_feature(outputs[-1]), outputs[: self.num_outs]


def instances(
    self: MaskFormerFusionHead,
    mask_cls: Tensor,  # [queries, classes + 1]
    mask_pred: Tensor,  # [queries, H, W], logits
) -> InstanceData:
    """Replace ``MaskFormerFusionHead.instance_postprocess``."""
    scores = mask_cls.softmax(-1)[None, :, :-1]
    scores, index, labels = (part[0] for part in best_pairs(scores, self.test_cfg.get("max_per_image", 100)))
    masks = mask_pred[index]
    inside = masks > 0
    certainty = (masks.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    return InstanceData(
        bboxes=around(inside).to(scores.dtype),
        labels=torch.where(labels < self.num_things_classes, labels, -1),
        scores=scores * certainty,
        masks=inside,
    )


def segment_by_place(
    self: SOLOHead,
    scores: Tensor,  # [points, classes]
    mask_preds: Tensor,  # [points, h, w], probabilities
    img_meta: dict,
    cfg: ConfigDict | None = None,
    stride: int = 4,  # of the masks
) -> InstanceData:
    """Replace ``SOLOHead._predict_by_feat_single``."""
    cfg = self.test_cfg if cfg is None else cfg
    inside = mask_preds > cfg.mask_thr
    area = inside.sum((1, 2)).to(scores.dtype)
    per_point = zip(self.num_grids, self.strides, strict=True)
    least = torch.cat([area.new_full((grid**2,), size) for grid, size in per_point])
    certainty = (mask_preds * inside).sum((1, 2)) / area.clamp(min=1)
    there = (scores > cfg.score_thr) & (area > least)[:, None]
    scores = torch.where(there, scores * certainty[:, None], ABSENT)
    scores, index, labels = (part[0] for part in best_pairs(scores[None], cfg.nms_pre))
    faded, labels, _, order = mask_matrix_nms(
        inside[index],
        labels,
        scores,
        max_num=cfg.max_per_img,
        kernel=cfg.kernel,
        sigma=cfg.sigma,
        mask_area=area[index].clamp(min=1),
    )
    scores = torch.where((faded >= 0) & (faded >= cfg.filter_thr), faded, ABSENT)
    height, width = img_meta["img_shape"]
    masks = F.interpolate(
        mask_preds[index[order]][None], scale_factor=stride, mode="bilinear", align_corners=False
    )[0, :, :height, :width]
    return InstanceData(
        bboxes=scores.new_zeros(len(scores), 4),
        labels=torch.where(scores >= 0, labels, -1),
        scores=scores,
        masks=masks > cfg.mask_thr,
    )


def segment_by_kernel(
    self: SOLOV2Head,
    kernels: Tensor,  # [points, channels of the kernel]
    scores: Tensor,
    mask_feats: Tensor,  # [1, C, h, w]
    img_meta: dict,
    cfg: ConfigDict | None = None,
) -> InstanceData:
    """Replace ``SOLOV2Head._predict_by_feat_single``."""
    kernels = kernels.reshape(len(kernels), -1, self.dynamic_conv_size, self.dynamic_conv_size)
    masks = F.conv2d(mask_feats, kernels)[0].sigmoid()
    return segment_by_place(self, scores, masks, img_meta, cfg, self.mask_stride)


def around(masks: Tensor) -> Tensor:  # [K, H, W], bool -> [K, 4]
    """Return the bounding box of each mask, as ``mask2bbox`` does: zeros for an empty mask."""
    low, high = [], []
    for axis in (1, 2):
        there = masks.any(axis)
        place = torch.arange(there.shape[1], device=masks.device)
        low.append(torch.where(there, place, there.shape[1]).amin(1))
        high.append(torch.where(there, place + 1, 0).amax(1))
    boxes = torch.stack([*low, *high], 1)
    return torch.where(boxes[:, 2:3] > 0, boxes, 0)


REPLACED = {filter_scores_and_topk: first_pairs, multiclass_nms: keep_best, batched_nms: keep_all}
METHODS = {
    (BaseDenseHead, "_bbox_post_process"): post_process,
    (RPNHead, "_bbox_post_process"): post_process,
    (BBoxHead, "refine_bboxes"): refine,
    (SCNetRoIHead, "_fuse_glbctx"): add_context,
    (FCNMaskHead, "_predict_by_feat_single"): paste,
    (SingleRoIExtractor, "forward"): pool,
    (MultiScaleDeformableAttention, "forward"): attend,
    (MSDeformAttnPixelDecoder, "forward"): decode_pixels,
    (MaskFormerFusionHead, "instance_postprocess"): instances,
    (SOLOHead, "_predict_by_feat_single"): segment_by_place,
    (SOLOV2Head, "_predict_by_feat_single"): segment_by_kernel,
}

PARTS = ("rpn_head", "roi_head", "bbox_head", "mask_head", "panoptic_head")
WITH_MASKS = {"RTMDetInsSepBNHead", "Mask2FormerHead"}
TESTED = {
    "RPNHead",
    *("StandardRoIHead", "CascadeRoIHead", "DoubleHeadRoIHead", "DynamicRoIHead", "PISARoIHead"),
    *("MaskScoringRoIHead", "HybridTaskCascadeRoIHead", "EmbeddingRPNHead", "SparseRoIHead"),
    *("GFLHead", "LDHead", "TOODHead", "RepPointsHead", "FoveaHead", "SABLRetinaHead", "CenterNetHead"),
    *("RTMDetInsSepBNHead", "CondInstBboxHead", "CondInstMaskHead"),
    *("Mask2FormerHead", "SOLOHead", "SOLOV2Head", "SCNetRoIHead", "GridRoIHead"),
    *("BoxInstBboxHead", "BoxInstMaskHead"),
}
