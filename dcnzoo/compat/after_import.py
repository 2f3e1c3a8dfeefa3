"""Call functions after imports of certain modules. This module imports none of them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

Call = Callable[[ModuleType], None]
Around = Callable[[], AbstractContextManager]
_watched: list[tuple[str, Call, Around]] = []


def _matching(name: str) -> list[tuple[str, Call, Around]]:
    return [entry for entry in _watched if fnmatchcase(name, entry[0])]


class _Loader(Loader):
    """Loads a module with its own loader, inside the contexts of :func:`watch`, then calls the functions."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # restore the module's own loader
            module.__loader__ = module.__spec__.loader = self.loader
        with contextlib.ExitStack() as stack:
            for _, _, around in _matching(module.__name__):
                stack.enter_context(around())
            self.loader.exec_module(module)
        for _, function, _ in _matching(module.__name__):
            function(module)


class _Finder:
    """A meta-path finder, before all others."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not _matching(name):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)  # type: ignore[arg-type]
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader)
                return spec
        return None


_finder = _Finder()


def watch(
    pattern: str, call: Call = lambda module: None, around: Around = contextlib.nullcontext
) -> Callable[[], None]:
    """Call ``call(module)`` after each import of a module whose name matches.

    Args:
        pattern: a pattern of :mod:`fnmatch` for the module's full name.
        around: returns a context in which the module is executed.

    Returns:
        a function that undoes this.
    """
    entry = pattern, call, around
    _watched.append(entry)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)

    def unwatch() -> None:
        _watched.remove(entry)
        if not _watched:
            sys.meta_path.remove(_finder)

    return unwatch


def call(name: str, function: Call) -> Callable[[], None]:
    """Call ``function(module)`` now if the module is imported already, else after its import.

    Returns:
        a function that cancels the call.
    """
    if name in sys.modules:
        function(sys.modules[name])
        return lambda: None
    return watch(name, function)
