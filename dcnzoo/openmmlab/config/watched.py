"""Dictionaries that note which keys code asks them for, and what follows about a config."""

import copy
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from mmengine.config import Config, ConfigDict

from dcnzoo.openmmlab.config.packages import is_published
from dcnzoo.openmmlab.config.read import files, is_published_key, is_written
from dcnzoo.openmmlab.config.tree import class_of, dicts
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import nearest

_ALL = "**"  # in place of a key: of all
# path of a dictionary → the keys that code has asked it for; after =, those that it replaced without asking;
# after @, the modules of the code
Asked = dict[str, set[str]]
WITH_FILES = ("init_cfg", "teacher_ckpt", "pretrained")  # are not loaded


class _Watched(ConfigDict):
    """A dictionary that notes the keys that it is asked for, also in copies. ``**`` asks for all."""

    def watch(self, path: str, asked: Asked) -> "_Watched":
        self.__dict__.update(_path=path, _asked=asked)
        return self

    def __copy__(self):
        return self._with(dict.items(self))

    copy = __copy__

    def __deepcopy__(self, memo):
        return self._with([(key, copy.deepcopy(value, memo)) for key, value in dict.items(self)])

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items() if "_path" in vars(self) else ():
            noted = vars(self)["_asked"].setdefault(vars(self)["_path"], set())
            old = dict.get(self, key)
            are_parts = isinstance(old, dict) and isinstance(value, dict)  # whose keys are updated in turn
            if old is not None and not are_parts and key not in noted:
                noted.add(f"={key}")
        super().update(*args, **kwargs)

    def _with(self, items: Iterable[tuple[str, object]]) -> "_Watched":
        other = _Watched()
        for key, value in items:
            dict.__setitem__(other, key, value)
        return other.watch(vars(self)["_path"], vars(self)["_asked"]) if "_path" in vars(self) else other


def _noting(name: str) -> Callable:
    method = getattr(ConfigDict, name)

    def noting(self: _Watched, *args: Any, **kwargs: Any) -> Any:
        if "_path" in vars(self):
            noted = vars(self)["_asked"].setdefault(vars(self)["_path"], set())
            noted.update(args[:1] or (_ALL,), (f"@{_asking_module()}",))
        return method(self, *args, **kwargs)

    return noting


def _asking_module() -> str:
    """Return the name of the module that has called a method of a dictionary."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(("addict", "mmengine.config")):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "")


_Watched.__name__ = ConfigDict.__name__  # for the messages of its errors
for _name in ("__getitem__", "__contains__", "get", "pop", "setdefault", "keys", "values", "items"):
    setattr(_Watched, _name, _noting(_name))


def watched(value: object, path: str, asked: Asked) -> Any:
    """Return a copy of settings that notes in ``asked`` what code reads."""
    if isinstance(value, Mapping):
        node = _Watched()
        for key, each in value.items():
            dict.__setitem__(node, key, watched(each, f"{path}.{key}", asked))
        return node.watch(path, asked)
    if isinstance(value, list | tuple):
        return type(value)(watched(each, f"{path}.{index}", asked) for index, each in enumerate(value))
    return value


def unread(cfg: Config, part: str, asked: Asked) -> Iterator[Finding]:
    """Yield the settings of a part of a config that nobody has read, or that code has replaced before.

    A class, in dictionaries with a type, gets all of them. It is an error if a similar name was read, and no
    class of the part is a user's own, which may read the name later. Settings of published configs, in the
    base or at the same place of another with a model of this class, are left out.
    """
    published = [file for file in files(cfg.text) if file.is_published]
    paths, has_model = [file.path for file in published], any("model" in file.stored for file in published)
    reported, written = list[str](), is_written(cfg)
    settings = [*dicts(cfg.to_dict().get(part), part)]
    is_known = all(is_published(class_of(node)) for _, node in settings)
    names = [base.__name__ for base in getattr(class_of(settings[0][1]) if settings else None, "__mro__", ())]
    backbone = (cfg.get("model") or {}).get("backbone") or {}
    backbones = [base.__name__ for base in getattr(class_of(backbone), "__mro__", [object])]
    for path, node in settings:
        is_in_reported = any(f"{path}.".startswith(f"{outer}.") for outer in reported)
        if is_in_reported or not {*WITH_FILES}.isdisjoint(path.split(".")):
            continue
        read = asked.get(path, set())
        replaced = {key for key in node if f"={key}" in read}
        unused = {"stage_with_dcn"} & node.keys() if not (node.get("dcn") or written) else set()
        unused |= replaced
        for key in sorted((unused if "type" in node else node.keys() - read | unused) - {*WITH_FILES}):
            close = "" if key in unused else nearest(key, read, 0.8)
            if _ALL in read and not close and key not in unused:
                continue
            outer = _outer(path)
            reported.append(f"{path}.{key}")
            if any(reported[-1] in _settings_of(base) for base in paths):
                continue
            of_others = is_published_key(outer, key)
            of_kind = not has_model and part == "model" and of_others and is_published_key(outer, key, *names)
            askers = read | asked.get(path.rpartition(".")[0], set())
            # parameters that only some models with this backbone have
            of_pattern = ".custom_keys" in path and is_published_key(outer, key, *backbones)
            if key not in replaced and (of_kind or of_pattern or _is_in_code(settings, askers, outer, key)):
                continue
            text = f"expected {close}, got an unknown key" if close else "no code has read it in an iteration"
            if key in replaced:
                text = "the code replaces its value before it reads it"
            yield Finding(reported[-1], text, "key", stops=bool(close) and is_known and not of_others)


def misspelt(cfg: Config, part: str, asked: Asked, error: BaseException | None) -> tuple[str, str] | None:
    """Return the path of a setting with a name similar to one that is missing; the text has what is missing.

    Args:
        error: names what is missing.
    """
    for path, node in dicts(cfg.to_dict().get(part), part):
        read = asked.get(path, set())
        for key in sorted(node.keys() - read):
            close = nearest(key, read - node.keys(), 0.75)
            if close and re.search(rf"\b{close}\b", str(error)) and not is_published_key(_outer(path), key):
                return f"{path}.{key}", f"expected {close}, got an unknown key"
    return None


def _outer(path: str) -> str:
    """Return the name of a dictionary, or of the list that it is in."""
    return re.sub(r"\.\d+", "", path).rpartition(".")[2]


def _is_in_code(settings: Iterable[tuple[str, Mapping]], askers: Iterable[str], outer: str, key: str) -> bool:
    """Whether a class whose code has asked the dictionary ``outer``, or that around it, may ask for a key."""
    families = [{base.__module__ for base in getattr(class_of(node), "__mro__", ())} for _, node in settings]
    asking = {each[1:] for each in askers if each.startswith("@mmdet.")}
    modules = {name for each in families if each & asking for name in each if name.startswith("mmdet.")}
    pattern = rf"\b{re.escape(outer)}(\.|\[['\"]|\.get\(['\"]){re.escape(str(key))}\b"
    return any(re.search(pattern, inspect.getsource(sys.modules[name])) for name in modules)


@cache
def _settings_of(file: str) -> set[str]:
    """Return the paths of the settings in a published config."""
    nodes = dicts(Config.fromfile(file, import_custom_modules=False).to_dict())
    return {f"{path}.{key}"[1:] for path, node in nodes for key in node}
