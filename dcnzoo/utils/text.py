"""Texts of messages: shortened names, lists and numbers of things, similar names, columns."""

import reprlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any


def cut(text: str, most: int = 60) -> str:
    """Shorten a text in the middle."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]}…{text[-most // 4 :]}"


# shortens long and deeply nested values
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 3
_SHORT.repr_float = lambda number, level: repr(float(f"{number:.6g}"))  # type: ignore[attr-defined]


def short(value: object) -> str:
    """Format a value from a file for a message."""
    return cut(_SHORT.repr(value))


def problem_of_size(size: tuple[int, int], stated: Sequence[Any]) -> str:
    """Return how the (width, height) of a picture, as it is loaded, differs from that of its annotation.

    A side of None, 0 or −1 is unknown. The text is empty if the sizes agree.
    """
    if all(other in (side, None, 0, -1) for side, other in zip(size, stated, strict=True)):
        return ""
    expected = " × ".join(short(side).removesuffix(".0") for side in stated)
    return f"expected a picture of {expected} pixels, as in the annotations, got {size[0]} × {size[1]}"


def counted(number: int, plurals: str) -> str:
    """Return ``1 image`` or ``2,000 images``; with two nouns, ``1 box or polygon``."""
    if number != 1:
        return f"{number:,} {plurals}"
    return f"1 {' or '.join(map(_singular, plurals.split(' or ')))}"


def _singular(plural: str) -> str:
    if plural.endswith("ies"):
        return f"{plural[:-3]}y"
    return plural.removesuffix("es" if plural.endswith(("sses", "xes", "ches", "shes")) else "s")


def few(names: Sequence[object], shown: int = 5) -> str:
    """List the first names, and the number of the others."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(cut(str(name)) for name in names[:shown]) + rest or "none"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the known name that is most similar to a misspelt one; an empty text if there is none."""
    return next(iter(get_close_matches(name, list(known), 1, cutoff)), "")


def columns(rows: Sequence[Sequence[str]], numbers: bool = False) -> Iterator[str]:
    """Yield lines of aligned columns. Unlike a table of rich, they are not cut to the width of the terminal.

    Args:
        numbers: align all columns but the first at the right.
    """
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        spaces = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = [
            f"{space}{cell}" if numbers and index else f"{cell}{space}"
            for index, (cell, space) in enumerate(zip(row, spaces, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _width(text: str) -> int:
    """Return the number of columns on a terminal, where a Chinese or Japanese letter takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "FW" else 1 for letter in text)
