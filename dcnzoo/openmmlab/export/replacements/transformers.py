"""Detection transformers, for a batch: one data sample has the sizes of all pictures, as tensors [N]."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import dense_heads, detectors
from torch import Tensor

from dcnzoo.openmmlab.export.symbolic_sizes import level_sizes


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
