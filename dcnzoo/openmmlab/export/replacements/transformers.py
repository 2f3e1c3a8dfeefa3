"""Detection transformers, for a batch: one data sample has the sizes of all pictures, as tensors [N]."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import dense_heads, detectors
from mmdet.models.layers.transformer.ddq_detr_layers import DDQTransformerDecoder
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor

from dcnzoo.export.fixed_size import ABSENT, keep_boxes, take
from dcnzoo.openmmlab.export.modes import level_sizes
from dcnzoo.openmmlab.export.suppress import positive_key


def is_padding(
    features: Tensor, padded: Sequence[int], img_shape: tuple[Tensor, Tensor]
) -> Tensor:  # [N, H, W], bool
    """Return which pixels of a map are not of the pictures."""
    outside = []
    for axis in (0, 1):  # rows, then columns of the map
        length = features.shape[2 + axis]
        nearest = torch.arange(length, device=features.device) * padded[axis] // length
        outside.append(nearest >= img_shape[axis][:, None])
    return outside[0][:, :, None] | outside[1][:, None, :]


def before_transformer(
    self: detectors.DETR, img_feats: tuple[Tensor], batch_data_samples: list
) -> tuple[dict, dict]:
    """Replace ``DETR.pre_transformer``."""
    (sample,) = batch_data_samples
    mask = is_padding(img_feats[-1], sample.batch_input_shape, sample.img_shape)
    position = self.positional_encoding(mask).flatten(2).transpose(1, 2)
    features, mask = img_feats[-1].flatten(2).transpose(1, 2), mask.flatten(1)
    encoder_inputs = dict(feat=features, feat_mask=mask, feat_pos=position)
    return encoder_inputs, dict(memory_mask=mask, memory_pos=position)


def before_deformable(
    self: detectors.DeformableDETR, mlvl_feats: tuple[Tensor], batch_data_samples: list
) -> tuple[dict, dict]:
    """Replace ``DeformableDETR.pre_transformer``."""
    (sample,) = batch_data_samples
    levels = []
    for level, embedding in zip(mlvl_feats, self.level_embed, strict=True):
        mask = is_padding(level, sample.batch_input_shape, sample.img_shape)
        position = self.positional_encoding(mask).flatten(2).transpose(1, 2) + embedding
        ratio = self.get_valid_ratio(mask)
        levels.append((level.flatten(2).transpose(1, 2), position, mask.flatten(1), ratio))
    *parts, ratios = zip(*levels, strict=True)
    features, position, mask = (torch.cat(part, 1) for part in parts)
    shapes = level_sizes([level.shape[-2:] for level in mlvl_feats])
    ends = shapes.prod(1).cumsum(0)
    starts = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])
    geometry = dict(spatial_shapes=shapes, level_start_index=starts, valid_ratios=torch.stack(ratios, 1))
    encoder_inputs = dict(feat=features, feat_mask=mask, feat_pos=position, **geometry)
    return encoder_inputs, dict(memory_mask=mask, **geometry)


def image_by_image(
    self: dense_heads.DETRHead,
    layer_cls_scores: Tensor,  # [layers, N, Q, classes]
    layer_bbox_preds: Tensor,
    *_: Any,
    batch_img_metas: list[dict],
    rescale: bool = False,
) -> tuple[Tensor, ...]:
    """Replace the loop of ``DETRHead.predict_by_feat`` over the images: return those of all."""
    (meta,) = batch_img_metas

    def single(scores: Tensor, boxes: Tensor, *size: Tensor) -> tuple[Tensor, ...]:
        results = self._predict_by_feat_single(scores, boxes, dict(meta, img_shape=size), rescale)
        return results.bboxes, results.scores, results.labels

    return torch.vmap(single)(layer_cls_scores[-1], layer_bbox_preds[-1], *meta["img_shape"])


def logit(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Replace ``inverse_sigmoid``, which clamps three times: the exporter's optimiser drops one of them."""
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))


def first_queries(
    self: detectors.DDQDETR, memory: Tensor, memory_mask: Tensor, spatial_shapes: Tensor, *_: Any, **__: Any
) -> tuple[dict, dict]:
    """Replace ``DDQDETR.pre_decoder``: NMS selects distinct queries."""
    encoded, logits = self.gen_encoder_output_proposals(memory, memory_mask, spatial_shapes)
    scores = self.bbox_head.cls_branches[self.decoder.num_layers](encoded).max(-1)[0].sigmoid()
    boxes = self.bbox_head.reg_branches[self.decoder.num_layers](encoded) + logits
    index, is_used = _distinct(self.cache_dict, boxes.sigmoid(), scores, self.num_queries)
    query = torch.where(is_used[..., None], take(self.query_map(memory), index), 0)
    places = torch.where(is_used[..., None], take(boxes, index), 0).sigmoid()
    return dict(query=query, memory=memory, reference_points=places, dn_mask=None), {}


def distinct_queries(
    self: DDQTransformerDecoder,
    reference_points: Tensor,
    query: Tensor,
    self_attn_mask: Tensor,  # [N·heads, Q, Q]
    layer_index: int,
) -> Tensor:
    """Replace ``DDQTransformerDecoder.select_distinct_queries``."""
    cache, count = self.cache_dict, query.shape[1]
    heads = cache["num_heads"]
    scores = cache["cls_branches"][layer_index](query).sigmoid().max(-1).values
    scores = torch.where(self_attn_mask[::heads, 0], ABSENT, scores)
    index, is_used = _distinct(cache, reference_points, scores, count)
    chosen = ((index[..., None] == torch.arange(count, device=index.device)) & is_used[..., None]).any(1)
    mask = ~(chosen[:, :, None] | chosen[:, None])
    cache["distinct_query_mask"] = [mask]
    return mask[:, None].expand(-1, heads, -1, -1).flatten(0, 1)


def _distinct(cache: dict, boxes: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return indices of the best distinct boxes (x, y, width, height), and whether they are used."""
    if (kind := cache["dqs_cfg"].get("type", "nms")) != "nms":
        raise ValueError(f"DDQDETR: dqs_cfg: expected type='nms', got {kind!r}")
    labels, threshold = torch.zeros_like(scores, dtype=torch.long), cache["dqs_cfg"]["iou_threshold"]
    candidates = bbox_cxcywh_to_xyxy(boxes), scores, labels
    _, labels, index = keep_boxes(*candidates, threshold, count, 1, 0, positive_key(scores))
    return index, labels >= 0


def distinct_results(
    self: dense_heads.DDQDETRHead, layer_cls_scores: Tensor, layer_bbox_preds: Tensor, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace ``DDQDETRHead.predict_by_feat``: queries that are not distinct have no results."""
    mask = self.cache_dict["distinct_query_mask"].pop()[:, 0]  # the last two layers have the same
    scores = torch.where(mask[..., None], -torch.inf, layer_cls_scores[-1])
    boxes, scores, labels = image_by_image(self, scores[None], layer_bbox_preds, **options)
    return boxes, torch.where(scores > 0, scores, ABSENT), labels
