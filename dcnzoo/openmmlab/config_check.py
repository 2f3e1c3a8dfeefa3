"""Find frequent mistakes in a config before anything is built."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from mmdet.registry import DATASETS, MODELS, TASK_UTILS
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import FlexibleRunner, Runner

from dcnzoo.data.conversion import InvalidAnnotation, read_json
from dcnzoo.openmmlab.deformable import SETTINGS, split_settings
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.text import few

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
CLASSES = ("num_classes", "num_things_classes", "num_stuff_classes")
RUNNER_KEYS = {
    *inspect.signature(Runner).parameters,
    *inspect.signature(FlexibleRunner).parameters,
    *("custom_imports", "runner_type", "tta_model"),
}
# arguments that the registry, dcnzoo's build function or, for bg_cls_weight, the DETR heads remove
ANY_MODULE = {"type", "_scope_", "init_cfg", "bg_cls_weight", *SETTINGS}
# settings of layers, from which mmcv removes some before it builds the layer
LAYERS = {"norm_cfg", "conv_cfg", "act_cfg", "upsample_cfg", "init_cfg", "dcn"}
# heads whose num_classes counts other classes: object or background, identities, those of a semantic map
OTHER_CLASSES = {"rpn_head", "reid", "semantic_head"}


def check_config(cfg: Config, name: str | os.PathLike, required: Sequence[str] = ()) -> None:
    """Check a config without building it.

    Args:
        name: the config's file, for the messages.
        required: top-level keys that the command uses.

    Raises:
        UserError: the config has problems, one line for each.
    """
    if not cfg:
        raise UserError(f"{name}: expected a config, got an empty file")
    problems = [f"{key}: expected its settings, got {cfg.get(key)}" for key in required if not cfg.get(key)]
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        for check in (
            wrong_runner_keys,
            wrong_model_keys,
            wrong_class_names,
            wrong_class_numbers,
            wrong_evaluator_files,
        ):
            problems += check(cfg)
    if problems:
        raise UserError(*(printable(f"{name}: {problem}") for problem in problems))


def wrong_runner_keys(cfg: Config) -> Iterator[str]:
    """Yield keys that nearly are keys of the runner. Any others may be variables of the config."""
    for key in cfg:
        # val_evaluator_2 and conv_cfg are variables
        similar = [known for known in RUNNER_KEYS if known[0] == key[0] and not key.startswith(f"{known}_")]
        if key not in RUNNER_KEYS and (close := get_close_matches(key, similar, 1, 0.8)):
            yield f"{key}: expected {close[0]}, got an unknown key"


def wrong_model_keys(cfg: Config) -> Iterator[str]:
    for path, node in dicts(cfg.get("model"), "model"):
        kind = _class_of(node, MODELS, TASK_UTILS)
        if kind is None or kind.__module__.startswith("torch.") or LAYERS & {*path.split(".")}:
            continue
        try:
            split_settings(node, kind)
        except ValueError as error:
            yield f"{path}: {error}"
        known, complete = _arguments(kind)
        for key in sorted(node.keys() - known.keys() - ANY_MODULE):
            if close := get_close_matches(key, known, 1, 0.8):
                yield f"{path}.{key}: expected {close[0]}, got an unknown key"
            elif complete:
                yield f"{path}.{key}: expected one of {few(list(known), 30)}, got an unknown key"


def wrong_class_names(cfg: Config) -> Iterator[str]:
    for loader, _, info in _data(cfg):
        if isinstance(names := info.get("classes"), str):
            yield f"{loader}: metainfo.classes: expected a tuple of names, got {names!r}; write ({names!r},)"


def wrong_class_numbers(cfg: Config) -> Iterator[str]:
    expected: dict[str, dict[int, list[str]]] = {key: {} for key in CLASSES}
    for loader, dataset, info in _data(cfg):
        # MOTChallengeDataset lists 13 kinds of objects, of which detectors find pedestrians
        if isinstance(info.get("classes"), list | tuple) and dataset.get("type") != "MOTChallengeDataset":
            things, stuff = info.get("thing_classes", info["classes"]), info.get("stuff_classes", ())
            for key, names in zip(CLASSES, (things, things, stuff), strict=True):
                expected[key].setdefault(len(names), []).append(loader)
    for path, node in dicts(cfg.get("model"), "model"):
        # the outputs of detectors with a language model are words
        if "head" not in path or "language_model" in cfg.model:
            continue
        kind = _class_of(node, MODELS)
        arguments = {} if kind is None else _arguments(kind)[0]
        for key in CLASSES[1:] if OTHER_CLASSES & {*path.split(".")} else CLASSES:
            number = node.get(key, arguments[key].default if key in arguments else None)
            for count in expected[key].keys() - {number} if isinstance(number, int) else ():
                where = ", ".join(dict.fromkeys(expected[key][count]))
                yield f"{path}.{key}: expected {count}, the number of classes in {where}, got {number}"


def dicts(node: object, path: str = "") -> Iterator[tuple[str, dict]]:
    """Yield every dict in a part of a config, with its path."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from dicts(value, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from dicts(value, f"{path}.{index}")


def datasets(node: Mapping) -> Iterator[Mapping]:
    """Yield the data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = [node["dataset"]] if "dataset" in node else node.get("datasets") or []
    for dataset in inner:
        yield from datasets(dataset)
    if not inner:
        yield node


def declared_metainfo(dataset: Mapping) -> dict:
    """Return the metainfo of a data set's class and config, without building the data set."""
    load = getattr(_class_of(dataset, DATASETS), "_load_metainfo", dict)
    return load(dataset.get("metainfo") or {})


def wrong_evaluator_files(cfg: Config) -> Iterator[str]:
    """Yield annotation files of evaluators whose images are not those of the data set."""
    data = list(_data(cfg))
    loaders = [loader for loader, _, _ in data]
    for loader, dataset, _ in data:
        if loaders.count(loader) > 1:
            continue
        key = loader.replace("dataloader", "evaluator")
        expected = os.path.join(dataset.get("data_root") or "", dataset.get("ann_file") or "")
        metrics = cfg.get(key) or []
        for metric in [metrics] if isinstance(metrics, Mapping) else metrics:
            file = metric.get("ann_file") if isinstance(metric, Mapping) else None
            if file and not _same_images(file, expected):
                yield f"{key}.ann_file: expected {expected}, as in {loader}, got {file}"


def _same_images(*files: str) -> bool:
    """Whether COCO files have the same images. A file that cannot be read is reported when it is loaded."""
    if len(set(map(os.path.realpath, files))) == 1:
        return True
    try:
        contents = [read_json(Path(file)) for file in files]
        images = [{(image["id"], image["file_name"]) for image in content["images"]} for content in contents]
    except (InvalidAnnotation, LookupError, TypeError):
        return True
    return images[0] == images[1]


def _data(cfg: Config) -> Iterator[tuple[str, Mapping, dict]]:
    """Yield every data set's loader, config and metainfo."""
    for loader in LOADERS:
        for dataset in datasets((cfg.get(loader) or {}).get("dataset") or {}):
            yield loader, dataset, declared_metainfo(dataset)


def _class_of(node: Mapping, *registries: Registry) -> type | None:
    """Return the registered class of a dict in a config, or None."""
    name = node.get("type")
    classes = [name]
    for registry in registries if isinstance(name, str) else ():
        with registry.switch_scope_and_registry(node.get("_scope_")) as scoped, suppress(RuntimeError):
            classes.append(scoped.get(name))  # RuntimeError: the text is not a name
    return next(filter(inspect.isclass, classes), None)


def _arguments(kind: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the arguments of a class, and whether they are all."""
    arguments: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:  # a class passes **kwargs to the next one
        own = inspect.signature(base.__init__).parameters
        arguments = {**own, **arguments}
        if all(p.kind is not p.VAR_KEYWORD for p in own.values()):
            break
    named = {n: p for n, p in arguments.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return {name: named[name] for name in named if name != "self"}, len(named) == len(arguments)
