"""The arguments of classes and functions, also of classes that pass theirs on."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any


@functools.cache
def arguments(kind: Any) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class or function, or none for None.

    A class with ``**kwargs`` has those of its base, too.
    """
    named: dict[str, inspect.Parameter] = {}
    for base in getattr(kind, "__mro__", [kind] if kind else []):
        function = getattr(base, "__init__", base) if inspect.isclass(base) else base
        own = inspect.signature(function).parameters
        named = {**own, **named}
        if not takes_any(own):
            break
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: each for name, each in named.items() if each.kind not in several and name != "self"}


def takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Return whether there is a parameter for all other keywords: ``**kwargs``."""
    return any(each.kind is each.VAR_KEYWORD for each in parameters.values())
