"""The one boundary around everything that runs from a config: errors name the file and the key."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from mmengine.config import Config
from torch import nn

from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.utils.errors import UserError, describe, disk_is_full, message, one_line, printable
from dcnzoo.utils.text import cut

# local variables of mmengine's functions that build something from a dictionary
_BUILT = ("cfg", "dataloader", "loop", "optim_wrapper", "scheduler", "evaluator", "hook", "log_processor")
_BUILDERS = ("mmengine.", "dcnzoo.openmmlab.patches.")
_LONGEST = 1000  # letters of a message: some contain a whole config


@contextmanager
def config_errors(cfg: Config, part: str = "") -> Iterator[None]:
    """Context that turns every exception into a UserError, ``FILE: KEY: …``.

    The key is the innermost dictionary from which something was built, or the module that was running.

    Args:
        part: the key of other errors.
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
        key = _built(cfg, frames)
        text = message(error) if key else describe(error)
        key = key or _running(frames) or part
        parts = [cfg.filename, key, cut(text, _LONGEST)]
        raise UserError(": ".join(printable(str(part)) for part in parts if part)) from error


def _built(cfg: Config, frames: list[FrameType]) -> str:
    """Return the path of the innermost dictionary from which mmengine was building something."""
    settings = cfg.to_dict()
    path, node = "", settings
    for frame in frames:
        name = frame.f_globals.get("__name__", "")
        is_builder = frame.f_code.co_name.startswith(("build", "_build", "register_"))
        if not (is_builder and name.startswith(_BUILDERS)):
            continue
        for built in [value for name, value in frame.f_locals.items() if name in _BUILT]:
            if isinstance(built, Mapping):
                # the next one is inside the last one, except for the data set of a loop
                inner = _find_like(node, path, built) or ("." not in path and _find_like(settings, "", built))
                path, node = inner or (path, node)
    return path


def _find_like(node: object, path: str, built: Mapping) -> tuple[str, dict] | None:
    """Return the path of the dictionary of a config with the plain values of one being built, and itself."""
    for inner, candidate in dicts(node, path):
        # mmengine takes out the priority of a hook
        values = ((key, value) for key, value in candidate.items() if key != "priority")
        plain = {key: value for key, value in values if isinstance(value, str | int | float | None)}
        if plain and inner and all(built.get(key) == value for key, value in plain.items()):
            return inner.lstrip("."), candidate
    return None


def _running(frames: list[FrameType]) -> str:
    """Return the path of the innermost module that was running, such as ``model.neck``; empty if none was."""
    selves = [frame.f_locals.get("self") for frame in frames]
    modules = [each for each in selves if isinstance(each, nn.Module)]
    names = {id(each): name for name, each in modules[0].named_modules()} if modules else {}
    known = [f"model.{names[id(each)]}".rstrip(".") for each in modules if id(each) in names]
    return known[-1] if known else ""
