"""Compute a config that trains a published detector on your own data.

:func:`plan` computes each setting from the config as it was read, and refuses what cannot be trained; it
writes nothing. :mod:`dcnzoo.zoo.config_reader` answers its questions; :mod:`dcnzoo.zoo.own_data` chooses the
model, and writes the files of a plan.
"""

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from dcnzoo.data.dataset import Dataset, require_masks
from dcnzoo.openmmlab.classes import set_number
from dcnzoo.openmmlab.config.check import check_config
from dcnzoo.openmmlab.config.paths import below, text_of
from dcnzoo.openmmlab.config.read import merge_options
from dcnzoo.openmmlab.config.tree import LOADERS, RUNNER_KEYS, class_of, dicts, set_annotation_file
from dcnzoo.openmmlab.datasets.coco import CocoMetric
from dcnzoo.openmmlab.runs.epochs import set_epochs
from dcnzoo.openmmlab.runs.options import main_metric
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe, read_config_file
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import require_writable
from dcnzoo.utils.text import few
from dcnzoo.zoo.config_reader import (
    EXTRA,
    FLIPPING,
    dataset_of,
    flips_in,
    has_size,
    number_of_classes,
    resizes_of,
    uses_masks,
)
from dcnzoo.zoo.source import resolve

HEAD = """\
# Written by `dcnzoo train --data`: all settings of {}, with the data.
# Paths are relative to this file.
"""
BOXES = "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco"
MASKS = "mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco"
# these train on a CPU within minutes
SMALL_BOXES = "faster-rcnn_r14-mdconv_fpn_10e_shapes-320"
SMALL_MASKS = "mask-rcnn_r14-mdconv_fpn_10e_shapes-320"
STAGES = ("train", "val", "test")
OF_ONE_RUN = {"work_dir", "resume", "launcher"}  # settings of the base that do not count for another training
IMPORTS = ["dcnzoo.models", "dcnzoo.openmmlab.hooks", "dcnzoo.openmmlab.datasets"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A model, and what a training on own data changes in its config. None: nothing.

    Attributes:
        model: as for :func:`dcnzoo.train`.
        epochs: of the training; the schedules are scaled.
        val_interval: the epochs from one validation to the next.
        size: the longer side of resized pictures.
        flip: False removes the flips of the config; True keeps them.
        scale_lr: whether the learning rate is scaled by the batch size, as by ``auto_scale_lr``.
    """

    model: str
    epochs: int | None = None
    val_interval: int | None = None
    size: int | None = None
    flip: bool = True
    scale_lr: bool = False


@dataclass(frozen=True)
class Plan:
    """A training on own data, of which nothing is written yet.

    Attributes:
        splits: the data of ``train``, ``val`` and perhaps ``test``.
        work_dir: its folder ``data`` will have ``train.json``, …, and the config.
        base: the name of the model.
        source: the model's config.
        config: all settings, with absolute paths.
        own: folders to which the written config has relative paths.
    """

    splits: Mapping[str, Dataset]
    work_dir: Path
    base: str
    source: Path
    config: Config
    own: tuple[str, ...]

    def recipe(self, cfg_options: Mapping[str, object] | None) -> Recipe:
        """Return what a training will read, with these settings; raise UserError as :meth:`Recipe.read`."""
        cfg = copy.deepcopy(self.config)
        merge_options(cfg, cfg_options, self.base)
        check_config(cfg, self.base, TRAINING)
        return Recipe(cfg, cfg_options=cfg_options or {})

    def text(self) -> str:
        """Return the text of the config."""
        settings = below(self.config.to_dict(), _folder_of(self.work_dir), self.own)
        return HEAD.format(self.base) + text_of(Config(settings))


def plan(splits: Mapping[str, Dataset], choice: Choice, work_dir: Path) -> Plan:
    """Compute the config of a training on data that has been read.

    Raises:
        UserError: the model is unknown; it does not read or evaluate COCO files; it learns from masks, and an
            object has none; a size is chosen, and the model does not resize pictures in one step; or the
            work directory cannot be written.
    """
    require_writable(work_dir)
    base, folder = _read_base(choice), _folder_of(work_dir)
    if uses_masks(base.config):
        remedy = f"{BOXES} or, on a CPU, {SMALL_BOXES} needs none"
        require_masks(splits.values(), f", since {base.name} learns from masks", remedy)
    config = Config(_settings(base, splits, folder, choice))
    check_config(config, base.name)
    own = [str(folder), *(os.path.realpath(split.folder) for split in splits.values())]
    if base.own_weights:
        own.append(os.path.dirname(base.own_weights))
    # relative, if both are below the same top-level folder
    beside = tuple(each for each in own if Path(each).parts[:2] == folder.parts[:2])
    return Plan(splits, work_dir, base.name, base.source, config, beside)


def _folder_of(work_dir: Path) -> Path:
    return Path(os.path.realpath(work_dir), "data")


def with_data(config: Mapping, stage: str, source: Path, image_folder: Path) -> dict[str, Any]:
    """Return the loader of a stage (train, val or test), and its evaluator, with other data.

    Args:
        source: the COCO file.

    Raises:
        UserError: the config does not read or evaluate COCO files.
    """
    loader, evaluator = f"{stage}_dataloader", f"{stage}_evaluator"
    settings = {loader: copy.deepcopy(config[loader])}
    dataset = dataset_of(settings, loader)
    images = {"img": os.path.join(os.path.realpath(image_folder), "")}
    dataset.update({**EXTRA[class_of(dataset)], "data_root": "", "data_prefix": images})
    set_annotation_file(source, dataset)
    if stage != "train":
        metric = settings[evaluator] = copy.deepcopy(config.get(evaluator))
        if not isinstance(metric, Mapping) or class_of(metric) is not CocoMetric:
            raise UserError(f"{evaluator}: expected a CocoMetric, got {metric}")
        set_annotation_file(source, metric)
    return settings


def schedules_for(config: Mapping, count: int) -> Any:
    """Return a config's schedules for a training on this number of pictures.

    A warm-up ends after at most a tenth of the iterations: COCO's is longer than a small training. The config
    is written for its own epochs and batch size; a training with other ones asks again.
    """
    schedules = copy.deepcopy(config.get("param_scheduler"))
    epochs, batch_size = config["train_cfg"].get("max_epochs"), config["train_dataloader"].get("batch_size")
    for _, node in dicts(schedules) if epochs and batch_size else ():
        if node.get("type") == "LinearLR" and node.get("by_epoch") is False and node.get("end"):
            # mmengine's LinearLR of one iteration never leaves its first factor
            node["end"] = min(node["end"], max(2, epochs * math.ceil(count / batch_size) // 10))
    return schedules


class _Base(NamedTuple):
    """A model: its name, its file, and its config with the chosen number of epochs.

    Its weights are ``own_weights``, a file of the user, or ``published`` ones; each may be empty.
    """

    name: str
    source: Path
    config: Config
    own_weights: str
    published: str


def _read_base(choice: Choice) -> _Base:
    """Read a model's config. Without weights of its own, a config file has those of its ``load_from``."""
    source, name = resolve(choice.model), choice.model
    if source.entry and not os.path.exists(name):
        name = source.entry.id
    config, weights = read_config_file(source.config), source.weights
    for key in ("model", "train_cfg", *LOADERS):
        if key not in config:
            raise UserError(f"model: {name}: expected a config with {key}, found none")
    if not source.has_weights and os.path.isfile(config.get("load_from") or ""):
        weights = Path(config.load_from)
    if choice.epochs is not None:
        set_epochs(config, choice.epochs)
    return _Base(name, source.config, config, os.path.realpath(weights) if weights else "", source.published)


def _settings(base: _Base, splits: Mapping[str, Dataset], folder: Path, choice: Choice) -> dict[str, Any]:
    """Return all settings. Each value depends only on the arguments, which do not change."""
    config, train = base.config, splits["train"]
    kept = {key: config[key] for key in RUNNER_KEYS - OF_ONE_RUN if key in config}  # without its variables
    hooks = kept.get("default_hooks") or {}
    best = {"save_best": main_metric(config), "rule": "greater"}
    new = {
        "model": _network(base, len(train.classes)),
        "custom_imports": _imports_of(config),
        "default_hooks": {**hooks, "checkpoint": {**(hooks.get("checkpoint") or {}), **best}},
        "param_scheduler": schedules_for(config, len(train.pictures)),
    }
    if weights := base.own_weights or base.published:
        new["load_from"] = weights
    if choice.scale_lr:
        new["auto_scale_lr"] = {**(config.get("auto_scale_lr") or {}), "enable": True}
    if choice.val_interval is not None:
        new["train_cfg"] = {**config.train_cfg, "val_interval": choice.val_interval}
    for stage in STAGES:
        new |= _data_of(base, stage, splits, folder, choice.size)
    settings = {**kept, **new}
    if not choice.flip:
        settings |= {key: _without_flips(settings[key]) for key in FLIPPING if key in settings}
    return settings


def _data_of(
    base: _Base, stage: str, splits: Mapping[str, Dataset], folder: Path, size: int | None
) -> dict[str, Any]:
    """Return the loader and the evaluator of a stage, whose COCO file is in ``folder``."""
    name, loader = stage if stage in splits else "val", f"{stage}_dataloader"
    settings = with_data(base.config, stage, folder / f"{name}.json", splits[name].folder)
    dataset = dataset_of(settings, loader)
    dataset.metainfo = {"classes": tuple(splits[name].classes)}
    if stage == "train":
        dataset.filter_cfg = {"filter_empty_gt": False}  # learns from empty ones, too
    else:
        settings[loader].batch_size = 1  # as in the prediction of one picture: padding changes detections
    if size is not None:
        if not has_size(settings, loader):
            got = few([step["type"] for step in dataset.pipeline], 9)
            raise UserError(f"size: expected one step Resize in {loader}, got {got}")
        resizes_of(settings, loader)[0].update(scale=(size, size), keep_ratio=True)
    return settings


def _network(base: _Base, classes: int) -> dict:
    """Return the model for a number of classes. The weights of the base replace those that its parts load."""
    network = base.config.model.to_dict()
    set_number(network, number_of_classes(base.config, base.name), classes)
    for _, node in dicts(network) if base.own_weights or base.published else ():
        if isinstance(node.get("init_cfg"), Mapping) and node["init_cfg"].get("type") == "Pretrained":
            node["init_cfg"] = None
        if node.get("pretrained"):
            node["pretrained"] = None
    return network


def _imports_of(config: Config) -> dict[str, Any]:
    """Return the ``custom_imports`` of a config, with dcnzoo's modules before its own."""
    own = config.get("custom_imports") or {}
    names = own.get("imports") or []  # a name, or several
    modules = [*IMPORTS, *([names] if isinstance(names, str) else names)]
    return {
        "imports": [*dict.fromkeys(modules)],
        "allow_failed_imports": own.get("allow_failed_imports", False),
    }


def _without_flips(part: Any) -> Any:
    """Return a copy of a part of a config that flips no picture."""
    part = copy.deepcopy(part)
    for step in flips_in(part):
        step["prob"] = 0.0
    return part
