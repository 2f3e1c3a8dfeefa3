"""Find frequent mistakes in a config before anything is built."""

import inspect
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope

from dcnzoo.data.conversion import InvalidAnnotation, read_json
from dcnzoo.openmmlab.deformable import arguments, split_settings
from dcnzoo.openmmlab.packages import mim_folder
from dcnzoo.openmmlab.settings import (
    LAYERS,
    OLD_KEYS,
    RUNNER_KEYS,
    Place,
    class_of,
    keys_read,
    places,
    registered,
    registry_of,
)
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import few, nearest

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
CLASSES = ("num_classes", "num_things_classes", "num_stuff_classes")
# heads whose num_classes counts other classes: object or background, identities, those of a semantic map
OTHER_CLASSES = {"rpn_head", "reid", "semantic_head"}
# dictionaries whose keys are names that the user chooses
NAMES = re.compile(r"\b(custom_keys|caption_prompt|metainfo\.\w+)\b")
# lowest and highest value of numbers that mean the same in every class
RANGES = {
    **dict.fromkeys(("max_epochs", "max_iters", "val_interval", "batch_size"), (1, math.inf)),
    **dict.fromkeys(("num_workers", "lr", "weight_decay", "max_norm", "clip_value"), (0, math.inf)),
    **dict.fromkeys(("score_thr", "iou_threshold", "pos_iou_thr", "neg_iou_thr", "prob"), (0, 1)),
    "accumulative_counts": (1, math.inf),
    "mask_thr_binary": (-1, 1),
}


def check_config(
    cfg: Config, name: str | os.PathLike, required: Sequence[str] = (), runs: bool = True
) -> None:
    """Check a config without building it; print a warning for each key that probably is not used.

    Problems that MMDetection's own files have, such as keys of version 2, are warnings too.

    Args:
        name: the config's file, for the messages.
        required: top-level keys that the command uses.
        runs: also check the parts that only a runner uses, and whether they fit the model.

    Raises:
        UserError: the config has problems, one line for each.
    """
    if not cfg:
        raise UserError(f"{name}: expected a config, got an empty file")
    problems, known = find_problems(cfg, required, runs), []
    folder = mim_folder("mmdet")
    if folder and Path(name).is_relative_to(folder) and any(problem.stops for problem in problems):
        known = find_problems(Config.fromfile(name), required, runs)
    lines = []
    for problem in problems:
        if problem.stops and problem not in known:
            lines.append(printable(f"{name}: {problem}"))
        else:
            print_log(printable(f"{name}: {problem}"), "current", logging.WARNING)
    if lines:
        raise UserError(*lines)


def find_problems(cfg: Config, required: Sequence[str] = (), runs: bool = True) -> list[Finding]:
    """List the problems of a config; see :func:`check_config`."""
    missing = [key for key in required if not cfg.get(key) or isinstance(cfg[key], str | int | float)]
    problems = [Finding(key, f"expected its settings, got {cfg.get(key)}") for key in missing]
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        nodes = list(places(cfg))
        problems += [*wrong_keys(nodes), *wrong_values(nodes), *wrong_class_names(cfg)]
        if runs:
            for check in (wrong_runner_keys, wrong_class_numbers, wrong_evaluator_files):
                problems += check(cfg)
            problems += contradictions(cfg, nodes)
    return problems


def wrong_runner_keys(cfg: Config) -> Iterator[Finding]:
    """Yield keys of MMDetection 2, and keys that nearly are keys of the runner. Others may be variables."""
    values = [node for key in cfg if key in RUNNER_KEYS for _, node in dicts(cfg[key])]
    for key in cfg:
        if key in OLD_KEYS and cfg[key] is not None:
            # a data set as a variable, which is merged with that of the base, is in no loader as it is here
            if cfg[key] in values or (key == "data" and "type" in cfg.data):
                continue
            text = f"expected version 3's {OLD_KEYS[key]}, got a key of MMDetection 2"
            yield Finding(key, text, stops=key != "cudnn_benchmark")  # SSD sets it in version 3 too
        elif key not in RUNNER_KEYS:
            # val_evaluator_2 and conv_cfg are variables
            similar = [each for each in RUNNER_KEYS if each[0] == key[0] and not key.startswith(f"{each}_")]
            if close := nearest(key, similar, 0.8):
                yield Finding(key, f"expected {close}, got an unknown key")


def wrong_keys(nodes: Sequence[Place]) -> Iterator[Finding]:
    """Yield keys that the class of their dictionary does not have, and names that no class has."""
    read = keys_read(nodes)
    for place in nodes:
        if NAMES.search(place.path) or _is_layer(place):
            continue
        if problems := list(_wrong_name(place)):
            yield from problems
            continue
        if place.path.startswith("model") and not place.inner:
            try:
                split_settings(dict(place.node), place.kind)
            except ValueError as error:
                yield Finding(place.path, str(error))
        known, complete = place.known(read), place.arguments()[1]
        for key in sorted(place.node.keys() - known) if known else ():
            path, close = f"{place.path}.{key}", nearest(key, known, 0.8) or nearest(key.lower(), known, 0.8)
            if close and not re.match(rf"{close}[_\d]", key):
                yield Finding(path, f"expected {close}, got an unknown key")
            elif complete:
                yield Finding(path, f"expected one of {few(sorted(known), 30)}, got an unknown key")
            elif place.is_read:
                yield Finding(path, "unknown key, probably not used", stops=False)


def _is_layer(place: Place) -> bool:
    of_torch = getattr(place.kind, "__module__", "").startswith("torch.")
    return place.path.startswith("model") and (of_torch or bool(LAYERS & {*place.path.split(".")}))


def _wrong_name(place: Place) -> Iterator[Finding]:
    """Yield a ``type`` that is nearly the name of a registered class."""
    name = place.node.get("type")
    if not isinstance(name, str) or not name[:1].isupper() or not place.names:
        return
    if class_of(place.node, *place.names) is None:
        known = [known for registry in map(registry_of, place.names) for known in registered(registry)]
        if name not in known and (close := nearest(name, known, 0.8)):
            yield Finding(f"{place.path}.type", f"expected {close}, got {name}, which is not registered")


def wrong_values(nodes: Sequence[Place]) -> Iterator[Finding]:
    """Yield texts where a class takes none, and numbers out of range."""
    for place in nodes:
        known = place.arguments()[0]
        for key, value in place.node.items():
            limits = RANGES.get(key)
            if isinstance(value, str) and (limits or key == "stage_with_dcn"):
                yield Finding(f"{place.path}.{key}", f"expected {_kind(known.get(key))}, got {value!r}")
            elif isinstance(value, str | int | float) and key in known and _refuses(known[key], value):
                yield Finding(f"{place.path}.{key}", f"expected {_kind(known[key])}, got {value!r}")
            elif isinstance(value, int | float) and limits and not limits[0] <= value <= limits[1]:
                low, high = limits
                expected = f"at least {low}" if high == math.inf else f"a number from {low} to {high}"
                yield Finding(f"{place.path}.{key}", f"expected {expected}, got {value}")


def _refuses(argument: inspect.Parameter, value: str | int | float) -> bool:
    """Whether an argument's annotation, or else its default, says that it takes no text or number."""
    if argument.annotation is argument.empty:
        return isinstance(value, str) and isinstance(argument.default, bool | int | float | tuple | list)
    text = str(argument.annotation)
    if re.search(r"str|Any|object|Path|Callable|Literal|[Tt]ype\b|~", text):
        return False
    numbers = r"int|float|bool"
    others = "tuple|list|dict|Tuple|List|Sequence|Dict|ConfigDict"
    if isinstance(value, str):
        return bool(re.search(rf"\b({numbers}|{others})\b", text))
    return bool(re.search(rf"\b({others})\b", text)) and not re.search(numbers, text)


def _kind(argument: inspect.Parameter | None) -> str:
    if argument is None or argument.default in (argument.empty, None):
        return "another type"
    return f"a value such as {argument.default!r}"


def contradictions(cfg: Config, nodes: Sequence[Place]) -> Iterator[Finding]:
    """Yield steps of pipelines that repeat what the model does."""
    model = cfg.get("model")
    preprocessor = (model.get("data_preprocessor") if isinstance(model, Mapping) else None) or {}
    for place in nodes if preprocessor.get("mean") is not None else ():
        if place.names and place.node.get("type") in ("Normalize", "mmcv.Normalize", "mmdet.Normalize"):
            yield Finding(place.path, "expected no Normalize: model.data_preprocessor normalises too")


def wrong_class_names(cfg: Config) -> Iterator[Finding]:
    for loader, _, info in _data(cfg):
        if isinstance(names := info.get("classes"), str):
            text = f"expected a tuple of names, got {names!r}; write ({names!r},)"
            yield Finding(f"{loader}: metainfo.classes", text)


def wrong_class_numbers(cfg: Config) -> Iterator[Finding]:
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
        kind = class_of(node, "MODELS")
        signature = {} if kind is None else arguments(kind)[0]
        for key in CLASSES[1:] if OTHER_CLASSES & {*path.split(".")} else CLASSES:
            number = node.get(key, signature[key].default if key in signature else None)
            for count in expected[key].keys() - {number} if isinstance(number, int) else ():
                where = ", ".join(dict.fromkeys(expected[key][count]))
                text = f"expected {count}, the number of classes in {where}, got {number}"
                yield Finding(f"{path}.{key}", text)


def dicts(node: object, path: str = "") -> Iterator[tuple[str, dict]]:
    """Yield every dict in a part of a config, with its path."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from dicts(value, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from dicts(value, f"{path}.{index}")


def datasets(node: Mapping) -> Iterator[Any]:
    """Yield the data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = [node["dataset"]] if "dataset" in node else node.get("datasets") or []
    for dataset in inner:
        yield from datasets(dataset)
    if not inner:
        yield node


def declared_metainfo(dataset: Mapping) -> dict:
    """Return the metainfo of a data set's class and config, without building the data set."""
    load = getattr(class_of(dataset, "DATASETS"), "_load_metainfo", dict)
    return load(dataset.get("metainfo") or {})


def wrong_evaluator_files(cfg: Config) -> Iterator[Finding]:
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
                yield Finding(f"{key}.ann_file", f"expected {expected}, as in {loader}, got {file}")


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
    for loader in filter(cfg.get, LOADERS):
        node = cfg[loader]
        for dataset in datasets(node.get("dataset") or {}) if isinstance(node, Mapping) else ():
            yield loader, dataset, declared_metainfo(dataset)
