"""Which keys a config may have: by signatures of classes, and by a table for what has none."""

import ast
import functools
import inspect
import json
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv.ops
import torch
from mmdet import registry as registries
from mmengine import runner
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.utils.dl_utils import set_multi_processing
from torch.utils.data import DataLoader

from dcnzoo.openmmlab.deformable import SETTINGS, arguments

_PARAMETERS = {
    **inspect.signature(runner.Runner).parameters,
    **inspect.signature(runner.FlexibleRunner).parameters,
}
RUNNER_KEYS = {*_PARAMETERS, "custom_imports", "runner_type", "tta_model"}
# the keys whose values are dictionaries, some also lists or objects
DICTIONARIES = {key for key, parameter in _PARAMETERS.items() if "Dict" in str(parameter.annotation)}
DICTIONARIES = DICTIONARIES - {"compile"} | {"custom_imports"}
# settings of layers, from which mmcv removes some before it builds the layer
LAYER_SETTINGS = {"norm_cfg", "conv_cfg", "act_cfg", "upsample_cfg", "init_cfg", "dcn"}
# arguments that the registry, dcnzoo's build function or, for bg_cls_weight, the DETR heads remove
ANY_MODULE = {"type", "_scope_", "init_cfg", "bg_cls_weight", *SETTINGS}
# the packages whose classes the table knows
PACKAGES = ("dcnzoo", "mmcv", "mmdet", "mmengine", "torch")

# MMDetection 2's key → its type or some keys of its dictionary, and the key of version 3
OLD_KEYS: dict[str, tuple[type | str, str]] = {
    "data": ("samples_per_gpu workers_per_gpu train", "train_dataloader, val_dataloader and test_dataloader"),
    "optimizer": ("type", "optim_wrapper.optimizer"),
    "optimizer_config": ("grad_clip type", "optim_wrapper"),
    "lr_config": ("policy warmup", "param_scheduler"),
    "momentum_config": ("policy", "param_scheduler"),
    "total_epochs": (int, "train_cfg.max_epochs"),
    "total_iters": (int, "train_cfg.max_iters"),
    "runner": ("max_epochs max_iters", "train_cfg"),
    "evaluation": ("interval metric save_best", "val_evaluator and train_cfg.val_interval"),
    "checkpoint_config": ("interval max_keep_ckpts", "default_hooks.checkpoint"),
    "log_config": ("interval hooks", "default_hooks.logger and visualizer"),
    "workflow": (list, "train_cfg and val_cfg"),
    "dist_params": ("backend", "env_cfg.dist_cfg"),
    "opencv_num_threads": (int, "env_cfg.mp_cfg.opencv_num_threads"),
    "mp_start_method": (str, "env_cfg.mp_cfg.mp_start_method"),
    "cudnn_benchmark": (bool, "env_cfg.cudnn_benchmark"),
    "fp16": ("loss_scale", "optim_wrapper.type='AmpOptimWrapper' and optim_wrapper.loss_scale"),
    "seed": (int, "randomness.seed"),
    "deterministic": (bool, "randomness.deterministic"),
    "resume_from": (str, "resume=True and load_from"),
    "auto_resume": (bool, "resume=True"),
    "gpu_ids": (list, "the environment variable CUDA_VISIBLE_DEVICES"),
    "gpus": (int, "the environment variable CUDA_VISIBLE_DEVICES"),
    "device": (str, "the environment variable CUDA_VISIBLE_DEVICES"),
}
# the registries of the classes in each part of a config
_MODEL = ("MODELS", "TASK_UTILS")
_HOOKS = ("HOOKS", "TRANSFORMS")
_DATA = ("DATASETS", "TRANSFORMS", "DATA_SAMPLERS")
_REGISTRIES = {
    **dict.fromkeys(("model", "tta_model", "data_preprocessor"), _MODEL),
    **dict.fromkeys(("train_dataloader", "val_dataloader", "test_dataloader"), _DATA),
    **dict.fromkeys(("val_evaluator", "test_evaluator"), ("METRICS", "EVALUATOR")),
    **dict.fromkeys(("default_hooks", "custom_hooks"), _HOOKS),
    **dict.fromkeys(("train_cfg", "val_cfg", "test_cfg"), ("LOOPS",)),
    "optim_wrapper": ("OPTIM_WRAPPERS", "OPTIMIZERS"),
    "param_scheduler": ("PARAM_SCHEDULERS",),
    "visualizer": ("VISUALIZERS", "VISBACKENDS"),
    "log_processor": ("LOG_PROCESSORS",),
    "tta_pipeline": ("TRANSFORMS",),
}
# the classes and functions that receive dictionaries without a type
_UNTYPED = {
    **dict.fromkeys(("train_dataloader", "val_dataloader", "test_dataloader"), DataLoader),
    "optim_wrapper": OptimWrapper,
    "optim_wrapper.clip_grad": torch.nn.utils.clip_grad_norm_,
    "val_cfg": runner.ValLoop,
    "test_cfg": runner.TestLoop,
    "log_processor": runner.LogProcessor,
    "randomness": runner.set_random_seed,
    "env_cfg.mp_cfg": set_multi_processing,
}


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
        return bool(re.match(r"(semi_)?(train|test)_cfg\b|paramwise_cfg\b", self.inner))

    @property
    def bases(self) -> list[str]:
        """The names of the class and its bases, or of the function."""
        kinds = getattr(self.kind, "__mro__", (self.kind,))
        return [getattr(kind, "__name__", "") for kind in kinds]

    @property
    def is_published(self) -> bool:
        """Whether the class is one of those that the table knows, or none."""
        return self.kind is None or self.kind.__module__.partition(".")[0] in PACKAGES

    def arguments(self) -> tuple[dict[str, inspect.Parameter], bool]:
        """The arguments of the class, if it is that of this dictionary, and whether they are all."""
        return arguments(self.kind) if self.kind is not None and not self.inner else ({}, False)

    def known(self) -> set[str]:
        """All keys that the dictionary may have, as far as they are known."""
        table = read_table()
        keys = {key for base in self.bases for key in table["keys"].get(base, {}).get(self.inner, ())}
        keys |= self.arguments()[0].keys()
        if self.names == _MODEL and not self.inner:
            keys |= ANY_MODULE
        if "custom_keys." in self.inner:
            keys = {"lr_mult", "decay_mult"}
        elif self.inner.endswith("nms"):
            function = getattr(mmcv.ops, str(self.node.get("type")), mmcv.ops.nms)
            keys |= {"split_thr", *arguments(function)[0], *arguments(mmcv.ops.batched_nms)[0]}
        elif self.is_read and not (self.inner in ("train_cfg", "test_cfg") and {"rpn", "rcnn"} <= keys):
            # a two-stage detector reads nothing but rpn and rcnn itself
            keys |= {*table["read"]}
        return keys | {"type", "_scope_"} if keys else keys


@functools.cache
def read_table() -> dict[str, Any]:
    """Return the table that benchmarks/coverage/collect_keys.py writes.

    ``keys``: class → path in its dictionary → keys that published configs set there and no signature has;
    ``read``: keys that MMDetection reads from ``train_cfg`` and ``test_cfg``.
    """
    return json.loads(Path(__file__).with_name("known_keys.json").read_text(encoding="utf-8"))


def places(cfg: Config) -> Iterator[Place]:
    """Yield every dictionary in the parts of a config that mmengine reads."""
    for key in cfg:
        if key in RUNNER_KEYS or key in _REGISTRIES:
            yield from _places(cfg[key], Place(key, {}, None, key, _REGISTRIES.get(key, ())))


def _places(value: object, at: Place) -> Iterator[Place]:
    if isinstance(value, Mapping):
        kind = class_of(value, *at.names) or _UNTYPED.get(at.path)
        if at.path == "train_cfg" and kind is None:
            kind = runner.EpochBasedTrainLoop if value.get("by_epoch") else runner.IterBasedTrainLoop
        if at.path == "optim_wrapper.clip_grad" and value.get("type") == "value":
            kind = torch.nn.utils.clip_grad_value_
        names = (
            at.names if getattr(kind, "__name__", "") != "Albu" else ()
        )  # inside are albumentations' names
        at = Place(at.path, value, kind or at.kind, "" if kind else at.inner, names)
        yield at
        for key, child in value.items():
            inner = f"{at.inner}.{key}".lstrip(".")
            yield from _places(child, Place(f"{at.path}.{key}", {}, at.kind, inner, at.names))
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from _places(child, Place(f"{at.path}.{index}", {}, at.kind, f"{at.inner}.*", at.names))


def dicts(node: object, path: str = "") -> Iterator[tuple[str, dict]]:
    """Yield every dict in a part of a config, with its path."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from dicts(value, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from dicts(value, f"{path}.{index}")


def is_old(key: str, value: object) -> bool:
    """Whether a top-level key has the name and the shape of one of MMDetection 2."""
    shape = OLD_KEYS[key][0] if key in OLD_KEYS else ""
    if isinstance(shape, type):
        return type(value) is shape
    return isinstance(value, Mapping) and not value.keys().isdisjoint(shape.split())


def variables(text: str) -> tuple[set[str], set[str]]:
    """Return the names that the lines of a config and of its bases set, and those that they read.

    The names that configs of an installed package set are left out.

    Args:
        text: ``Config.text``, in which a line with its path precedes the text of each file.
    """
    stored, read = set(), {*re.findall(r"\b_base_\.(\w+)", text)}
    parts = re.split(r"(?m)^(/.*\.(?:py|json|ya?ml))$", f"{'' if text.startswith('/') else '/.py'}\n{text}")
    for file, part in zip(parts[1::2], parts[2::2], strict=True):
        names = {*re.findall(r"(?m)^\s*[\"']?(\w+)[\"']?\s*:", part)}
        if file.endswith(".py"):
            nodes = [*ast.walk(ast.parse(re.sub(r"\{\{[^{}]*\}\}", "0", part)))]
            used = [node for node in nodes if isinstance(node, ast.Name)]
            read |= {name.id for name in used if isinstance(name.ctx, ast.Load)}
            names = {name.id for name in used if isinstance(name.ctx, ast.Store)}
        stored |= names if "/.mim/" not in file else set()
    return stored, read


def class_of(node: Mapping, *names: str) -> type | None:
    """Return the registered class of a dict in a config, or None."""
    name = node.get("type")
    if not isinstance(name, str):
        return name if inspect.isclass(name) else None
    for registry in (getattr(registries, name) for name in names):
        with registry.switch_scope_and_registry(node.get("_scope_")) as scoped, suppress(RuntimeError):
            # Registry.get imports every unknown text as a module; RuntimeError: it is not the name of one
            kind = scoped.get(name) if "." in name else registered(scoped).get(name)
            if inspect.isclass(kind):
                return kind
    return None


def registered(registry: Registry | None) -> ChainMap[str, object]:
    """Return what a registry and its parents contain, by name."""
    maps = []
    while registry is not None:
        registry.import_from_location()
        maps.append(registry.module_dict)
        registry = registry.parent
    return ChainMap(*maps)
