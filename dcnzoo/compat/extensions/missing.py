"""The error for functions that the original compiled module has and dcnzoo does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def missing(module: str, names: Sequence[str]) -> Callable[[str], object]:
    """A module's ``__getattr__`` that raises an error with the missing attribute and the existing ones."""

    def fail(name: str) -> object:
        raise AttributeError(
            f"module {module!r} has no attribute {name!r}: it is dcnzoo's, because no compiled one is "
            f"installed, and has {', '.join(names)}",
            name=name,
        )

    return fail
