"""Text and JSON files of annotations, in any encoding."""

import contextlib
import gc
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

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


def read_text(file: Path) -> str:
    """Read a file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        InvalidAnnotation: it has another encoding, or cannot be read.
    """
    _require_file(file)
    try:
        content = file.read_bytes()
        # the encoding by the byte order mark, or by the position of zero bytes
        return content.decode(json.detect_encoding(content))
    except OSError as error:
        raise InvalidAnnotation(f"expected a readable file: {error.strerror}") from None
    except UnicodeDecodeError as error:
        name = error.encoding.upper()
        raise InvalidAnnotation(f"expected text in {name}, got {error.reason} at {error.start}") from None


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is not blank; see :func:`read_text`."""
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def map_bytes(file: Path) -> bytes | mmap.mmap:
    """Return the bytes of a text in UTF-8: those of the file, mapped, unless it has another encoding.

    Raises:
        InvalidAnnotation: as for :func:`read_text`.
    """
    _require_file(file)
    try:
        with open(file, "rb") as opened:
            if json.detect_encoding(opened.read(4)) == "utf-8" and os.path.getsize(file):
                return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InvalidAnnotation(f"expected a readable file: {error.strerror}") from None
    return read_text(file).encode()


def read_json(file: Path) -> Any:
    """Read a JSON file in the encodings of :func:`read_text`.

    Raises:
        InvalidAnnotation: it is not JSON.
    """
    return decode_json(map_bytes(file), Any)


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


def _require_file(file: Path) -> None:
    if not os.path.isfile(file) and os.path.exists(file):  # reading a pipe would wait for its other end
        raise InvalidAnnotation(f"expected a file, got a folder or pipe: {file}")


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector, which takes a quarter of the time in which a large file is read."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
