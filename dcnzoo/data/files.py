"""Files of a data set: text and JSON in UTF-8, and the sizes of pictures."""

import math
import mmap
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
from PIL import ExifTags, Image

from dcnzoo.utils.text import short

_PILLOW = Lock()  # of Pillow's limit of pixels, which another thread could restore too late


class InvalidAnnotation(Exception):
    """An invalid object or file; the caller adds the position and converts it to a ``Finding``."""


def read_text(file: Path) -> str:
    """Read a file in UTF-8, with or without a byte order mark.

    Raises:
        InvalidAnnotation: it has another encoding, or cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidAnnotation(f"expected text in UTF-8, got {error.reason} at {error.start}") from None
    except OSError as error:
        raise InvalidAnnotation(f"expected a readable file: {error.strerror}") from None


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is not blank; see :func:`read_text`."""
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def read_json(file: Path, kind: Any = Any) -> Any:
    """Decode a JSON file. It stays mapped into memory as long as a :class:`msgspec.Raw` of it exists."""
    try:
        with open(file, "rb") as opened:
            content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise InvalidAnnotation(f"expected JSON, got a file that cannot be mapped: {error}") from None
    return decode_json(memoryview(content)[len(BOM_UTF8) :] if content[:3] == BOM_UTF8 else content, kind)


def decode_json(content: bytes | memoryview | mmap.mmap | msgspec.Raw, kind: Any) -> Any:
    """Decode JSON to a type of msgspec; raise InvalidAnnotation if it is not JSON, or of another type."""
    try:
        return msgspec.json.decode(content, type=kind, strict=False)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        position = re.search(r"\(byte (\d+)\)", str(error))
        end = int(position[1]) if position else 0
        before = bytes(memoryview(content)[max(end - 60, 0) : end]).decode(errors="replace")
        raise InvalidAnnotation(f"JSON: {error}{f', after {before!r}' if before else ''}") from None


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


def image_size(file: Path) -> tuple[int, int]:
    """Return (width, height) of a picture as a training loads it: turned by its EXIF orientation.

    Raises:
        InvalidAnnotation: it does not exist, or is no picture.
    """
    with _PILLOW:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # only the head of the file is read
        try:
            with Image.open(file) as image:
                turns, exif = image.format != "AVIF", Image.Exif()  # OpenCV turns AVIF by its own property
                exif.load(image.info.get("exif", b"") if turns else b"")
                is_turned = exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
                return image.size[::-1] if is_turned else image.size
        except (OSError, SyntaxError, ValueError) as error:
            raise InvalidAnnotation(f"expected a picture at {file}: {error}") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
