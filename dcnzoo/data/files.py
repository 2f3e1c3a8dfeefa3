"""Text and JSON files of annotations: any encoding, each key once."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from dcnzoo.utils.files import write_text
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
    if not os.path.isfile(file) and os.path.exists(file):  # reading a pipe would wait for its other end
        raise InvalidAnnotation(f"expected a file, got a folder or pipe: {file}")
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


def read_json(file: Path) -> Any:
    """Read a JSON file in the encodings of :func:`read_text`.

    Raises:
        InvalidAnnotation: it is not JSON, or an object has a key twice (``json`` would take the last).
    """
    text = read_text(file)
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        raise InvalidAnnotation(f"expected JSON: {error}", error.lineno) from None
    except RecursionError:
        raise InvalidAnnotation("expected JSON, got lists or objects that are nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise InvalidAnnotation(f"expected JSON: {error}") from None


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """Return a JSON object; raise InvalidAnnotation if a key occurs twice."""
    values = dict(pairs)
    if len(values) != len(pairs):
        ((key, count),) = Counter(key for key, _ in pairs).most_common(1)
        where = f", in the object with id {short(values['id'])}" if key != "id" and "id" in values else ""
        raise InvalidAnnotation(f"expected each key once in an object, got {short(key)} {count} times{where}")
    return values


def write_json(content: dict, out: str | Path) -> None:
    """Write a JSON file atomically."""
    write_text(out, json.dumps(content))


def finite(text: str, field: str, line: int | None = None) -> float:
    """Convert the text of a field to a finite number.

    Raises:
        InvalidAnnotation: it is not a finite number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidAnnotation(f"{field}: expected a finite number, got {short(text)}", line)
    return value


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a finite number below 2^63."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
