"""Configs of detectors as JSON. Reading one executes no code and imports no module.

A file has the keys of :data:`KEYS`. Each ``type`` is a name in the registries of mmengine, mmcv, mmdet and
dcnzoo, also where the config has a class. Other texts are plain words. Tuples and infinities are written as
``{"$tuple": [1, 2]}`` and ``{"$float": "inf"}``.
"""

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

MARK, VERSION = "dcnzoo", 1  # key and value that state the version of the format
KEYS = (MARK, "default_scope", "model", "test_pipeline")
SCOPES = ("mmdet", "mmengine", "mmcv", "dcnzoo")
# Keys that name files, other repositories or code. A detector with weights does not need those in _LEFT_OUT:
# write() omits them, and read() accepts them only with the value None.
_LEFT_OUT = {"init_cfg", "pretrained", "teacher_ckpt", "backend_args", "file_client_args"}
_REFUSED = {"custom_imports", "teacher_config", "checkpoint", "lang_model_name"}
# Modules of mmdet whose classes evaluate a text, read another file or repository, or import a package.
_REFUSED_MODULES = """
    models.language_models models.mot models.reid models.trackers models.tracking_heads models.vis
    models.task_modules.tracking models.dense_heads.atss_vlfusion_head models.detectors.d2_wrapper
    models.detectors.glip models.detectors.grounding_dino models.detectors.kd_one_stage
    datasets.transforms.instaboost datasets.transforms.text_transformers
"""
_REFUSED_STEPS = {"Albu", "Corrupt"}
# values of type that are options, not classes: of FPG's paths and of StageCascadeRPNHead's convolution
_WAYS = {"conv", "interpolation_conv", "last_conv", "dilation", "offset"}
_TEXT = re.compile(r"[\w.+ -]*")


def is_json_config(path: str | os.PathLike) -> bool:
    """Whether a file says that it is in this format; :func:`read` checks it."""
    if Path(path).suffix != ".json" or not os.path.isfile(path):  # Path.is_file raises for too long paths
        return False
    try:
        content = _parse(path, str(path))
    except UserError:
        if "{{" in Path(path).read_text(encoding="utf-8", errors="replace"):  # mmengine's {{_base_.name}}
            return False
        raise
    return isinstance(content, dict) and MARK in content


def read(path: str | os.PathLike, name: str = "") -> Config:
    """Read a config, without executing or importing anything; ``name`` is for messages.

    Raises:
        UserError: the file is in another format, or has a key, type or text that is not allowed. The message
            names the keys.
    """
    name = name or str(path)
    content = _parse(path, name)
    version = content.pop(MARK, None) if isinstance(content, dict) else None
    if type(version) is not int or version != VERSION:
        raise UserError(f"{name}: {MARK}: expected version {VERSION} of the format, got {short(version)}")
    try:
        settings = {key: _decode(value, key) for key, value in content.items()}
        problems = list(refusals(settings))
    except (RecursionError, ValueError) as error:
        raise UserError(f"{name}: {one_line(error)}") from error
    if problems:
        raise UserError(*(f"{name}: {problem}" for problem in problems[:5]))
    pipeline = settings.pop("test_pipeline")
    return Config({**settings, "test_dataloader": {"dataset": {"pipeline": pipeline}}}, filename=str(path))


def write(cfg: Config) -> str:
    """Return the JSON text of the settings that a detector with weights needs from its config.

    Raises:
        UserError: the config has no test pipeline.
        ValueError: a setting cannot be written in JSON, or is not allowed. The message names the keys.
    """
    cfg = Config(use_names(cfg).to_dict())
    try:
        settings = {"model": cfg.to_dict()["model"], "test_pipeline": get_test_pipeline_cfg(cfg)}
    except (AttributeError, RuntimeError) as error:
        raise UserError("test_dataloader: expected a data set with a pipeline, got none") from error
    settings = {"default_scope": cfg.get("default_scope", "mmdet"), **_without_sources(settings)}
    if problems := list(refusals(settings)):
        raise ValueError(f"config: expected no code: {'; '.join(problems[:5])}")
    return json.dumps({MARK: VERSION, **_encode(settings)}, indent=1, allow_nan=False) + "\n"


def refusals(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each setting that is not allowed or missing; it names the key."""
    for key in settings.keys() - {*KEYS}:
        yield f"{printable(key)}: expected one of {', '.join(KEYS)}"
    model, pipeline = settings.get("model"), settings.get("test_pipeline")
    if not isinstance(model, Mapping) or "type" not in model:
        yield f"model: expected a detector, got {short(model)}"
    if not (isinstance(pipeline, list | tuple) and pipeline):
        yield f"test_pipeline: expected its steps, got {short(pipeline)}"
    if (scope := settings.get("default_scope")) != "mmdet":
        yield f"default_scope: expected mmdet, got {short(scope)}"
    yield from _problems(model, "model", "", _types()["model"])
    yield from _problems(pipeline, "test_pipeline", "", _types()["test_pipeline"])


def _problems(node: object, path: str, key: str, types: set[str]) -> Iterator[str]:
    """Yield the problems of a value; ``path`` is its whole path, ``key`` the last name in the path."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            inner = f"{path}.{name}"
            if name == "type":
                scope, _, kind = value.rpartition(".") if isinstance(value, str) else ("?", "", "")
                if scope not in ("", *SCOPES) or kind not in types:
                    yield f"{inner}: expected a class of {', '.join(SCOPES)}, got {short(value)}"
            elif name == "_scope_" and value in SCOPES:
                continue
            elif name in _REFUSED or (name in _LEFT_OUT and value is not None):
                yield f"{inner}: not allowed, because it names files or code"
            elif not isinstance(name, str) or name.startswith("_") or not _TEXT.fullmatch(name):
                yield f"{printable(inner)}: expected the name of a setting"
            else:
                yield from _problems(value, inner, name, types)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _problems(value, f"{path}.{index}", key, types)
    elif isinstance(node, str):
        if key != "where" and not _TEXT.fullmatch(node):  # dcnzoo only compares where with names
            yield f"{path}: expected a word, got {short(node)}"
    elif not isinstance(node, bool | int | float | np.generic | None):
        yield f"{path}: expected a number, a text or a list, got {short(node)}"


@cache
def _types() -> dict[str, set[str]]:
    """Return the allowed types of each part. RoI layers and NMS come from mmcv.ops: no registry has them."""
    setup()  # registers dcnzoo's classes
    operators = {name: getattr(mmcv.ops, name) for name in mmcv.ops.__all__}
    model = {**operators, **registered(MODELS), **registered(TASK_UTILS)}
    steps = {name for name, kind in registered(TRANSFORMS).items() if _is_allowed(kind)}
    models = {name for name, kind in model.items() if _is_allowed(kind)}
    return {"model": models | _WAYS, "test_pipeline": steps - _REFUSED_STEPS}


def _is_allowed(kind: object) -> bool:
    module = f"{getattr(kind, '__module__', None) or ''}."
    refused = module.startswith(tuple(f"mmdet.{name}." for name in _REFUSED_MODULES.split()))
    return module.partition(".")[0] in (*SCOPES, "torch") and not refused


def _without_sources(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_sources(value) for key, value in node.items() if key not in _LEFT_OUT}
    return type(node)(map(_without_sources, node)) if isinstance(node, list | tuple) else node


def _encode(value: Any) -> Any:
    """Convert a value to JSON. The caller has checked it with :func:`refusals`."""
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [*map(_encode, value)]
        return items if isinstance(value, list) else {"$tuple": items}
    value = value.item() if isinstance(value, np.generic) else value
    return {"$float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _decode(value: Any, path: str) -> Any:
    """Undo :func:`_encode`. Raise ValueError for any other key that begins with $."""
    if isinstance(value, list):
        return [_decode(item, f"{path}.{index}") for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$float"} and value["$float"] in ("inf", "-inf", "nan"):
        return float(value["$float"])
    if value.keys() == {"$tuple"} and isinstance(value["$tuple"], list):
        return tuple(_decode(value["$tuple"], path))
    if spelling := next((key for key in value if key.startswith("$")), ""):
        raise ValueError(f"{path}.{spelling}: expected $tuple or $float alone, got {short(value)}")
    return {key: _decode(item, f"{path}.{key}") for key, item in value.items()}


def _parse(path: str | os.PathLike, name: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: expected JSON: {one_line(error)}") from error
