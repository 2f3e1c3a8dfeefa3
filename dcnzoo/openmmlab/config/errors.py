"""The one boundary around everything that runs from a config: errors name the file and the key."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mmengine.config import Config

from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.utils.errors import HINT, UserError, describe, disk_is_full, one_line, printable

# local variables of mmengine's functions that build something from a dictionary
_BUILT = ("cfg", "dataloader", "loop", "optim_wrapper", "scheduler", "evaluator")


@contextmanager
def config_errors(cfg: Config) -> Iterator[None]:
    """Context that turns every exception into a UserError, ``FILE: KEY: …``.

    KEY is the innermost dictionary from which something was built; errors of a running model have none.
    """
    try:
        yield
    except (UserError, ModuleNotFoundError):
        raise
    except Exception as error:
        if disk_is_full(error):
            raise UserError(
                f"work_dir: {cfg.get('work_dir')} cannot be written: {one_line(error)}"
            ) from error
        key, text = _key(cfg, error), describe(error)
        if key and isinstance(error, TypeError) and "keyword argument" in str(error):
            text = one_line(error)  # a setting that the class, perhaps dcnzoo's, does not have
        parts = [cfg.filename, key, text.removesuffix(HINT) if key else text]
        raise UserError(": ".join(printable(str(part)) for part in parts if part)) from error


def _key(cfg: Config, error: Exception) -> str:
    settings = cfg.to_dict()
    path, node = "", settings
    for frame, _ in traceback.walk_tb(error.__traceback__):
        builds = frame.f_code.co_name.startswith("build")
        if not (builds and frame.f_globals.get("__name__", "").startswith("mmengine.")):
            continue
        for built in [value for name, value in frame.f_locals.items() if name in _BUILT]:
            if isinstance(built, Mapping):
                # the next one is inside the last one, except for the data set of a loop
                inner = _search(node, path, built) or ("." not in path and _search(settings, "", built))
                path, node = inner or (path, node)
    return path


def _search(node: object, path: str, built: Mapping) -> tuple[str, dict] | None:
    """Return the dictionary that is, apart from what the builder has added, the one being built."""
    for inner, candidate in dicts(node, path):
        plain = {
            key: value for key, value in candidate.items() if isinstance(value, str | int | float | None)
        }
        if plain and inner and all(built.get(key) == value for key, value in plain.items()):
            return inner.lstrip("."), candidate
    return None
