"""From a name to a detector with weights."""

from __future__ import annotations

import os
from pathlib import Path

import dcnzoo.openmmlab.models  # noqa: F401  registers what configs name; before mmdet, which needs mmcv.ops

# isort: split
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

from dcnzoo.cli._config import read_config_file
from dcnzoo.openmmlab.weights import load_weights
from dcnzoo.utils.errors import UserError, user_errors
from dcnzoo.utils.fetch import fetch
from dcnzoo.zoo.index import Model, find


def read_config(model: Model | Path) -> Config:
    """The config of a model, or in a file, which also says that dcnzoo is to be imported."""
    cfg = read_config_file(model.config if isinstance(model, Model) else model)
    imports = cfg.get("custom_imports") or {"imports": []}
    if "dcnzoo.models" not in imports["imports"]:
        cfg.custom_imports = {**imports, "imports": [*imports["imports"], "dcnzoo.models"]}
    return cfg


def load(
    name: str,
    *,
    checkpoint: str | os.PathLike | None = None,
    device: str = "cpu",
    trust: bool = False,
    cfg_options: dict | None = None,
    allow_partial: bool = False,
) -> nn.Module:
    """A detector with its published weights, ready for ``mmdet.apis.inference_detector``.

    Args:
        name: as for :func:`dcnzoo.zoo.find`, or a config file, ``configs/mine.py``.
        checkpoint: a file with weights to take instead of the published ones; a config file needs one.
        trust: read a checkpoint that holds more than weights, which **runs whatever code is in it**.
        cfg_options: settings to override, ``{"model.test_cfg.rcnn.score_thr": 0.3}``.
        allow_partial: load what fits of a checkpoint that does not fit the model.

    Raises:
        UserError: no such model, no weights, a failed download, a checkpoint that does not fit.
    """
    model = Path(name) if is_config_file(name) else find(name)
    if checkpoint is None:
        if isinstance(model, Path):
            raise UserError(f"checkpoint: expected a file with weights for {name}, got none")
        checkpoint = fetch(model.only_weights())
    elif not Path(checkpoint).is_file():
        raise UserError(f"checkpoint: expected a file, found none at {checkpoint}")
    with user_errors():
        cfg = read_config(model)
        cfg.merge_from_dict(cfg_options or {})
        if "model" not in cfg:
            raise UserError(f"{name}: expected a config with a model, found none")
        detector, meta = build(cfg, checkpoint, trust, allow_partial)
        detector.dataset_meta = dataset_meta(cfg, meta)
    return detector.to(device)


def is_config_file(name: str) -> bool:
    """Whether a file is meant, and not a model's name, with or without ``.py``.

    Raises:
        UserError: a file is meant, and there is none.
    """
    path = Path(name)
    if "::" in name or path.suffix != ".py":
        return False
    if not path.is_file() and len(path.parts) > 1:
        raise UserError(f"model: expected a config file, found none at {name}")
    return path.is_file()


def build(
    cfg: Config, checkpoint: str | os.PathLike, trust: bool = False, allow_partial: bool = False
) -> tuple[nn.Module, dict]:
    """The config's model in evaluation mode, with the file's weights; and the file's ``meta``."""
    cfg.model.pop("teacher_ckpt", None)  # teaches in training only
    init_default_scope(cfg.get("default_scope", "mmdet"))  # stays: inference_detector builds from it too
    detector = revert_sync_batchnorm(MODELS.build(cfg.model))
    meta, report = load_weights(detector, checkpoint, trust, allow_partial)
    if report:
        print_log(f"{checkpoint}: {report}", logger="current")
    detector.cfg = cfg
    return detector.eval(), meta


def dataset_meta(cfg: Config, meta: dict) -> dict:
    """Names and colours of the classes: the checkpoint's if it has them, else the data set's."""
    found = {key.lower(): value for key, value in meta.get("dataset_meta", {}).items()}
    if "CLASSES" in meta:  # MMDetection 2.x
        found = {"classes": meta["CLASSES"], "palette": meta.get("PALETTE")}
    known = _metainfo(cfg.test_dataloader.dataset)
    if found.get("classes"):
        found["classes"] = tuple(map(_printable, found["classes"]))
    found = {**known, **{key: value for key, value in found.items() if value is not None}}
    return {**found, "palette": found.get("palette") or "random"}


def _metainfo(dataset: dict) -> dict:
    """What a data set says of its classes, without building it: that may read files, or generate them."""
    while "dataset" in dataset or "datasets" in dataset:  # RepeatDataset, ConcatDataset
        dataset = dataset["dataset"] if "dataset" in dataset else dataset["datasets"][0]
    found = DATASETS.get(dataset["type"])._load_metainfo(dataset.get("metainfo"))
    if found.get("classes"):
        return found
    return DATASETS.build({**dataset, "lazy_init": True}).metainfo  # reads them from a file of its own


def _printable(name: object) -> str:
    """A file's text on its way to terminals: without what moves a cursor or sets a title."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(name))
