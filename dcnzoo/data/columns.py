"""Read and check large COCO files: one pass of msgspec, tests of arrays, and no Python objects that stay.

The tests mark all entries that may have a problem. Those go through the checks of :mod:`dcnzoo.data.check`,
which decide. Files with unusual contents (another encoding, an id that is a text, a key twice, NaN) are left
to these checks.
"""

import dataclasses
import functools
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dcnzoo.data.check import Checker, Report, box_of, is_id
from dcnzoo.data.conversion import (
    FAR,
    TOLERANCE,
    InvalidAnnotation,
    Outline,
    is_number,
    unique_keys,
)
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import collector_paused, replacing
from dcnzoo.utils.progress import track, waiting

CHUNK = 16_384  # annotations
LEAST = 1_000_000  # bytes; a smaller file is read by `json` in a moment


# MsgspecError is a ValueError
_ERRORS = (InvalidAnnotation, OSError, OverflowError, RecursionError, ValueError, KeyError)


class Unusual(Exception):
    """Only :func:`dcnzoo.data.check.check_content` can check the file."""


class _Entry(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: int | msgspec.UnsetType = msgspec.UNSET
    ignore: Any = msgspec.UNSET
    segmentation: list[list[int | float]] | dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET


_OPTIONAL = ("iscrowd", "ignore", "segmentation")
_decode_entry: Any = msgspec.json.Decoder(_Entry).decode
_decode_entries: Any = msgspec.json.Decoder(list[_Entry]).decode


@dataclass
class Entries:
    """The annotations of a file by their position in it; each is parsed when it is asked for.

    Pickles are small, and processes share what the operating system keeps of the file. The file stays open,
    so that it can be replaced during a training.
    """

    file: Path
    starts: np.ndarray  # [N], bytes
    ends: np.ndarray

    def __post_init__(self) -> None:
        self._stamp = self._open()

    def _open(self) -> tuple[int, int]:
        self._descriptor: int | None = os.open(self.file, os.O_RDONLY)
        state = os.fstat(self._descriptor)
        return state.st_size, state.st_mtime_ns

    def take(self, numbers: np.ndarray) -> "Entries":
        """Return those with these numbers."""
        return Entries(self.file, self.starts[numbers], self.ends[numbers])

    def __getitem__(self, numbers: slice | np.ndarray) -> list[dict]:
        """Parse the annotations with these numbers."""
        try:
            if self._descriptor is None and self._open() != self._stamp:
                raise ValueError
            spans = zip(self.starts[numbers].tolist(), self.ends[numbers].tolist(), strict=True)
            texts = [os.pread(self._descriptor, end - start, start) for start, end in spans]  # type: ignore[arg-type]
            return json.loads(b"[" + b",".join(texts) + b"]")
        except ValueError:
            text = f"{self.file}: expected the file as it was at the start, got one that has changed"
            raise UserError(text) from None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_descriptor": None}

    def __deepcopy__(self, memo: dict) -> "Entries":
        return self

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


@dataclass(eq=False)
class Columns:
    """The annotations of a COCO file as arrays, [N] and ``boxes`` [N, 4], x, y, width, height."""

    images: list[dict]
    categories: list[dict]
    entries: Entries
    ids: np.ndarray
    rows: np.ndarray  # of their images; −1: unknown
    category_ids: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray  # NaN, also in boxes, for what is no number
    crowd: np.ndarray
    ignored: np.ndarray
    has_mask: np.ndarray

    def usable(self) -> np.ndarray:
        """Return which annotations have a known image, and a box with an area in it, of at least a pixel."""
        sizes = np.array([*((image["width"], image["height"]) for image in self.images), (0, 0)], float)
        start, end = self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]
        inside = np.minimum(end, sizes[self.rows]) > np.maximum(start, 0)
        return (self.rows >= 0) & inside.all(1) & (self.boxes[:, 2:] >= 1).all(1) & (self.areas > 0)


class ColumnsReport(Report):
    """A report whose ``content`` is parsed when it is first asked for."""

    def __init__(self, file: Path, others: dict[str, Any], columns: Columns, checker: Checker) -> None:
        self.file, self.columns, self._others = file, columns, others
        self.problems, self.places = checker.problems, checker.places
        self.counts = {
            "images": len(columns.images),
            "annotations": len(columns.ids),
            "categories": len(columns.categories),
        }
        values, counts = np.unique(columns.category_ids, return_counts=True)
        numbers = dict(zip(values.tolist(), counts.tolist(), strict=True))
        self.per_class = {str(each.get("name")): numbers.get(each["id"], 0) for each in columns.categories}
        self.crowds = int(columns.crowd.sum())
        self.without_mask = int((~columns.has_mask & ~columns.crowd).sum())
        self.empty_images = len(columns.images) - len(np.unique(columns.rows[columns.rows >= 0]))

    @functools.cached_property
    @collector_paused()
    def content(self) -> dict:  # type: ignore[override]
        annotations: list[dict] = []
        for start in track(range(0, len(self.columns.ids), CHUNK), f"reading {self.file.name}"):
            annotations += self.columns.entries[start : start + CHUNK]
        return {**self._others, "annotations": annotations}

    def _entries(self, key: str) -> list[dict]:
        return self._others[key]

    def write(self, out: Path) -> None:
        with replacing(out) as partial:
            shutil.copyfile(self.file, partial)
        self.file = out
        self.columns.entries = dataclasses.replace(self.columns.entries, file=out)
        if not self.problems:
            _written[_stamp(out)] = self


_written: dict[tuple[int, ...], ColumnsReport] = {}  # until they are read


def _stamp(file: Path) -> tuple[int, ...]:
    state = file.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def read_outline(file: Path) -> Outline:
    """Read what tells a COCO file from others, and the names of its pictures.

    Raises:
        Unusual: it is another file.
    """
    try:
        content = _split(_read_text(file))
        raws = msgspec.json.decode(content["annotations"], type=list[msgspec.Raw])
        return Outline({**content, "annotations": [json.loads(bytes(raw)) for raw in raws[:1]]})
    except _ERRORS as error:
        raise Unusual from error


def _read_text(file: Path) -> bytes:
    text = file.read_bytes()
    if len(text) < LEAST or json.detect_encoding(text) != "utf-8":
        raise Unusual
    if not text.isascii():
        text.decode()
    return text


@collector_paused()
def read_columns(
    file: Path,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
    decode: bool = False,
) -> ColumnsReport:
    """Read and check a file as :func:`dcnzoo.data.check.check_coco` does.

    Raises:
        Unusual: see there.
    """
    try:
        if images is None and classes is None and (known := _written.pop(_stamp(file), None)):
            return known
        text = _read_text(file)
        with waiting(f"reading {file.name}"):
            content = _split(text)
            raws = msgspec.json.decode(content["annotations"], type=list[msgspec.Raw])
        if not raws or not _is_plain(content["images"]) or not _is_plain(content["categories"]):
            raise Unusual
        checker = Checker({key: content[key] for key in ("images", "categories")})
        checker.check_categories(classes)
        checker.check_images(images, decode)
        starts, ends = _spans(text, content["annotations"], raws)
        content["annotations"] = []
        del raws  # they take as much as the arrays
        reader = _Reader(checker, content["images"], len(starts))
        for start in track(range(0, len(starts), CHUNK), "checking annotations"):
            spans = zip(
                starts[start : start + CHUNK].tolist(), ends[start : start + CHUNK].tolist(), strict=True
            )
            reader.add(start, [text[first:end] for first, end in spans])
        columns = Columns(
            content["images"], content["categories"], Entries(file, starts, ends), *reader.arrays
        )
    except _ERRORS as error:
        raise Unusual from error
    again = _repeated(columns.ids)
    for number in sorted(reader.suspicious | again):
        repeated = {columns.ids[number].item()} if number in again else set[object]()
        entry = json.loads(text[starts[number] : ends[number]])
        checker.at(f"annotation {number}", ("annotations", number)).check_entry(entry, repeated)
    checker.check_normalised(reader.small, reader.boxes)
    return ColumnsReport(file, content, columns, checker)


def _split(text: bytes) -> dict[str, Any]:
    """Return the values of the file, with its annotations unparsed."""
    top = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    quotes = sum(text.count(b'"', *_position(text, raw)) for raw in top.values())
    if text.count(b'"') != quotes + 2 * len(top):
        raise Unusual  # a key that occurs twice
    if not {"images", "annotations"} <= top.keys():
        raise Unusual
    return {
        key: raw if key == "annotations" else json.loads(bytes(raw), object_pairs_hook=unique_keys)
        for key, raw in top.items()
    }


def _position(text: bytes, raw: msgspec.Raw) -> tuple[int, int]:
    addresses = [np.frombuffer(each, np.uint8).ctypes.data for each in (text, raw)]
    start = addresses[1] - addresses[0]
    return start, start + memoryview(raw).nbytes


def _spans(text: bytes, values: msgspec.Raw, raws: list[msgspec.Raw]) -> tuple[np.ndarray, np.ndarray]:
    """Return where each annotation starts and ends; ValueError if one is not an object."""
    starts, ends = np.empty((2, len(raws)), np.int64)
    start = end = _position(text, values)[0]
    for number, raw in enumerate(raws):
        starts[number] = start = text.index(b"{", end)
        ends[number] = end = start + memoryview(raw).nbytes
    if _position(text, raws[-1]) != (start, end):
        raise Unusual
    return starts, ends


def _is_plain(entries: object) -> bool:
    return (
        isinstance(entries, list)
        and entries != []
        and all(
            isinstance(each, dict) and is_id(each.get("id")) and abs(each["id"]) < 2**63 for each in entries
        )
    )


def _repeated(ids: np.ndarray) -> set[int]:
    """Return the numbers of the entries whose id an earlier one has."""
    order = np.argsort(ids, kind="stable")
    return set(order[1:][ids[order][1:] == ids[order][:-1]].tolist())


class _Reader:
    """Collects the arrays of annotations, chunk by chunk."""

    def __init__(self, checker: Checker, images: list[dict], number: int) -> None:
        self.suspicious: set[int] = set()
        self.small = self.boxes = 0
        numbers = [np.empty(number, np.int64) for _ in range(3)]
        flags = [np.empty(number, bool) for _ in range(3)]
        self.arrays = [*numbers, np.empty((number, 4)), np.empty(number), *flags]
        self.image_ids = np.array([each["id"] for each in images], np.int64)
        self.order = np.argsort(self.image_ids)
        if _repeated(self.image_ids):
            raise Unusual
        # without a size, all annotations of the image are suspicious
        sizes = [checker.sizes[number] or (-math.inf, -math.inf) for number in self.image_ids.tolist()]
        self.sizes = np.array(
            [*sizes, (-math.inf, -math.inf)], float
        )  # the last one is that of unknown images
        self.categories = np.array(list(checker.categories), np.int64)

    def add(self, start: int, raws: Sequence[bytes]) -> None:
        """Read and test some annotations, from this number on."""
        joined = b"[" + b",".join(raws) + b"]"
        unreadable: list[int] = []
        try:
            entries = _decode_entries(joined)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            parsed = [_parse(raw) for raw in raws]
            entries = [entry for entry, _ in parsed]
            unreadable = [number for number, (_, usual) in enumerate(parsed) if not usual]
        optional = [[getattr(entry, key) for entry in entries] for key in _OPTIONAL]
        # the usual keys have no quotes but their own; others may occur twice
        if joined.count(b'"') != 2 * (8 * len(entries) - sum(each.count(msgspec.UNSET) for each in optional)):
            json.loads(joined, object_pairs_hook=unique_keys)
        crowds, flags, masks = optional
        ids, images, categories = (
            np.array([getattr(entry, key) for entry in entries], np.int64)
            for key in ("id", "image_id", "category_id")
        )
        boxes = np.array([entry.bbox for entry in entries], float)
        areas = np.array([entry.area for entry in entries], float)
        crowd = np.array([0 if value is msgspec.UNSET else value for value in crowds])
        ignored = np.array([value is not msgspec.UNSET and bool(value) for value in flags])
        masks = [mask if isinstance(mask, list | dict) else [] for mask in masks]
        at = self.order[
            np.searchsorted(self.image_ids, images, sorter=self.order).clip(max=len(self.order) - 1)
        ]
        rows = np.where(self.image_ids[at] == images, at, -1)
        wrong = (
            (rows < 0) | ~np.isin(categories, self.categories) | (ids == 0) | ((crowd != 0) & (crowd != 1))
        )
        wrong |= _has_problem(boxes, areas, crowd, masks, self.sizes[rows])
        wrong[unreadable] = True
        self.suspicious.update((start + np.flatnonzero(wrong)).tolist())
        self.boxes += int(np.isfinite(boxes).all(1).sum())
        longest = boxes[:, 2:].max(1)
        self.small += int(((longest > 0) & (longest < 2) & (boxes[:, :2].max(1) <= 1)).sum())
        has_mask = np.array([len(mask) > 0 for mask in masks])
        values = ids, rows, categories, boxes, areas, crowd == 1, ignored, has_mask
        for array, part in zip(self.arrays, values, strict=True):
            array[start : start + len(part)] = part


def _parse(raw: bytes) -> tuple[_Entry, bool]:
    """Parse an annotation; False with it if its values are not of the usual types."""
    try:
        return _decode_entry(raw), True
    except (msgspec.MsgspecError, UnicodeDecodeError):
        entry = json.loads(raw, object_pairs_hook=unique_keys)
    if not isinstance(entry, dict) or not all(
        is_id(entry.get(key)) for key in ("id", "image_id", "category_id")
    ):
        raise Unusual
    box, area = box_of(entry), entry.get("area")
    values = {key: entry[key] for key in ("id", "image_id", "category_id", *_OPTIONAL) if key in entry}
    if "iscrowd" in entry:
        values["iscrowd"] = int(entry["iscrowd"] == 1)
    if mask := entry.get("segmentation"):
        values["segmentation"] = {"": mask}  # not polygons to compute with
    values["bbox"] = list(map(float, box or [math.nan] * 4))
    values["area"] = float(area) if is_number(area) else math.nan
    return _Entry(**values), False


def _has_problem(
    boxes: np.ndarray, areas: np.ndarray, crowd: np.ndarray, masks: Sequence[Any], sizes: np.ndarray
) -> np.ndarray:
    """Mark all entries whose box, area or mask may have a problem; exact tests follow."""
    polygons: list[list] = [mask if isinstance(mask, list) else [] for mask in masks]
    parts = np.array([len(mask) for mask in polygons])
    lengths = np.array([len(part) for part in chain.from_iterable(polygons)], int)
    points = np.fromiter(chain.from_iterable(chain.from_iterable(polygons)), float, lengths.sum())
    owners, has_mask = np.repeat(np.arange(len(masks)), parts), parts > 0
    wrong = np.array([isinstance(mask, dict) for mask in masks])  # RLE
    np.logical_or.at(wrong, owners, (lengths % 2 > 0) | (lengths < 6))
    usable = ~wrong[owners]
    points, lengths, owners = (
        points[np.repeat(usable, lengths)].reshape(-1, 2),
        lengths[usable] // 2,
        owners[usable],
    )
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    outline, total, largest = corners.copy(), boxes[:, 2] * boxes[:, 3], np.zeros(len(masks))
    if len(lengths):
        starts = np.cumsum(lengths) - lengths
        low, high = (function.reduceat(points, starts) for function in (np.minimum, np.maximum))
        firsts = np.flatnonzero(np.diff(owners, prepend=-1))
        masked = owners[firsts]
        outline[masked] = np.concatenate(
            [np.minimum.reduceat(low, firsts), np.maximum.reduceat(high, firsts)], 1
        )
        # relative to the first corner, as in polygon_area; the last side then has no area
        x, y = (points - np.repeat(points[starts], lengths, axis=0)).T
        sides = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0)
        sides[starts + lengths - 1] = 0
        part_areas = np.abs(np.add.reduceat(sides, starts)) / 2
        flat = part_areas < 1e-6 * (1 + np.maximum.reduceat(np.abs(sides), starts))
        np.logical_or.at(wrong, owners, flat)
        total[masked] = np.add.reduceat(part_areas, firsts)
        largest[masked] = np.maximum.reduceat(part_areas, firsts)
    with np.errstate(invalid="ignore", over="ignore"):
        inside = (corners[:, :2] >= -TOLERANCE) & (corners[:, 2:] <= sizes + TOLERANCE)
        inside &= (outline[:, :2] >= -TOLERANCE) & (outline[:, 2:] <= sizes + TOLERANCE)
        fine = inside.all(1) & (boxes[:, 2:] > 0).all(1) & (np.abs(boxes) <= FAR).all(1) & (areas < 2.0**63)
        off = np.abs(outline - corners).max(1)
        fine &= (crowd == 1) | (off <= np.maximum(2 * TOLERANCE, 0.1 * boxes[:, 2:].max(1)))
        slack = boxes[:, 2:].sum(1) + 0.1 * total
        rounding = 1e-9 * (1 + total)
        fine &= (areas > 0) & (areas < total + slack - rounding)
        fine &= ~has_mask | (areas > largest - slack + rounding)
    return wrong | ~fine
