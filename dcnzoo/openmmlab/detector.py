"""Build detectors and load their weights."""

from __future__ import annotations

import os

import torch

import dcnzoo.openmmlab.models  # noqa: F401  registers classes; before mmdet, which needs mmcv.ops

# isort: split
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

from dcnzoo.openmmlab.checkpoints import class_names
from dcnzoo.openmmlab.config_check import datasets, declared_metainfo
from dcnzoo.openmmlab.runner import read_config_file
from dcnzoo.openmmlab.weights import load_weights
from dcnzoo.utils.errors import UserError, printable


def require_device(name: str) -> torch.device:
    """Raise UserError unless torch can use the device."""
    count = torch.cuda.device_count()
    gpus = f"or a GPU from cuda:0 to cuda:{count - 1}" if count else "(torch detects no GPU)"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.type == "cuda" and (device.index or 0) >= count):
        raise UserError(f"--device: expected cpu {gpus}, got {name}")
    return device


def read_config(path: str | os.PathLike) -> Config:
    """Read a config file and add dcnzoo to its ``custom_imports``."""
    cfg = read_config_file(path)
    imports = cfg.get("custom_imports") or {"imports": []}
    if "dcnzoo.models" not in imports["imports"]:
        cfg.custom_imports = {**imports, "imports": [*imports["imports"], "dcnzoo.models"]}
    return cfg


def build(
    cfg: Config, checkpoint: str | os.PathLike, unsafe_load: bool = False, allow_partial: bool = False
) -> tuple[nn.Module, dict]:
    """Build the config's model in evaluation mode with a checkpoint's weights; also return its ``meta``."""
    cfg.model.pop("teacher_ckpt", None)  # the teacher is used only in training
    init_default_scope(cfg.get("default_scope", "mmdet"))  # stays: inference_detector needs it too
    detector = revert_sync_batchnorm(MODELS.build(cfg.model))
    meta, report = load_weights(detector, checkpoint, unsafe_load, allow_partial)
    if report:
        print_log(f"{checkpoint}: {report}", logger="current")
    detector.cfg = cfg
    return detector.eval(), meta


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
