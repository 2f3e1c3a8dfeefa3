"""COCO's JSON file: mapped into memory, its entries decoded one by one when they are needed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from pycocotools import mask as coco_mask

from dcnzoo.data.files import InvalidAnnotation, decode_json, read_json
from dcnzoo.utils.text import short

KEYS = ("images", "annotations", "categories")
FAR = 1_000_000  # pixels; pycocotools crashes at much larger coordinates
_NOTHING = msgspec.Raw(b"null")
Mask = dict[str, Any] | list[list[float]]  # run-length encoding, or polygons


class Image(msgspec.Struct, gc=False):
    """An entry of ``images``. VIA writes ids as texts."""

    id: int | str | None = None
    file_name: str | None = None
    width: int | float | None = None
    height: int | float | None = None


class Category(msgspec.Struct, gc=False):
    """An entry of ``categories``."""

    id: int | str | None = None
    name: int | str | None = None
    supercategory: str | int | None = None


class Annotation(msgspec.Struct, gc=False):
    """An entry of ``annotations``. The mask, its largest part, stays JSON text."""

    id: int | str | None = None
    image_id: int | str | None = None
    category_id: int | str | None = None
    bbox: list[float] | None = None
    area: float | None = None
    iscrowd: int | bool | str | None = None
    ignore: int | bool | str | None = None
    score: Any = None
    attributes: Any = None
    segmentation: msgspec.Raw = _NOTHING


_KINDS: dict[str, Any] = dict(zip(KEYS, (Image, Annotation, Category), strict=True))


class CocoFile:
    """A COCO file, or another file of JSON.

    Attributes:
        file: its path.
        images, annotations, categories: the entries, as JSON texts.
        is_labelme: whether the file has a list of shapes.
    """

    def __init__(self, file: str | Path) -> None:
        """Map a file; raise InvalidAnnotation if it is not JSON."""
        self.file = Path(file)
        kinds = dict[str, msgspec.Raw] | list[msgspec.Raw] | str | float | bool | None
        content = read_json(self.file, kinds)
        keys = content if isinstance(content, dict) else {}
        lists = {key: raw for key, raw in keys.items() if bytes(memoryview(raw)[:1]) == b"["}
        self.is_labelme = "shapes" in lists
        self._is_complete = "images" in lists and "annotations" in lists
        self.images, self.annotations, self.categories = (
            decode_json(lists[key], list[msgspec.Raw]) if key in lists else [] for key in KEYS
        )

    def __deepcopy__(self, memo: dict) -> "CocoFile":
        return self  # it never changes

    @property
    def is_coco(self) -> bool:
        """Whether this is a COCO file whose annotations, if there are any, are objects and not captions."""
        first = bytes(self.annotations[0]) if self.annotations else b'"bbox"'
        return self._is_complete and (b'"bbox"' in first or b'"segmentation"' in first)

    @property
    def is_result(self) -> bool:
        """Whether the first and the last annotation have a score, as predictions."""
        ends = self.annotations[:1] + self.annotations[-1:]
        return bool(ends) and all(b'"score"' in bytes(entry) for entry in ends)

    def entries(self, key: str, strict: bool) -> Iterator[tuple[int, Any]]:
        """Yield the number and the value of each entry: an Image, Category or Annotation, or the error.

        Args:
            strict: a number that is written as a text is an error, as for pycocotools.
        """
        decode = msgspec.json.Decoder(_KINDS[key], strict=strict).decode
        for number, raw in enumerate(getattr(self, key)):
            try:
                yield number, decode(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                yield number, InvalidAnnotation(str(error))


_decode_mask = msgspec.json.Decoder(list[list[float]] | dict[str, Any] | str | None).decode


def mask_of(raw: msgspec.Raw) -> Mask | None:
    """Decode a segmentation: polygons, or a dictionary of run-length encoding; None if it is empty.

    Raises:
        InvalidAnnotation: it is something else.
    """
    try:
        mask = _decode_mask(raw) or None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidAnnotation(f"segmentation: {error}") from None
    if mask is None or isinstance(mask, dict):
        return mask
    for part in mask if any(mask) else ():
        if isinstance(part, str) or len(part) < 6 or len(part) % 2 or max(part) > FAR or min(part) < -FAR:
            expected = "polygons of at least 3 points, or RLE"
            raise InvalidAnnotation(f"segmentation: expected {expected}, got {short(part)}")
    return mask if any(mask) else None


def mask_in(raw: msgspec.Raw, size: tuple[float, float]) -> Mask | None:
    """:func:`mask_of` an object in a picture of (width, height), checked by :func:`checked_rle`."""
    mask = mask_of(raw)
    return checked_rle(mask, int(size[1]), int(size[0])) if isinstance(mask, dict) else mask


def checked_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Return a mask in COCO's compressed form.

    Raises:
        InvalidAnnotation: it is not a mask of height × width pixels, which pycocotools does not check.
    """
    try:
        size, counts = [*map(int, rle["size"])], rle["counts"]
        numbers = _decode_counts(counts) if isinstance(counts, str) else [*map(int, counts)]
    except (LookupError, TypeError, ValueError) as error:
        raise InvalidAnnotation(f"segmentation: expected RLE, got {short(rle)}: {error}") from None
    if size != [height, width] or min(numbers, default=-1) < 0 or sum(numbers) != height * width:
        got = f"{size} and {short(numbers)}"
        raise InvalidAnnotation(f"segmentation: expected RLE of {height} × {width} pixels, got {got}")
    compressed = coco_mask.frPyObjects({"size": size, "counts": numbers}, height, width)
    return {"size": size, "counts": compressed["counts"].decode()}


# a number in COCO's compressed encoding: five bits per character, lowest first; P to o: more bits follow
_NUMBER = re.compile("[P-o]{0,6}[0-O]")


def _decode_counts(text: str) -> list[int]:
    """Return the numbers in COCO's compressed run-length encoding, as ``rleFrString`` of pycocotools does."""
    if _NUMBER.sub("", text):
        raise ValueError("counts: expected complete numbers in characters from 0 to o")
    numbers: list[int] = []
    for digits in _NUMBER.findall(text):
        value = sum((ord(digit) - 48 & 31) << 5 * place for place, digit in enumerate(digits))
        if ord(digits[-1]) - 48 & 16:  # the highest bit is the sign
            value -= 1 << 5 * len(digits)
        numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))  # the fourth on are differences
    return numbers
