"""RoI heads, for the images of a batch at once."""

from typing import Any

import torch
import torch.nn.functional as F
from mmcv import ops as mmcv_ops
from mmcv.ops.point_sample import generate_grid
from mmdet.models import roi_heads
from mmdet.models.roi_heads import point_rend_roi_head
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from dcnzoo.export.fixed_size import roi_align_pyramid
from dcnzoo.openmmlab.export.nms import of_class
from dcnzoo.openmmlab.export.symbolic_sizes import tensor_of


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


def sample_rois(self: mmcv_ops.SimpleRoIAlign, features: Tensor, rois: Tensor) -> Tensor:  # [K, C, h, w]
    """Replace ``SimpleRoIAlign.forward``, which loops over the images that have RoIs."""
    grid = generate_grid(rois.shape[0], self.output_size, rois.device)
    points = mmcv_ops.rel_roi_point_to_rel_img_point(rois, grid, features, self.spatial_scale)
    sampled = sample_points(features, rois[:, 0].long(), points, not self.aligned)
    return sampled.unflatten(2, self.output_size)


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


def refine_masks(
    self: roi_heads.PointRendRoIHead,
    x: list[Tensor],
    rois: Tensor,
    label_preds: Tensor,
    mask_preds: Tensor,  # [K, classes, h, w]
) -> Tensor:  # [K, 1, H, W]
    """Replace ``PointRendRoIHead._mask_point_forward_test``. Refine only the mask of each box's class."""
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


def predict_refined(
    self: roi_heads.PointRendRoIHead,
    x: tuple[Tensor],
    batch_img_metas: list[dict],
    results_list: list,
    rescale: bool = False,
) -> list:
    """Replace ``PointRendRoIHead.predict_mask``, which loops over the images."""
    (results,) = results_list
    rois = point_rend_roi_head.bbox2roi([results.bboxes])
    masks = self._mask_forward(x, rois)["mask_preds"]
    masks = self._mask_point_forward_test(x, rois, results.labels, masks)
    return self.mask_head.predict_by_feat([masks], [results], batch_img_metas, self.test_cfg, rescale)


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
