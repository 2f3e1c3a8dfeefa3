"""Texts of messages: shortened names, lists and numbers of things, similar names."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def cut(text: str, most: int = 60) -> str:
    """Shorten a text in the middle."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]}…{text[-most // 4 :]}"


# shortens long and deeply nested values
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 3


def short(value: object) -> str:
    """Format a value from a file for a message."""
    return cut(_SHORT.repr(value))


def counted(number: int, plural: str) -> str:
    """``1 image``, ``2 images``"""
    return f"{number} {plural if number != 1 else plural.replace('ies', 'y').removesuffix('s')}"


def few(names: Sequence[object], shown: int = 5) -> str:
    """List the first names, and the number of the others."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(cut(str(name)) for name in names[:shown]) + rest or "none"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the known name that is most similar to a misspelt one; an empty text if there is none."""
    return next(iter(get_close_matches(name, list(known), 1, cutoff)), "")
