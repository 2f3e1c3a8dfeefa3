"""The error of a function that a compiled module has and its file in this folder has not."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def missing(module: str, names: Sequence[str]) -> Callable[[str], object]:
    """A module's ``__getattr__``, which names the attribute and what there is in its place."""

    def fail(name: str) -> object:
        raise AttributeError(
            f"module {module!r} has no attribute {name!r}: it is dcnzoo's, because no compiled one is "
            f"installed, and has {', '.join(names)}",
            name=name,
        )

    return fail
