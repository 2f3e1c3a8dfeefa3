"""Annotations of a COCO file, or of a split in another format: arrays, and entries parsed when asked for.

Large COCO files are read in one pass of msgspec, without Python objects that stay. Tests of arrays mark all
entries that may have a problem; :mod:`dcnzoo.data.check` decides about these. Files with unusual contents
(another encoding, an id that is a text, a key twice, NaN) are read by ``json``.
"""

import functools
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
import numpy as np

from dcnzoo.data.conversion import FAR, TOLERANCE, Reading
from dcnzoo.data.files import (
    CHUNK,
    FileEntries,
    InvalidAnnotation,
    is_number,
    read_json,
    unique_keys,
    write_json,
)
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import replacing, require_equal, write_bytes
from dcnzoo.utils.marks import is_of_detector
from dcnzoo.utils.memory import collector_paused
from dcnzoo.utils.progress import track, waiting
from dcnzoo.utils.text import counted

LEAST = 1_000_000  # bytes; a smaller file is read by `json` in a moment
KEYS = ("images", "annotations", "categories")

Place = tuple[str, int] | None  # ("images", index) or ("annotations", index) in the file
# MsgspecError is a ValueError
_ERRORS = (InvalidAnnotation, OSError, OverflowError, RecursionError, ValueError, KeyError)


class Unusual(Exception):
    """The file is small, or only ``json`` can read it."""


class _Entry(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: int | msgspec.UnsetType = msgspec.UNSET
    ignore: Any = msgspec.UNSET
    score: Any = msgspec.UNSET
    segmentation: list[list[int | float]] | dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET


_IDS = ("id", "image_id", "category_id")
_NO_ID = -(2**63)
_OPTIONAL = ("iscrowd", "ignore", "score", "segmentation")
_decode_entry: Any = msgspec.json.Decoder(_Entry).decode
_decode_entries: Any = msgspec.json.Decoder(list[_Entry]).decode


class Columns:
    """Annotations as arrays, [N]."""

    def __init__(self, number: int) -> None:
        self.ids, self.rows, self.labels = (np.empty(number, np.int64) for _ in range(3))
        # rows, labels: positions of their images and categories; −1: unknown
        self.boxes = np.empty((number, 4))  # x, y, width, height; NaN for what is no number
        self.areas = np.empty(number)
        self.crowd, self.ignored, self.scored, self.has_mask = (np.empty(number, bool) for _ in range(4))

    def fill(
        self, start: int, entries: Sequence[_Entry], rows: dict[int, int], labels: dict[int, int]
    ) -> slice:
        """Set the values from this number on; ``rows`` and ``labels`` are positions by id."""
        part = slice(start, start + len(entries))
        self.ids[part] = [entry.id for entry in entries]
        self.rows[part] = [rows.get(entry.image_id, -1) for entry in entries]
        self.labels[part] = [labels.get(entry.category_id, -1) for entry in entries]
        self.boxes[part] = np.reshape([entry.bbox for entry in entries], (-1, 4))
        self.areas[part] = [entry.area for entry in entries]
        self.crowd[part] = [entry.iscrowd == 1 for entry in entries]
        self.ignored[part] = [entry.ignore is not msgspec.UNSET and bool(entry.ignore) for entry in entries]
        self.scored[part] = [isinstance(entry.score, int | float) for entry in entries]
        self.has_mask[part] = [
            isinstance(entry.segmentation, list | dict) and len(entry.segmentation) > 0 for entry in entries
        ]
        return part

    def unusable(self, images: Sequence[dict]) -> dict[str, np.ndarray]:
        """Return which annotations MMDetection leaves out, by reason; not those with ``ignore``."""
        sizes = np.array([*((image["width"], image["height"]) for image in images), (0, 0)], float)
        start, end = self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]
        inside = np.minimum(end, sizes[self.rows]) > np.maximum(start, 0)
        unknown = self.rows < 0
        return {
            "their images are not in the file": unknown,
            "their boxes have no area in the image": ~unknown & ~self.ignored & ~inside.all(1),
            "their boxes are narrower or lower than a pixel": ~self.ignored & (self.boxes[:, 2:] < 1).any(1),
            "they have no area": ~self.ignored & (self.areas <= 0),
        }


@dataclass(eq=False)
class Annotations(Reading):
    """The annotations of a COCO file, or of a split in another format.

    Attributes:
        file: the COCO file.
        content: that of a COCO file; a list of many annotations may be :class:`Entries`.
        problems: of a COCO file: with keys of :data:`dcnzoo.data.check.KINDS` and the image, annotation or
            category, by its id, as subject. Problems of masks do not stop a detector without masks. Of a
            split: those that are neither repaired nor skipped.
        places: of the entry of each problem.
        folder: to which the names of the images are relative.
        is_file: whether ``file`` has exactly this content.
    """

    file: Path
    content: dict[str, Any]
    places: list[Place] = field(default_factory=list)
    folder: Path = Path()
    is_file: bool = False

    def _entries(self, key: str) -> list[dict]:
        return [entry for entry in self.content.get(key, ()) if isinstance(entry, dict)]

    @property
    def images(self) -> list[dict]:
        return self._entries("images")

    @property
    def categories(self) -> list[dict]:
        return self._entries("categories")

    @property
    def is_nameless(self) -> bool:
        """Whether the classes are only known by their numbers."""
        return any(problem.kind == "nameless" for problem in self.problems)

    @property
    def predicted(self) -> list[Path]:
        """The pictures whose annotations a detector has made: with scores, or all with the mark of dcnzoo."""
        if is_of_detector(self.content):
            return self.pictures or [self.file]
        rows = np.unique(self.columns.rows[self.columns.scored])
        return [self.pictures[row] for row in rows.tolist()]

    @property
    def pictures(self) -> list[Path]:
        """The path of each image, in the order of the content."""
        return [self.folder / image["file_name"] for image in self.images]

    @functools.cached_property
    def columns(self) -> Columns:
        """The annotations as arrays. Values that are not of the usual types are unknown."""
        entries = self.content.get("annotations", [])
        columns = Columns(len(entries))
        rows, labels = positions(self.images), positions(self.categories)
        for start in range(0, len(entries), CHUNK):
            part = slice(start, start + CHUNK)
            is_parsed = isinstance(entries, list)
            own = [*map(_typed, entries[part])] if is_parsed else _parse(entries.texts(part))[0]
            columns.fill(start, own, rows, labels)
        return columns

    @classmethod
    def of(cls, parts: Sequence["Annotations"]) -> "Annotations":
        """Return the annotations of files with the same categories and different pictures."""
        ids = {each["name"]: each["id"] for each in parts[0].categories}
        lists: dict[str, list] = {"images": [], "annotations": []}
        folder = Path(os.path.commonpath([part.folder.absolute() for part in parts]))
        for part in parts:
            names = {each["id"]: each["name"] for each in part.categories}
            images = part.images
            numbers = {each["id"]: number for number, each in enumerate(images, len(lists["images"]) + 1)}
            for image, picture in zip(images, part.pictures, strict=True):
                name = os.path.relpath(picture.absolute(), folder)
                lists["images"].append(
                    image | {"id": numbers[image["id"]], "file_name": Path(name).as_posix()}
                )
            for number, entry in enumerate(part.content["annotations"], len(lists["annotations"]) + 1):
                changed = {
                    "image_id": numbers[entry["image_id"]],
                    "category_id": ids[names[entry["category_id"]]],
                }
                lists["annotations"].append({**entry, "id": number, **changed})
        result = cls(Path(), {**parts[0].content, **lists}, folder=folder)
        for part in parts:
            for key in ("sources", "extracted", "repaired", "missing", "unlabelled"):
                getattr(result, key).extend(getattr(part, key))
            result.lost, result.emptied = result.lost + part.lost, result.emptied + part.emptied
        return result

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of images, annotations and categories."""
        return {key: len(self.content.get(key, ())) for key in KEYS}

    @property
    def per_class(self) -> dict[str, int]:
        """The number of annotations by category name."""
        labels, first = Counter(self.columns.labels.tolist()), positions(self.categories)
        numbers = {number: labels[position] for number, position in first.items()}
        return {str(each.get("name")): numbers.get(_id(each), 0) for each in self.categories}

    @property
    def crowds(self) -> int:
        """The number of annotations with ``iscrowd`` or ``ignore``, which training ignores."""
        return int((self.columns.crowd | self.columns.ignored).sum())

    @property
    def empty_images(self) -> int:
        """The number of images without an annotation."""
        annotated, first = {*self.columns.rows.tolist()} - {-1}, positions(self.images)
        return sum(first.get(_id(image), -1) not in annotated for image in self.images)

    @property
    def without_mask(self) -> int:
        """The number of objects without a mask, except crowds."""
        return int((~self.columns.has_mask & ~self.columns.crowd).sum())

    @collector_paused()
    def edit(self) -> dict[str, Any]:
        """Return the content with parsed annotations, for changes."""
        self.content = {**self.content, "annotations": [*self.content.get("annotations", [])]}
        vars(self).pop("columns", None)
        self.is_file = False
        return self.content

    def write(self, out: Path) -> None:
        """Write the content, which becomes that of the new file."""
        entries = self.content.get("annotations")
        if not (self.is_file and isinstance(entries, FileEntries)):
            write_json(self.content, out)
        else:
            with replacing(out) as partial:
                shutil.copyfile(self.file, partial)
            self._move(out)
            if not self.problems:
                _written[_stamp(out)] = self
        self.file = out

    def save(self, out: Path, skip_invalid: bool = False) -> None:
        """Write what was read from other files, and the pictures that were inside them.

        Raises:
            UserError: there are problems and ``skip_invalid`` is False, nothing is left; or ``out`` is one of
                the sources.
        """
        if os.path.exists(out) and any(map(functools.partial(os.path.samefile, out), self.sources)):
            raise UserError(f"out: expected a new file, got {out}, a source of the conversion")
        if (number := len(self.problems) + len(self.missing)) and not skip_invalid:
            raise UserError(
                f"{counted(number, 'problems')}, nothing is written; skip_invalid=True skips them"
            )
        for key in KEYS[:2]:
            if not self.content[key]:
                raise UserError(f"{key}: expected at least 1, found 0; nothing is written")
        self.extract()
        self.write(out)

    def extract(self) -> None:
        """Write the pictures that were inside annotation files."""
        for file, content in self.extracted:
            require_equal(file, content)
        for file, content in self.extracted:
            write_bytes(file, content())

    def _move(self, file: Path) -> None:
        """Read the entries from another file with the same content."""
        old = self.content["annotations"]
        self.file = file
        self.content = {**self.content, "annotations": FileEntries(file, old.starts, old.ends)}

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "file": str(self.file),
            **self.counts,
            "per_class": self.per_class,
            "images_without_annotation": self.empty_images,
            "problems": [{"kind": p.kind, "where": p.subject, "text": p.text} for p in self.problems],
        }


_written: dict[tuple[int, ...], Annotations] = {}  # until they are read


def _stamp(file: Path) -> tuple[int, ...]:
    state = file.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def just_written(file: Path) -> Annotations | None:
    """Return, once, the annotations of a large file that this process has checked and copied."""
    known = _written.pop(_stamp(file), None) if _written and os.path.isfile(file) else None
    if known is not None:
        known._move(file)  # its folder may have been renamed
    return known


def is_id(value: object) -> TypeGuard[int]:
    """Whether a JSON value is an integer, as pycocotools requires of ids."""
    return isinstance(value, int) and not isinstance(value, bool)


def box_of(entry: object) -> list[float] | None:
    """Return the box of an annotation, if it has four numbers."""
    box = entry.get("bbox") if isinstance(entry, dict) else None
    return box if isinstance(box, list) and len(box) == 4 and are_numbers(box) else None


def are_numbers(values: list, most: float = math.inf) -> bool:
    """Whether all values are numbers from ``-most`` to ``most``; fast for lists of a million values."""
    if not set(map(type, values)) <= {int, float}:
        return False
    try:
        return math.isfinite(sum(values)) and (not values or -most <= min(values) <= max(values) <= most)
    except OverflowError:  # an integer that is too large for a float
        return False


def positions(entries: Sequence[dict]) -> dict[int, int]:
    """Return the position of the first entry with each id."""
    ids = [*map(_id, entries)]
    return {ids[n]: n for n in reversed(range(len(ids))) if ids[n] != _NO_ID}


def _id(entry: object) -> int:
    number = entry.get("id") if isinstance(entry, dict) else None
    return number if is_id(number) else _NO_ID


# One entry


def _typed(entry: object) -> _Entry:
    """Return an entry; what is not of the usual type is −1, NaN or absent."""
    entry = entry if isinstance(entry, dict) else {}
    box, area = box_of(entry), entry.get("area")
    numbers = [entry.get(key) for key in _IDS]
    values = {key: entry[key] for key in _OPTIONAL if key in entry}
    if "iscrowd" in entry:
        values["iscrowd"] = int(entry["iscrowd"] == 1)
    if mask := entry.get("segmentation"):
        values["segmentation"] = {"": mask} if isinstance(mask, list | dict) else None  # not to compute with
    values |= {
        key: number if is_id(number) and abs(number) < 2**63 else _NO_ID
        for key, number in zip(_IDS, numbers, strict=True)
    }
    values["bbox"] = tuple(map(float, box or [math.nan] * 4))
    values["area"] = float(area) if is_number(area) else math.nan
    return _Entry(**values)


# A large file


@collector_paused()
def read_coco(file: Path) -> Any:
    """Read a JSON file; the annotations of a COCO file of at least a megabyte are :class:`Entries`.

    Raises:
        InvalidAnnotation: it is not JSON, or an object has a key twice.
    """
    with waiting(f"reading {file.name}"):
        try:
            text = file.read_bytes() if file.is_file() else b""
            if len(text) < LEAST or json.detect_encoding(text) != "utf-8":
                raise Unusual
            if not text.isascii():
                text.decode()
            content = _split(text)
            raws = msgspec.json.decode(content["annotations"], type=list[msgspec.Raw])
            if not raws or not _is_plain(content["images"]) or not _is_plain(content.get("categories")):
                raise Unusual
            starts, ends = _spans(text, content["annotations"], raws)
        except (*_ERRORS, Unusual):
            return read_json(file)
    return {**content, "annotations": FileEntries(file, starts, ends)}


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


@collector_paused()
def examine(content: dict[str, Any]) -> tuple[Columns, dict[int, bool]]:
    """Read the arrays of a large file's entries, and mark those that may have a problem.

    Returns:
        The arrays, and the numbers of these entries, in order, with whether an earlier one has their id.

    Raises:
        Unusual: an id is not an integer, or a key occurs twice.
    """
    entries: FileEntries = content["annotations"]
    rows, labels = positions(content["images"]), positions(content["categories"])
    columns, doubtful = Columns(len(entries)), np.zeros(len(entries), bool)
    # without a size, all annotations of the image are doubtful; the last one is that of unknown images
    extents = [
        (image["width"], image["height"])
        if is_number(image.get("width")) and is_number(image.get("height"))
        else (-math.inf, -math.inf)
        for image in content["images"]
    ]
    limits = np.array([*extents, (-math.inf, -math.inf)], float)
    try:
        if len(rows) < len(content["images"]):
            raise Unusual
        for start in track(range(0, len(entries), CHUNK), "checking annotations"):
            raws = entries.texts(slice(start, start + CHUNK))
            own, unreadable = _parse(raws)
            part = columns.fill(start, own, rows, labels)
            crowd = np.array([0 if entry.iscrowd is msgspec.UNSET else entry.iscrowd for entry in own])
            masks = [entry.segmentation for entry in own]
            wrong = (columns.rows[part] < 0) | (columns.labels[part] < 0) | (columns.ids[part] == 0)
            wrong |= (crowd != 0) & (crowd != 1)
            wrong |= [b'"rotation"' in raw for raw in raws]
            boxes, areas = columns.boxes[part], columns.areas[part]
            wrong |= _has_problem(boxes, areas, crowd, masks, limits[columns.rows[part]])
            wrong[unreadable] = True
            doubtful[part] = wrong
    except _ERRORS as error:
        raise Unusual from error
    again = _repeated(columns.ids)
    return columns, {n: n in again for n in sorted({*np.flatnonzero(doubtful).tolist(), *again})}


def _parse(raws: Sequence[bytes]) -> tuple[list[_Entry], list[int]]:
    """Parse annotations; also return the numbers of those whose values are not of the usual types."""
    joined = b"[" + b",".join(raws) + b"]"
    unreadable: list[int] = []
    try:
        entries = _decode_entries(joined)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        entries = []
        for number, raw in enumerate(raws):
            try:
                entries.append(_decode_entry(raw))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                entries.append(_typed(json.loads(raw, object_pairs_hook=unique_keys)))
                if _NO_ID in (getattr(entries[-1], key) for key in _IDS):
                    raise Unusual from None
                unreadable.append(number)
    unset = sum(getattr(entry, key) is msgspec.UNSET for entry in entries for key in _OPTIONAL)
    # the usual keys have no quotes but their own; others may occur twice
    if joined.count(b'"') != 2 * ((len(_IDS) + 2 + len(_OPTIONAL)) * len(entries) - unset):
        json.loads(joined, object_pairs_hook=unique_keys)
    return entries, unreadable


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
