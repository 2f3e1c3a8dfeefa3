"""Replace the classes in a config by their registered names.

Configs in MMEngine's new style have classes as types, its dumps have import paths, and a config in the old
style may import classes too. Only names lead to the classes that dcnzoo registers instead of MMDetection's.
"""

import inspect
from typing import Any

import mmcv.ops
from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import Registry, root
from mmengine.utils import get_object_from_string

from dcnzoo.openmmlab.config.tree import dicts, registered


def use_names(cfg: Config) -> Config:
    """Return the config with names as types, without the objects that it imports.

    A class that is in no registry stays a class; a dump writes its import path.
    """
    settings = cfg._to_lazy_dict()
    nodes = [node for _, node in dicts(settings) if _is_class_or_path(node.get("type"))]
    imported = {key for key, value in settings.items() if inspect.isclass(value)}
    if not nodes and not imported and cfg.keys() == settings.keys():
        return cfg
    if settings.get("default_scope") is None:
        settings["default_scope"] = "mmdet"
    names = _names(settings["default_scope"])
    for node in nodes:
        kind: Any = node["type"]
        if isinstance(kind, str):
            kind = get_object_from_string(kind)
        elif isinstance(kind, LazyAttr | LazyObject):
            kind = kind.build()
        if kind in names:
            node["type"] = names[kind]
        elif inspect.isclass(node["type"]):
            node["type"] = LazyObject(kind.__module__, kind.__name__)
    settings = {key: value for key, value in settings.items() if key not in imported}
    return Config(settings, cfg_text=cfg.text, filename=cfg.filename)


def _is_class_or_path(kind: object) -> bool:
    """Return whether a type is a class or a path (``mmdet.datasets.CocoDataset``), not a registered name."""
    return kind.count(".") > 1 if isinstance(kind, str) else callable(kind)


def _names(scope: str) -> dict[object, str]:
    """Return the name of each class in the registries, and of each function in ``mmcv.ops``.

    A class that one of dcnzoo's replaces in a registry has its name, too; see ``registered`` in ``patches``.
    """
    names: dict[object, str] = {getattr(mmcv.ops, name): name for name in mmcv.ops.__all__}
    for parent in [value for value in vars(root).values() if isinstance(value, Registry)]:
        short = registered(parent.children.get(scope, parent))  # names without a scope
        for registry in (parent, *parent.children.values()):
            names |= {kind: f"{registry.scope}.{name}" for name, kind in registry.module_dict.items()}
        names |= {kind: name for name, kind in short.items()}
    replacing: Any = [kind for kind in names if "replaces" in getattr(kind, "__dict__", ())]
    return names | {kind.replaces: names[kind] for kind in replacing}
