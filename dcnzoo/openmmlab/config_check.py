"""Find mistakes in a config before anything is built."""

import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmdet import registry as registries
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope

from dcnzoo.data.conversion import InvalidAnnotation, read_json
from dcnzoo.openmmlab.deformable import arguments, split_settings
from dcnzoo.openmmlab.known_keys import (
    DICTIONARIES,
    LAYER_SETTINGS,
    OLD_KEYS,
    RUNNER_KEYS,
    Place,
    class_of,
    dicts,
    is_old,
    places,
    registered,
    variables,
)
from dcnzoo.openmmlab.value_rules import refusal, wrong_monitors
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import few, nearest

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
CLASS_NUMBERS = ("num_classes", "num_things_classes", "num_stuff_classes")
# heads whose num_classes counts other classes: object or background, identities, those of a semantic map
OTHER_CLASSES = {"rpn_head", "reid", "semantic_head"}
# dictionaries whose keys are names that the user chooses
NAMES = re.compile(r"\b(custom_keys|caption_prompt|path_mapping|metainfo\.\w+)$|^default_hooks$")
# the parts that only these commands use
_TRAINING = {"train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "auto_scale_lr"}
_VALIDATION = {"val_dataloader", "val_cfg", "val_evaluator"}
_TEST = {"test_dataloader", "test_cfg", "test_evaluator"}


def check_config(
    cfg: Config,
    name: str | os.PathLike,
    required: Sequence[str] = (),
    runs: bool = True,
    options: Mapping[str, object] | None = None,
) -> None:
    """Check a config without building it; print a warning for each key that probably is not used.

    Problems of parts that the command does not use are warnings too.

    Args:
        name: the config's file, for the messages.
        required: top-level keys that the command uses. A training does not use the parts of the test, and
            the other way round.
        runs: also check the parts that only a runner uses, and whether they fit the model.
        options: settings that were merged into the config. An unknown key in them is an error.

    Raises:
        UserError: the config has problems, one line for each.
    """
    if not cfg:
        raise UserError(f"{name}: expected a config, got an empty file")
    lines = []
    for problem in find_problems(cfg, required, runs, {*_paths(options or {})}):
        if problem.stops:
            lines.append(printable(f"{name}: {problem}"))
        else:
            print_log(printable(f"{name}: {problem}"), "current", logging.WARNING)
    if lines:
        raise UserError(*lines)


def _paths(options: Mapping, start: str = "") -> Iterator[str]:
    """Yield the paths of options and of the dictionaries that contain them."""
    for name, value in options.items():
        parts = f"{start}{name}".split(".")
        yield from (".".join(parts[:number]) for number in range(1, len(parts) + 1))
        if isinstance(value, Mapping):
            yield from _paths(value, f"{start}{name}.")


def find_problems(
    cfg: Config, required: Sequence[str] = (), runs: bool = True, options: Collection[str] = ()
) -> list[Finding]:
    """List the problems of a config; see :func:`check_config`. ``options`` are paths."""
    unused = _unused(required, runs)
    missing = {key for key in required if not cfg.get(key)}
    missing |= {key for key in DICTIONARIES if isinstance(cfg.get(key) or {}, str | int | float)}
    problems = [Finding(key, f"expected its settings, got {cfg.get(key)}") for key in sorted(missing)]
    texts = [
        key for key in ("work_dir", "load_from", "default_scope") if not isinstance(cfg.get(key), str | None)
    ]
    problems += [Finding(key, f"expected a text, got {cfg[key]}") for key in texts]
    with DefaultScope.overwrite_default_scope(None if "default_scope" in texts else cfg.get("default_scope")):
        nodes = list(places(cfg))
        problems += [*wrong_keys(nodes), *wrong_values(nodes), *wrong_class_names(cfg)]
        if runs or options:
            problems += wrong_top_level_keys(cfg, options)
        if runs:
            used = [loader for loader in LOADERS if loader not in unused]
            problems += [*wrong_class_numbers(cfg, used), *wrong_evaluator_files(cfg)]
            problems += [*wrong_monitors(cfg), *contradictions(nodes)]
    for index, problem in enumerate(problems):
        stops = problem.stops and re.split(r"[.:]", problem.subject)[0] not in unused
        stops |= problem.kind == "key" and problem.subject in options
        problems[index] = replace(problem, stops=stops)
    return problems


def _unused(required: Sequence[str], runs: bool) -> set[str]:
    """Return the top-level keys that a command does not use."""
    if not runs:
        unused = _TRAINING | _VALIDATION | {"test_cfg", "test_evaluator"}
    elif _TRAINING & {*required}:
        unused = _TEST
    else:
        unused = _TRAINING | _VALIDATION if _TEST & {*required} else set()
    return unused - {*required}


def wrong_top_level_keys(cfg: Config, options: Collection[str] = ()) -> Iterator[Finding]:
    """Yield keys of MMDetection 2, and keys that are neither the runner's nor variables."""
    stored, read = variables(cfg.text)
    settings = [node for key in cfg if key in RUNNER_KEYS for _, node in dicts(cfg[key])]
    for key in sorted({*cfg} - RUNNER_KEYS - read):
        new = key in options and key not in stored
        if cfg.text and key not in stored and not new:
            continue  # of a published base, or of one in MMEngine's new style
        if is_old(key, cfg[key]):
            instead = OLD_KEYS[key][1]
            # a dump has variables too, which its lines do not read
            if cfg[key] not in (*settings, _at(cfg, instead)):
                text = f"expected version 3's {instead}, got a key of MMDetection 2"
                yield Finding(key, text, "key", stops=key != "cudnn_benchmark")  # SSD's config sets it
        elif new or nearest(key, RUNNER_KEYS, 0.8):
            expected = nearest(key, RUNNER_KEYS) or "a key of mmengine's runner"
            yield Finding(
                key,
                f"expected {expected}, or a variable that is used, got an unknown key",
                "key",
                stops=False,
            )


def _at(cfg: Config, path: str) -> object:
    node: Any = cfg
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping | Config) else None
    return node


def wrong_keys(nodes: Sequence[Place]) -> Iterator[Finding]:
    """Yield keys that the class of their dictionary does not have, and names that no class has."""
    own_model = not all(place.is_published for place in nodes if place.path.startswith("model"))
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
        known, complete = place.known(), place.arguments()[1]
        for key in sorted(place.node.keys() - known) if known else ():
            path, close = f"{place.path}.{key}", nearest(key, known, 0.8) or nearest(key.lower(), known, 0.8)
            # a class of the user's own may read other keys
            certain = complete or (place.is_published and not (place.is_read and own_model))
            if close and certain and not re.match(rf"{close}[_\d]", key):
                yield Finding(path, f"expected {close}, got an unknown key", "key")
            elif complete:
                yield Finding(path, f"expected one of {few(sorted(known), 30)}, got an unknown key", "key")
            elif place.is_read:
                yield Finding(path, "unknown key, probably not used", "key", stops=False)


def _is_layer(place: Place) -> bool:
    of_torch = getattr(place.kind, "__module__", "").startswith("torch.")
    return place.path.startswith("model") and (of_torch or bool(LAYER_SETTINGS & {*place.path.split(".")}))


def _wrong_name(place: Place) -> Iterator[Finding]:
    """Yield a ``type`` that is nearly the name of a registered class."""
    name = place.node.get("type")
    if not isinstance(name, str) or not name[:1].isupper() or not place.names:
        return
    if class_of(place.node, *place.names) is None:
        known = {key for each in place.names for key in registered(getattr(registries, each))}
        if name not in known and (close := nearest(name, known, 0.8)):
            yield Finding(f"{place.path}.type", f"expected {close}, got {name}, which is not registered")


def wrong_values(nodes: Sequence[Place]) -> Iterator[Finding]:
    """Yield values that the annotation or the table does not accept."""
    for place in nodes:
        for key, value in place.node.items():
            if text := refusal(place, key, value):
                yield Finding(f"{place.path}.{key}", text)


def contradictions(nodes: Sequence[Place]) -> Iterator[Finding]:
    """Yield steps of pipelines that repeat what the model does."""
    normalises = any(node.path == "model.data_preprocessor" and "mean" in node.node for node in nodes)
    for place in nodes if normalises else ():
        if place.names and place.node.get("type") in ("Normalize", "mmcv.Normalize", "mmdet.Normalize"):
            yield Finding(place.path, "expected no Normalize: model.data_preprocessor normalises too")


def wrong_class_names(cfg: Config) -> Iterator[Finding]:
    for loader, _, info in data_sets(cfg):
        if isinstance(names := info.get("classes"), str):
            text = f"expected a tuple of names, got {names!r}; write ({names!r},)"
            yield Finding(f"{loader}: metainfo.classes", text)


def wrong_class_numbers(cfg: Config, loaders: Collection[str] = LOADERS) -> Iterator[Finding]:
    expected: dict[str, dict[int, list[str]]] = {key: {} for key in CLASS_NUMBERS}
    for loader, dataset, info in data_sets(cfg):
        if loader not in loaders:
            continue
        # MOTChallengeDataset lists 13 kinds of objects, of which detectors find pedestrians
        if isinstance(info.get("classes"), list | tuple) and dataset.get("type") != "MOTChallengeDataset":
            things, stuff = info.get("thing_classes", info["classes"]), info.get("stuff_classes", ())
            for key, names in zip(CLASS_NUMBERS, (things, things, stuff), strict=True):
                expected[key].setdefault(len(names), []).append(loader)
    for path, node in dicts(cfg.get("model"), "model"):
        # the outputs of detectors with a language model are words
        if "head" not in path or "language_model" in cfg.model:
            continue
        kind = class_of(node, "MODELS")
        signature = {} if kind is None else arguments(kind)[0]
        for key in CLASS_NUMBERS[1:] if OTHER_CLASSES & {*path.split(".")} else CLASS_NUMBERS:
            number = node.get(key, signature[key].default if key in signature else None)
            for count in expected[key].keys() - {number} if isinstance(number, int) else ():
                where = ", ".join(dict.fromkeys(expected[key][count]))
                text = f"expected {count}, the number of classes in {where}, got {number}"
                yield Finding(f"{path}.{key}", text)


def datasets(node: Mapping) -> Iterator[Any]:
    """Yield the data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = [node["dataset"]] if "dataset" in node else node.get("datasets") or []
    for dataset in inner if isinstance(inner, list | tuple) else ():
        if isinstance(dataset, Mapping):
            yield from datasets(dataset)
    if not inner:
        yield node


def declared_metainfo(dataset: Mapping) -> dict:
    """Return the metainfo of a data set's class and config, without building the data set."""
    load = getattr(class_of(dataset, "DATASETS"), "_load_metainfo", dict)
    info = dataset.get("metainfo")
    return load(info if isinstance(info, Mapping) else {})


def metainfo(dataset: Mapping) -> dict:
    """Return a data set's metainfo, if possible without building it: that may read or generate files."""
    dataset = next(datasets(dataset))
    declared = declared_metainfo(dataset)
    if declared.get("classes") or "type" not in dataset or registries.DATASETS.get(dataset["type"]) is None:
        return declared
    return registries.DATASETS.build(
        {**dataset, "lazy_init": True}
    ).metainfo  # this class reads its classes from a file


def wrong_evaluator_files(cfg: Config) -> Iterator[Finding]:
    """Yield annotation files of evaluators whose images are not those of the data set."""
    data = list(data_sets(cfg))
    loaders = [loader for loader, _, _ in data]
    for loader, dataset, _ in data:
        if loaders.count(loader) > 1:
            continue
        key = loader.replace("dataloader", "evaluator")
        expected = [dataset.get(key) or "" for key in ("data_root", "ann_file")]
        for _, metric in dicts(cfg.get(key)):
            files = [metric.get("ann_file"), *expected]
            if files[0] and all(isinstance(file, str) for file in files):
                path = os.path.join(*expected)
                if not _same_images(files[0], path):
                    yield Finding(f"{key}.ann_file", f"expected {path}, as in {loader}, got {files[0]}")


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


def data_sets(cfg: Config) -> Iterator[tuple[str, Mapping, dict]]:
    """Yield every data set's loader, config and metainfo."""
    for loader in filter(cfg.get, LOADERS):
        node = cfg[loader]
        outer = node.get("dataset") if isinstance(node, Mapping) else None
        for dataset in datasets(outer) if isinstance(outer, Mapping) else ():
            yield loader, dataset, declared_metainfo(dataset)
