"""Find the dictionaries in a config, the classes that they build, and the data sets."""

import inspect
import os
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mmcv.ops
from mmdet import registry as registries
from mmengine import runner
from mmengine.registry import Registry

RUNNER_KEYS = {
    *inspect.signature(runner.FlexibleRunner).parameters,
    *inspect.signature(runner.Runner).parameters,
    *("custom_imports", "runner_type", "tta_model", "tta_pipeline"),
    # the runner takes these from its whole config
    *("model_wrapper_cfg", "sync_bn", "find_unused_parameters", "activation_checkpointing"),
    "efficient_conv_bn_eval",
}
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_REGISTRIES = [
    value
    for name, value in vars(registries).items()
    if isinstance(value, Registry) and not name.startswith("MMENGINE")
]


def dicts(node: object, path: str = "") -> Iterator[tuple[str, dict]]:
    """Yield every dict in a part of a config, with its path, such as ``model.roi_head.bbox_head.0``.

    Args:
        path: that of the part; of a whole config, it is empty.
    """
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from dicts(value, child(path, key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from dicts(value, child(path, index))


def child(path: str, key: str | int) -> str:
    """Return the path of a setting in the dictionary or list with this path."""
    return f"{path}.{key}" if path else str(key)


def class_of(node: Mapping) -> type | None:
    """Return the class of a dict in a config, in any registry or in ``mmcv.ops``, or None."""
    name = node.get("type")
    if not isinstance(name, str):
        return name if inspect.isclass(name) else None
    for registry in _REGISTRIES:
        with registry.switch_scope_and_registry(node.get("_scope_")) as scoped, suppress(RuntimeError):
            # Registry.get tries to import an unknown name as a module, and raises RuntimeError if it fails
            kind = scoped.get(name) if "." in name else registered(scoped).get(name)
            if inspect.isclass(kind):
                return kind
    kind = getattr(mmcv.ops, name, None)  # of RoI layers
    return kind if inspect.isclass(kind) else None


def registered(registry: Registry | None) -> ChainMap[str, object]:
    """Return the classes and functions in a registry and its parents, by name."""
    maps = []
    while registry is not None:
        registry.import_from_location()
        maps.append(registry.module_dict)
        registry = registry.parent
    return ChainMap(*maps)


def inner_data_sets(node: Mapping) -> Iterator[Any]:
    """Yield the data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = [node["dataset"]] if "dataset" in node else node.get("datasets")
    if not inner:
        yield node
    elif isinstance(inner, list | tuple):
        for dataset in inner:
            if isinstance(dataset, Mapping):
                yield from inner_data_sets(dataset)


def annotation_file(dataset: Mapping) -> str:
    """Return the path of the annotation file in the config of a data set."""
    return os.path.join(*(str(dataset.get(key) or "") for key in ("data_root", "ann_file")))


def set_annotation_file(file: Path, *parts: Any) -> None:
    """Let parts of a config, data sets and their evaluators, read an annotation file."""
    for each in parts:
        each["ann_file"] = str(file.resolve())
