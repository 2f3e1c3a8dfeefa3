"""Test-time augmentation: the detections of an image and of its mirror image, merged."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from mmcv.ops import batched_nms
from mmdet.models import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData

from dcnzoo.openmmlab.config.tree import inner_data_sets

TTA_MODEL = {
    "type": "InstanceTTAModel",
    "tta_cfg": {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100},
}
TTA_META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")

_AXES = {"horizontal": (-1,), "vertical": (-2,), "diagonal": (-2, -1)}


@MODELS.register_module()
class InstanceTTAModel(DetTTAModel):
    """MMDetection's ``DetTTAModel``, which supports only boxes, extended to masks.

    The boxes of all views are mapped back to the image and go through one NMS. Each remaining box keeps the
    mask of its view.
    """

    def _merge_single_sample(self, data_samples: Sequence[DetDataSample]) -> DetDataSample:
        views = [sample.pred_instances for sample in data_samples]
        if "masks" not in views[0]:
            return super()._merge_single_sample(data_samples)
        metas = [sample.metainfo for sample in data_samples]
        boxes, scores = self.merge_aug_bboxes(
            [view.bboxes for view in views], [view.scores for view in views], metas
        )
        merged = data_samples[0]
        if len(boxes) == 0:
            return merged
        labels = torch.cat([view.labels for view in views])
        axes = [_AXES[meta["flip_direction"]] if meta["flip"] else () for meta in metas]
        masks = torch.cat([view.masks.flip(axis) for view, axis in zip(views, axes, strict=True)])
        detections, keep = batched_nms(boxes, scores, labels, self.tta_cfg.nms)
        detections, keep = (part[: self.tta_cfg.max_per_img] for part in (detections, keep))
        merged.pred_instances = InstanceData(
            bboxes=detections[:, :4], scores=detections[:, 4], labels=labels[keep], masks=masks[keep]
        )
        return merged


def use_test_time_augmentation(cfg: Config) -> None:
    """Wrap the model and the test pipeline. The config's ``tta_*`` settings take precedence."""
    parts = list(inner_data_sets(cfg.test_dataloader.dataset))
    if "tta_pipeline" not in cfg:
        flips = [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]
        pack = {"type": "PackDetInputs", "meta_keys": TTA_META_KEYS}
        cfg.tta_pipeline = deepcopy(parts[0].pipeline)
        cfg.tta_pipeline[-1] = {"type": "TestTimeAug", "transforms": [flips, [pack]]}
    for dataset in parts:
        dataset.pipeline = cfg.tta_pipeline
    model = cfg.get("tta_model", TTA_MODEL)
    if model["type"] == "DetTTAModel":
        model["type"] = "InstanceTTAModel"  # the same, but it merges masks too
    cfg.model = ConfigDict(**model, module=cfg.model)
