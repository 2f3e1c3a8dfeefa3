"""Configs of detectors as JSON: data, of which nothing is executed and no module is imported.

A file has the keys of :data:`KEYS`. ``type`` is a name in the registries of mmengine, mmcv, mmdet and dcnzoo,
other texts are words. What JSON lacks has one spelling each::

    (1, 2)            {"$tuple": [1, 2]}
    {0: 1}            {"$dict": [[0, 1]]}
    float("inf")      {"$float": "inf"}

A class as type is its name in the registries.
"""

import inspect
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import mmcv.ops
import numpy as np
from mmdet.registry import MODELS, TASK_UTILS, TRANSFORMS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config

from dcnzoo.openmmlab.config.tree import registered
from dcnzoo.openmmlab.config.type_names import use_names
from dcnzoo.openmmlab.registration import setup
from dcnzoo.utils.errors import UserError, one_line, printable
from dcnzoo.utils.text import short

VERSION = 1
MARK = "dcnzoo"  # key of the version of the format
KEYS = (MARK, "default_scope", "model", "test_pipeline")
SHOWN = 5  # problems in a message
SCOPES = ("mmdet", "mmengine", "mmcv", "dcnzoo")
# Keys that name files, other repositories or code. None is allowed. A detector with weights needs none of
# them, so they are left out of a file.
_REFUSED = {"init_cfg", "pretrained", "teacher_ckpt", "backend_args", "file_client_args"}
_REFUSED_ALWAYS = {"custom_imports", "teacher_config", "checkpoint", "lang_model_name"}
# Modules of classes that evaluate a text, read another file or repository, or import another package.
_REFUSED_MODULES = (
    "mmdet.models.language_models",
    "mmdet.models.mot",
    "mmdet.models.reid",
    "mmdet.models.trackers",
    "mmdet.models.tracking_heads",
    "mmdet.models.vis",
    "mmdet.models.task_modules.tracking",
    "mmdet.models.dense_heads.atss_vlfusion_head",
    "mmdet.models.detectors.d2_wrapper",
    "mmdet.models.detectors.glip",
    "mmdet.models.detectors.grounding_dino",
    "mmdet.models.detectors.kd_one_stage",
    "mmdet.datasets.transforms.instaboost",
    "mmdet.datasets.transforms.text_transformers",
)
_REFUSED_TYPES = {"Albu", "Corrupt"}
# types that a class compares with its own names: FPG's ways, and how StageCascadeRPNHead adapts
_WAYS = {"conv", "interpolation_conv", "last_conv", "dilation", "offset"}
_TEXT = re.compile(r"[\w.+ -]*")
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def is_json_config(path: str | os.PathLike) -> bool:
    """Whether a file says that it is in this format; :func:`read` checks it."""
    if Path(path).suffix != ".json" or not os.path.isfile(path):  # Path.is_file raises if it is too long
        return False
    try:
        content = _parse(Path(path), str(path))
    except UserError:
        if "{{" in Path(path).read_text(encoding="utf-8", errors="replace"):  # mmengine's {{_base_.name}}
            return False
        raise
    return isinstance(content, dict) and MARK in content


def read(path: str | os.PathLike, name: str = "") -> Config:
    """Read a config, without executing or importing anything.

    Args:
        name: of the file in messages, in place of the path.

    Raises:
        UserError: the file is in another format, or has a key, type or text that is not allowed. The message
            names the keys.
    """
    name = name or str(path)
    content = _parse(Path(path), name)
    if not isinstance(content, dict) or MARK not in content:
        raise UserError(f"{name}: expected a detector of dcnzoo, with the key {MARK}, got another JSON file")
    if type(content[MARK]) is not int or content[MARK] != VERSION:
        raise UserError(f"{name}: {MARK}: expected version {VERSION}, got {short(content[MARK])}")
    try:
        settings = {key: _decode(value, key) for key, value in content.items() if key != MARK}
        problems = list(find_problems(settings))
    except (RecursionError, ValueError) as error:
        raise UserError(f"{name}: {one_line(error)}") from error
    if problems:
        raise UserError(*(f"{name}: {problem}" for problem in problems[:SHOWN]))
    pipeline = settings.pop("test_pipeline")
    return Config({**settings, "test_dataloader": {"dataset": {"pipeline": pipeline}}}, filename=str(path))


def write(cfg: Config) -> str:
    """Return the text of a file with all that a detector with weights needs of its config.

    Raises:
        ValueError: a setting has no spelling in JSON, or is not allowed. The message names the keys.
    """
    cfg = use_names(cfg)
    try:
        pipeline = get_test_pipeline_cfg(Config(cfg.to_dict()))
    except (AttributeError, RuntimeError) as error:
        raise UserError("test_dataloader: expected a data set with a pipeline, got none") from error
    settings = {
        "default_scope": cfg.get("default_scope", "mmdet"),
        "model": _without_sources(cfg.to_dict()["model"]),
        "test_pipeline": _without_sources(pipeline),
    }
    if problems := list(find_problems(settings)):
        raise ValueError(f"config: expected no code: {'; '.join(problems[:SHOWN])}")
    encoded = {key: _encode(value, key) for key, value in settings.items()}
    return json.dumps({MARK: VERSION, **encoded}, indent=1, allow_nan=False) + "\n"


def find_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a config must not contain, with its key."""
    for key in settings:
        if key not in KEYS:
            yield f"{printable(key)}: expected one of {', '.join(KEYS)}"
    model, pipeline = settings.get("model"), settings.get("test_pipeline")
    if not isinstance(model, Mapping) or "type" not in model:
        yield f"model: expected a detector, got {short(model)}"
    steps = pipeline if isinstance(pipeline, list | tuple) else []
    names = [str(step.get("type")).rpartition(".")[2] if isinstance(step, Mapping) else "" for step in steps]
    if not names or not all(names) or not names[0].startswith("LoadImage") or names[-1] != "PackDetInputs":
        got = short(names or pipeline)
        yield f"test_pipeline: expected steps from LoadImageFromFile to PackDetInputs, got {got}"
    if (scope := settings.get("default_scope")) != "mmdet":
        yield f"default_scope: expected mmdet, got {short(scope)}"
    yield from _problems(model, "model", "", _types()["model"])
    yield from _problems(pipeline, "test_pipeline", "", _types()["test_pipeline"])


def _problems(node: object, path: str, key: str, types: set[str]) -> Iterator[str]:
    """Yield the problems of a value: ``key`` is the nearest one, ``path`` contains all."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            inner = f"{path}.{name}"
            if name == "type":
                yield from _wrong_type(value, inner, types)
            elif name == "_scope_":
                if value not in SCOPES:
                    yield f"{inner}: expected one of {', '.join(SCOPES)}, got {short(value)}"
            elif name in _REFUSED_ALWAYS or (name in _REFUSED and value is not None):
                yield f"{inner}: not allowed, because it names files or code"
            elif isinstance(name, str) and (name.startswith("_") or not _TEXT.fullmatch(name)):
                yield f"{printable(inner)}: expected the name of a setting"
            else:
                yield from _problems(value, inner, str(name), types)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _problems(value, f"{path}.{index}", key, types)
    elif isinstance(node, str):
        if key != "where" and not _TEXT.fullmatch(node):  # where, of dcnzoo, is only compared with names
            yield f"{path}: expected a word, got {short(node)}"
    elif inspect.isclass(node) or not isinstance(node, bool | int | float | np.generic | None):
        yield f"{path}: expected a number, a text or a list, got {short(node)}"


def _wrong_type(value: object, path: str, types: set[str]) -> Iterator[str]:
    scope, _, name = value.rpartition(".") if isinstance(value, str) else ("?", "", "")
    if scope not in ("", *SCOPES) or name not in types:
        yield f"{path}: expected a class of {', '.join(SCOPES)}, got {short(value)}"


@cache
def _types() -> dict[str, set[str]]:
    """Return the allowed types of each part. RoI layers and NMS, of mmcv.ops, are in no registry."""
    setup()  # registers dcnzoo's classes
    model = {**{name: getattr(mmcv.ops, name) for name in mmcv.ops.__all__}, **registered(MODELS)}
    parts = {"model": {**model, **registered(TASK_UTILS)}, "test_pipeline": {**registered(TRANSFORMS)}}
    names = {
        part: {name for name, kind in kinds.items() if _is_allowed(kind)} for part, kinds in parts.items()
    }
    return {"model": names["model"] | _WAYS, "test_pipeline": names["test_pipeline"] - _REFUSED_TYPES}


def _is_allowed(kind: object) -> bool:
    module = getattr(kind, "__module__", None) or ""
    package = module.partition(".")[0]
    return package in (*SCOPES, "torch") and not f"{module}.".startswith(
        tuple(f"{each}." for each in _REFUSED_MODULES)
    )


def _without_sources(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_sources(value) for key, value in node.items() if key not in _REFUSED}
    return type(node)(map(_without_sources, node)) if isinstance(node, list | tuple) else node


def _encode(value: Any, path: str) -> Any:
    """Spell a value in JSON; its problems have been excluded by :func:`find_problems`."""
    if isinstance(value, Mapping):
        encoded = {key: _encode(item, f"{path}.{key}") for key, item in value.items()}
        texts = all(isinstance(key, str) for key in value)
        return encoded if texts else {"$dict": [[key, item] for key, item in encoded.items()]}
    if isinstance(value, list):
        return [_encode(item, path) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, path) for item in value]}
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    return value


def _decode(value: Any, path: str) -> Any:
    """Undo :func:`_encode`.

    Raises:
        ValueError: a key that begins with $ has another meaning than those of :func:`_encode`.
    """
    if isinstance(value, list):
        return [_decode(item, f"{path}.{index}") for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    spelling = next((key for key in value if key.startswith("$")), None)
    if spelling is None:
        return {key: _decode(item, f"{path}.{key}") for key, item in value.items()}
    content = value[spelling]
    if len(value) == 1 and spelling == "$float" and isinstance(content, str) and content in _FLOATS:
        return _FLOATS[content]
    if len(value) == 1 and isinstance(content, list):
        items = _decode(content, path)
        if spelling == "$tuple":
            return tuple(items)
        if spelling == "$dict" and all(isinstance(pair, list) and len(pair) == 2 for pair in items):
            keys = [key for key, _ in items]
            if all(isinstance(key, str | int | None) for key in keys):
                return dict(items)
    raise ValueError(f"{path}.{spelling}: expected $tuple, $dict or $float alone, got {short(value)}")


def _parse(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: expected JSON: {one_line(error)}") from error
