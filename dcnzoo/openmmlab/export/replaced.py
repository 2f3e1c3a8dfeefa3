"""Replacements of functions of MMDetection and mmcv, for tracing ``predict``.

Their results have a fixed size; a negative score marks unused boxes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from mmcv import ops as mmcv_ops
from mmcv.ops.carafe import CARAFEFunction
from mmcv.ops.point_sample import generate_grid
from mmdet.models import dense_heads, layers, roi_heads
from mmdet.models.dense_heads import tood_head
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
from mmdet.models.utils import filter_scores_and_topk
from mmdet.models.utils.gaussian_target import get_topk_from_heatmap
from mmdet.structures.bbox import get_box_tensor, get_box_wh
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor
from torch.utils._pytree import tree_map

from dcnzoo.compat.mmcv import deform_conv
from dcnzoo.compat.patches import Changes
from dcnzoo.export.fixed_size import ABSENT, best, running_max
from dcnzoo.openmmlab.export import wrapper
from dcnzoo.ops import deform_conv2d


def replace_functions(changes: Changes) -> None:
    for original, replacement in REPLACED.items():
        wrapper.replace_everywhere(changes, original, replacement)
    for (owner, name), replacement in METHODS.items():
        changes.set(owner, name, replacement)
    for (owner, name), function in WRAPPED.items():
        changes.wrap(owner, name, function)


def first_pairs(scores: Tensor, score_thr: float, topk: int, results: Any = None) -> tuple:
    """Replace ``filter_scores_and_topk``. Scores below the threshold become ``ABSENT``."""
    scores, index, labels = wrapper.best_pairs(torch.where(scores > score_thr, scores, ABSENT), topk)
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
    dets, labels, index = wrapper.suppress(cfg, "batched_nms", boxes, scores, idxs.long())
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
    limits: Mapping[str, int] | None = None,
) -> tuple[Tensor, ...]:
    """Replace ``multiclass_nms``."""
    count, classes = len(multi_scores), multi_scores.shape[1] - 1
    boxes = multi_bboxes.reshape(count, -1, 4).expand(-1, classes, -1).reshape(-1, 4)
    scores = multi_scores[:, :-1]
    there = scores > score_thr
    for rows in proposed:
        there = there & rows[:, None]
    if score_factors is not None:
        scores = scores * score_factors[:, None]
    scores = torch.where(there, scores, ABSENT).flatten()
    labels = torch.arange(classes, device=scores.device).repeat(count)
    cfg = ConfigDict(limits or {}, nms=nms_cfg, max_per_img=max_num if max_num > 0 else len(boxes))
    dets, labels, index = wrapper.suppress(cfg, "multiclass_nms", boxes, scores, labels, classes)
    return (dets, labels, index) if return_inds else (dets, labels)


def found_by(dets: Tensor, labels: Tensor, **others: Tensor) -> InstanceData:
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
    dets, labels, index = wrapper.suppress(cfg, type(self).__name__, boxes, scores, groups, self.num_classes)
    own = ("bboxes", "scores", "labels", "score_factors", "level_ids")
    others = {name: value[index] for name, value in results.items() if name not in own}
    return found_by(dets, torch.where(labels >= 0, 0, -1) if is_rpn else labels, **others)


def propose(
    self: dense_heads.RPNHead, img_meta: dict, cfg: ConfigDict, rescale: bool, with_nms: bool, **parts: list
) -> InstanceData:
    """Replace ``RPNHead._predict_by_feat_single``, which compares ``nms_pre`` with the size of a level."""
    cfg = ConfigDict(self.test_cfg if cfg is None else cfg, score_thr=0)
    levels = []
    for i, values in enumerate(zip(*parts.values(), strict=True)):
        level = {name: [value] for name, value in zip(parts, values, strict=True)}
        found = BaseDenseHead._predict_by_feat_single(
            self, img_meta=img_meta, cfg=cfg, with_nms=False, **level
        )
        found.level_ids = torch.full_like(found.labels, i)
        levels.append(found)
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
    found = wrapper.suppress(cfg, type(self).__name__, boxes, scores, labels, self.num_classes)
    return [found_by(*found[:2])]


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
    found = wrapper.suppress(cfg, type(self).__name__, *pairs, self.num_classes)
    return found_by(*found[:2])


def best_corners(scores: Tensor, k: int = 20) -> tuple[Tensor, ...]:
    """Replace ``get_topk_from_heatmap``: the exporter cannot divide an integer by a symbolic size."""
    height, width = wrapper.image_size(scores).long()
    values, index = best(scores.flatten(1), k)
    label, index = index // (height * width), index % (height * width)
    return values, index, label, index // width, (index % width).float()


def corner_pool(self: mmcv_ops.CornerPool, x: Tensor) -> Tensor:
    """Replace ``CornerPool.forward``."""
    axis, flip = self.cummax_dim_flip[self.mode]
    return running_max(x.flip(axis), axis).flip(axis) if flip else running_max(x, axis)


def mark_small(
    function: Callable,
    self: dense_heads.RTMDetInsHead,
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
    self: roi_heads.BBoxHead, sampling_results: list, bbox_results: dict, batch_img_metas: list[dict]
) -> list[InstanceData]:
    """Replace ``BBoxHead.refine_bboxes``, without ground truth, for equal numbers of RoIs per image."""
    scores, labels = bbox_results["cls_score"], bbox_results["bbox_targets"][0]
    if self.custom_activation:
        scores = self.loss_cls.get_activation(scores)
    labels = torch.where(labels == self.num_classes, scores[:, : self.num_classes].argmax(1), labels)
    rois = bbox_results["rois"][:, 1:]
    boxes = self.regress_by_class(rois, labels, bbox_results["bbox_pred"], batch_img_metas[0])
    return [InstanceData(bboxes=part) for part in boxes.chunk(len(batch_img_metas))]


def add_context(self: roi_heads.SCNetRoIHead, roi_feats: Tensor, glbctx_feat: Tensor, rois: Tensor) -> Tensor:
    """Replace ``SCNetRoIHead._fuse_glbctx``, which loops over the images that have RoIs."""
    return roi_feats + glbctx_feat[rois[:, 0].long()]


def sample_shifted(self: tood_head.TOODHead, feat: Tensor, offset: Tensor) -> Tensor:
    """Replace ``TOODHead.deform_sampling``. In ``torch.vmap``, its weight of ones would differ by image."""
    channels = feat.shape[1]
    ones = torch.ones(channels, 1, 1, 1, dtype=feat.dtype, device=feat.device)
    return deform_conv2d(feat, ones, offset, groups=channels)


def sample_rois(self: mmcv_ops.SimpleRoIAlign, features: Tensor, rois: Tensor) -> Tensor:  # [K, C, h, w]
    """Replace ``SimpleRoIAlign.forward``, which loops over the images that have RoIs."""
    grid = generate_grid(len(rois), self.output_size, rois.device)
    points = mmcv_ops.rel_roi_point_to_rel_img_point(rois, grid, features, self.spatial_scale)
    sampled = mmcv_ops.point_sample(features, points[None], align_corners=not self.aligned)[0]  # [C, K, h·w]
    return sampled.transpose(0, 1).unflatten(2, self.output_size)


def refine_masks(
    self: roi_heads.PointRendRoIHead,
    x: list[Tensor],
    rois: Tensor,
    label_preds: Tensor,
    mask_preds: Tensor,  # [K, classes, h, w]
) -> Tensor:  # [K, 1, H, W]
    """Replace ``PointRendRoIHead._mask_point_forward_test``. Refine only the mask of each box's class."""
    cfg, extractor = self.test_cfg, self.mask_roi_extractor
    masks = wrapper.of_class(mask_preds, label_preds)
    for step in range(cfg.subdivision_steps):
        masks = F.interpolate(masks, scale_factor=cfg.scale_factor, mode="bilinear", align_corners=False)
        size = masks[0].numel()
        if cfg.subdivision_num_points >= cfg.scale_factor**2 * size and step < cfg.subdivision_steps - 1:
            continue
        index, points = self.point_head.get_roi_rel_points_test(masks, label_preds, cfg)
        fine = []
        for level, stride in zip(x, extractor.featmap_strides, strict=False):
            places = mmcv_ops.rel_roi_point_to_rel_img_point(rois, points, level, 1 / stride)
            fine.append(mmcv_ops.point_sample(level, places[None])[0].transpose(0, 1))
        refined = self.point_head(torch.cat(fine, 1), mmcv_ops.point_sample(mask_preds, points))
        refined = wrapper.of_class(refined, label_preds)
        masks = masks.flatten(2).scatter(2, index[:, None], refined).reshape(masks.shape)
    return masks


def masks_of_classes(
    self: roi_heads.FCNMaskHead,
    mask_preds: Tensor,  # [K, classes, h, w]
    bboxes: Tensor,
    labels: Tensor,
    img_meta: dict,
    rcnn_test_cfg: ConfigDict,
    rescale: bool = False,
    activate_map: bool = False,
) -> Tensor:
    """Replace ``FCNMaskHead._predict_by_feat_single``. Return probabilities [K, h, w], to be pasted later."""
    masks = wrapper.of_class(mask_preds, labels)[:, 0]
    return masks if activate_map else masks.sigmoid()


def decode_pixels(self: layers.MSDeformAttnPixelDecoder, feats: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Replace ``MSDeformAttnPixelDecoder.forward``. Sizes are numbers, not tensors."""
    levels, sizes = [], []
    for i in range(self.num_encoder_levels):
        level = self.num_input_levels - i - 1
        feature = feats[level]
        height, width = feature.shape[-2:]
        padding = torch.zeros_like(feature[:, 0], dtype=torch.bool)
        position = self.postional_encoding(padding) + self.level_encoding.weight[i].view(1, -1, 1, 1)
        place = self.point_generator.single_level_grid_priors((height, width), level, device=feature.device)
        place = place / (place.new_tensor([width, height]) * self.strides[level])
        tokens = (part.flatten(2).transpose(1, 2) for part in (self.input_convs[i](feature), position))
        levels.append((*tokens, padding.flatten(1), place.expand(feature.shape[0], -1, -1)))
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
        valid_ratios=query.new_ones(query.shape[0], len(sizes), 2),
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
    count = self.test_cfg.get("max_per_image", 100)
    scores, index, labels = wrapper.best_pairs(mask_cls.softmax(-1)[:, :-1], count)
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
    self: dense_heads.SOLOHead,
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
    scores, index, labels = wrapper.best_pairs(scores, cfg.nms_pre)
    faded, labels, _, order = layers.mask_matrix_nms(
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
    self: dense_heads.SOLOV2Head,
    kernels: Tensor,  # [points, channels of the kernel]
    scores: Tensor,
    mask_feats: Tensor,  # [1, C, h, w]
    img_meta: dict,
    cfg: ConfigDict | None = None,
) -> InstanceData:
    """Replace ``SOLOV2Head._predict_by_feat_single``."""
    masks = (kernels @ mask_feats[0].flatten(1)).unflatten(1, mask_feats.shape[2:])
    return segment_by_place(self, scores, masks.sigmoid(), img_meta, cfg, self.mask_stride)


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


def without_autograd(function: Callable) -> staticmethod:
    """Replace ``forward`` of an autograd function of mmcv, which makes the size of its output a constant."""
    return staticmethod(lambda ctx, *arguments: function(*arguments))


REPLACED = {
    filter_scores_and_topk: first_pairs,
    mmcv_ops.batched_nms: keep_all,
    get_topk_from_heatmap: best_corners,
}
METHODS = {
    (BaseDenseHead, "_bbox_post_process"): post_process,
    (dense_heads.RPNHead, "_bbox_post_process"): post_process,
    (dense_heads.RPNHead, "_predict_by_feat_single"): propose,
    (dense_heads.YOLOXHead, "predict_by_feat"): keep_best_classes,
    (dense_heads.CornerHead, "_predict_by_feat_single"): pair_corners,
    (mmcv_ops.CornerPool, "forward"): corner_pool,
    (roi_heads.BBoxHead, "refine_bboxes"): refine,
    (roi_heads.SCNetRoIHead, "_fuse_glbctx"): add_context,
    (roi_heads.FCNMaskHead, "_predict_by_feat_single"): masks_of_classes,
    (roi_heads.SingleRoIExtractor, "forward"): wrapper.pool,
    (mmcv_ops.RoIAlign, "forward"): wrapper.align,
    (mmcv_ops.deform_conv.DeformConv2dFunction, "forward"): without_autograd(deform_conv.deform_conv2d),
    (mmcv_ops.modulated_deform_conv.ModulatedDeformConv2dFunction, "forward"): without_autograd(
        deform_conv.modulated_deform_conv2d
    ),
    # in mmcv and MMDetection, these call autograd functions, which torch.vmap does not accept
    (sys.modules["mmcv.ops.carafe"], "carafe"): partial(CARAFEFunction.forward, SimpleNamespace()),
    (tood_head.TOODHead, "deform_sampling"): sample_shifted,
    (tood_head, "sigmoid_geometric_mean"): lambda x, y: (x.sigmoid() * y.sigmoid()).sqrt(),
    (mmcv_ops.SimpleRoIAlign, "forward"): sample_rois,
    (roi_heads.PointRendRoIHead, "_mask_point_forward_test"): refine_masks,
    (mmcv_ops.MultiScaleDeformableAttention, "forward"): wrapper.attend,
    (layers.MSDeformAttnPixelDecoder, "forward"): decode_pixels,
    (MaskFormerFusionHead, "instance_postprocess"): instances,
    (dense_heads.SOLOHead, "_predict_by_feat_single"): segment_by_place,
    (dense_heads.SOLOV2Head, "_predict_by_feat_single"): segment_by_kernel,
}
WRAPPED = {
    (dense_heads.RTMDetInsHead, "_bbox_mask_post_process"): mark_small,
    (dense_heads.YOLOV3Head, "predict_by_feat"): drop_uncertain,
}

MOST = 1000  # boxes of YOLOX without max_per_img: MMDetection has no limit, a graph needs one
