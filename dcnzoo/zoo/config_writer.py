"""Write a config that trains a published detector on your own data.

:func:`write_settings` computes each setting from the config as it was read, and writes all of them at once.
:mod:`dcnzoo.zoo.config_reader` answers its questions; :mod:`dcnzoo.zoo.own_data` chooses the model.
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
from dcnzoo.openmmlab.config.paths import portable, text_of
from dcnzoo.openmmlab.config.tree import LOADERS, RUNNER_KEYS, dicts
from dcnzoo.openmmlab.runs.epochs import set_epochs
from dcnzoo.openmmlab.runs.options import main_metric
from dcnzoo.openmmlab.runs.recipe import read_config_file
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import replacing
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
    """

    model: str
    epochs: int | None = None
    val_interval: int | None = None
    size: int | None = None
    flip: bool = True


def write_settings(splits: Mapping[str, Dataset], out: Path, choice: Choice) -> None:
    """Write a config with all settings of a training on data that has been checked.

    Args:
        splits: the data of ``train``, ``val`` and perhaps ``test``, which are written beside the
            config: ``train.json`` and so on.
        out: the config's file; its paths are relative to its folder.

    Raises:
        UserError: the model does not read or evaluate COCO files; it learns from masks, and an object has
            none; or a size is chosen, and the model does not resize pictures in one step.
    """
    base = _read_base(choice, out.parent)
    if uses_masks(base.config):
        remedy = f"{BOXES} or, on a CPU, {SMALL_BOXES} needs none"
        require_masks(splits.values(), f", since {base.name} learns from masks", remedy)
    settings = Config(_settings(base, splits, out.parent, choice))
    with replacing(out) as draft:
        draft.write_text(f"{HEAD.format(base.name)}{text_of(settings)}", encoding="utf-8")
        check_config(read_config_file(draft), out)


def with_data(
    config: Mapping, stage: str, source: Path, pictures: Path, folder: Path | None = None
) -> dict[str, Any]:
    """Return the loader of a stage (train, val or test), and its evaluator, with other data.

    Args:
        source: the COCO file.
        pictures: the folder of its pictures.
        folder: the config's folder, to which its paths are relative; None: they are absolute.

    Raises:
        UserError: the config does not read or evaluate COCO files.
    """
    loader, evaluator = f"{stage}_dataloader", f"{stage}_evaluator"
    file, images = str(source.resolve()), f"{pictures}/"
    if folder is not None:
        file, images = _portable(file, folder), _portable(images, folder)
    settings = {loader: copy.deepcopy(config[loader])}
    dataset = dataset_of(settings, loader)
    dataset.update({**EXTRA[dataset.type], "data_root": "", "ann_file": file, "data_prefix": {"img": images}})
    if stage != "train":
        if not isinstance(config.get(evaluator), Mapping) or config[evaluator].get("type") != "CocoMetric":
            raise UserError(f"{evaluator}: expected a CocoMetric, got {config.get(evaluator)}")
        settings[evaluator] = {**config[evaluator], "ann_file": file}
    return settings


def schedules_for(config: Mapping, pictures: int) -> Any:
    """Return a config's schedules for a training on a number of pictures.

    A warm-up ends after at most a tenth of the iterations: COCO's is longer than a small training. The config
    is written for its own epochs and batch size; a training with other ones asks again.
    """
    schedules = copy.deepcopy(config.get("param_scheduler"))
    epochs, batch_size = config["train_cfg"].get("max_epochs"), config["train_dataloader"].get("batch_size")
    for _, node in dicts(schedules) if epochs and batch_size else ():
        if node.get("type") == "LinearLR" and node.get("by_epoch") is False and node.get("end"):
            # mmengine's LinearLR of one iteration never leaves its first factor
            node["end"] = min(node["end"], max(2, epochs * math.ceil(pictures / batch_size) // 10))
    return schedules


class _Base(NamedTuple):
    """A model: its name, its weights or an empty text, and its config with the chosen number of epochs."""

    name: str
    weights: str
    config: Config


def _read_base(choice: Choice, folder: Path) -> _Base:
    """Read a model's config. Without weights of its own, a config file has those of its ``load_from``."""
    source, name = resolve(choice.model), choice.model
    weights, published = source.weights, source.published
    if source.entry and not os.path.exists(name):
        name, published = source.entry.id, next(iter(source.entry.weights), "")
    config = read_config_file(source.config)
    for key in ("model", "train_cfg", *LOADERS):
        if key not in config:
            raise UserError(f"model: {name}: expected a config with {key}, found none")
    if not (weights or published) and os.path.isfile(config.get("load_from") or ""):
        weights = Path(config.load_from)
    if choice.epochs is not None:
        set_epochs(config, choice.epochs)
    return _Base(name, _portable(weights, folder) if weights else published, config)


def _settings(base: _Base, splits: Mapping[str, Dataset], folder: Path, choice: Choice) -> dict[str, Any]:
    """Return all settings. Each value depends only on the arguments, which do not change."""
    config, train = base.config, splits["train"]
    kept = {key: value for key, value in config.items() if key in RUNNER_KEYS}  # without its variables
    hooks = kept.get("default_hooks") or {}
    best = {"save_best": main_metric(config), "rule": "greater"}
    new = {
        "model": _network(base, len(train.classes)),
        "custom_imports": {"imports": _modules_of(config), "allow_failed_imports": False},
        "default_hooks": {**hooks, "checkpoint": {**(hooks.get("checkpoint") or {}), **best}},
        "param_scheduler": schedules_for(config, len(train.pictures)),
    }
    if base.weights:
        new["load_from"] = base.weights
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
    """Return the loader and the evaluator of a stage, with paths relative to ``folder``."""
    name, loader = stage if stage in splits else "val", f"{stage}_dataloader"
    settings = with_data(base.config, stage, folder / f"{name}.json", splits[name].folder, folder)
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
    for _, node in dicts(network) if base.weights else ():
        if isinstance(node.get("init_cfg"), Mapping) and node["init_cfg"].get("type") == "Pretrained":
            node["init_cfg"] = None
        if node.get("pretrained"):
            node["pretrained"] = None
    return network


def _modules_of(config: Config) -> list[str]:
    """Return the modules that a config imports, after dcnzoo's."""
    own = config.get("custom_imports", {}).get("imports", [])  # a name, or several
    return [*dict.fromkeys([*IMPORTS, *([own] if isinstance(own, str) else own)])]


def _without_flips(part: Any) -> Any:
    """Return a copy of a part of a config that flips no picture."""
    part = copy.deepcopy(part)
    for step in flips_in(part):
        step["prob"] = 0.0
    return part


def _portable(path: str | Path, folder: Path) -> str:
    """Return a path for a config in this folder: relative, if both are below the same top-level folder."""
    end, folder = "/" * str(path).endswith("/"), Path(os.path.realpath(folder))
    return portable(f"{os.path.realpath(path)}{end}", folder, [str(Path(*folder.parts[:2]))])
