"""Usual edits of a config, none of which may be refused: texts that follow ``_base_ = …``."""

import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from dcnzoo.openmmlab.config.read import OLD_KEYS
from dcnzoo.openmmlab.config.tree import RUNNER_KEYS, nodes

# a module of the user's own, which edits import
OWN = """
from mmdet.models import FPN, ResNet
from mmdet.registry import HOOKS, METRICS, MODELS, TRANSFORMS
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook

class Any:
    def __init__(self, *args, **kwargs):
        self.settings = kwargs

@MODELS.register_module(force=True)
class OwnBackbone(ResNet):
    def __init__(self, depht=50, norm_evaluation=None, **kwargs):
        super().__init__(depth=depht)

@MODELS.register_module(force=True)
class OwnNeck(FPN):
    def __init__(self, in_channels: str, num_outs: str = 5, **kwargs):
        super().__init__(in_channels=[8], out_channels=8, num_outs=5)

@MODELS.register_module(force=True)
class OwnLoss(Any):
    pass

@TRANSFORMS.register_module(force=True)
class OwnResize(Any):
    pass

@HOOKS.register_module(force=True)
class OwnHook(Hook):
    def __init__(self, monitor=None, **kwargs):
        pass

@METRICS.register_module(force=True)
class OwnMetric(Any, BaseMetric):
    pass
"""
ALL = os.environ.get("DCNZOO_SETTINGS") == "all"
TEXTS = Path(__file__).with_name("valid_edits.txt").read_text(encoding="utf-8")


def edits(cfg: Config) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return names and texts of the edits for any config, and of those for its settings."""
    of_any, of_config = [("names near the runner's", near_names()), *old_names()], []
    for section in TEXTS.split("\n[")[1:]:
        head, _, text = section.partition("]\n")
        name, _, condition = head.partition(", if ")
        path, _, expected = condition.partition(" is ")
        node = cfg
        for key in path.split(".") if path else ():
            node = node.get(key) if isinstance(node, dict | Config) else None
        if not path:
            of_any.append((name, text))
        elif node is not None and expected in ("", node):
            of_config.append((name, text))
    return of_any, of_config


def near_names() -> str:
    names = {f"{key}{end}" for key in RUNNER_KEYS for end in ("s", "1", "_old")}
    names |= {f"my_{key}" for key in RUNNER_KEYS} | {key[:-1] for key in RUNNER_KEYS}
    values = ("dict(a=1)", "[1]", "'text'")
    lines = [f"{name} = {values[number % 3]}" for number, name in enumerate(sorted(names - RUNNER_KEYS))]
    return "\n".join(lines)


def old_names() -> Iterator[tuple[str, str]]:
    """Variables with the names of keys of MMDetection 2."""
    for name in OLD_KEYS:
        old, other = ("'x'", "3") if name == "resume_from" else ("dict(type='X')", "'mine'")
        yield f"{name}, used", f"{name} = {old}\nanything = {name}\n"
        yield f"{name}, used in a base", f"{name} = {old}\nanything = dict(x=[{name}])\n{name} = {old}\n"
        yield f"{name}, not used", f"{name} = {other}\n"


def in_new_style(cfg: Config, folder: Path) -> Path:
    """Write a config as MMEngine's new style has it: classes in place of names, and ``read_base``."""
    imports: dict[type, str] = {}
    by_id = {id(node.content): node for node in nodes(cfg)}

    def code(value: object) -> str:
        if isinstance(value, dict):
            node = by_id.get(id(value))
            kind = node.kind if node and not node.keys and isinstance(value.get("type"), str) else None
            importable = inspect.isclass(kind) and "<locals>" not in kind.__qualname__
            items = [
                f"{key!r}: {code(item)}" for key, item in value.items() if key != "type" or not importable
            ]
            if importable:
                items.append(f"'type': {imports.setdefault(kind, f'Class{len(imports)}')}")
            return "{" + ", ".join(items) + "}"
        if isinstance(value, list | tuple):
            inner = ", ".join(map(code, value))
            return f"[{inner}]" if isinstance(value, list) else f"({inner},)" if value else "()"
        return repr(value)

    lines = [f"{key} = {code(value)}\n" for key, value in cfg.items() if key != "custom_imports"]
    head = [f"from {kind.__module__} import {kind.__name__} as {name}\n" for kind, name in imports.items()]
    (folder / "new_base.py").write_text("".join(head + lines))
    child = (
        "from mmengine.config import read_base\nwith read_base():\n    from .new_base import *\n"
        "from mmengine.dataset import DefaultSampler\nseed = 3\nrandomness = dict(seed=seed)\n"
        "if globals().get('train_dataloader'):\n"
        "    train_dataloader['sampler'] = dict(type=DefaultSampler, shuffle=True)\n"
    )
    (folder / "new.py").write_text(child)
    return folder / "new.py"


def in_other_formats(cfg: Config, folder: Path) -> Iterator[Path]:
    """Write a config as MMEngine dumps it, as JSON and as YAML."""
    settings = cfg.to_dict()
    try:
        text = json.dumps(settings)
    except TypeError:  # a function
        return
    (folder / "dump.py").write_text("".join(f"{key} = {value!r}\n" for key, value in settings.items()))
    yield folder / "dump.py"
    (folder / "config.json").write_text(text)
    for ending in (".json", ".yaml"):
        (folder / f"child{ending}").write_text(json.dumps({"_base_": "config.json", "resume": False}))
        yield folder / f"child{ending}"
