"""Detection transformers, for a batch: one data sample has the sizes of all pictures, as tensors [N].

Their ``predict`` is traced without ``torch.vmap``, but for the last step: :class:`DETRHead` selects boxes for
one image. :mod:`dcnzoo.openmmlab.export.predict` makes the data sample.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import dense_heads, detectors
from mmdet.models.detectors import base_detr
from torch import Tensor

from dcnzoo.openmmlab.export.symbolic_sizes import level_sizes


class DetectionTransformer(base_detr.DetectionTransformer):
    def add_pred_to_datasample(self, data_samples: Any, results_list: Any) -> Any:
        return results_list


class DETR(DetectionTransformer, detectors.DETR):
    def pre_transformer(self, img_feats: tuple[Tensor], batch_data_samples: list) -> tuple[dict, dict]:
        (sample,) = batch_data_samples
        mask = is_padding(img_feats[-1], sample.batch_input_shape, sample.img_shape)
        position = self.positional_encoding(mask).flatten(2).transpose(1, 2)
        features, mask = img_feats[-1].flatten(2).transpose(1, 2), mask.flatten(1)
        encoder_inputs = dict(feat=features, feat_mask=mask, feat_pos=position)
        return encoder_inputs, dict(memory_mask=mask, memory_pos=position)


class DeformableDETR(DetectionTransformer, detectors.DeformableDETR):
    def pre_transformer(self, mlvl_feats: tuple[Tensor], batch_data_samples: list) -> tuple[dict, dict]:
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


class DINO(DeformableDETR, detectors.DINO):
    def forward_decoder(
        self, query: Tensor, memory: Tensor, memory_mask: Tensor, dn_mask: Tensor | None = None, **others: Any
    ) -> dict:
        """Leave out MMDetection's last branch, for trainings, which ``len`` of a symbolic batch decides."""
        states, references = self.decoder(
            query=query,
            value=memory,
            key_padding_mask=memory_mask,
            self_attn_mask=dn_mask,
            reg_branches=self.bbox_head.reg_branches,
            **others,
        )
        return dict(hidden_states=states, references=list(references))


class DETRHead(dense_heads.DETRHead):
    def predict_by_feat(
        self,
        layer_cls_scores: Tensor,  # [layers, N, Q, classes]
        layer_bbox_preds: Tensor,
        *_: Any,
        batch_img_metas: list[dict],
        rescale: bool = False,
    ) -> tuple[Tensor, ...]:
        """Return the boxes, scores and labels of all images, without a loop over them."""
        (meta,) = batch_img_metas

        def single(scores: Tensor, boxes: Tensor, *size: Tensor) -> tuple[Tensor, ...]:
            results = self._predict_by_feat_single(scores, boxes, dict(meta, img_shape=size), rescale)
            return results.bboxes, results.scores, results.labels

        return torch.vmap(single)(layer_cls_scores[-1], layer_bbox_preds[-1], *meta["img_shape"])


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
