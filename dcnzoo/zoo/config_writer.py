"""Write a config that trains a published detector on your own data."""

import copy
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from dcnzoo.data.dataset import Dataset, require_masks
from dcnzoo.openmmlab.classes import OF_OBJECTS, declared_metainfo, numbers, set_number
from dcnzoo.openmmlab.config.check import check_config
from dcnzoo.openmmlab.config.paths import portable, text_of
from dcnzoo.openmmlab.config.tree import LOADERS, RUNNER_KEYS, dicts, inner_data_sets
from dcnzoo.openmmlab.runs.epochs import set_epochs
from dcnzoo.openmmlab.runs.options import main_metric
from dcnzoo.openmmlab.runs.recipe import read_config_file
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import replacing
from dcnzoo.utils.text import few
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
IMPORTS = ["dcnzoo.models", "dcnzoo.openmmlab.hooks", "dcnzoo.openmmlab.datasets"]
# for each class of data sets, values that disable the arguments that CocoDataset does not have
EXTRA = {"CocoDataset": {}, "ShapesDataset": {"shapes": None}}


def write_settings(
    sources: Mapping[str, Dataset],
    out: Path,
    model: str,
    changes: Mapping[str, object] | None = None,
    *,
    epochs: int | None = None,
    size: int | None = None,
    flip: bool = True,
) -> None:
    """Write a config with all settings of a training on data that has been checked.

    Args:
        sources: the data of ``train``, ``val`` and perhaps ``test``, which are written beside the
            config: ``train.json`` and so on.
        out: the config's file; its paths are relative to its folder.
        model: as for :func:`dcnzoo.train`.
        changes: settings to override.
        epochs: of the training; the schedules are scaled. None: those of the model's config.
        size: the longer side of resized pictures; None: that of the model's config.
        flip: False removes the flips of the model's config; True keeps them.

    Raises:
        UserError: the model does not read or evaluate COCO files; it learns from masks, and an object has
            none; or ``size`` is set, and it does not resize pictures in one step.
    """
    model, weights, config = _read_base(model, out.parent)
    network = _network(config, model, len(sources["train"].classes), weights)
    _set_pictures(config, size, flip)
    _set_splits(config, sources, out.parent, model)
    if weights:
        config.load_from = weights
    settings = {key: value for key, value in config.items() if key in RUNNER_KEYS}  # without its variables
    own = config.get("custom_imports", {}).get("imports", [])  # a name, or several
    own = [own] if isinstance(own, str) else own
    modules = [*IMPORTS, *(name for name in own if name not in IMPORTS)]
    imports = {"imports": modules, "allow_failed_imports": False}
    written = Config({**settings, "model": network, "custom_imports": imports})
    best = {"save_best": main_metric(config), "rule": "greater"}
    written.merge_from_dict({"default_hooks.checkpoint": best, **(changes or {})})
    if epochs is not None:
        set_epochs(written, epochs)
    shorten_warm_up(written, len(sources["train"].pictures))
    with replacing(out) as draft:
        draft.write_text(f"{HEAD.format(model)}{text_of(written)}", encoding="utf-8")
        check_config(read_config_file(draft), out)


def _network(config: Config, model: str, classes: int, weights: str) -> dict:
    """Return the model for a number of classes; ``weights`` replace those that its parts load."""
    network = config.model.to_dict()
    set_number(network, _number_of_classes(config, model), classes)
    for _, node in dicts(network) if weights else ():
        if isinstance(node.get("init_cfg"), Mapping) and node["init_cfg"].get("type") == "Pretrained":
            node["init_cfg"] = None
        if node.get("pretrained"):
            node["pretrained"] = None
    return network


def _set_pictures(config: Config, size: int | None, flip: bool) -> None:
    """Resize the pictures of all loaders so that their longer side is ``size``; remove the flips."""
    for loader in LOADERS if size is not None else ():
        if not has_size(config, loader):
            got = few([step["type"] for step in dataset_of(config, loader).pipeline], 9)
            raise UserError(f"size: expected one step Resize in {loader}, got {got}")
        steps_of(config, loader, "Resize")[0].update(scale=(size, size), keep_ratio=True)
    for step in flips_of(config) if not flip else ():
        step["prob"] = 0.0


def _set_splits(config: Config, sources: Mapping[str, Dataset], folder: Path, model: str) -> None:
    """Set the data of the three loaders; paths are relative to ``folder``."""
    if any(step.get("with_mask") for step in dataset_of(config, LOADERS[0]).pipeline):
        remedy = f"{BOXES} or, on a CPU, {SMALL_BOXES} needs none"
        require_masks(sources.values(), f", since {model} learns from masks", remedy)
    for stage, loader in zip(("train", "val", "test"), LOADERS, strict=True):
        name = stage if stage in sources else "val"
        source = sources[name]
        set_data(config, stage, folder / f"{name}.json", source.folder, folder)
        dataset_of(config, loader).metainfo = {"classes": tuple(source.classes)}
        if stage == "train":
            dataset_of(config, loader).filter_cfg = {"filter_empty_gt": False}  # learns from empty ones, too
        else:
            config[loader].batch_size = 1  # as in the prediction of one picture: padding changes detections


def _read_base(model: str, folder: Path) -> tuple[str, str, Config]:
    """Return the name of a model, its weights or "", and its config. A config file has those of load_from."""
    source = resolve(model)
    weights, published = source.weights, source.published
    if source.entry and not os.path.exists(model):
        model, published = source.entry.id, next(iter(source.entry.weights), "")
    config = read_config_file(source.config)
    for key in ("model", *LOADERS):
        if key not in config:
            raise UserError(f"model: {model}: expected a config with {key}, found none")
    if not (weights or published) and os.path.isfile(config.get("load_from") or ""):
        weights = Path(config.load_from)
    return model, _portable(weights, folder) if weights else published, config


def shorten_warm_up(config: Config, images: int) -> None:
    """End a warm-up after at most a tenth of the training: COCO's warm-up is longer than a small training.

    Args:
        images: the number of pictures to train on.
    """
    epochs, batch_size = config.train_cfg.get("max_epochs"), config.train_dataloader.get("batch_size")
    schedulers = dicts(config.get("param_scheduler")) if epochs and batch_size else ()
    for _, node in schedulers:
        if node.get("type") == "LinearLR" and node.get("by_epoch") is False and node.get("end"):
            # mmengine's LinearLR of one iteration never leaves its first factor
            node["end"] = min(node["end"], max(2, epochs * math.ceil(images / batch_size) // 10))


def steps_of(config: Config, loader: str, kind: str) -> list[Any]:
    """Return the steps of one kind in a loader's pipeline."""
    return [step for step in dataset_of(config, loader).pipeline if str(step["type"]).endswith(kind)]


def scale_of(config: Config) -> tuple[int, int] | None:
    """Return the most pixels of the longer and of the shorter side of test pictures; None: any number."""
    scales = [step.scale for step in steps_of(config, LOADERS[2], "Resize") if "scale" in step]
    return (max(scales[0]), min(scales[0])) if scales else None


def flips_of(config: Config) -> list[Any]:
    """Return the steps that flip pictures in a training, also in other steps, wrappers and hooks."""
    nodes = [node for part in (config[LOADERS[0]], config.get("custom_hooks")) for _, node in dicts(part)]
    return [node for node in nodes if str(node.get("type")).endswith("RandomFlip") and node.get("prob") != 0]


def has_size(config: Config, loader: str) -> bool:
    """Return whether a loader resizes pictures in one step, whose size can be set."""
    return [step["type"] for step in steps_of(config, loader, "Resize")] == ["Resize"]


def dataset_of(config: Config, loader: str) -> Any:
    """Return the data set that reads the annotations, inside wrappers."""
    kinds = [str(dataset.type) for dataset in inner_data_sets(config[loader].dataset)]
    if len(kinds) != 1 or kinds[0] not in EXTRA:
        raise UserError(f"{loader}: expected one CocoDataset, as in configs for COCO, got {few(kinds)}")
    return next(inner_data_sets(config[loader].dataset))


def set_data(config: Config, stage: str, source: Path, pictures: Path, folder: Path | None = None) -> None:
    """Set the data that the loader of a stage (train, val or test) reads and its evaluator compares with.

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
    config[loader] = copy.deepcopy(config[loader])  # val and test may be one dictionary
    dataset = dataset_of(config, loader)
    dataset.update({**EXTRA[dataset.type], "data_root": "", "ann_file": file, "data_prefix": {"img": images}})
    if stage != "train":
        if not isinstance(config.get(evaluator), Mapping) or config[evaluator].get("type") != "CocoMetric":
            raise UserError(f"{evaluator}: expected a CocoMetric, got {config.get(evaluator)}")
        config[evaluator] = {**config[evaluator], "ann_file": file}


def _portable(path: str | Path, folder: Path) -> str:
    """Return a path for a config in this folder: relative, if both are below the same top-level folder."""
    end, folder = "/" * str(path).endswith("/"), Path(os.path.realpath(folder))
    return portable(f"{os.path.realpath(path)}{end}", folder, [str(Path(*folder.parts[:2]))])


def _number_of_classes(config: Config, model: str) -> int:
    """Return the value of ``num_classes`` that is the number of classes in the training data."""
    dataset = dataset_of(config, LOADERS[0])
    known = declared_metainfo(dataset)["classes"]
    values = sorted({number for _, _, key, number in numbers(config.model) if key in OF_OBJECTS})
    expected = values[0] if len(values) == 1 else len(known)
    if expected not in values:
        what = f"num_classes={', '.join(map(str, values))}" if values else "no num_classes"
        raise UserError(
            f"{model}: model: expected num_classes={expected}, the number of classes in its training data, "
            f"found {what}; set it in the config's heads"
        )
    return expected
