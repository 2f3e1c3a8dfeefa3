"""Heads that predict masks of an image, with results of a fixed size.

Their masks have the size of the input; those of boxes are in :mod:`dcnzoo.openmmlab.export.mixins.roi`.
:class:`MaskFormer` returns logits, which :mod:`dcnzoo.detect.outputs` turns into masks of the picture.
"""

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models import dense_heads, detectors, layers
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from dcnzoo.export.fixed_size import ABSENT, is_used
from dcnzoo.openmmlab.export.mixins import features
from dcnzoo.openmmlab.export.nms import topk_pairs, without_small


class RTMDetInsHead(dense_heads.RTMDetInsHead):
    def _bbox_mask_post_process(
        self, results: InstanceData, mask_feat: Tensor, cfg: ConfigDict, **options: Any
    ) -> InstanceData:
        """Mark small boxes instead of removing them."""
        results.scores = without_small(cfg, get_box_tensor(results.bboxes), results.scores)
        cfg.pop("min_bbox_size", None)
        return super()._bbox_mask_post_process(results, mask_feat, cfg, **options)


class MSDeformAttnPixelDecoder(layers.MSDeformAttnPixelDecoder):
    def forward(self, feats: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute with sizes that are numbers, not tensors."""
        levels, sizes = [], []
        for i in range(self.num_encoder_levels):
            level = self.num_input_levels - i - 1
            feature = feats[level]
            height, width = feature.shape[-2:]
            padding = torch.zeros_like(feature[:, 0], dtype=torch.bool)
            position = self.postional_encoding(padding) + self.level_encoding.weight[i].view(1, -1, 1, 1)
            points = self.point_generator.single_level_grid_priors(
                (height, width), level, device=feature.device
            )
            points = points / (points.new_tensor([width, height]) * self.strides[level])
            tokens = (part.flatten(2).transpose(1, 2) for part in (self.input_convs[i](feature), position))
            levels.append((*tokens, padding.flatten(1), points.expand(feature.shape[0], -1, -1)))
            sizes.append((height, width))
        query, position, padding, points = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
        counts = [height * width for height, width in sizes]
        memory = self.encoder(
            query=query,
            query_pos=position,
            key_padding_mask=padding,
            spatial_shapes=torch.tensor(sizes, device=query.device),
            reference_points=points[:, :, None].expand(-1, -1, len(sizes), -1),
            level_start_index=torch.tensor(
                [sum(counts[:i]) for i in range(len(counts))], device=query.device
            ),
            valid_ratios=query.new_ones(query.shape[0], len(sizes), 2),
        )
        parts = memory.transpose(1, 2).split(counts, -1)
        outputs = [part.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
        for i in reversed(range(self.num_input_levels - self.num_encoder_levels)):
            above = F.interpolate(outputs[-1], feats[i].shape[-2:], mode="bilinear", align_corners=False)
            outputs.append(self.output_convs[i](self.lateral_convs[i](feats[i]) + above))
        return self.mask_feature(outputs[-1]), outputs[: self.num_outs]


class MaskFormer(features.Detector, detectors.MaskFormer):
    def predict(self, batch_inputs: Tensor, batch_data_samples: list, rescale: bool = True) -> list:
        """Predict one image. Also return logits and scores before the masks' part.

        MMDetection resizes the logits to the picture before it takes boxes and scores; in the graph, they
        are those of the masks in the input.
        """
        (sample,), fusion = batch_data_samples, self.panoptic_fusion_head
        outputs = self.panoptic_head(self.extract_feat(batch_inputs), batch_data_samples)
        classes, logits = (part[-1][0] for part in outputs)  # of the last layer
        count = fusion.test_cfg.get("max_per_image", 100)
        scores, index, labels = topk_pairs(classes.softmax(-1)[:, :-1], count)
        logits, (height, width) = logits[index], sample.img_shape
        masks = F.interpolate(logits[None], sample.batch_input_shape, mode="bilinear", align_corners=False)[0]
        inside = masks[:, :height, :width] > 0
        certainty = (masks.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
        sample.pred_instances = InstanceData(
            bboxes=around(inside).to(scores.dtype),
            labels=labels,
            scores=torch.where(labels < fusion.num_things_classes, scores * certainty, ABSENT),
            mask_logits=logits,
            class_scores=scores,
        )
        return [sample]


class SOLOHead(dense_heads.SOLOHead):
    def _predict_by_feat_single(
        self,
        scores: Tensor,  # [points, classes]
        mask_preds: Tensor,  # [points, h, w], probabilities
        img_meta: dict,
        cfg: ConfigDict | None = None,
    ) -> InstanceData:
        return select_masks(self, scores, mask_preds, img_meta, cfg)


class SOLOV2Head(dense_heads.SOLOV2Head):
    def _predict_by_feat_single(
        self,
        kernels: Tensor,  # [points, channels of the kernel]
        scores: Tensor,
        mask_feats: Tensor,  # [1, C, h, w]
        img_meta: dict,
        cfg: ConfigDict | None = None,
    ) -> InstanceData:
        masks = (kernels @ mask_feats[0].flatten(1)).unflatten(1, mask_feats.shape[2:])
        return select_masks(self, scores, masks.sigmoid(), img_meta, cfg, self.mask_stride)


def select_masks(
    head: dense_heads.SOLOHead,
    scores: Tensor,  # [points, classes]
    mask_preds: Tensor,  # [points, h, w], probabilities
    img_meta: dict,
    cfg: ConfigDict | None,
    stride: int = 4,  # of the masks
) -> InstanceData:
    """Select masks by their scores and sizes, and by matrix NMS."""
    cfg = head.test_cfg if cfg is None else cfg
    inside = mask_preds > cfg.mask_thr
    area = inside.sum((1, 2)).to(scores.dtype)
    per_point = zip(head.num_grids, head.strides, strict=True)
    least = torch.cat([area.new_full((grid**2,), size) for grid, size in per_point])
    certainty = (mask_preds * inside).sum((1, 2)) / area.clamp(min=1)
    present = (scores > cfg.score_thr) & (area > least)[:, None]
    scores = torch.where(present, scores * certainty[:, None], ABSENT)
    scores, index, labels = topk_pairs(scores, cfg.nms_pre)
    faded, labels, _, order = layers.mask_matrix_nms(
        inside[index],
        labels,
        scores,
        max_num=cfg.max_per_img,
        kernel=cfg.kernel,
        sigma=cfg.sigma,
        mask_area=area[index].clamp(min=1),
    )
    scores = torch.where(is_used(scores[order]) & (faded >= cfg.filter_thr), faded, ABSENT)
    height, width = img_meta["img_shape"]
    size = [stride * length for length in mask_preds.shape[1:]]
    masks = F.interpolate(mask_preds[index[order]][None], size, mode="bilinear", align_corners=False)[0]
    masks = masks[:, :height, :width]
    return InstanceData(
        bboxes=scores.new_zeros(len(scores), 4),
        labels=labels,
        scores=scores,
        masks=masks > cfg.mask_thr,
    )


def around(masks: Tensor) -> Tensor:  # [K, H, W], bool -> [K, 4]
    """Return the bounding box of each mask, as ``mask2bbox`` does: zeros for an empty mask."""
    low, high = [], []
    for axis in (1, 2):
        covered = masks.any(axis)
        position = torch.arange(covered.shape[1], device=masks.device)
        low.append(torch.where(covered, position, covered.shape[1]).amin(1))
        high.append(torch.where(covered, position + 1, 0).amax(1))
    boxes = torch.stack([*low, *high], 1)
    return torch.where(boxes[:, 2:3] > 0, boxes, 0)
