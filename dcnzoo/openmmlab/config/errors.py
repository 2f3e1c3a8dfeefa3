"""The one boundary around everything that runs from a config: errors name the file and the key."""

import linecache
import logging
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from types import FrameType
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from torch import nn

from dcnzoo.openmmlab.config.deformable import arguments
from dcnzoo.openmmlab.config.read import own_settings, words_in
from dcnzoo.openmmlab.config.tree import LOADERS, class_of, dicts, registered
from dcnzoo.utils.errors import UserError, describe, disk_is_full, message, one_line, printable
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import cut, few, nearest

# local variables of mmengine's functions that build something from a dictionary
_BUILT = ("cfg", "dataloader", "loop", "optim_wrapper", "scheduler", "evaluator", "hook", "log_processor")
_BUILDERS = ("mmengine.", "dcnzoo.openmmlab.patches.")
UNKNOWN = re.compile(r"(?:\w+\.)*?(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")
_UNREGISTERED = re.compile(r"(\S+) is not in the .+? registry")
_PARTS = ("model", *LOADERS, "train_cfg", "optim_wrapper", "param_scheduler")  # which work together
_LONGEST = 1000  # letters of a message: some contain a whole config


@contextmanager
def config_errors(cfg: Config) -> Iterator[None]:
    """Context that turns every exception into a UserError, ``FILE: KEY: …``; see :func:`explain`."""
    try:
        yield
    except (UserError, ModuleNotFoundError):
        raise
    except Exception as error:
        if disk_is_full(error):
            raise UserError(
                f"work_dir: {cfg.get('work_dir')} cannot be written: {one_line(error)}"
            ) from error
        parts = [cfg.filename, *explain(cfg, error)]
        raise UserError(": ".join(printable(str(part)) for part in parts if part)) from error


def explain(cfg: Config, error: Exception, part: str = "") -> tuple[str, str]:
    """Return the key of a config that an exception is about, or an empty text, and its message.

    The key is the innermost dictionary from which something was built, or the module that was running; with a
    setting of it that is in the line that failed. Values of settings that a library refuses are no error of
    the code that gives them to it, as long as a setting is known.

    Args:
        part: of the config, whose settings the code has; empty: any.
    """
    frames = frames_of(error)
    key, text, running, named = _key(cfg, frames), message(error), "", ""
    if isinstance(error, TypeError) and (match := UNKNOWN.match(str(error))):
        text = one_line(error)  # a setting that the class, perhaps dcnzoo's, does not have
        places = [path for path, node in dicts(cfg.to_dict()) if match[2] in node]
        key = key or (places[0].lstrip(".") if len(places) == 1 else "")
        if match[2] in words_in(cfg, are_published=True) - words_in(cfg, are_published=False):
            text = f"{match[1]} does not have {match[2]}; _delete_=True drops the settings of the base"
        elif close := _nearest_argument(match[1], match[2], frames[-1]):
            key, text = f"{key}.{match[2]}".lstrip("."), f"expected {close}, got an unknown key"
    if isinstance(error, KeyError) and (match := _UNREGISTERED.match(one_line(error))):
        registries = (frame.f_locals.get("registry") for frame in reversed(frames))
        registry = next(filter(None, registries), None)
        if close := nearest(match[1], registered(registry)):
            places = [path[1:] for path, node in dicts(cfg.to_dict()) if node.get("type") == match[1]]
            key = places[0] if len(places) == 1 else key
            key, text = f"{key}.type", f"expected {close}, got {match[1]}, which is not registered"
    elif "None" in text and len(types := [*_unknown_types(cfg, key)]) == 1:  # in place of a class
        ((key, name),) = types
        text = f"expected a registered class, got {name}"
    inner = [*takewhile(lambda frame: not _builds(frame), reversed(frames))]
    if not key:
        in_library = [frame for frame in frames if not _module(frame).startswith("dcnzoo.openmmlab.patches.")]
        named = _named(cfg, part, text, in_library[-1]) if in_library else ""
        running, inner = _running(frames) or ("", inner)
    key = named or _with_setting(cfg, key or running, text, inner)
    if text == message(error):
        text = describe(error) if key == running else text
        text += "" if named else causes(cfg, key)
    return key, cut(text, _LONGEST)


def causes(cfg: Config, key: str) -> str:
    """Return the end of a message: the settings that differ from the published config, see own_settings.

    Args:
        key: where the error arose; the settings near it come first.
    """
    others = [each for each in own_settings(cfg) if each.partition(".")[0] in _PARTS and each != key]
    others.sort(key=lambda each: -_shared(each, key))
    return f"; settings of this config that may be its cause: {few(others)}" if others else ""


def require_none(findings: Iterable[Finding], name: str | os.PathLike) -> None:
    """Print the findings about a config as warnings; raise UserError with those that stop the work."""
    lines = []
    for finding in findings:
        line = printable(f"{name}: {finding}")
        if finding.stops:
            lines.append(line)
        else:
            print_log(line, "current", logging.WARNING)
    if lines:
        raise UserError(*lines)


def _shared(*paths: str) -> int:
    """Return how many names two paths have in common, from the first on."""
    pairs = zip(*(path.split(".") for path in paths), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def frames_of(error: BaseException | None) -> list[FrameType]:
    """Return the frames of an error, the innermost one last."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)] if error else []


def _nearest_argument(name: str, keyword: str, frame: FrameType) -> str:
    """Return the argument most similar to a keyword, of the class or function that a frame has called."""
    values: list[Any] = [*frame.f_locals.values(), *frame.f_globals.values()]
    for value in [getattr(frame.f_locals.get("self"), name, None), *values]:
        if callable(value) and getattr(value, "__name__", "") == name:
            return nearest(keyword, arguments(value)[0], 0.75)
    return ""


def _builds(frame: FrameType) -> bool:
    """Whether a frame is of a function of mmengine that builds something from a dictionary."""
    is_builder = frame.f_code.co_name.startswith(("build", "_build", "register_"))
    return is_builder and _module(frame).startswith(_BUILDERS)


def _module(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "")


def _unknown_types(cfg: Config, key: str) -> Iterator[tuple[str, str]]:
    """Yield path and name of each type in a part of a config that is in no registry."""
    for path, node in dicts(cfg.to_dict()):
        kind = node.get("type")
        if f"{path}.".startswith(f".{key}.") and isinstance(kind, str) and class_of(node) is None:
            yield f"{path}.type"[1:], kind


def _running(frames: list[FrameType]) -> tuple[str, list[FrameType]] | None:
    """Return the path of the innermost module that was running, such as ``model.neck``, and its assertion."""
    values = [frame.f_locals.get(name) for frame in frames for name in ("model", "self")]
    paths = dict[int, str]()
    for value in reversed(values):  # the outermost module counts
        if isinstance(value, nn.Module):
            paths.update({id(module): name for name, module in value.named_modules()})
    for frame in reversed(frames):
        if path := paths.get(id(frame.f_locals.get("self"))):
            return f"model.{path}", [frame] if _line(frame).startswith("assert") else []
    return None


def _line(frame: FrameType) -> str:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()


def _with_setting(cfg: Config, path: str, text: str, frames: Iterable[FrameType]) -> str:
    """Return the path of the setting that a message or the line of a frame names, or else the given path.

    The message has the value, a text, of only one setting of the dictionary at this path; or the line names
    only one of them, or only one whose value is a text.
    """
    node: Any = cfg.to_dict()
    for part in path.split("."):
        if isinstance(node, Mapping):
            node = node.get(part, node)
        elif isinstance(node, list | tuple):
            node = dict(enumerate(node)).get(int(part) if part.isdecimal() else -1)
    if not (path and isinstance(node, Mapping)):
        return path
    names = {key for key in node if key != "type" and node[key] is not None}
    spoken = {*re.findall(r"\w+", text)}
    said = {key for key in names if isinstance(node[key], str) and node[key] in spoken}
    lines = [names & {*re.findall(r"\w+", _line(frame))} for frame in frames]
    for words in [said, *lines]:
        texts = {word for word in words if isinstance(node[word], str)}
        if len(words) == 1 or len(texts) == 1:
            return f"{path}.{(texts or words).pop()}"
    return path


def _named(cfg: Config, part: str, text: str, frame: FrameType) -> str:
    """Return the path of the setting in ``part`` that an error is about, if nothing was built meanwhile.

    It is the only setting whose name is in the line that failed, and whose value is in the message or in a
    variable there.
    """
    words, variables = {*re.findall(r"\w+", _line(frame))}, frame.f_locals
    paths = [
        f"{path}.{key}".lstrip(".")
        for path, node in dicts(cfg.to_dict())
        if path.startswith(f".{part}" if part else "")
        for key, value in node.items()
        if text == f"KeyError: {value}"
        or (key in words and re.search(rf"(?<![\w.]){re.escape(str(value))}(?![\w.])", text))
        or (
            key in words
            and isinstance(local := variables.get(key), type(value))
            and repr(local) == repr(value)
        )
    ]
    return paths[0] if len(paths) == 1 else ""


def _key(cfg: Config, frames: list[FrameType]) -> str:
    settings = cfg.to_dict()
    path, node = "", settings
    for frame in frames:
        if not _builds(frame):
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
        # mmengine takes out the priority of a hook
        values = ((key, value) for key, value in candidate.items() if key != "priority")
        plain = {key: value for key, value in values if isinstance(value, str | int | float | None)}
        if plain and inner and all(built.get(key) == value for key, value in plain.items()):
            return inner.lstrip("."), candidate
    return None
