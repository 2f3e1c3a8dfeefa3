"""Find the external weight files that an ONNX file refers to, before a runtime opens them.

Requires no package besides the standard library: a deployed model needs only a runtime.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

# The part of onnx.proto that leads to tensors: message → field number → message in that field.
_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types


def refuse_files_elsewhere(path: str | os.PathLike) -> None:
    """Refuse a model whose weights are outside its folder: a model from others could name any file.

    onnxruntime 1.31 refuses such files itself; 1.23, the last version for Python 3.10, opens any.

    Raises:
        ValueError: a file is outside the folder, by its name or as a link; or ``path`` is not an ONNX model.
    """
    path = Path(path)
    folder = path.resolve().parent
    for location in locations(path):
        file = folder / location
        if Path(location).is_absolute() or not file.resolve().is_relative_to(folder):
            raise ValueError(f"{path}: expected weights inside its folder, got weights in {location!r}")


def locations(path: str | os.PathLike) -> set[str]:
    """Return the external files that an ONNX file names.

    Raises:
        ValueError: it is not an ONNX model.
    """
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            memoryview(content) as view,
        ):
            return {location.decode() for location in _locations(view, 0, len(view), "model")}
    except (IndexError, RecursionError, ValueError) as error:
        raise ValueError(f"{path}: expected an ONNX model, found another or a damaged file") from error


def _locations(view: memoryview, start: int, end: int, message: str) -> Iterator[bytes]:
    inside = _MESSAGES[message]
    for number, first, last in _fields(view, start, end):
        if number not in inside:
            continue
        if inside[number] == "entry":
            texts = {n: bytes(view[a:b]) for n, a, b in _fields(view, first, last)}
            if texts.get(1) == b"location":
                yield texts.get(2, b"")
        else:
            yield from _locations(view, first, last, inside[number])


def _fields(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each length-delimited field of a message."""
    while start < end:
        tag, start = _varint(view, start)
        if tag >= 2**32:  # protobuf drops the upper bits and would read another field number
            raise ValueError(f"tag {tag}")
        kind = tag & 7
        if kind == _VARINT:
            _, start = _varint(view, start)
        elif kind == _BYTES:
            size, start = _varint(view, start)
            if size > end - start:
                raise ValueError("a field that is longer than its message")
            yield tag >> 3, start, start + size
            start += size
        elif kind in (_FIXED64, _FIXED32):
            start += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
    if start != end:
        raise ValueError("a field that is longer than its message")


def _varint(view: memoryview, start: int) -> tuple[int, int]:
    """Return the number and the position after it."""
    value = shift = 0
    while True:
        byte = view[start]
        value |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            return value, start
        if shift >= 70:
            raise ValueError("a number of more than 10 bytes")
