"""Text and JSON files of annotations, in any encoding."""

import json
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from dcnzoo.utils.text import short


class InvalidAnnotation(Exception):
    """An invalid object or file; the caller adds the position and converts it to a ``Finding``."""


def read_text(file: Path) -> str:
    """Read a file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        InvalidAnnotation: it has another encoding, or cannot be read.
    """
    content = _map(file)
    # the encoding by the byte order mark, or by the position of zero bytes
    encoding = json.detect_encoding(content[:4])
    try:
        return str(content[:], encoding)
    except UnicodeDecodeError as error:
        what = f"{error.reason} at {error.start}"
        raise InvalidAnnotation(f"expected text in {encoding.upper()}, got {what}") from None


def _map(file: Path) -> bytes | mmap.mmap:
    if not os.path.isfile(file) and os.path.exists(file):  # reading a pipe would wait for its other end
        raise InvalidAnnotation(f"expected a file, got a folder or pipe: {file}")
    try:
        with open(file, "rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if os.path.getsize(file) else b""
    except OSError as error:
        raise InvalidAnnotation(f"expected a readable file: {error.strerror}") from None


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is not blank; see :func:`read_text`."""
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def read_json(file: Path, kind: Any = Any) -> Any:
    """Decode a file, which stays mapped as long as a :class:`msgspec.Raw` of it exists."""
    content = _map(file)
    is_utf8 = json.detect_encoding(content[:4]) == "utf-8"
    return decode_json(content if is_utf8 else read_text(file).encode(), kind)


def decode_json(content: bytes | mmap.mmap | msgspec.Raw, kind: Any) -> Any:
    """Decode JSON to a type of msgspec; raise InvalidAnnotation if it is not JSON, or of another type."""
    try:
        return msgspec.json.decode(content, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidAnnotation(explain(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidAnnotation(f"expected JSON: {error}") from None


def explain(error: Exception) -> str:
    """Return msgspec's message with the key in front: ``bbox[2]: expected `float`, got `str```."""
    text, _, path = str(error).partition(" - at `$")
    key = path.rstrip("`").lstrip(".")
    return f"{key}: {text[:1].lower()}{text[1:]}" if key else f"{text[:1].lower()}{text[1:]}"


def finite(text: str, field: str) -> float:
    """Convert the text of a field to a finite number.

    Raises:
        InvalidAnnotation: it is not a finite number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidAnnotation(f"{field}: expected a finite number, got {short(text)}")
    return value
