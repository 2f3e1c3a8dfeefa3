"""Test-time augmentation: the detections of an image and of its mirror image, merged."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv import transforms
from mmcv.ops import batched_nms
from mmdet.datasets import transforms as mmdets
from mmdet.models import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData

from dcnzoo.openmmlab.config.tree import class_of, inner_data_sets
from dcnzoo.utils.errors import UserError

TTA_MODEL = {
    "type": "InstanceTTAModel",
    "tta_cfg": {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100},
}
_BEFORE_FLIP = (  # the steps that load pixels or resize
    *(transforms.LoadImageFromFile, mmdets.LoadMultiChannelImageFromFiles, mmdets.ResizeShortestEdge),
    *(transforms.Resize, transforms.RandomResize, transforms.RandomChoiceResize),
)
_BEHIND_FLIP = (transforms.Pad, transforms.CenterCrop, mmdets.RandomCrop, mmdets.RandomCenterCropPad)
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
    """Wrap the model and the test pipelines. The config's ``tta_*`` settings take precedence.

    Raises:
        UserError: a test pipeline has no place for a flip.
    """
    for dataset in inner_data_sets(cfg.test_dataloader.dataset):
        dataset.pipeline = cfg.get("tta_pipeline") or _with_mirrored_view(dataset.pipeline)
    model = cfg.get("tta_model", TTA_MODEL)
    if model["type"] == "DetTTAModel":
        model["type"] = "InstanceTTAModel"  # the same, but it merges masks too
    cfg.model = ConfigDict(**model, module=cfg.model)


def _with_mirrored_view(pipeline: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return a test pipeline with a flip directly behind the last step that loads pixels or resizes.

    Later steps process each view: boxes are mirrored back at the width of the picture without padding.
    ``LoadAnnotations`` is one of them, as the truth is not mirrored.

    Raises:
        UserError: no step loads pixels or resizes, or a step before the last of them pads or crops.
    """
    kinds = [class_of(step) or object for step in pipeline]
    end = max((n for n, kind in enumerate(kinds, 1) if issubclass(kind, _BEFORE_FLIP)), default=0)
    before, behind = list[Mapping[str, Any]](), list[Mapping[str, Any]]()
    for number, (step, kind) in enumerate(zip(pipeline, kinds, strict=True)):
        if number < end and issubclass(kind, _BEHIND_FLIP):
            last = pipeline[end - 1]["type"]
            raise UserError(f"tta: expected {step['type']} behind {last} in the test pipeline, got it before")
        is_before = number < end and not issubclass(kind, transforms.LoadAnnotations)
        (before if is_before else behind).append(step)
    if not before:
        raise UserError(
            "tta: expected a test pipeline that loads pictures or resizes; tta_pipeline replaces it"
        )
    if "meta_keys" in behind[-1]:
        behind[-1] = {**behind[-1], "meta_keys": (*behind[-1]["meta_keys"], "flip", "flip_direction")}
    flips = [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]
    return [*before, {"type": "TestTimeAug", "transforms": [flips, *([step] for step in behind)]}]
