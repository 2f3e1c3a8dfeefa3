"""The dictionaries of a config: the classes that they build, its data sets, and its variables."""

import inspect
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import mmcv.ops
from mmdet import registry as registries
from mmengine import runner
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.utils.dl_utils import set_multi_processing
from torch.utils.data import DataLoader

from dcnzoo.openmmlab.config.deformable import arguments

PARAMETERS = {
    **inspect.signature(runner.FlexibleRunner).parameters,
    **inspect.signature(runner.Runner).parameters,
}
RUNNER_KEYS = {
    *PARAMETERS,
    *("custom_imports", "runner_type", "tta_model", "tta_pipeline"),
    # the runner takes these from its whole config
    *("model_wrapper_cfg", "sync_bn", "find_unused_parameters", "activation_checkpointing"),
    "efficient_conv_bn_eval",
}
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
# the registries of the classes in each part of a config
_REGISTRIES = {
    **dict.fromkeys(("model", "tta_model", "data_preprocessor"), ("MODELS", "TASK_UTILS")),
    **dict.fromkeys(LOADERS, ("DATASETS", "TRANSFORMS", "DATA_SAMPLERS")),
    **dict.fromkeys(("val_evaluator", "test_evaluator"), ("METRICS", "EVALUATOR")),
    **dict.fromkeys(("default_hooks", "custom_hooks"), ("HOOKS", "TRANSFORMS")),
    **dict.fromkeys(("train_cfg", "val_cfg", "test_cfg"), ("LOOPS",)),
    "optim_wrapper": ("OPTIM_WRAPPERS", "OPTIMIZERS"),
    "param_scheduler": ("PARAM_SCHEDULERS",),
    "visualizer": ("VISUALIZERS", "VISBACKENDS"),
    "log_processor": ("LOG_PROCESSORS",),
    "tta_pipeline": ("TRANSFORMS",),
}
_OTHER_REGISTRIES = {"Albu"}  # classes whose dictionaries name the classes of another package
# pattern for paths → the class or function that receives a dictionary without a registered type
_UNTYPED: dict[str, Callable[[Mapping], Any]] = {
    "*_dataloader": lambda _: DataLoader,
    "train_cfg": lambda cfg: runner.EpochBasedTrainLoop if cfg.get("by_epoch") else runner.IterBasedTrainLoop,
    "val_cfg": lambda _: runner.ValLoop,
    "test_cfg": lambda _: runner.TestLoop,
    # without these keys, it has several optimizers, by a constructor of the user's own
    "optim_wrapper": lambda cfg: OptimWrapper if cfg.keys() & {"type", "optimizer"} else None,
    "model.*.roi_layer": lambda cfg: getattr(mmcv.ops, str(cfg.get("type")), None),
    "log_processor": lambda _: runner.LogProcessor,
    "randomness": lambda _: runner.set_random_seed,
    "env_cfg.mp_cfg": lambda _: set_multi_processing,
}


@dataclass(frozen=True)
class Node:
    """A dictionary of a config.

    Attributes:
        path: such as ``model.test_cfg.rcnn``.
        kind: the class or function of it, or of the next outer dictionary that has one.
        inner: the path from the dictionary of ``kind``, such as ``test_cfg.rcnn``; empty for that itself.
        registries: of its part of the config.
    """

    path: str
    content: Mapping
    kind: Any = None
    inner: str = ""
    registries: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the class and its bases; of a dictionary inside, the keys of its path."""
        kinds = getattr(self.kind, "__mro__", (self.kind,))
        return self.inner.split(".") if self.inner else [getattr(kind, "__name__", "") for kind in kinds]

    @property
    def is_published(self) -> bool:
        """Whether the class, if there is one, is of a package that the rules know."""
        return is_published(self.kind)

    def arguments(self) -> tuple[dict[str, inspect.Parameter], bool]:
        """The arguments of the class that this dictionary builds, and whether it accepts only these."""
        return arguments(self.kind) if self.kind is not None and not self.inner else ({}, False)


def is_published(kind: Any) -> bool:
    """Whether a class, if there is one, is of a package whose settings are known."""
    packages = ("dcnzoo", "mmcv", "mmdet", "mmengine", "torch")
    return kind is None or kind.__module__.partition(".")[0] in packages


def nodes(cfg: Config) -> Iterator[Node]:
    """Yield every dictionary in the parts of a config that mmengine reads."""
    for key in cfg:
        if key in RUNNER_KEYS:
            yield from _nodes(cfg[key], Node(key, {}, None, key, _REGISTRIES.get(key, ())))


def _nodes(value: object, at: Node) -> Iterator[Node]:
    if isinstance(value, Mapping):
        kind: Any = class_of(value, *at.registries)
        if kind is None:
            receivers = (receiver for path, receiver in _UNTYPED.items() if fnmatchcase(at.path, path))
            kind = next(receivers, lambda _: None)(value)
        names = () if getattr(kind, "__name__", "") in _OTHER_REGISTRIES else at.registries
        at = Node(at.path, value, kind or at.kind, "" if kind else at.inner, names)
        yield at
        for key, child in value.items():
            inner = f"{at.inner}.{key}".lstrip(".")
            yield from _nodes(child, Node(f"{at.path}.{key}", {}, at.kind, inner, names))
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from _nodes(child, Node(f"{at.path}.{index}", {}, at.kind, f"{at.inner}.*", at.registries))


def dicts(node: object, path: str = "") -> Iterator[tuple[str, dict]]:
    """Yield every dict in a part of a config, with its path."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from dicts(value, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from dicts(value, f"{path}.{index}")


def class_of(node: Mapping, *names: str) -> type | None:
    """Return the class of a dict in a config, in one of the registries with these names, or None."""
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


def data_sets(cfg: Config) -> Iterator[tuple[str, Mapping, dict]]:
    """Yield every data set's loader, config and declared metainfo."""
    for loader in LOADERS:
        outer = cfg[loader].get("dataset") if isinstance(cfg.get(loader), Mapping) else None
        for dataset in datasets(outer) if isinstance(outer, Mapping) else ():
            yield loader, dataset, declared_metainfo(dataset)


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
    kinds = registries.DATASETS
    if declared.get("classes") or "type" not in dataset or kinds.get(dataset["type"]) is None:
        return declared
    return kinds.build({**dataset, "lazy_init": True}).metainfo  # this class reads its classes from a file
