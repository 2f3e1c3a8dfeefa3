"""Find mistakes in a config before anything is built."""

import inspect
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope

from dcnzoo.data.files import InvalidAnnotation, read_json
from dcnzoo.openmmlab.classes import NUMBERS, numbers
from dcnzoo.openmmlab.config.read import variables_without_effect, wrong_top_level_keys
from dcnzoo.openmmlab.config.tree import (
    LOADERS,
    PARAMETERS,
    Node,
    class_of,
    data_sets,
    dicts,
    is_published,
    nodes,
)
from dcnzoo.openmmlab.config.values import wrong_keys, wrong_value
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import short

NORMALIZE = ("Normalize", "mmcv.Normalize", "mmdet.Normalize")
_TYPES = {dict: "settings", list: "a list", str: "a text", bool: "True or False"}
# the parts that only these commands use
_TRAINING = {"train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "auto_scale_lr"}
_VALIDATION = {"val_dataloader", "val_cfg", "val_evaluator"}
_TEST = {"test_dataloader", "test_cfg", "test_evaluator", "tta_model", "tta_pipeline"}


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
        line = printable(f"{name}: {problem}")
        if problem.stops:
            lines.append(line)
        else:
            print_log(line, "current", logging.WARNING)
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
    problems = [
        Finding(key, f"expected its settings, got {cfg.get(key)}") for key in required if not cfg.get(key)
    ]
    for key in sorted(cfg.keys() & PARAMETERS.keys() - {"log_level"}):  # logging has numbers too
        if expected := _wrong_type(PARAMETERS[key], cfg[key]):
            problems.append(Finding(key, f"expected {expected}, got {short(cfg[key])}"))
    scope = cfg.get("default_scope")
    unused = _unused(required, runs)
    with DefaultScope.overwrite_default_scope(scope if isinstance(scope, str) else None):
        problems += wrong_settings([*nodes(cfg)], runs)
        problems += wrong_classes(cfg, [key for key in LOADERS if runs and key not in unused])
        if runs or options:
            problems += wrong_top_level_keys(cfg, options)
        if os.path.isfile(cfg.filename or ""):
            problems += variables_without_effect(cfg)
        if runs:
            problems += [*wrong_evaluator_files(cfg), *wrong_monitors(cfg)]
    for path in sorted(options) if not runs else ():
        if path in unused or path.partition(".")[0] in unused:
            text = f"has no effect in this command, which does not use {path.partition('.')[0]}"
            problems.append(Finding(path, text, stops=False))
    for index, problem in enumerate(problems):
        stops = problem.stops and re.split(r"[.:]", problem.subject)[0] not in unused
        stops |= problem.kind == "key" and problem.subject in options
        problems[index] = replace(problem, stops=stops)
    return problems


def _wrong_type(parameter: inspect.Parameter, value: object) -> str:
    """Return which types an argument of mmengine's runner may have, if a value has another one."""
    members = get_args(parameter.annotation) if get_origin(parameter.annotation) is Union else ()
    types = tuple(get_origin(member) or member for member in members or (parameter.annotation,))
    if not isinstance(value, dict | list | str | int | float) or isinstance(value, types):
        return ""
    return " or ".join(text for kind, text in _TYPES.items() if kind in types)


def _unused(required: Sequence[str], runs: bool) -> set[str]:
    """Return the top-level keys that a command does not use."""
    if not runs:
        unused = _TRAINING | _VALIDATION | _TEST - {"test_dataloader"}
    elif _TRAINING & {*required}:
        unused = _TEST
    else:
        unused = _TRAINING | _VALIDATION if _TEST & {*required} else set()
    return unused - {*required}


def wrong_settings(nodes: Sequence[Node], runs: bool = True) -> Iterator[Finding]:
    """Yield the mistakes inside dictionaries: names of classes, keys and values."""
    normalises = runs and any(
        node.path == "model.data_preprocessor" and "mean" in node.content for node in nodes
    )
    for node in nodes:
        yield from wrong_keys(node)
        for key, value in node.content.items():
            if text := wrong_value(node, key, value):
                yield Finding(f"{node.path}.{key}", text)
        if normalises and node.registries and node.content.get("type") in NORMALIZE:
            yield Finding(node.path, "expected no Normalize: model.data_preprocessor normalises too")


def wrong_classes(cfg: Config, loaders: Collection[str]) -> Iterator[Finding]:
    """Yield data sets whose classes are a text, and heads with another number of classes than the data."""
    expected: dict[str, dict[int, list[str]]] = {key: {} for key in NUMBERS}
    for loader, dataset, info in data_sets(cfg):
        names = info.get("classes")
        if isinstance(names, str):
            text = f"expected a tuple of names, got {names!r}; write ({names!r},)"
            yield Finding(f"{loader}: metainfo.classes", text)
        # MOTChallengeDataset lists 13 kinds of objects, of which detectors find pedestrians
        elif (
            isinstance(names, list | tuple)
            and loader in loaders
            and dataset.get("type") != "MOTChallengeDataset"
        ):
            things, stuff = info.get("thing_classes", names), info.get("stuff_classes", ())
            for key, counted in zip(NUMBERS, (things, things, stuff), strict=True):
                expected[key].setdefault(len(counted), []).append(loader)
    for path, node, key, number in numbers(cfg.get("model") or {}) if loaders else ():
        if "head" not in path or not is_published(class_of(node, "MODELS")):
            continue  # a user's own class may count others
        for count in expected[key].keys() - {number}:
            where = ", ".join(dict.fromkeys(expected[key][count]))
            yield Finding(
                f"{path}.{key}", f"expected {count}, the number of classes in {where}, got {number}"
            )


def wrong_evaluator_files(cfg: Config) -> Iterator[Finding]:
    """Yield annotation files of evaluators whose images are not those of the data set."""
    data = list(data_sets(cfg))
    loaders = [loader for loader, _, _ in data]
    for loader, dataset, _ in data:
        key = loader.replace("dataloader", "evaluator")
        expected = [dataset.get(name) or "" for name in ("data_root", "ann_file")]
        for _, metric in dicts(cfg.get(key)) if loaders.count(loader) == 1 else ():
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


def wrong_monitors(cfg: Config) -> Iterator[Finding]:
    """Yield hooks that watch a number which no metric of the validation computes, if its names are known."""
    metrics = cfg.get("val_evaluator") or []
    metrics = metrics if isinstance(metrics, list | tuple) else [metrics]
    patterns = [_metric_names(metric) for metric in metrics if isinstance(metric, Mapping)]
    expected = f"expected a metric of val_evaluator, {' or '.join(patterns)}".replace("\\", "")
    parts = {part: cfg.get(part) for part in ("default_hooks", "custom_hooks")}
    for path, hook in dicts(parts) if patterns and all(patterns) else ():
        bases = {base.__name__ for base in getattr(class_of(hook, "HOOKS"), "__mro__", ())}
        key = "save_best" if "CheckpointHook" in bases else "monitor" if "EarlyStoppingHook" in bases else ""
        values = hook.get(key) or ()
        for value in (values,) if isinstance(values, str) else values:
            if value != "auto" and not re.fullmatch("|".join(patterns), str(value)):
                yield Finding(f"{path}.{key}".lstrip("."), f"{expected}, got {value!r}")


def _metric_names(metric: Mapping) -> str:
    """Return a pattern for the names that a metric gives; empty if only an evaluation shows them."""
    kind: Any = class_of(metric, "METRICS")
    if not (default := getattr(kind, "default_prefix", None)):
        return ""
    prefix, names = re.escape(metric.get("prefix") or default), metric.get("metric", "bbox")
    names = names if isinstance(names, list | tuple) else [str(names)]
    if kind.__name__ != "CocoMetric" or metric.get("metric_items") or not {"bbox", "segm"}.issuperset(names):
        return f"{prefix}/.+"
    items = f"({'|'.join(names)})_mAP(_50|_75|_s|_m|_l)?"
    return f"{prefix}/({items}|.+_precision)" if metric.get("classwise") else f"{prefix}/{items}"
