"""Heads that predict boxes, and the functions that select boxes, with results of a fixed size."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.models import dense_heads
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor
from torch.utils._pytree import tree_map

from dcnzoo.export.fixed_size import ABSENT, best
from dcnzoo.openmmlab.export.nms import best_pairs, suppress
from dcnzoo.openmmlab.export.symbolic_sizes import tensor_of

MOST = 1000  # boxes of YOLOX without max_per_img: MMDetection has no limit, a graph needs one


def first_pairs(scores: Tensor, score_thr: float, topk: int, results: Any = None) -> tuple:
    """Replace ``filter_scores_and_topk``. Scores below the threshold become ``ABSENT``."""
    scores, index, labels = best_pairs(torch.where(scores > score_thr, scores, ABSENT), topk)
    if results is not None:
        results = tree_map(lambda value: value[index], results)
    return scores, labels, index, results


def keep_all(
    boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: dict | None, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """Replace ``batched_nms``. Return as many results as boxes: boxes that NMS drops come last."""
    if nms_cfg is None:
        scores, index = scores.topk(len(scores))
        return torch.cat([boxes[index], scores[:, None]], 1), index
    nms = dict(nms_cfg, class_agnostic=class_agnostic or nms_cfg.get("class_agnostic", False))
    cfg = ConfigDict(nms=nms, max_per_img=len(boxes))
    dets, labels, index = suppress(cfg, "batched_nms", boxes, scores, idxs.long())
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
    *,
    proposed: Sequence[Tensor] = (),  # [M], whether a row is a proposal
) -> tuple[Tensor, ...]:
    """Replace ``multiclass_nms``."""
    count, classes = multi_scores.shape[0], multi_scores.shape[1] - 1
    boxes = multi_bboxes.reshape(count, -1, 4).expand(-1, classes, -1).reshape(-1, 4)
    scores = multi_scores[:, :-1]
    present = scores > score_thr
    for rows in proposed:
        present = present & rows[:, None]
    if score_factors is not None:
        scores = scores * score_factors[:, None]
    scores = torch.where(present, scores, ABSENT).flatten()
    labels = torch.arange(classes, device=scores.device).repeat(count)
    cfg = ConfigDict(nms=nms_cfg, max_per_img=max_num if max_num > 0 else len(boxes))
    dets, labels, index = suppress(cfg, "multiclass_nms", boxes, scores, labels)
    return (dets, labels, index) if return_inds else (dets, labels)


def as_instances(dets: Tensor, labels: Tensor, **others: Tensor) -> InstanceData:
    """Return the results of :func:`suppress` as MMDetection does."""
    scores = torch.where(labels >= 0, dets[:, 4], ABSENT)
    return InstanceData(bboxes=dets[:, :4], scores=scores, labels=labels, **others)


def post_process(
    self: BaseDenseHead, results: InstanceData, cfg: ConfigDict, with_nms: bool = True, **_: Any
) -> InstanceData:
    """Replace ``_bbox_post_process``, also of RPNHead, whose boxes compete within their level."""
    if not with_nms:
        return results
    scores, boxes = results.scores, get_box_tensor(results.bboxes)
    if "score_factors" in results:
        scores = torch.where(scores >= 0, scores * results.score_factors, ABSENT)
    is_rpn = "level_ids" in results
    groups = results.level_ids if is_rpn else results.labels
    dets, labels, index = suppress(cfg, type(self).__name__, boxes, scores, groups)
    own = ("bboxes", "scores", "labels", "score_factors", "level_ids")
    others = {name: value[index] for name, value in results.items() if name not in own}
    return as_instances(dets, torch.where(labels >= 0, 0, -1) if is_rpn else labels, **others)


def propose(
    self: dense_heads.RPNHead, img_meta: dict, cfg: ConfigDict, rescale: bool, with_nms: bool, **parts: list
) -> InstanceData:
    """Replace ``RPNHead._predict_by_feat_single``, which compares ``nms_pre`` with the size of a level."""
    cfg = ConfigDict(self.test_cfg if cfg is None else cfg, score_thr=0)
    levels = []
    for i, values in enumerate(zip(*parts.values(), strict=True)):
        level = {name: [value] for name, value in zip(parts, values, strict=True)}
        results = BaseDenseHead._predict_by_feat_single(
            self, img_meta=img_meta, cfg=cfg, with_nms=False, **level
        )
        results.level_ids = torch.full_like(results.labels, i)
        levels.append(results)
    return post_process(self, InstanceData.cat(levels), cfg)


def drop_uncertain(
    predict: Callable,
    self: dense_heads.YOLOV3Head,
    pred_maps: Sequence[Tensor],
    *args: Any,
    cfg: Any = None,
    **kwargs: Any,
) -> list[InstanceData]:
    """Call ``YOLOV3Head.predict_by_feat``. Set scores to zero where it would drop boxes by ``conf_thr``."""
    cfg = ConfigDict(self.test_cfg if cfg is None else cfg)
    least = cfg.pop("conf_thr", -1)
    maps = []
    for level in pred_maps:
        values = level.unflatten(1, (-1, self.num_attrib))
        certain = values[:, :, 4:5].sigmoid() >= least
        logits = torch.where(certain, values[:, :, 5:], -torch.inf)
        maps.append(torch.cat([values[:, :, :5], logits], 2).flatten(1, 2))
    return predict(self, maps, *args, cfg=cfg, **kwargs)


def keep_best_classes(
    self: dense_heads.YOLOXHead, *outputs: list[Tensor], cfg: ConfigDict | None = None, **_: Any
) -> list[InstanceData]:
    """Replace ``YOLOXHead.predict_by_feat``, which keeps the best class of each location."""
    cfg = ConfigDict(self.test_cfg if cfg is None else cfg)
    cfg.setdefault("max_per_img", MOST)
    sizes, device = [level.shape[2:] for level in outputs[0]], outputs[0][0].device
    priors = self.prior_generator.grid_priors(sizes, device=device, with_stride=True)
    scores, deltas, objectness = (
        torch.cat([level[0].flatten(1) for level in levels], 1).t() for levels in outputs
    )
    scores, labels = scores.sigmoid().max(1)
    scores = scores * objectness[:, 0].sigmoid()
    scores = torch.where(scores >= cfg.score_thr, scores, ABSENT)
    boxes = self._bbox_decode(torch.cat(priors), deltas)
    results = suppress(cfg, type(self).__name__, boxes, scores, labels)
    return [as_instances(*results[:2])]


def pair_corners(
    self: dense_heads.CornerHead,
    tl_heat: Tensor,
    br_heat: Tensor,
    tl_off: Tensor,
    br_off: Tensor,
    img_meta: dict,
    rescale: bool = False,
    with_nms: bool = True,
    **embeddings: Tensor,
) -> InstanceData:
    """Replace ``CornerHead._predict_by_feat_single``. Pairs that are no box have a negative score."""
    cfg = self.test_cfg
    boxes, scores, labels = self._decode_heatmap(
        tl_heat.sigmoid(),
        br_heat.sigmoid(),
        tl_off,
        br_off,
        img_meta=img_meta,
        k=cfg.corner_topk,
        kernel=cfg.local_maximum_kernel,
        distance_threshold=cfg.distance_threshold,
        **embeddings,
    )
    pairs = boxes[0], scores[0, :, 0], labels[0, :, 0]
    results = suppress(cfg, type(self).__name__, *pairs)
    return as_instances(*results[:2])


def best_peaks(scores: Tensor, k: int = 20) -> tuple[Tensor, ...]:
    """Replace ``get_topk_from_heatmap``: the exporter cannot divide an integer by a symbolic size."""
    height, width = tensor_of(scores.shape[-2:], dtype=torch.long)
    values, index = best(scores.flatten(1), k)
    label, index = index // (height * width), index % (height * width)
    return values, index, label, index // width, (index % width).float()
