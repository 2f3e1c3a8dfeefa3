"""Variables of a base that a config sets again: the settings of the base have copied the old value."""

import ast
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config, config

from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.config.tree import RUNNER_KEYS, files
from dcnzoo.openmmlab.config.type_names import use_names
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import few


class _Assign(ast.NodeTransformer):
    """Replaces the values that a file assigns to names."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = values

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        target = node.targets[0]
        if len(node.targets) == 1 and isinstance(target, ast.Name) and target.id in self.values:
            node.value = ast.parse(repr(self.values[target.id]), mode="eval").body
        return ast.fix_missing_locations(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return node


@contextmanager
def assigning(values: Mapping[str, object]) -> Iterator[None]:
    """Context in which every file of a config assigns these values to these names."""

    def parse(*args: Any, **kwargs: Any) -> ast.AST:
        return _Assign(values).visit(ast.parse(*args, **kwargs))

    with Changes() as changes:
        changes.set(config, "ast", SimpleNamespace(**{**vars(ast), "parse": parse}))
        yield


def read_again(cfg: Config, values: Mapping[str, object]) -> Iterator[str]:
    """Yield the path of each setting that these values of variables change."""
    before = use_names(Config.fromfile(cfg.filename, import_custom_modules=False))
    with assigning(values):
        after = use_names(Config.fromfile(cfg.filename, import_custom_modules=False))
    for key in RUNNER_KEYS & before.keys() & after.keys():
        yield from _differences(before[key], after[key], key)


def _differences(old: object, new: object, path: str) -> Iterator[str]:
    pairs: dict[object, tuple[object, object]] = {}
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys():
        pairs = {key: (old[key], new[key]) for key in old}
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = dict(enumerate(zip(old, new, strict=True)))
    elif old != new:
        yield path
    for key, pair in pairs.items():
        yield from _differences(*pair, f"{path}.{key}")


def variables_without_effect(cfg: Config) -> Iterator[Finding]:
    """Yield the settings that have copied a variable of a base before a config has set it again.

    It is a warning if the file that sets the variable reads it too: it may be meant for these lines only.
    """
    parts = [*files(cfg.text)]
    own = [part for part in parts if not part.is_published]
    names = {name for part in own for name in part.stored & cfg.keys()} - RUNNER_KEYS
    if "read_base" not in cfg.text:
        names = {name for name in names if sum(name in part.stored for part in parts) > 1}
    settings = cfg.to_dict()
    for name in sorted(name for name in names if _is_literal(settings[name])):
        last = next(part for part in reversed(own) if name in part.stored)
        changed: dict[str, list[str]] = {}
        with suppress(Exception):  # of a base that computes with a value of another type
            for path in read_again(cfg, {name: settings[name]}):
                changed.setdefault(path.partition(".")[0], []).append(path)
        for paths in changed.values():
            text = f"expected the value of {name}, which the base has copied before this config sets it"
            yield Finding(paths[0], f"{text}; set {few(paths)}", stops=name not in last.read)


def _is_literal(value: object) -> bool:
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError, TypeError, RecursionError):
        return False
