"""Write a config that trains a published detector on your own data."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from dcnzoo.data.check import Report, checked_coco
from dcnzoo.openmmlab.config_check import LOADERS, check_config, declared_metainfo, dicts
from dcnzoo.openmmlab.runner import read_config_file
from dcnzoo.openmmlab.training import main_metric
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import write_text
from dcnzoo.zoo.index import find

HEAD = """\
# Written by `dcnzoo data config`. Contains all settings of the data; _base_ contains all others.
# Paths are relative to the folder in which training is started.
"""
BOXES = "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco"
SMALL_BOXES = "faster-rcnn_r14-mdconv_fpn_24e_coco"  # trains from scratch, on a CPU
MASKS = "mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco"
IMPORTS = ["dcnzoo.models", "dcnzoo.openmmlab.hooks", "dcnzoo.openmmlab.datasets"]
CLASSES = ("num_classes", "num_things_classes")
# settings of a pretrained backbone that freeze layers → values that do not
FROZEN = {"frozen_stages": -1, "norm_eval": False}
# values that disable the arguments of a data set that CocoDataset does not have
EXTRA = {"CocoDataset": {}, "ShapesDataset": {"shapes": None}}


def write_config(
    train: str | Path,
    val: str | Path,
    out: str | Path,
    images: str | Path,
    val_images: str | Path | None = None,
    model: str | None = None,
    weights: bool = True,
) -> str:
    """Write a config that inherits from a published one and sets everything about the data.

    Args:
        train, val: COCO files with the same categories and without problems.
        out: path of the config.
        images, val_images: folders that contain the images; ``val_images`` defaults to ``images``.
        model: a name in the zoo, or a config file. Default: a Mask R-CNN with DCNv2 if every object has a
            mask, else a Faster R-CNN with DCNv2.
        weights: start from the model's published weights. If False, the config loads no weights at all, and
            no part of the backbone is frozen.

    Returns:
        The base of the config.

    Raises:
        UserError: the data has problems or does not fit the model; the model is not configured for COCO;
            ``out`` does not end in .py.
    """
    if Path(out).suffix != ".py":
        raise UserError(f"out: expected a name that ends in .py, got {out}")
    reports = [checked_coco(train, images)]
    classes = tuple(reports[0].per_class)
    reports.append(checked_coco(val, val_images or images, classes))
    without = {report.file: _objects_without_mask(report) for report in reports}
    if model is None:
        model = BOXES if any(without.values()) else MASKS
    if Path(model).is_file():
        base, address = Path(os.path.relpath(model, Path(out).parent)).as_posix(), None
        config = read_config_file(model)
    else:
        found = find(model)
        base, address = found.id, found.weights[0] if found.weights else None
        config = read_config_file(found.config)
    for key in ("model", *LOADERS):
        if key not in config:
            raise UserError(f"--model: {model}: expected a config with {key}, found none")
    if not weights and config.model.get("teacher_ckpt"):
        raise UserError(f"--no-weights: {model}: expected a model without a teacher: a teacher needs weights")
    address = address if weights else None
    changes = [_class_numbers(config, model, len(classes))]
    if address or not weights:  # published weights replace those of the backbone
        changes.append(functools.partial(_without_weights, scratch=not address))
    settings = {"model": _changed(config.model.to_dict(), changes)}
    _, learns_from = _dataset(config, LOADERS[0])
    wants_masks = any(step.get("with_mask") for step in learns_from.pipeline)
    for file, number in without.items():
        if wants_masks and number:
            raise UserError(
                f"{file}: expected a mask of every object, since {model} learns from masks, found {number} "
                f"objects without one; --model {BOXES} or, for a CPU, {SMALL_BOXES} learns from boxes"
            )
    parts = [(train, images), (val, val_images or images)]
    for loader, (file, folder) in zip(LOADERS, [*parts, parts[1]], strict=True):
        settings[loader] = _with_data(config, loader, file, folder)
    for evaluator in ("val_evaluator", "test_evaluator"):
        if not isinstance(config.get(evaluator), Mapping) or config[evaluator].get("type") != "CocoMetric":
            raise UserError(f"{model}: {evaluator}: expected a CocoMetric, got {config.get(evaluator)}")
        settings[evaluator] = {"ann_file": Path(val).as_posix()}
    for val, test in (("val_dataloader", "test_dataloader"), ("val_evaluator", "test_evaluator")):
        settings[val] = _Name(test) if settings[val] == settings[test] else settings[val]
    settings |= {
        "_base_": base,
        "custom_imports": {"imports": IMPORTS, "allow_failed_imports": False},
        "classes": classes,
        "default_hooks": {"checkpoint": {"save_best": main_metric(config), "rule": "greater"}},
    }
    if address or (not weights and config.get("load_from")):
        settings["load_from"] = address
    write_text(out, f"{HEAD}{Config(settings).pretty_text}")  # sorts by name: variables come first
    check_config(read_config_file(out), out)
    return base


def _objects_without_mask(report: Report) -> int:
    annotations = report.content["annotations"]
    return sum(not a.get("segmentation") for a in annotations if not a.get("iscrowd"))


def _dataset(config: Config, loader: str) -> tuple[list[str], Mapping]:
    """Return the data set that reads the annotations, and the keys that lead to it through wrappers."""
    keys, dataset = ["dataset"], config[loader].dataset
    while "dataset" in dataset:
        keys, dataset = [*keys, "dataset"], dataset.dataset
    if dataset.type not in EXTRA:
        raise UserError(
            f"model: {loader}: expected a CocoDataset, as in configs for COCO, got {dataset.type}"
        )
    return keys, dataset


def _with_data(config: Config, loader: str, file: str | Path, images: str | Path) -> dict:
    keys, dataset = _dataset(config, loader)
    inner = {
        **EXTRA[dataset.type],
        "data_root": "",
        "ann_file": Path(file).as_posix(),
        "data_prefix": {"img": f"{Path(images).as_posix()}/"},
        "metainfo": {"classes": _Name("classes")},
    }
    for key in reversed(keys):
        inner = {key: inner}
    return inner


def _changed(node: object, changes: Sequence[Callable[[Mapping], dict]]) -> object:
    """Apply ``changes`` to each dict in a node; return only the parts that differ, or None."""
    if isinstance(node, Mapping):
        parts = {key: new for key, value in node.items() if (new := _changed(value, changes)) is not None}
        for change in changes:
            parts = _merged(parts, change(node))
        return parts or None
    if isinstance(node, list | tuple):
        new = [_changed(value, changes) for value in node]
        if all(value is None for value in new):
            return None
        # a list in a config replaces the base's list as a whole
        return [old if value is None else _merged(old, value) for old, value in zip(node, new, strict=True)]
    return None


def _class_numbers(config: Config, model: str, after: int) -> Callable[[Mapping], dict]:
    """Return a change that replaces the number of classes."""
    _, dataset = _dataset(config, LOADERS[0])
    known = declared_metainfo(dataset)["classes"]
    numbers = {node.get(key) for _, node in dicts(config.model.to_dict()) for key in CLASSES}
    found = sorted(number for number in numbers if isinstance(number, int))
    before = found[0] if len(found) == 1 else len(known)
    if before not in found:
        what = f"num_classes={', '.join(map(str, found))}" if found else "no num_classes"
        raise UserError(
            f"{model}: model: expected num_classes={before}, the number of classes in its training data, "
            f"found {what}; set it in the config's heads"
        )

    def change(node: Mapping) -> dict:
        new = {key: after for key in CLASSES if node.get(key) == before}
        weight = node.get("class_weight")
        if isinstance(weight, list | tuple) and len(weight) == before + 1:
            new["class_weight"] = [*weight[:1] * after, weight[-1]]  # the last one is the background
        return new

    return change


def _without_weights(node: Mapping, scratch: bool) -> dict:
    """Return the settings that stop a module from loading weights; with ``scratch``, also unfreeze it."""
    new = {}
    initial = node.get("init_cfg")
    steps = initial if isinstance(initial, list | tuple) else [initial]
    kept = [step for step in steps if not (isinstance(step, Mapping) and step.get("type") == "Pretrained")]
    if len(kept) < len(steps):
        new["init_cfg"] = kept or None
    if node.get("pretrained"):
        new["pretrained"] = None
    if new and scratch:
        new |= {key: value for key, value in FROZEN.items() if node.get(key, value) != value}
        if (node.get("norm_cfg") or {}).get("requires_grad") is False:
            new["norm_cfg"] = {"requires_grad": True}
    return new


def _merged(old: object, new: object) -> object:
    if not isinstance(new, Mapping):
        return new
    old = old if isinstance(old, Mapping) else {}
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


class _Name(str):
    """A variable of the config."""

    __repr__ = str.__str__
