"""Which keys a dictionary of a config may have, by its class and by published configs."""

import functools
import inspect
import json
import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv.ops
import torch
from mmdet import registry as registries
from mmengine.config import Config
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, FlexibleRunner, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

from dcnzoo.openmmlab.deformable import SETTINGS, arguments
from dcnzoo.utils.text import few, nearest

RUNNER_KEYS = {
    *inspect.signature(Runner).parameters,
    *inspect.signature(FlexibleRunner).parameters,
    *("custom_imports", "runner_type", "tta_model"),
}
# settings of layers, from which mmcv removes some before it builds the layer
LAYERS = {"norm_cfg", "conv_cfg", "act_cfg", "upsample_cfg", "init_cfg", "dcn"}
# arguments that the registry, dcnzoo's build function or, for bg_cls_weight, the DETR heads remove
ANY_MODULE = {"type", "_scope_", "init_cfg", "bg_cls_weight", *SETTINGS}
# MMDetection 2's key → that of version 3
OLD_KEYS = {
    "data": "train_dataloader, val_dataloader and test_dataloader",
    "optimizer": "optim_wrapper.optimizer",
    "optimizer_config": "optim_wrapper",
    "lr_config": "param_scheduler",
    "momentum_config": "param_scheduler",
    "total_epochs": "train_cfg.max_epochs",
    "total_iters": "train_cfg.max_iters",
    "runner": "train_cfg",
    "evaluation": "val_evaluator and train_cfg.val_interval",
    "checkpoint_config": "default_hooks.checkpoint",
    "log_config": "default_hooks.logger and visualizer",
    "workflow": "train_cfg and val_cfg",
    "dist_params": "env_cfg.dist_cfg",
    "opencv_num_threads": "env_cfg.mp_cfg.opencv_num_threads",
    "mp_start_method": "env_cfg.mp_cfg.mp_start_method",
    "cudnn_benchmark": "env_cfg.cudnn_benchmark",
    "fp16": "optim_wrapper.type='AmpOptimWrapper' and optim_wrapper.loss_scale",
    "seed": "randomness.seed",
    "deterministic": "randomness.deterministic",
    "resume_from": "resume=True and load_from",
    "auto_resume": "resume=True",
    "gpu_ids": "the environment variable CUDA_VISIBLE_DEVICES",
    "gpus": "the environment variable CUDA_VISIBLE_DEVICES",
    "device": "the environment variable CUDA_VISIBLE_DEVICES",
}
# the registries of the classes in each part of a config
_MODEL = ("MODELS", "TASK_UTILS")
_HOOKS = ("HOOKS", "TRANSFORMS")
_DATA = ("DATASETS", "TRANSFORMS", "DATA_SAMPLERS")
_REGISTRIES = {
    **dict.fromkeys(("model", "tta_model"), _MODEL),
    **dict.fromkeys(("train_dataloader", "val_dataloader", "test_dataloader"), _DATA),
    **dict.fromkeys(("val_evaluator", "test_evaluator"), ("METRICS",)),
    **dict.fromkeys(("default_hooks", "custom_hooks"), _HOOKS),
    **dict.fromkeys(("train_cfg", "val_cfg", "test_cfg"), ("LOOPS",)),
    "optim_wrapper": ("OPTIM_WRAPPERS", "OPTIMIZERS"),
    "param_scheduler": ("PARAM_SCHEDULERS",),
    "visualizer": ("VISUALIZERS", "VISBACKENDS"),
    "tta_pipeline": ("TRANSFORMS",),
}
# the classes and functions that receive dictionaries without a type
_UNTYPED = {
    **dict.fromkeys(("train_dataloader", "val_dataloader", "test_dataloader"), DataLoader),
    "optim_wrapper": OptimWrapper,
    "optim_wrapper.clip_grad": torch.nn.utils.clip_grad_norm_,
    "val_cfg": ValLoop,
    "test_cfg": TestLoop,
}
_READS = re.compile(
    r"""cfg(?:\.get\(|\.pop\(|\[|,\ |\.)\s*['"]?(\w+)|['"](\w+)['"]\ (?:not\ )?in\ [\w.]*cfg\b""", re.VERBOSE
)


@dataclass(frozen=True)
class Place:
    """A dictionary of a config.

    Attributes:
        path: such as ``model.test_cfg.rcnn``.
        kind: the class of it, or of the next outer dictionary that has one.
        inner: the path from the dictionary of ``kind``, such as ``test_cfg.rcnn``; empty for that itself.
        names: of the registries of its part of the config.
    """

    path: str
    node: Mapping
    kind: object = None
    inner: str = ""
    names: tuple[str, ...] = ()

    @property
    def is_read(self) -> bool:
        """Whether code reads the keys one by one, so that Python notices no unknown key."""
        return bool(re.match(r"(semi_)?(train|test)_cfg\b|paramwise_cfg$", self.inner))

    def arguments(self) -> tuple[dict[str, inspect.Parameter], bool]:
        """The arguments of the class, if it is that of this dictionary, and whether they are all."""
        return arguments(self.kind) if self.kind is not None and not self.inner else ({}, False)

    def known(self, read: set[str]) -> set[str]:
        """All keys that the dictionary may have, as far as they are known.

        Args:
            read: the keys that the code of the config's classes reads.
        """
        bases = [base.__name__ for base in getattr(self.kind, "__mro__", ())] or [""]
        keys = {key for base in bases for key in _table().get(base, {}).get(self.inner, ())}
        keys |= self.arguments()[0].keys()
        if self.names == _MODEL and not self.inner:
            keys |= ANY_MODULE
        if self.inner.endswith("nms"):
            function = getattr(mmcv.ops, str(self.node.get("type")), mmcv.ops.nms)
            keys |= {"split_thr", *arguments(function)[0], *arguments(mmcv.ops.batched_nms)[0]}
        if self.inner == "paramwise_cfg":
            keys |= _keys_read(DefaultOptimWrapperConstructor)
        # a two-stage detector reads nothing but rpn and rcnn itself
        if self.is_read and not (self.inner in ("train_cfg", "test_cfg") and {"rpn", "rcnn"} <= keys):
            keys |= read
        return keys | {"type", "_scope_"} if keys else keys


def places(cfg: Config) -> Iterator[Place]:
    """Yield every dictionary in the parts of a config that mmengine reads."""
    for key in cfg:
        if key in RUNNER_KEYS or key in _REGISTRIES:
            yield from _places(cfg[key], Place(key, {}, None, key, _REGISTRIES.get(key, ())))


def _places(value: object, at: Place) -> Iterator[Place]:
    if isinstance(value, Mapping):
        kind = class_of(value, *at.names) or _UNTYPED.get(at.path)
        if at.path == "train_cfg" and kind is None:
            kind = EpochBasedTrainLoop if value.get("by_epoch") else IterBasedTrainLoop
        at = Place(at.path, value, kind or at.kind, "" if kind else at.inner, at.names)
        yield at
        for key, child in value.items():
            inner = f"{at.inner}.{key}".lstrip(".")
            yield from _places(child, Place(f"{at.path}.{key}", {}, at.kind, inner, at.names))
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from _places(child, Place(f"{at.path}.{index}", {}, at.kind, f"{at.inner}.*", at.names))


@functools.cache
def _table() -> dict[str, dict[str, list[str]]]:
    """Class → path in its dictionary → keys that published configs set there and the signature lacks."""
    return json.loads(Path(__file__).with_name("settings.json").read_text(encoding="utf-8"))["keys"]


def wrong_options(cfg: Config, options: Mapping, prefix: str = "") -> Iterator[str]:
    """Yield the options that no part of the config uses, with the nearest key."""
    by_path = {place.path: place for place in places(cfg)}
    read = keys_read(by_path.values())
    for name, value in options.items():
        node, path, option = cfg, "", f"{prefix}{name}"
        for key in option.split("."):
            place = by_path.get(path) or Place(path, {})
            if isinstance(node, list | tuple):
                if not (key.isdigit() and int(key) < len(node)):
                    yield f"{option}: expected a number below {len(node)} after {path}, got {key}"
                    break
                node = node[int(key)]
            elif isinstance(node, Mapping | Config) and key in node:
                node = node[key]
            else:
                known = {*node, *place.known(read)} if isinstance(node, Mapping) else {*cfg, *RUNNER_KEYS}
                of_layer = LAYERS & {*path.split(".")} and not nearest(key, known, 0.75)
                if key not in {*known, "_delete_"} and not of_layer and path != "default_hooks":
                    yield f"{option}: {_instead(option, path, known, by_path)}, got an unknown key"
                break
            path = f"{path}.{key}".lstrip(".")
        else:
            if isinstance(node, Mapping) and isinstance(value, Mapping) and "_delete_" not in value:
                yield from wrong_options(cfg, value, f"{path}.")
            elif isinstance(node, Mapping) and isinstance(value, str | int | float) and key not in SETTINGS:
                yield f"{path}: expected settings, such as {path}.{next(iter(node), 'type')}=…, got {value!r}"


def _instead(option: str, path: str, known: set[str], places: Mapping[str, Place]) -> str:
    """Describe which key is expected in place of the first unknown one, which follows ``path``."""
    start = f"{path}." if path else ""
    key = option.removeprefix(start).partition(".")[0]
    if not path and key in OLD_KEYS:
        return f"expected version 3's {OLD_KEYS[key]}"
    if close := nearest(key, known, 0.75):
        return f"expected {start}{close}"
    paths = [f"{place.path}.{name}" for place in places.values() for name in place.node]
    if close := nearest(option, paths):
        return f"expected {close}"
    return f"expected one of {few(sorted(known), 30)}"


def keys_read(places: Iterable[Place]) -> set[str]:
    """The keys that the code of the classes and their bases reads from dictionaries of settings."""
    kinds: list[Any] = [place.kind for place in places if inspect.isclass(place.kind)]
    return {key for kind in kinds for key in _keys_read(kind)}


@functools.cache
def _keys_read(kind: type) -> set[str]:
    bases = [base for base in kind.__mro__ if not base.__module__.startswith(("torch", "builtins"))]
    with suppress(OSError, TypeError):  # no source
        text = "".join(map(inspect.getsource, bases))
        return {word for match in _READS.findall(text) for word in match if word}
    return set()


def class_of(node: Mapping, *names: str) -> type | None:
    """Return the registered class of a dict in a config, or None."""
    name = node.get("type")
    if not isinstance(name, str):
        return name if inspect.isclass(name) else None
    for registry in map(registry_of, names):
        with registry.switch_scope_and_registry(node.get("_scope_")) as scoped, suppress(RuntimeError):
            # Registry.get imports every unknown text as a module; RuntimeError: it is not the name of one
            kind = scoped.get(name) if "." in name else registered(scoped).get(name)
            if inspect.isclass(kind):
                return kind
    return None


def registry_of(name: str) -> Registry:
    return getattr(registries, name)


def registered(registry: Registry | None) -> ChainMap[str, object]:
    """Return what a registry and its parents contain, by name."""
    maps = []
    while registry is not None:
        registry.import_from_location()
        maps.append(registry.module_dict)
        registry = registry.parent
    return ChainMap(*maps)
