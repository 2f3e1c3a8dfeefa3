"""Call functions after imports of certain modules. This module imports none of them."""

import contextlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

Call = Callable[[ModuleType], object]
Around = Callable[[], AbstractContextManager]
Watch = tuple[str, Call, Around, str]  # the arguments of watch()
_watched: list[Watch] = []


def _contains(spec: ModuleSpec, text: str) -> bool:
    """Whether a module's Python file contains a text."""
    file = Path(spec.origin or "")
    return file.suffix == ".py" and file.is_file() and text.encode() in file.read_bytes()


def _surround(spec: ModuleSpec, loader: Loader, watches: list[Watch]) -> None:
    """Execute the module inside the contexts of :func:`watch`, then call the functions."""
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
    """A meta-path finder, before all others."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        watches = [each for each in _watched if fnmatchcase(name, each[0])]
        if not watches:
            return None
        for finder in sys.meta_path:
            find_spec = (
                None if finder is self else getattr(finder, "find_spec", None)
            )  # importlib skips these
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None and spec.loader is not None:
                if watches := [each for each in watches if not each[3] or _contains(spec, each[3])]:
                    _surround(spec, spec.loader, watches)
                return spec
        return None


_finder = _Finder()


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
    if module := sys.modules.get(name):  # None: its import is blocked
        function(module)
        return lambda: None
    return watch(name, function)
