"""Text and JSON files of annotations: any encoding, each key once, long lists in parts."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
import numpy as np

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import writing
from dcnzoo.utils.progress import track
from dcnzoo.utils.text import short

PART = 10_000  # entries of a list that are written at once
CHUNK = 16_384  # entries that are parsed at once


class InvalidAnnotation(Exception):
    """An invalid object or file; the caller adds the position and converts it to a ``Finding``.

    Attributes:
        objects: the number of those that are lost with it.
    """

    def __init__(self, text: str, line: int | None = None, kind: str = "", objects: int = 0) -> None:
        super().__init__(text)
        self.line, self.kind, self.objects = line, kind, objects


class Entries:
    """Objects of a list in JSON, each parsed when it is asked for: a million dictionaries take 2 GB."""

    def __len__(self) -> int:
        raise NotImplementedError

    def texts(self, numbers: slice | np.ndarray) -> list[bytes]:
        """Return the objects with these numbers as JSON."""
        raise NotImplementedError

    def __getitem__(self, numbers: slice | np.ndarray) -> list[dict]:
        return json.loads(b"[" + b",".join(self.texts(numbers)) + b"]")

    def checked(self) -> list[Any]:
        """Return all objects.

        Raises:
            InvalidAnnotation: one has a key twice.
        """
        return json.loads(b"[" + b",".join(self.texts(slice(None))) + b"]", object_pairs_hook=unique_keys)

    def __iter__(self) -> Iterator[dict]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]

    def text(self, part: slice) -> str:
        """Return a part of the list as ``json.dumps`` writes it."""
        return msgspec.json.format(b"[" + b",".join(self.texts(part)) + b"]", indent=0).decode()


class FileEntries(Entries):
    """Entries by their position in a file.

    Pickles are small, and processes share what the operating system keeps of the file. The file stays open,
    so that it can be replaced during a training.
    """

    _descriptor: int | None = None  # also of an object whose file cannot be opened

    def __init__(self, file: Path, starts: np.ndarray, ends: np.ndarray) -> None:
        self.file, self.starts, self.ends = file, starts, ends  # [N], bytes
        self._stamp = self._open()

    def _open(self) -> tuple[int, int]:
        self._descriptor = os.open(self.file, os.O_RDONLY)
        state = os.fstat(self._descriptor)
        return state.st_size, state.st_mtime_ns

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, numbers: np.ndarray) -> "FileEntries":
        """Return those with these numbers."""
        return FileEntries(self.file, self.starts[numbers], self.ends[numbers])

    def texts(self, numbers: slice | np.ndarray) -> list[bytes]:
        starts, ends = self.starts[numbers], self.ends[numbers]
        if not len(starts):
            return []
        first, last = starts.min().item(), ends.max().item()
        if self._descriptor is None and self._open() != self._stamp:
            raise UserError(
                f"{self.file}: expected the file as it was at the start, got one that has changed"
            )
        if last - first < 2 * (ends - starts).sum():  # one call for neighbours
            text = os.pread(self._descriptor, last - first, first)  # type: ignore[arg-type]
            starts, ends = starts - first, ends - first
            return [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        return [os.pread(self._descriptor, end - start, start) for start, end in spans]  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_descriptor": None}

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


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
    """Write a JSON file atomically; long lists in parts, which shows progress and takes little memory."""
    with writing(out) as file:

        def write(text: str) -> None:
            file.write(text.encode())

        write("{")
        for number, (key, value) in enumerate(content.items()):
            write(f"{', ' if number else ''}{json.dumps(key)}: ")
            if not isinstance(value, list | Entries):
                write(json.dumps(value))
                continue
            write("[")
            for start in track(range(0, len(value), PART), f"writing {key}"):
                part = slice(start, start + PART)
                text = value.text(part) if isinstance(value, Entries) else json.dumps(value[part])
                write(f"{', ' if start else ''}{text[1:-1]}")
            write("]")
        write("}\n")


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
