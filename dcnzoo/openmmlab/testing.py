"""Evaluation from the command line, of a detector's checkpoint or of an ONNX file."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from mmcv.ops import batched_nms
from mmdet.models import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.runner import Runner
from mmengine.structures import InstanceData

import dcnzoo.openmmlab.export.deployed  # noqa: F401  registers DeployedDetector
from dcnzoo.openmmlab.config_check import datasets

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
        masks = torch.cat(
            [
                view.masks.flip(_AXES[meta["flip_direction"]]) if meta["flip"] else view.masks
                for view, meta in zip(views, metas, strict=True)
            ]
        )
        detections, keep = batched_nms(boxes, scores, labels, self.tta_cfg.nms)
        detections = detections[: self.tta_cfg.max_per_img]
        keep = keep[: self.tta_cfg.max_per_img]
        merged.pred_instances = InstanceData(
            bboxes=detections[:, :4], scores=detections[:, 4], labels=labels[keep], masks=masks[keep]
        )
        return merged


def use_test_time_augmentation(cfg: Config) -> None:
    """Wrap the model and the test pipeline. The config's ``tta_*`` settings take precedence."""
    parts = list(datasets(cfg.test_dataloader.dataset))
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


def use_onnx_file(cfg: Config, path: str, backend: str | None, device: str) -> None:
    """Replace the model by an ONNX file that was exported from it."""
    cfg.model = dict(
        type="DeployedDetector",
        path=str(Path(path).resolve()),
        backend=backend,
        device=device,
        data_preprocessor=cfg.model.data_preprocessor,
    )


def draw_detections(cfg: Config, folder: str, threshold: float | None) -> None:
    """Draw detections above a score threshold (default: the config's, else 0.3) into a folder."""
    drawing = dict(cfg.default_hooks.get("visualization") or {"type": "DetVisualizationHook"})
    # absolute: mmdet prepends the work directory to a relative one, once per iteration
    drawing.update(draw=True, test_out_dir=str(Path(folder).resolve()))
    if threshold is not None:
        drawing["score_thr"] = threshold
    cfg.default_hooks.visualization = drawing


def claim_drawings(runner: Runner, folder: str, claim: Callable[[Path], Path]) -> None:
    """Check that the drawings replace no other files; see :func:`dcnzoo.utils.files.output_files`."""
    dataset = runner.test_dataloader.dataset
    if is_main_process():  # another process may have started to draw
        for index in range(len(dataset)):
            claim(Path(folder, Path(dataset.get_data_info(index)["img_path"]).name))


def set_evaluator(
    cfg: Config, metrics: Sequence[str], options: dict, out: Path | None, format_only: bool
) -> None:
    """Write the options of an evaluation into the config; ``out`` is a JSON file in COCO's format."""
    for evaluator in cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]:
        if metrics:
            evaluator.metric = list(metrics)
        evaluator.update(options)
        if out is not None:
            evaluator.update(format_only=format_only, outfile_prefix=str(out.with_suffix("")))
