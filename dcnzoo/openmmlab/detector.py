"""Build detectors, load their weights, and detect objects with them."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch

import dcnzoo.openmmlab.models  # noqa: F401  registers classes; before mmdet, which needs mmcv.ops

# isort: split
from mmcv.transforms import Compose
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn

from dcnzoo.export.detector import BaseDetector
from dcnzoo.export.picture import Detections
from dcnzoo.openmmlab.checkpoints import class_names
from dcnzoo.openmmlab.config_check import datasets, declared_metainfo, dicts
from dcnzoo.openmmlab.datasets.images import resizing
from dcnzoo.openmmlab.weights import load_weights
from dcnzoo.utils.errors import UserError, printable


def require_device(name: str) -> torch.device:
    """Return the device; for ``auto`` a GPU if torch detects one, else the CPU.

    Raises:
        UserError: torch cannot use the device.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    gpus = f"or a GPU from cuda:0 to cuda:{count - 1}" if count else "(torch detects no GPU)"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.type == "cuda" and (device.index or 0) >= count):
        raise UserError(f"--device: expected auto, cpu {gpus}, got {name}")
    return device


def build(
    cfg: Config,
    checkpoint: str | os.PathLike | None = None,
    *,
    device: str = "cpu",
    unsafe_load: bool = False,
    allow_partial: bool = False,
) -> nn.Module:
    """Build the config's model in evaluation mode. Everything but MMEngine's runners uses this function.

    Args:
        checkpoint: a file with its weights; None: random weights.
        device, unsafe_load, allow_partial: see :func:`dcnzoo.load`.

    Returns:
        The model, with the attributes ``cfg`` and, if it has weights, ``dataset_meta``: the names and colours
        of its classes.
    """
    place = require_device(device)
    if "model" not in cfg:
        raise UserError(f"{cfg.filename}: expected a config with a model, found none")
    for _, node in dicts(cfg.model):
        node.pop("teacher_ckpt", None)  # the teacher is used only in training
    imports = cfg.get("custom_imports") or {"imports": []}
    if "dcnzoo.models" not in imports["imports"]:  # for programs that read a dump of the config
        cfg.custom_imports = {**imports, "imports": [*imports["imports"], "dcnzoo.models"]}
    init_default_scope(cfg.get("default_scope", "mmdet"))  # stays: inference_detector needs it too
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    if checkpoint is not None:
        meta, report = load_weights(model, checkpoint, unsafe_load, allow_partial)
        if report:
            print_log(f"{checkpoint}: {report}", logger="current")
        model.dataset_meta = dataset_meta(cfg, meta)
    model.cfg = cfg
    return model.eval().to(place)


class Detector(BaseDetector):
    """A detector of MMDetection for pictures, which runs the config's test pipeline.

    Args:
        model: from :func:`build`.
        channels_last: see :func:`dcnzoo.load`.
    """

    def __init__(self, model: nn.Module, score_threshold: float = 0.3, channels_last: bool = True) -> None:
        self.model, self.score_threshold = model, score_threshold
        self.classes = tuple(getattr(model, "dataset_meta", {}).get("classes") or ())
        self.device = str(next(model.parameters()).device)
        if channels_last and self.device == "cpu":
            model.to(memory_format=torch.channels_last)

    @functools.cached_property
    def _pipeline(self) -> Callable[[dict], dict]:
        steps = copy.deepcopy(get_test_pipeline_cfg(self.model.cfg))
        steps[0].type = "mmdet.LoadImageFromNDArray"
        return Compose(steps)

    def prepare(self, picture: np.ndarray, path: str = "") -> dict:
        """Run the test pipeline on a picture, [H, W, 3], uint8, BGR; ``path`` is for messages."""
        with resizing(path or "image", picture):
            return self._pipeline({"img": picture, "img_id": 0})

    def _detect(self, inputs: Sequence[dict], threshold: float) -> list[Detections]:
        with torch.no_grad():
            samples = self.model.test_step(pseudo_collate(inputs))
        return [to_detections(instances_of(sample), threshold) for sample in samples]


def instances_of(sample: BaseDataElement) -> InstanceData:
    """Return a sample's ``pred_instances``.

    Raises:
        UserError: the model detects no objects.
    """
    if "pred_instances" not in sample:
        raise UserError(f"model: expected a detector, got a model that predicts {', '.join(sample.keys())}")
    return sample.pred_instances


def to_detections(instances: InstanceData, threshold: float) -> Detections:
    """Convert ``pred_instances`` with at least this score."""
    instances = instances[instances.scores >= threshold].cpu()
    boxes = getattr(instances.bboxes, "tensor", instances.bboxes)
    masks = instances.masks.numpy().astype(bool) if "masks" in instances else None
    return Detections(boxes.numpy(), instances.scores.numpy(), instances.labels.numpy(), masks)


def dataset_meta(cfg: Config, meta: dict) -> dict:
    """Return names and colours of the classes: from the checkpoint if it has them, else from the data set."""
    found = class_names(meta)
    known = metainfo(cfg.get("test_dataloader", {}).get("dataset", {}))
    if found.get("classes"):
        found["classes"] = tuple(printable(str(name)) for name in found["classes"])
    found = {**known, **{key: value for key, value in found.items() if value is not None}}
    return {**found, "palette": found.get("palette") or "random"}


def metainfo(dataset: dict) -> dict:
    """Return a data set's metainfo, if possible without building it: that may read or generate files."""
    dataset = next(datasets(dataset))
    found = declared_metainfo(dataset)
    if found.get("classes") or DATASETS.get(dataset.get("type", "")) is None:
        return found
    return DATASETS.build({**dataset, "lazy_init": True}).metainfo  # this class reads its classes from a file
