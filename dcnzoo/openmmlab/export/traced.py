"""Export of MMDetection's own ``predict``, for detectors without a wrapper in ``detectors.py``.

The functions in it whose results have a size that depends on the data (selection by score, NMS, RoIAlign of
a pyramid) are replaced by functions with results of a fixed size, in which a negative score marks unused
boxes. The rest is traced as it is, for images of one number and size, which fill the input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from mmcv.ops import batched_nms
from mmdet.models.dense_heads import RPNHead, RTMDetInsHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.utils import filter_scores_and_topk
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor, get_box_wh
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from dcnzoo.compat.patches import Changes
from dcnzoo.export.postprocess import ABSENT, paste_masks
from dcnzoo.openmmlab.export.wrapper import ExportWrapper, best_pairs, of_class, pool, suppress


class Traced(ExportWrapper):
    """Any detector whose ``predict`` consists of the functions in ``REPLACED`` and of traceable ones."""

    @staticmethod
    def supports(detector: nn.Module) -> bool:
        """Return whether all parts of the detector with their own prediction were tested."""
        parts = (getattr(detector, name, None) for name in PARTS)
        return all(type(part).__name__ in TESTED for part in parts if part is not None)

    def __init__(self, detector: nn.Module) -> None:
        super().__init__(detector)
        parts = {type(getattr(detector, name, None)).__name__ for name in PARTS}
        if detector.with_mask or parts & WITH_MASKS:
            self.output_names = ("dets", "labels", "masks")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = tuple(images.shape[-2:])
        border = (0.0, 0.0, 0.0, 0.0)  # read by CenterNet
        meta = dict(
            border=border,
            img_shape=size,
            ori_shape=size,
            batch_input_shape=size,
            pad_shape=size,
            scale_factor=(1.0, 1.0),
        )
        samples = [DetDataSample(metainfo=dict(meta, img_id=i)) for i in range(len(images))]
        with Changes() as changes:
            replace_functions(changes)
            if getattr(self.detector, "with_rpn", False):
                changes.wrap(self.detector.rpn_head, "predict", fill_proposals)
            samples = self.detector.predict(images, samples, rescale=False)
        outputs = zip(*(self.of_image(sample.pred_instances) for sample in samples), strict=True)
        return tuple(torch.stack(parts) for parts in outputs)

    def of_image(self, found: InstanceData) -> tuple[Tensor, ...]:
        there = (found.scores >= 0) & (found.labels >= 0)
        _, index = torch.where(there, found.scores, ABSENT).sort(descending=True, stable=True)
        there = there[index]
        dets = torch.cat([get_box_tensor(found.bboxes), found.scores[:, None]], 1)[index]
        outputs = [torch.where(there[:, None], dets, 0), torch.where(there, found.labels[index], -1)]
        if len(self.output_names) > 2:
            masks = (found.masks[index].to(dets.dtype) * 255).round().to(torch.uint8)
            outputs.append(torch.where(there[:, None, None], masks, 0))
        return tuple(outputs)


def replace_functions(changes: Changes) -> None:
    changes.set(torch.onnx, "is_in_onnx_export", lambda: False)  # MMDetection's branches for it fail
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
    """``filter_scores_and_topk``: scores below the threshold become ``ABSENT``."""
    scores = torch.where(scores > score_thr, scores, ABSENT)
    scores, index, labels = (part[0] for part in best_pairs(scores[None], topk))
    if isinstance(results, dict):
        results = {name: value[index] for name, value in results.items()}
    elif isinstance(results, list):
        results = [value[index] for value in results]
    elif results is not None:
        results = results[index]
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
    """``batched_nms``, with as many results as boxes: those that it drops are last."""
    if nms_cfg is None:
        scores, index = scores.sort(descending=True, stable=True)
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
    """``multiclass_nms``."""
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


def fill_proposals(predict: Any, *args: Any, **kwargs: Any) -> list[InstanceData]:
    """``rpn_head.predict``; copies of the first proposal, which NMS removes later, replace unused rows."""
    proposals = predict(*args, **kwargs)
    for found in proposals:
        if "scores" in found:
            boxes = get_box_tensor(found.bboxes)
            found.bboxes = torch.where((found.scores >= 0)[:, None], boxes, boxes[:1])
    return proposals


def mark_small(
    function: Callable,
    self: RTMDetInsHead,
    results: InstanceData,
    mask_feat: Tensor,
    cfg: ConfigDict,
    **options: Any,
) -> InstanceData:
    """``RTMDetInsHead._bbox_mask_post_process``; marks small boxes instead of removing them."""
    width, height = get_box_wh(results.bboxes)
    smallest = cfg.pop("min_bbox_size", -1)
    results.scores = torch.where((width > smallest) & (height > smallest), results.scores, ABSENT)
    return function(self, results, mask_feat, cfg, **options)


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
    """``FCNMaskHead._predict_by_feat_single``; returns probabilities [K, H, W]."""
    masks = of_class(mask_preds, labels)[:, 0]
    return paste_masks(masks if activate_map else masks.sigmoid(), bboxes, *img_meta["img_shape"])


REPLACED = {filter_scores_and_topk: first_pairs, multiclass_nms: keep_best, batched_nms: keep_all}
METHODS = {
    (BaseDenseHead, "_bbox_post_process"): post_process,
    (RPNHead, "_bbox_post_process"): post_process,
    (FCNMaskHead, "_predict_by_feat_single"): paste,
    (SingleRoIExtractor, "forward"): pool,
}

PARTS = ("rpn_head", "roi_head", "bbox_head", "mask_head", "panoptic_head")
WITH_MASKS = {"RTMDetInsSepBNHead", "Mask2FormerHead", "MaskFormerHead"}
TESTED = {
    *("RPNHead", "CascadeRPNHead"),
    *("StandardRoIHead", "CascadeRoIHead", "DoubleHeadRoIHead", "DynamicRoIHead", "PISARoIHead"),
    *("MaskScoringRoIHead", "HybridTaskCascadeRoIHead", "SCNetRoIHead", "EmbeddingRPNHead", "SparseRoIHead"),
    *("GFLHead", "LDHead", "TOODHead", "RepPointsHead", "FoveaHead", "SABLRetinaHead", "CenterNetHead"),
    *("RTMDetInsSepBNHead", "CondInstBboxHead", "CondInstMaskHead", "BoxInstBboxHead", "BoxInstMaskHead"),
}
