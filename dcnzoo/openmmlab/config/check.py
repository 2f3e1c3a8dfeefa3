"""Find mistakes in a config before anything is built; the rules are in :mod:`.rules`."""

import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mmcv.ops
from mmdet import registry as registries
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope

from dcnzoo.data.files import InvalidAnnotation, read_json
from dcnzoo.openmmlab.config.bases import variables_without_effect
from dcnzoo.openmmlab.config.deformable import arguments, split_settings
from dcnzoo.openmmlab.config.rules import (
    LAYER_SETTINGS,
    LIKE_SETTINGS,
    OLD_KEYS,
    known_keys,
    reads_settings,
    refusal,
)
from dcnzoo.openmmlab.config.tree import (
    LOADERS,
    PARAMETERS,
    RUNNER_KEYS,
    Node,
    class_of,
    copies,
    data_sets,
    dicts,
    nodes,
    registered,
    runner_settings,
    variables,
)
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import few, nearest

# the top-level keys whose values are dictionaries, some also lists or objects
PIPELINES = {"train_pipeline", "val_pipeline", "test_pipeline"}  # variables, with names like tta_pipeline
DICTIONARIES = {key for key, parameter in PARAMETERS.items() if "Dict" in str(parameter.annotation)}
DICTIONARIES = DICTIONARIES - {"compile"} | {"custom_imports"}
OBJECT_CLASSES = ("num_classes", "num_things_classes")
CLASS_NUMBERS = (*OBJECT_CLASSES, "num_stuff_classes")
# heads whose num_classes counts other classes: object or background, identities, those of a semantic map
OTHER_CLASSES = {"rpn_head", "reid", "semantic_head"}
NORMALIZE = ("Normalize", "mmcv.Normalize", "mmdet.Normalize")
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
    missing = {key for key in required if not cfg.get(key)}
    missing |= {key for key in DICTIONARIES if isinstance(cfg.get(key) or {}, str | int | float)}
    problems = [Finding(key, f"expected its settings, got {cfg.get(key)}") for key in sorted(missing)]
    texts = ("work_dir", "load_from", "default_scope")
    numbers = [key for key in texts if not isinstance(cfg.get(key), str | None)]
    problems += [Finding(key, f"expected a text, got {cfg[key]}") for key in numbers]
    if not isinstance(cfg.get("resume"), bool | None):
        problems.append(Finding("resume", f"expected True or False, got {cfg.resume!r}"))
    scope = None if "default_scope" in numbers else cfg.get("default_scope")
    unused = _unused(required, runs)
    with DefaultScope.overwrite_default_scope(scope):
        problems += wrong_settings([*nodes(cfg)], runs)
        problems += wrong_classes(cfg, [key for key in LOADERS if runs and key not in unused])
        if runs or options:
            problems += wrong_top_level_keys(cfg, options)
        if os.path.isfile(cfg.filename or ""):
            problems += variables_without_effect(cfg)
        if runs:
            problems += [*wrong_evaluator_files(cfg), *wrong_monitors(cfg)]
    for index, problem in enumerate(problems):
        stops = problem.stops and re.split(r"[.:]", problem.subject)[0] not in unused
        stops |= problem.kind == "key" and problem.subject in options
        problems[index] = replace(problem, stops=stops)
    return problems


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
    own_model = not all(node.is_published for node in nodes if node.path.startswith("model"))
    normalises = runs and any(
        node.path == "model.data_preprocessor" and "mean" in node.content for node in nodes
    )
    for node in nodes:
        if wrong_name := _wrong_name(node):
            yield wrong_name
        elif not _is_layer(node):
            yield from _wrong_keys(node, own_model)
        for key, value in node.content.items():
            if text := refusal(node, key, value):
                yield Finding(f"{node.path}.{key}", text)
        if normalises and node.registries and node.content.get("type") in NORMALIZE:
            yield Finding(node.path, "expected no Normalize: model.data_preprocessor normalises too")


def _wrong_name(node: Node) -> Finding | None:
    """Return a ``type`` that is nearly the name of a registered class."""
    name = node.content.get("type")
    if isinstance(name, str) and name[:1].isupper() and class_of(node.content, *node.registries) is None:
        known = {*mmcv.ops.__all__}  # RoI layers, in no registry
        known.update(*(registered(getattr(registries, each)) for each in node.registries))
        if name not in known and (close := nearest(name, known, 0.8)):
            return Finding(f"{node.path}.type", f"expected {close}, got {name}, which is not registered")
    return None


def _is_layer(node: Node) -> bool:
    of_torch = getattr(node.kind, "__module__", "").startswith("torch.")
    return node.path.startswith("model") and (of_torch or bool(LAYER_SETTINGS & {*node.path.split(".")}))


def _wrong_keys(node: Node, own_model: bool) -> Iterator[Finding]:
    """Yield keys that the class, or code that reads the dictionary, does not have."""
    if node.path.startswith("model") and not node.inner:
        try:
            split_settings(dict(node.content), node.kind)
        except ValueError as error:
            yield Finding(node.path, str(error))
    known, complete, is_read = known_keys(node), node.arguments()[1], reads_settings(node)
    # a class of the user's own may read other keys
    certain = complete or (node.is_published and not (is_read and own_model))
    for key in sorted(node.content.keys() - known) if known else ():
        path, close = f"{node.path}.{key}", nearest(key, known, 0.8) or nearest(key.lower(), known, 0.8)
        if close and certain and not re.match(rf"{close}[_\d]", key):
            yield Finding(path, f"expected {close}, got an unknown key", "key")
        elif complete:
            yield Finding(path, f"expected one of {few(sorted(known), 30)}, got an unknown key", "key")
        elif is_read:
            yield Finding(path, "unknown key, probably not used", "key", stops=False)


def wrong_classes(cfg: Config, loaders: Collection[str]) -> Iterator[Finding]:
    """Yield data sets whose classes are a text, and heads with another number of classes than the data."""
    expected: dict[str, dict[int, list[str]]] = {key: {} for key in CLASS_NUMBERS}
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
            for key, counted in zip(CLASS_NUMBERS, (things, things, stuff), strict=True):
                expected[key].setdefault(len(counted), []).append(loader)
    for path, node in dicts(cfg.get("model"), "model") if loaders else ():
        # the outputs of detectors with a language model are words
        kind = class_of(node, "MODELS")
        own = kind is not None and not Node(path, node, kind).is_published
        if "head" not in path or "language_model" in cfg.model or own:
            continue
        parameters = arguments(kind)[0] if kind else {}
        for key in CLASS_NUMBERS[1:] if OTHER_CLASSES & {*path.split(".")} else CLASS_NUMBERS:
            number = node.get(key, parameters[key].default if key in parameters else None)
            for count in expected[key].keys() - {number} if isinstance(number, int) else ():
                where = ", ".join(dict.fromkeys(expected[key][count]))
                text = f"expected {count}, the number of classes in {where}, got {number}"
                yield Finding(f"{path}.{key}", text)


def wrong_top_level_keys(cfg: Config, options: Collection[str] = ()) -> Iterator[Finding]:
    """Yield keys of MMDetection 2, and keys that are neither the runner's nor variables."""
    stored, read = variables(cfg.text)
    settings = [node for key in cfg if key in RUNNER_KEYS for _, node in dicts(cfg[key])]
    for key in sorted({*cfg} - RUNNER_KEYS - read):
        new = key in options and key not in stored
        if cfg.text and key not in stored and not new:
            continue  # of a published base, or of one in MMEngine's new style
        if _is_old(key, cfg[key]) or (new and key in OLD_KEYS):
            instead = OLD_KEYS[key][1]
            # a dump has variables too, which its lines do not read
            if cfg[key] not in (*settings, _at(cfg, instead)):
                yield Finding(key, f"expected version 3's {instead}, got a key of MMDetection 2", "key")
        elif new or (key not in PIPELINES and nearest(key, RUNNER_KEYS, 0.8) and not copies(cfg, key, False)):
            expected = nearest(key, RUNNER_KEYS) or "a key of mmengine's runner"
            text = f"expected {expected}, or a variable that is used, got an unknown key"
            yield Finding(key, text, "key", stops=False)
        elif key in LIKE_SETTINGS and key in stored and not _is_set(cfg, LIKE_SETTINGS[key], cfg[key]):
            text = f"expected {LIKE_SETTINGS[key]}, got a variable that nothing reads"
            yield Finding(key, text, stops=False)
        elif key in options:
            yield Finding(key, "expected a setting, got a name that nothing in the config uses", stops=False)


def _is_set(cfg: Config, path: str, value: object) -> bool:
    """Whether a setting with the last name of a path has a value; a dump has copies of variables."""
    name = path.rpartition(".")[2].partition(" ")[0]
    return any(key == name and each == value for _, key, each in runner_settings(cfg))


def _is_old(key: str, value: object) -> bool:
    """Whether a top-level key has the name and the shape of one of MMDetection 2."""
    shape = OLD_KEYS[key][0] if key in OLD_KEYS else ""
    if isinstance(shape, type):
        return type(value) is shape
    return isinstance(value, Mapping) and not value.keys().isdisjoint(shape.split())


def _at(cfg: Config, path: str) -> object:
    node: Any = cfg
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping | Config) else None
    return node


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
