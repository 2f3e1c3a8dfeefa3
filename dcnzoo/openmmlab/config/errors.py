"""Convert errors of everything that a config builds or runs: they name the config's file and the key.

The key is found in the traceback. Each function that builds something has a dictionary, which carries its
path in the value of ``type`` (:class:`TypeName`). One whose ``type`` is a class or absent is compared with
the dictionaries of the config. If nothing was being built, the key is that of the module that was running.
"""

import copy
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from mmengine.config import Config
from torch import nn

from dcnzoo.openmmlab.config.deformable import SETTINGS
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.weights import without_wrapper
from dcnzoo.utils.errors import HINT, UserError, describe, disk_is_full, message, one_line, printable
from dcnzoo.utils.text import cut

_TAKEN_OUT = {"priority", *SETTINGS}  # keys that MMEngine (for hooks) or dcnzoo removes before building


class TypeName(str):
    """The value of ``type`` in a dictionary of a config, with the path of this dictionary.

    A builder gets a copy of its dictionary, often with other keys. The path stays with the type.
    """

    path = ""


def with_paths(cfg: Config) -> Config:
    """Return a copy of a config whose types are :class:`TypeName`; only for what is built from it."""
    cfg = copy.deepcopy(cfg)
    for path, node in dicts(cfg._cfg_dict):
        if type(node.get("type")) is str:
            name = node["type"] = TypeName(node["type"])
            name.path = path
    return cfg


@contextmanager
def config_errors(cfg: Config, part: str = "") -> Iterator[None]:
    """Context that turns every exception into a UserError, ``FILE: KEY: …``.

    The key is the innermost dictionary from which something was built, or the module that was running.

    Args:
        part: the key to name if neither is found.
    """
    try:
        yield
    except (UserError, ModuleNotFoundError):
        raise
    except Exception as error:
        if disk_is_full(error):
            text = f"work_dir: {cfg.get('work_dir')} cannot be written: {one_line(error)}"
            raise UserError(text) from error
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        text = cut(message(error), 1000)  # some messages contain a whole config
        key = _path_of_innermost(cfg, _dicts_being_built(frames))
        if not key and (key := _running(frames)):
            text += HINT  # the mistake may be in a layer of the user
        elif not key:
            key, text = part, cut(describe(error), 1000)
        parts = [cfg.filename, key, text]
        raise UserError(": ".join(printable(str(part)) for part in parts if part)) from error


def _dicts_being_built(frames: list[FrameType]) -> Iterator[Mapping]:
    """Yield the first dictionary argument of each builder function in the traceback, outermost first."""
    for frame in frames:
        module, code = frame.f_globals.get("__name__", ""), frame.f_code
        is_builder = code.co_name.startswith(("build", "_build", "register_"))
        if is_builder and module.startswith(("mmengine.", "dcnzoo.openmmlab.patches.")):
            arguments = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount]]
            yield from [value for value in arguments if isinstance(value, Mapping)][:1]


def _path_of_innermost(cfg: Config, built: Iterator[Mapping]) -> str:
    """Return the path in the config of the last of these dictionaries; empty if the config has none of them.

    A dictionary without a :class:`TypeName` (its ``type`` is a class, or absent) is found by its values,
    inside the dictionary before it. If several are equal, the text has all their paths.
    """
    nodes = [(path, node) for path, node in dicts(cfg.to_dict()) if path]
    last = [""]
    for copied in built:
        if path := _own_path(copied):
            last = [path]
            continue
        equal = [path for path, node in nodes if _has_values(copied, node)]
        last = [path for path in equal if any(path.startswith(outer) for outer in last)] or last
    return " or ".join(last)


def _own_path(copied: Mapping) -> str:
    """Return the path that the type of a dictionary has, or of a dictionary inside it; empty without one."""
    for inner, node in dicts(copied):
        path, below = getattr(node.get("type"), "path", ""), f".{inner}" if inner else ""
        if path and path.endswith(below):
            return path.removesuffix(below)
    return ""


def _has_values(copied: Mapping, node: Mapping) -> bool:
    """Return whether a copy has all texts and numbers of a dictionary; it may have more keys."""
    plain = [key for key, value in node.items() if isinstance(value, str | int | float | None)]
    compared = [key for key in plain if key not in _TAKEN_OUT]
    return bool(compared) and all(copied.get(key) == node[key] for key in compared)


def _running(frames: list[FrameType]) -> str:
    """Return the path of the innermost module that was running, such as ``model.neck``; empty if none was."""
    modules = [owner for frame in frames if isinstance(owner := frame.f_locals.get("self"), nn.Module)]
    names = {id(each): name for name, each in without_wrapper(modules[0]).named_modules()} if modules else {}
    known = [f"model.{names[id(each)]}".rstrip(".") for each in modules if id(each) in names]
    return known[-1] if known else ""
