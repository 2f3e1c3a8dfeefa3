"""RoI heads. Boxes are predicted for each image, masks at the end, for the detections of all images.

In ``predict`` of one image, ``predict_mask`` only adds its inputs to the results, as ``mask_inputs``.
:mod:`dcnzoo.openmmlab.export.predict` then calls :meth:`RoIHead.predict_masks` with those of the batch.
"""

import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from mmcv import ops as mmcv_ops
from mmcv.ops.point_sample import generate_grid
from mmdet.models import roi_heads
from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
from mmdet.models.test_time_augs import merge_aug_masks
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from dcnzoo.export.fixed_size import is_used, roi_align_pyramid, scaled
from dcnzoo.openmmlab.export.functions import proposals
from dcnzoo.openmmlab.export.nms import of_class
from dcnzoo.openmmlab.export.symbolic_sizes import data_sample, tensor_of

META = data_sample((1, 1), (1, 1)).metainfo  # masks are pasted later, with the size of the input


class RoIHead(BaseRoIHead):
    def predict(self, x: Any, rpn_results_list: list, *args: Any, **kwargs: Any) -> list[InstanceData]:
        (results,) = rpn_results_list
        token = proposals.set(is_used(results.scores) if "scores" in results else None)
        try:
            return super().predict(x, rpn_results_list, *args, **kwargs)
        finally:
            proposals.reset(token)

    def predict_mask(self, *args: Any, **kwargs: Any) -> list[InstanceData]:
        """Add the inputs of the masks, which are tensors, to the results, as ``mask_inputs``."""
        inputs = inspect.signature(super().predict_mask).bind(*args, **kwargs).arguments
        (results,) = inputs["results_list"]
        tensors: dict[str, Any] = {"x": tuple(inputs["x"])}
        if inputs.get("semantic_heat") is not None:  # of HTC
            tensors["semantic_heat"] = inputs["semantic_heat"]
        results.set_field(tensors, "mask_inputs", field_type="metainfo")
        return [results]

    def predict_masks(
        self,
        boxes: Tensor,  # [N, K, 4]
        scores: Tensor,  # [N, K]
        labels: Tensor,  # [N, K]
        inputs: dict,  # "mask_inputs" of all images
    ) -> tuple[Tensor, Tensor]:
        """Return the scores and the masks [N, K, h, w], which are zeros for rows without a detection."""
        # the first row in any case: with no row, MMDetection returns early
        first = torch.zeros(1, 2, dtype=torch.long, device=scores.device)
        index = torch.cat([first, is_used(scores).nonzero()]).unbind(1)  # images and rows
        detections = SimpleNamespace(bboxes=boxes[index], scores=scores[index], labels=labels[index])
        rois = torch.cat([index[0][:, None].to(boxes), detections.bboxes], 1)
        (results,) = self.predict_masks_of(rois, detections, **inputs)
        return scores.index_put(index, results.scores), placed(results.masks, index, scores.shape)

    def predict_masks_of(self, rois: Tensor, results: Any, x: Any) -> list:
        """Add the masks of RoIs to results, whose rows are those of ``rois``."""
        masks = self._mask_forward(x, rois)["mask_preds"]
        return self.mask_head.predict_by_feat([masks], [results], [META], self.test_cfg)


class CascadeRoIHead(RoIHead, roi_heads.CascadeRoIHead):
    def predict_masks_of(self, rois: Tensor, results: Any, x: Any) -> list:
        stages = [self._mask_forward(stage, x, rois)["mask_preds"] for stage in range(self.num_stages)]
        masks = merge_aug_masks([stage.sigmoid() for stage in stages], META)
        head = self.mask_head[-1]
        return head.predict_by_feat([masks], [results], [META], self.test_cfg, activate_map=True)


class HybridTaskCascadeRoIHead(RoIHead, roi_heads.HybridTaskCascadeRoIHead):
    def predict_masks_of(
        self, rois: Tensor, results: Any, x: Any, semantic_heat: Tensor | None = None
    ) -> list:
        stages = self._mask_forward(-1, x, rois, semantic_heat, training=False)["mask_preds"]
        masks = merge_aug_masks([stage.sigmoid() for stage in stages], META)
        head = self.mask_head[-1]
        return head.predict_by_feat([masks], [results], [META], self.test_cfg, activate_map=True)


class MaskScoringRoIHead(RoIHead, roi_heads.MaskScoringRoIHead):
    def predict_masks_of(self, rois: Tensor, results: Any, x: Any) -> list:
        outputs = self._mask_forward(x, rois)
        masks = outputs["mask_preds"]
        of_labels = of_class(masks, results.labels)[:, 0]
        ious = self.mask_iou_head(outputs["mask_feats"], of_labels)
        self.mask_head.predict_by_feat([masks], [results], [META], self.test_cfg)
        return self.mask_iou_head.predict_by_feat([ious], [results])


class PointRendRoIHead(RoIHead, roi_heads.PointRendRoIHead):
    def predict_masks_of(self, rois: Tensor, results: Any, x: Any) -> list:
        masks = self._mask_forward(x, rois)["mask_preds"]
        masks = self._mask_point_forward_test(x, rois, results.labels, masks)
        return self.mask_head.predict_by_feat([masks], [results], [META], self.test_cfg)

    def _mask_point_forward_test(
        self,
        x: list[Tensor],
        rois: Tensor,
        label_preds: Tensor,
        mask_preds: Tensor,  # [K, classes, h, w]
    ) -> Tensor:  # [K, 1, H, W]
        """Refine only the mask of each box's class."""
        cfg, extractor = self.test_cfg, self.mask_roi_extractor
        masks = of_class(mask_preds, label_preds)
        for step in range(cfg.subdivision_steps):
            masks = F.interpolate(masks, scale_factor=cfg.scale_factor, mode="bilinear", align_corners=False)
            size = masks[0].numel()
            if cfg.subdivision_num_points >= cfg.scale_factor**2 * size and step < cfg.subdivision_steps - 1:
                continue
            index, points = self.point_head.get_roi_rel_points_test(masks, label_preds, cfg)
            fine = []
            for level, stride in zip(x, extractor.featmap_strides, strict=False):
                places = mmcv_ops.rel_roi_point_to_rel_img_point(rois, points, level, 1 / stride)
                fine.append(sample_points(level, rois[:, 0].long(), places))
            refined = self.point_head(torch.cat(fine, 1), mmcv_ops.point_sample(mask_preds, points))
            refined = of_class(refined, label_preds)
            masks = masks.flatten(2).scatter(2, index[:, None], refined).reshape(masks.shape)
        return masks


class BBoxHead(roi_heads.BBoxHead):
    def refine_bboxes(
        self, sampling_results: list, bbox_results: dict, batch_img_metas: list[dict]
    ) -> list[InstanceData]:
        """Refine boxes without ground truth, for equal numbers of RoIs per image."""
        scores, labels = bbox_results["cls_score"], bbox_results["bbox_targets"][0]
        if self.custom_activation:
            scores = self.loss_cls.get_activation(scores)
        labels = torch.where(labels == self.num_classes, scores[:, : self.num_classes].argmax(1), labels)
        rois = bbox_results["rois"][:, 1:]
        boxes = self.regress_by_class(rois, labels, bbox_results["bbox_pred"], batch_img_metas[0])
        return [InstanceData(bboxes=part) for part in boxes.chunk(len(batch_img_metas))]


class FCNMaskHead(roi_heads.FCNMaskHead):
    def _predict_by_feat_single(
        self,
        mask_preds: Tensor,  # [K, classes, h, w]
        bboxes: Tensor,
        labels: Tensor,
        img_meta: dict,
        rcnn_test_cfg: ConfigDict,
        rescale: bool = False,
        activate_map: bool = False,
    ) -> Tensor:
        """Return probabilities [K, h, w], to be pasted later."""
        masks = of_class(mask_preds, labels)[:, 0]
        return masks if activate_map else masks.sigmoid()


class MaskIoUHead(roi_heads.MaskIoUHead):
    def predict_by_feat(self, mask_iou_preds: list[Tensor], results_list: list) -> list:
        """Multiply scores by IoUs, without a range up to the number of rows."""
        for results, ious in zip(results_list, mask_iou_preds, strict=True):
            results.scores = scaled(results.scores, of_class(ious, results.labels)[:, 0])
        return results_list


class SingleRoIExtractor(roi_heads.SingleRoIExtractor):
    def forward(
        self,
        feats: tuple[Tensor, ...],
        rois: Tensor,  # [K, 5], (image, x1, y1, x2, y2)
        roi_scale_factor: float | None = None,
    ) -> Tensor:
        """Pool from a pyramid. ``roi_scale_factor`` does not change an RoI's level."""
        layer, finest = self.roi_layers[0], float(self.finest_scale)
        if roi_scale_factor is not None and len(feats) > 1:
            rois, finest = self.roi_rescale(rois, roi_scale_factor), finest * roi_scale_factor
        scales, size = [each.spatial_scale for each in self.roi_layers], list(layer.output_size)
        sampling = (layer.sampling_ratio, layer.pool_mode, layer.aligned)
        return roi_align_pyramid(list(feats), rois, scales[: len(feats)], size, finest, *sampling)


class RoIAlign(mmcv_ops.RoIAlign):
    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        sampling = (self.sampling_ratio, self.pool_mode, self.aligned)
        return roi_align_pyramid([input], rois, [self.spatial_scale], list(self.output_size), 1.0, *sampling)


class SimpleRoIAlign(mmcv_ops.SimpleRoIAlign):
    def forward(self, features: Tensor, rois: Tensor) -> Tensor:  # [K, C, h, w]
        """Sample without a loop over the images that have RoIs."""
        grid = generate_grid(rois.shape[0], self.output_size, rois.device)
        points = mmcv_ops.rel_roi_point_to_rel_img_point(rois, grid, features, self.spatial_scale)
        sampled = sample_points(features, rois[:, 0].long(), points, not self.aligned)
        return sampled.unflatten(2, self.output_size)


def placed(
    masks: Tensor, index: Sequence[Tensor], size: Sequence[int]
) -> Tensor:  # [D, h, w] -> [N, K, h, w]
    """Return masks at their images and rows, and zeros elsewhere."""
    image, row = index
    # as rows of a matrix: MNN writes wrong values where ScatterND writes whole masks
    rows = masks.new_zeros(size[0] * size[1], masks.shape[1] * masks.shape[2])
    rows = rows.index_put((image * size[1] + row,), masks.flatten(1))
    return rows.unflatten(0, (-1, size[1])).unflatten(2, masks.shape[1:])


def sample_points(
    features: Tensor,  # [N, C, H, W]
    image: Tensor,  # [K]
    points: Tensor,  # [K, P, 2], (x, y) between 0 and 1
    align_corners: bool = False,
) -> Tensor:  # [K, C, P]
    """Sample points of images, bilinearly and with zeros outside, as ``point_sample`` does for one image."""
    if features.shape[0] == 1:
        sampled = mmcv_ops.point_sample(features, points[None], align_corners=align_corners)
        return sampled[0].transpose(0, 1)
    height, width = features.shape[2:]
    size = tensor_of([width, height], dtype=points.dtype)
    place = points * (size - 1) if align_corners else points * size - 0.5
    first, rows = place.floor(), features.permute(0, 2, 3, 1).flatten(0, 2)
    total: Any = 0
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corner = first + points.new_tensor(step)
        weight = (1 - (place - corner).abs()).prod(-1)
        is_inside = ((corner >= 0) & (corner < size)).all(-1)
        x, y = torch.minimum(corner.clamp(min=0), size - 1).long().unbind(-1)
        values = rows[(image[:, None] * height + y) * width + x]
        total = total + values * torch.where(is_inside, weight, 0)[..., None]
    return total.transpose(1, 2)
