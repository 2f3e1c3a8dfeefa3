"""Find mistakes in a config before anything is built."""

import inspect
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import TestLoop

from dcnzoo.data.files import InvalidAnnotation, read_json
from dcnzoo.openmmlab.classes import NUMBERS, OTHERS, data_sets, numbers
from dcnzoo.openmmlab.config.deformable import arguments
from dcnzoo.openmmlab.config.errors import require_none
from dcnzoo.openmmlab.config.packages import is_published
from dcnzoo.openmmlab.config.read import (
    is_written,
    replaced_hooks,
    variables_without_effect,
    words_in,
    wrong_top_level_keys,
)
from dcnzoo.openmmlab.config.tree import (
    LOADERS,
    PARAMETERS,
    class_of,
    dicts,
    nodes,
)
from dcnzoo.openmmlab.config.values import unusual_numbers, wrong_settings
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import few, nearest, short

DEFAULT_HOOKS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
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
    require_none(find_problems(cfg, required, runs, options or ()), name)


def find_problems(
    cfg: Config, required: Sequence[str] = (), runs: bool = True, options: Collection[str] = ()
) -> list[Finding]:
    """List the problems of the parts that a command uses; see :func:`check_config`."""
    problems = [
        Finding(key, f"expected its settings, got {cfg.get(key)}") for key in required if not cfg.get(key)
    ]
    unused = _unused(required, runs)
    parts = {key: value for key, value in cfg.items() if key not in unused}
    for key in sorted(parts.keys() & PARAMETERS.keys() - {"log_level"}):  # logging has numbers too
        if expected := _wrong_type(PARAMETERS[key], parts[key]):
            problems.append(Finding(key, f"expected {expected}, got {short(parts[key])}"))
    words = words_in(cfg, are_published=False) if runs else ()
    scope = cfg.get("default_scope")
    with DefaultScope.overwrite_default_scope(scope if isinstance(scope, str) else None):
        for node in nodes(parts):
            problems += wrong_settings(node)
        problems += wrong_classes(parts, runs)
        if runs or options:
            problems += wrong_top_level_keys(cfg, {each.partition(".")[0] for each in options})
        if os.path.isfile(cfg.filename or ""):
            copies = variables_without_effect(cfg)
            problems += (each for each in copies if each.subject.partition(".")[0] not in unused)
        if runs:
            problems += [*wrong_evaluator_files(parts), *wrong_loaders(parts)]
            problems += similar_hooks(cfg.get("default_hooks"))
            if "train_cfg" not in unused:
                problems += replaced_hooks(cfg)
            own = {key: parts[key] for key in ("model", "optim_wrapper") if key in parts}
            known = {problem.subject for problem in problems}
            for node in nodes(own) if not is_written(cfg) else ():
                problems += (each for each in unusual_numbers(node, words) if each.subject not in known)
    if "test_cfg" in unused and runs:
        problems += wrong_test_loop(cfg.get("test_cfg"))
        for path, settings in dicts({key: cfg[key] for key in unused & cfg.keys()}):
            kind = str(settings.get("type", "_"))  # a function, such as nms, is in no registry
            if kind in words and kind[0].isupper() and class_of(settings) is None:
                text = f"expected a registered class, got {kind}"
                problems.append(Finding(f"{path}.type".lstrip("."), text, stops=False))
    for path in sorted(options) if not runs else ():
        if (part := path.partition(".")[0]) in unused:
            text = f"has no effect in this command, which does not use {part}"
            problems.append(Finding(path, text, stops=False))
    return problems


def similar_hooks(hooks: Any) -> Iterator[Finding]:
    """Yield default hooks with a name similar to that of one of mmengine, beside which they are used.

    Of the others, mmengine refuses None without their name.
    """
    for key in hooks if isinstance(hooks, Mapping) else ():
        if hooks[key] is None and key not in DEFAULT_HOOKS:
            text = f"expected settings; None switches off {', '.join(DEFAULT_HOOKS)} only"
            yield Finding(f"default_hooks.{key}", text)
        if (close := nearest(key, DEFAULT_HOOKS, 0.8)) and not re.match(rf"{close}(_|\d|$)", key):
            yield Finding(f"default_hooks.{key}", f"expected {close}, got an unknown key", "key", stops=False)


def wrong_test_loop(loop: Any) -> Iterator[Finding]:
    """Yield settings that the loop of a test does not have. A training does not build this loop."""
    kind = (class_of(loop) or TestLoop) if isinstance(loop, Mapping) else object
    known, others = arguments(kind)
    for key in loop.keys() - known.keys() - {"type", "_scope_"} if others == "refused" and loop else ():
        text = f"expected model.test_cfg.{key}, got a setting that {kind.__name__} does not have"
        yield Finding(f"test_cfg.{key}", text, "key", stops=False)


def _wrong_type(parameter: inspect.Parameter, value: object) -> str:
    """Return which types an argument of mmengine's runner may have, if a value has another one."""
    members = get_args(parameter.annotation) if get_origin(parameter.annotation) is Union else ()
    types = tuple(get_origin(member) or member for member in members or (parameter.annotation,))
    is_list = isinstance(value, tuple) and list in types
    if is_list or not isinstance(value, dict | list | tuple | str | int | float) or isinstance(value, types):
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


def wrong_classes(cfg: Mapping, runs: bool) -> Iterator[Finding]:
    """Yield data sets whose classes are a text, and heads with another number of classes than the data."""
    expected: dict[str, dict[int, list[str]]] = {key: {} for key in NUMBERS}
    declared = set[int]()  # numbers of names that the config has, not only its data set's class
    for loader, dataset, info in data_sets(cfg):
        names, own = info.get("classes"), dataset.get("metainfo")
        own = own if isinstance(own, Mapping) else {}
        known = getattr(class_of(dataset), "METAINFO", {})
        for key in own.keys() - known.keys():
            if close := nearest(str(key).lower(), known, 0.8):
                yield Finding(f"{loader}: metainfo.{key}", f"expected {close}, got an unknown key", "key")
        colours = info.get("palette")
        if (
            isinstance(names, list | tuple)
            and isinstance(colours, list | tuple)
            and len(colours) < len(names)
        ):
            text = f"expected at least {len(names)} colours, got {len(colours)}"
            yield Finding(f"{loader}: metainfo.palette", text, stops=False)
        if isinstance(names, str):
            text = f"expected a tuple of names, got {names!r}; write ({names!r},)"
            yield Finding(f"{loader}: metainfo.classes", text)
        # MOTChallengeDataset lists 13 kinds of objects, of which detectors find pedestrians
        elif isinstance(names, list | tuple) and runs and dataset.get("type") != "MOTChallengeDataset":
            things, stuff = info.get("thing_classes", names), info.get("stuff_classes", ())
            for key, counted in zip(NUMBERS, (things, things, stuff), strict=True):
                expected[key].setdefault(len(counted), []).append(loader)
                declared |= {len(counted)} if "classes" in own else set()
    model = cfg.get("model")
    model = model if isinstance(model, Mapping) else {}
    heads = {key for key in model if "head" in str(key)} - OTHERS
    if expected[NUMBERS[0]] and heads and "language_model" not in model and not [*numbers(model)]:
        text = "the key of its number of classes is not known, which is not compared with the data's"
        yield Finding("model", text, stops=False)
    for path, node, key, number in numbers(model):
        if "head" not in path or not is_published(class_of(node)):
            continue  # a user's own class may count others
        for count in expected[key].keys() - {number}:
            loaders, agreeing = [*dict.fromkeys(expected[key][count])], expected[key].get(number, ())
            if "train_dataloader" in agreeing and "train_dataloader" not in loaders:
                subject = f"{loaders[0]}.dataset.metainfo"
                text = f"expected the {number} classes of train_dataloader, as {path}.{key}, got {count}"
            else:
                subject, source = f"{path}.{key}", ", ".join(loaders)
                source += "" if count in declared else ", whose metainfo names none"
                text = f"expected {count}, the number of classes in {source}, got {number}"
            # with more than the class of the data set has, published configs train
            yield Finding(subject, text, stops=number < count or key != NUMBERS[0] or count in declared)


def wrong_evaluator_files(cfg: Mapping) -> Iterator[Finding]:
    """Yield annotation files of evaluators whose images are not those of the data set."""
    data = list(data_sets(cfg))
    loaders = [loader for loader, _, _ in data]
    for loader, dataset, _ in data:
        key = loader.replace("dataloader", "evaluator")
        path = _annotations(dataset)
        for _, metric in dicts(cfg.get(key)) if loaders.count(loader) == 1 else ():
            file = metric.get("ann_file")
            if path and file and isinstance(file, str) and not _same_images(file, path):
                yield Finding(f"{key}.ann_file", f"expected {path}, as in {loader}, got {file}")


def wrong_loaders(cfg: Mapping) -> Iterator[Finding]:
    """Yield loaders with the order or the filter of another loop, and files that a training validates with.

    Files of which a data set uses a part are left out.
    """
    files: dict[str, set[str]] = {loader: set() for loader in LOADERS}
    loader = cfg.get("train_dataloader")
    sampler = loader.get("sampler") if isinstance(loader, Mapping) else None
    if isinstance(sampler, Mapping) and sampler.get("shuffle") is False:
        yield Finding("train_dataloader.sampler.shuffle", "expected True, got False", stops=False)
    if isinstance(loader, Mapping) and "batch_size" in loader and not sampler:
        yield Finding("train_dataloader.sampler", "expected one that shuffles, got none", stops=False)
    for loader, dataset, _ in data_sets(cfg):
        is_test = loader != "train_dataloader"
        if dataset.get("filter_cfg") and bool(dataset.get("test_mode")) != is_test:
            text = f"expected test_mode={is_test}: False filters the pictures by filter_cfg"
            yield Finding(f"{loader}.dataset", text, stops=False)
        if (file := _annotations(dataset)) and "indices" not in dataset:
            files[loader].add(file)
    for file in files["train_dataloader"] & files["val_dataloader"]:
        text = f"expected other pictures than train_dataloader, got {file} in both"
        yield Finding("val_dataloader", text, stops=False)


def _annotations(dataset: Mapping) -> str:
    """Return the path of a data set's annotations; empty without one."""
    parts = [dataset.get(name) or "" for name in ("data_root", "ann_file")]
    return os.path.join(*parts) if parts[1] and all(isinstance(part, str) for part in parts) else ""


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


def wrong_monitors(cfg: Mapping, names: Collection[str]) -> Iterator[Finding]:
    """Yield what watches a number that is not among those of a validation, ``names``."""
    parts = {part: cfg.get(part) for part in ("default_hooks", "custom_hooks", "param_scheduler")}
    for path, node in dicts(parts):
        kind = class_of(node)
        bases = {base.__name__ for base in getattr(kind, "__mro__", ())}
        key = "save_best" if "CheckpointHook" in bases else "monitor"
        is_known = bases & {"CheckpointHook", "EarlyStoppingHook", "_ParamScheduler"}
        known = arguments(kind)[0] if is_known else {}
        values = node.get(key, known[key].default) if key in known else ()
        values = [values] if isinstance(values, str) else values
        for value in values if isinstance(values, list | tuple) else ():
            where = f"{path}.{key}".lstrip(".")
            if value not in {"auto", *names}:
                yield Finding(where, f"expected one of {few(sorted(names), 8)}, got {value!r}")
            elif (node.get("rule") or known["rule"].default) == "less":  # ReduceOnPlateauLR's default
                yield Finding(where, f"expected rule='greater' for {value}, got 'less'", stops=False)
        if values and isinstance(least := node.get("min_delta"), int | float) and least >= 1:
            text = f"expected less than 1, the largest AP, got {least}"
            yield Finding(f"{path}.min_delta".lstrip("."), text, stops=False)
