"""dcnzoo's import finder: it calls functions after imports of certain modules, and provides missing ones.

This module imports none of them.
"""

import contextlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

Call = Callable[[ModuleType], object]
Around = Callable[[], AbstractContextManager]
Watch = tuple[str, Call, Around, str]  # the arguments of watch()
_watched: list[Watch] = []
_missing: dict[str, Callable[[str], ModuleSpec]] = {}  # pattern → spec of a name


def _contains(spec: ModuleSpec, text: str) -> bool:
    """Whether a module's Python file contains a text."""
    file = Path(spec.origin or "")
    return file.suffix == ".py" and file.is_file() and text.encode() in file.read_bytes()


def _surround(spec: ModuleSpec, loader: Loader, watches: list[Watch]) -> None:
    """Execute the module inside the contexts of :func:`watch`, then call the functions."""
    if not watches:
        return
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        if module.__spec__ is not spec:  # a loader may serve several modules
            execute(module)
            return
        with contextlib.ExitStack() as stack:
            for _, _, around, _ in watches:
                stack.enter_context(around())
            execute(module)
        for _, function, _, _ in watches:
            function(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]


class _Finder:
    """The meta-path finder, before all others."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        watches = [each for each in _watched if fnmatchcase(name, each[0])]
        provided = [make for pattern, make in _missing.items() if fnmatchcase(name, pattern)]
        if not watches and not provided:
            return None
        # importlib skips finders without find_spec, which old packages install
        finders = [f for f in sys.meta_path if f is not self and hasattr(f, "find_spec")]
        specs = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None and provided:
            spec = provided[0](name)
        if spec is not None and spec.loader is not None:
            watches = [each for each in watches if not each[3] or _contains(spec, each[3])]
            _surround(spec, spec.loader, watches)
        return spec


_finder = _Finder()


def _update_meta_path() -> None:
    used, present = bool(_watched or _missing), _finder in sys.meta_path
    if used and not present:
        sys.meta_path.insert(0, _finder)
    elif present and not used:
        sys.meta_path.remove(_finder)


def provide_missing(pattern: str, make: Callable[[str], ModuleSpec]) -> None:
    """Import ``make(name)`` for each module whose name matches and that no other finder has found."""
    _missing[pattern] = make
    _update_meta_path()


def watch(
    pattern: str, call: Call = lambda module: None, around: Around = contextlib.nullcontext, text: str = ""
) -> Callable[[], None]:
    """Call ``call(module)`` after each import of a module whose name matches.

    Args:
        pattern: a pattern of :mod:`fnmatch` for the module's full name.
        around: returns a context in which the module is executed.
        text: if given, only modules whose Python file contains this text.

    Returns:
        a function that undoes this.
    """
    entry = pattern, call, around, text
    _watched.append(entry)
    _update_meta_path()

    def unwatch() -> None:
        _watched.remove(entry)
        _update_meta_path()

    return unwatch


def call(pattern: str, function: Call, text: str = "") -> Callable[[], None]:
    """:func:`watch`, and call ``function(module)`` now for each matching module that is imported already.

    These are called without regard to ``text``.
    """
    for name, module in list(sys.modules.items()):
        if module is not None and fnmatchcase(name, pattern):  # None: its import is blocked
            function(module)
    return watch(pattern, function, text=text)
