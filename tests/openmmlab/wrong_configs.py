"""Mistakes in configs, by a generator: each is a path, and the value that is set there."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

import dcnzoo.zoo.config_writer  # noqa: F401  takes read_config_file by name, which refused() replaces
from dcnzoo.openmmlab.config.read import OLD_KEYS
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.runs import recipe

from ..commands import invoke

# dictionaries whose keys are chosen by the user or by mmcv's layers, which take some of them out
FREE = {"norm_cfg", "conv_cfg", "act_cfg", "init_cfg", "custom_keys", "default_hooks", "metainfo"}
FREE |= {"backend_args", "_scope_"}
TEXTS = Path(__file__).with_name("wrong_values.txt").read_text(encoding="utf-8")
# parts of the configs whose keys and types are misspelt, each in turn, and their dictionaries without a type
PARTS = (
    "model", "train_dataloader", "val_dataloader", "val_evaluator", "optim_wrapper", "param_scheduler",
    "train_cfg", "default_hooks", "custom_hooks", "env_cfg",
)  # fmt: skip
UNTYPED = re.compile(r"(dataloader|optim_wrapper|clip_grad|env_cfg|model\.(train|test)_cfg(\.\w+)*)$")
# The check does not know these: classes that get them from another class refuse them when they are built.
PASSED_ON = ("model.encoder", "model.decoder", "custom_hooks")
# path = values that are no possible ones
VALUES = [line.split(" = ", 1) for line in TEXTS.splitlines() if " = " in line]


def mistakes(cfg: Config) -> Iterator[tuple[str, object]]:
    """Yield the mistakes that can be made in a config."""
    for path, values in VALUES:
        if "." not in path or isinstance(_at(cfg, path.rpartition(".")[0]), dict | list):
            possible = (
                value for value in eval(values, {"nan": math.nan}) if value is not ... or _at(cfg, path)
            )
            yield from ((path, value) for value in possible)
    for key in OLD_KEYS:
        yield key, "x" if key == "resume_from" else {"type": 1}
    for part in PARTS:
        for path, node in dicts(cfg.get(part), part):
            kind = node.get("type", "")
            if FREE & {*path.split(".")} - {"default_hooks"} or not (kind or UNTYPED.search(path)):
                continue
            for key in node.keys() - FREE - {"type"} if not path.startswith(PASSED_ON) else ():
                yield f"{path}.{misspelt(key)}", node[key]
            if len(kind) > 4 and kind not in ("DefaultSampler", "AspectRatioBatchSampler"):
                yield f"{path}.type", misspelt(kind)


def misspelt(word: str) -> str:
    """Return another word with the same letters: without the one before the last, or with one more."""
    return f"{word[:-2]}{word[-1]}" if len(word) > 4 else f"{word}{word[-1]}"


def make(cfg: Config, path: str, value: object) -> None:
    """Make a mistake."""
    outer, _, key = path.rpartition(".")
    node: Any = _at(cfg, outer) if outer else cfg
    if not outer and key not in cfg:  # a name that the config's text does not set may be a variable of a base
        object.__setattr__(cfg, "_text", f"{cfg.text}\n{__file__}\n{key} = {value!r}\n")
    if value is ...:
        node.pop(key)
    else:
        node[int(key) if isinstance(node, list) else key] = value


def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, cfg: Config) -> list[str]:
    """Return the lines of the error of a training: status 1, one to three lines, none of them a traceback."""
    file = folder / "mine.py"
    file.touch()
    object.__setattr__(cfg, "_filename", "mine.py")
    monkeypatch.setattr(recipe, "read_config_file", lambda *args: cfg)
    status, output = invoke("train", file, "--work-dir", folder / "work")
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status == 1 and 1 <= len(lines) <= 3 and "Traceback" not in output, output
    assert "AssertionError" not in output
    return lines


def _at(cfg: Any, path: str) -> Any:
    for key in path.split("."):
        if isinstance(cfg, list):
            cfg = cfg[int(key)] if key.isdigit() else None
        else:
            cfg = cfg.get(key) if hasattr(cfg, "get") else None
    return cfg
