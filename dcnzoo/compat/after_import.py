"""Call a function after each import of certain modules. This module imports none of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

Call = Callable[[ModuleType], None]
_watched: list[tuple[str, Call]] = []


class _Loader(Loader):
    """Loads a module with its own loader, then calls the functions that wait for it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # from here on, the module is as without this loader
            module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        for pattern, call in list(_watched):
            if fnmatchcase(module.__name__, pattern):
                call(module)


class _Finder:
    """A meta-path finder, before all others."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not any(fnmatchcase(name, pattern) for pattern, _ in _watched):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)  # type: ignore[arg-type]
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader)
                return spec
        return None


_finder = _Finder()


def watch(pattern: str, call: Call) -> Callable[[], None]:
    """Call ``call(module)`` after each import of a module whose name matches.

    Args:
        pattern: of :mod:`fnmatch`.

    Returns:
        a function that undoes this.
    """
    entry = pattern, call
    _watched.append(entry)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)

    def unwatch() -> None:
        _watched.remove(entry)
        if not _watched:
            sys.meta_path.remove(_finder)

    return unwatch
