"""RoI heads, for the images of a batch at once."""

from typing import Any

import torch
from mmcv import ops as mmcv_ops
from mmdet.models import roi_heads
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from dcnzoo.export.fixed_size import roi_align_pyramid
from dcnzoo.openmmlab.export.suppress import of_class


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
    masks = of_class(mask_preds, labels)[:, 0]
    return masks if activate_map else masks.sigmoid()


def pool(
    extractor: Any,  # SingleRoIExtractor
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


def align(self: mmcv_ops.RoIAlign, input: Tensor, rois: Tensor) -> Tensor:
    """Replace ``RoIAlign.forward``."""
    sampling = (self.sampling_ratio, self.pool_mode, self.aligned)
    return roi_align_pyramid([input], rois, [self.spatial_scale], list(self.output_size), 1.0, *sampling)
