"""The pictures and objects of a data set, which every reader fills in, its splits, and their COCO files.

Coordinates are COCO's: (0, 0) is the upper left corner of the first pixel, (1, 1) its lower right corner.
"""

import hashlib
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import msgspec

from dcnzoo.data.coco_file import Mask, mask_of
from dcnzoo.data.files import InvalidAnnotation, image_size, problem_of_size
from dcnzoo.data.geometry import Corners, Point, Polygon, clip_polygon, polygon_area
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import expanded, writing
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import counted, few, short
from dcnzoo.version import __version__

ALL = "all"  # the split of all pictures, if the data does not have both train and val
VALIDATION = 0.2  # share of the pictures, if the data has no validation set
TOLERANCE = 1.0  # pixels; an edge that rounding moved out of the picture by at most this is moved back


@dataclass(frozen=True)
class ReadOptions:
    """How annotations are read.

    Attributes:
        zero_based: the coordinates of Pascal VOC are edges counted from 0, not pixels counted from 1.
        clip: clip objects to the picture.
        skip_invalid: leave out objects and pictures with problems.
        classes: names in the order of their labels; empty: those of the data.
    """

    zero_based: bool = False
    clip: bool = False
    skip_invalid: bool = False
    classes: tuple[str, ...] = ()


class Object(msgspec.Struct, gc=False):
    """An annotated object; ``segmentation`` is COCO's, or its JSON text."""

    name: str
    bbox: list[float]  # x, y, width, height
    area: float
    iscrowd: int
    segmentation: Any

    @property
    def mask(self) -> Mask | None:
        """The mask as in COCO files: polygons, or a dictionary of run-length encoding."""
        return mask_of(self.segmentation) if isinstance(self.segmentation, msgspec.Raw) else self.segmentation

    def entry(self, number: int, image: int, labels: Mapping[str, int]) -> dict[str, Any]:
        """Return COCO's annotation."""
        mask = [] if self.segmentation is None else self.segmentation
        ids = {"id": number, "image_id": image, "category_id": labels[self.name]}
        return {**ids, "bbox": self.bbox, "area": self.area, "iscrowd": self.iscrowd, "segmentation": mask}


class Picture(msgspec.Struct, gc=False):
    """A picture with its objects.

    Attributes:
        size: (width, height).
        source: the file with its annotation; None: the picture has none, and is used as an empty one.
        objects: by their lines or numbers in the annotation.
    """

    file: Path
    size: tuple[int, int]
    source: Path | None = None
    objects: dict[int, Object] = {}


@dataclass(eq=False)
class Dataset:
    """Pictures with their objects. :func:`dcnzoo.data.read` returns one; iteration yields the pictures.

    Attributes:
        classes: names in the order of their labels; all splits share them.
        options: how the annotations are read. If it has classes, any other class is a problem.
        path: the folder or file that was read.
        format: the name of the format.
        position: text of an object's position, of the file and the number in it.
        splits: the pictures of each split that the data state: ``train`` and ``val``, or ``all``; perhaps
            ``test``.
        problems: the pictures, objects and files that are left out.
        notes: lines for the user.
        clipped: the number of polygons and boxes that were clipped.
        file: the COCO file, when it is written.
    """

    classes: dict[str, None]
    options: ReadOptions = ReadOptions()
    path: Path = Path()
    format: str = ""
    position: str = "{}: {}"
    splits: dict[str, list[Picture]] = field(default_factory=dict)
    problems: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clipped: int = 0
    file: Path = Path()
    _added: set[tuple[str, Path]] = field(default_factory=set)

    def __iter__(self) -> Iterator[Picture]:
        return chain(*self.splits.values())

    @contextmanager
    def refusing(self, where: object) -> Iterator[None]:
        """Context in which an InvalidAnnotation becomes a problem of ``where``."""
        try:
            yield
        except InvalidAnnotation as error:
            self.refuse(where, error)

    def refuse(self, where: object, error: InvalidAnnotation) -> None:
        self.problems.append(Finding(str(where), str(error)))

    def add(
        self, split: str, file: Path, entries: Iterable[tuple[int, Any]], read: Callable[..., Object],
        source: Path | None = None, stated: Sequence[Any] = (None, None),
    ) -> None:  # fmt: skip
        """Add a picture with its objects; an invalid object is a problem, and the others are added.

        Args:
            entries: the number of each object in the annotation, and what the annotation says about it.
            read: returns the object from that, the picture's size and this data set.
            source: the file with the annotation.
            stated: the picture's (width, height) in the annotation.

        Raises:
            InvalidAnnotation: the picture or the annotation cannot be read; the picture is not added.
        """
        if (split, file) in self._added:
            raise InvalidAnnotation(f"expected each picture once, got {file} again")
        size, objects = image_size(file), dict[int, Object]()
        if problem := problem_of_size(size, stated):
            raise InvalidAnnotation(f"{file}: {problem}")
        for number, entry in entries:
            try:  # not self.refusing, which takes seconds for a million objects
                objects[number] = each = read(entry, size, self)
            except InvalidAnnotation as error:
                self.refuse(self.position.format(source, number), error)
            else:
                self.classes.setdefault(each.name)
        self._added.add((split, file))
        self.splits.setdefault(split, []).append(Picture(file, size, source, objects))

    def new_box(self, name: str, corners: Corners, size: tuple[int, int], iscrowd: int = 0) -> Object:
        """Return an object without an outline, in a picture of this size."""
        ((x1, y1), (x2, y2)), _ = self._inside([corners[:2], corners[2:]], size)
        return self.new_object(name, rounded([x1, y1, x2 - x1, y2 - y1]), (x2 - x1) * (y2 - y1), iscrowd)

    def new_polygons(
        self, name: str, polygons: Sequence[Polygon], size: tuple[int, int], iscrowd: int = 0
    ) -> Object:
        """Return an object whose parts have these outlines; where they overlap, the area counts twice."""
        parts: list[Polygon] = []
        for polygon in polygons:
            inside, is_near = self._inside(polygon, size)
            parts += [inside] if is_near else clip_polygon(polygon, size)
        if not parts:
            raise InvalidAnnotation(f"{name}: expected an object with an area, got none in the picture")
        xs, ys = zip(*chain(*parts), strict=True)
        box = rounded([min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)])
        mask = [rounded(chain(*part)) for part in parts]
        return self.new_object(name, box, sum(map(polygon_area, parts)), iscrowd, mask)

    def _inside(self, points: Polygon, size: tuple[int, int]) -> tuple[list[Point], bool]:
        """Move points into the picture; return them, and whether none was moved by more than the tolerance.

        Without ``clip``, refuse points that are beyond the tolerance.
        """
        width, height = size
        inside = [(min(max(x, 0.0), width), min(max(y, 0.0), height)) for x, y in points]
        pairs = zip(chain(*points), chain(*inside), strict=True)
        is_near = max(abs(old - new) for old, new in pairs) <= TOLERANCE
        if not (self.options.clip or is_near):
            moved = [(x, y) for (x, y), new in zip(points, inside, strict=True) if (x, y) != new]
            got = few([f"({x:g}, {y:g})" for x, y in moved], 2)
            raise InvalidAnnotation(f"expected coordinates in {width} × {height} pixels, got {got}")
        self.clipped += not is_near
        return inside, is_near

    def new_object(
        self, name: str, box: list[float], area: float, iscrowd: int = 0, segmentation: Any = None
    ) -> Object:
        """Return an object with a box in the picture: x, y, width, height; a training skips smaller ones."""
        if not (min(box[2:]) >= 1 and area > 0):
            raise InvalidAnnotation(f"{name}: expected an area of at least 1 × 1 pixels, got the box {box}")
        if self.options.classes and name not in self.classes:
            known = few([*self.classes])
            raise InvalidAnnotation(f"expected one of the classes {known}, got {short(name)}")
        return Object(name, box, round(area, 2), iscrowd, segmentation)

    @property
    def pictures(self) -> list[Picture]:
        """The pictures of all splits."""
        return [*self]

    @property
    def objects(self) -> list[Object]:
        """The objects of all pictures, in their order."""
        return [each for picture in self for each in picture.objects.values()]

    @property
    def unlabelled(self) -> list[Path]:
        """The pictures without a file of annotations, which are used as empty ones."""
        return [picture.file for picture in self if picture.source is None]

    @property
    def folder(self) -> Path:
        """The deepest folder with all pictures."""
        return Path(os.path.commonpath({os.path.abspath(picture.file.parent) for picture in self} or ["."]))

    @property
    def sides(self) -> list[tuple[float, tuple[int, int]]]:
        """The side of each object but crowds, the root of its box's area, and the size of its picture."""
        return [
            (math.sqrt(each.bbox[2] * each.bbox[3]), picture.size)
            for picture in self
            for each in picture.objects.values()
            if not each.iscrowd
        ]

    @property
    def per_class(self) -> dict[str, int]:
        """The number of objects of each class."""
        numbers = Counter(each.name for each in self.objects)
        return {name: numbers[name] for name in self.classes}

    @property
    def crowds(self) -> int:
        """The number of objects that training ignores."""
        return sum(bool(each.iscrowd) for each in self.objects)

    def part(self, name: str, pictures: list[Picture]) -> "Dataset":
        """Return some of the pictures as a data set with one split."""
        return Dataset(self.classes, self.options, self.path, self.format, self.position, {name: pictures})

    def split(self) -> dict[str, "Dataset"]:
        """Return the data sets ``train`` and ``val``, and ``test``, if the data state one.

        If the data do not state train and val, val is a random fifth of the pictures.

        Raises:
            UserError: a picture is in two splits, or the fifth would have no objects.
        """
        _require_apart(self.splits)
        splits = {**self.splits}
        if pool := splits.pop(ALL, None):
            splits = {**_divide(pool), **splits}
        return {name: self.part(name, pictures) for name, pictures in splits.items()}

    def write(self, out: str | os.PathLike[str]) -> None:
        """Write a COCO file."""
        folder, labels = self.folder, {name: number for number, name in enumerate(self.classes, 1)}
        images = (
            {"id": n, "file_name": os.path.relpath(each.file, folder), "width": each.size[0],
             "height": each.size[1]}
            for n, each in enumerate(self, 1)
        )  # fmt: skip
        numbers = count(1)
        annotations = (
            each.entry(next(numbers), image, labels)
            for image, picture in enumerate(self, 1)
            for each in picture.objects.values()
        )
        head = {
            "info": {"description": f"written by dcnzoo {__version__}"},
            "categories": [{"id": number, "name": name} for name, number in labels.items()],
        }
        encode = msgspec.json.Encoder().encode
        self.file = expanded(out)
        with writing(self.file) as opened:
            opened.write(encode(head)[:-1])
            for key, entries in (("images", images), ("annotations", annotations)):
                opened.write(b',\n"%b":[' % key.encode())
                for number, entry in enumerate(entries):  # one by one: a list of all would take gigabytes
                    opened.write((b",\n" if number else b"\n") + encode(entry))
                opened.write(b"]")
            opened.write(b"}\n")


def _require_apart(splits: Mapping[str, Iterable[Picture]]) -> None:
    """Raise UserError if a picture, or a copy with the same bytes, is in two splits."""
    alike: dict[tuple, list[tuple[str, Path]]] = defaultdict(list)
    for name, pictures in splits.items():
        for picture in pictures:
            alike[(*picture.size, picture.file.stat().st_size)].append((name, picture.file))
    first: dict[bytes, tuple[str, Path]] = {}
    shared = []
    candidates = [each for files in alike.values() if len({name for name, _ in files}) > 1 for each in files]
    for name, file in candidates:
        other, copy = first.setdefault(hashlib.sha256(file.read_bytes()).digest(), (name, file))
        if other != name:
            shared.append(f"{file} of {name} = {copy} of {other}")
    if shared:
        got = f"{counted(len(shared), 'pictures')}: {', '.join(shared[:2])}"
        raise UserError(f"data: expected no picture in two splits, got {got}")


def _divide(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Divide pictures at random (seed 0) into train and val.

    Pictures that Roboflow made from one original stay together. Val has at least one picture with objects;
    the last picture of a class stays in train.

    Raises:
        UserError: a part would have no object.
    """
    classes: dict[object, set[str]] = defaultdict(set)  # of the pictures of one original
    for picture in pictures:
        names = (each.name for each in picture.objects.values() if not each.iscrowd)
        classes[_original_of(picture)].update(names)
    left = Counter(name for own in classes.values() for name in own)
    number, chosen = max(1, round(VALIDATION * len(classes))), set[object]()
    order = random.Random(0).sample([*classes], len(classes))  # nosec B311

    def is_spare(key: object) -> bool:  # whether train keeps all its classes without it
        return all(left[name] > 1 for name in classes[key])

    first = next((key for key in order if classes[key] and is_spare(key)), None)
    for key in sorted(order, key=lambda key: key != first):
        if number > 0 and is_spare(key):
            left.subtract(classes[key])
            chosen.add(key)
            number -= 1
    if first is None or not any(left.values()):
        raise UserError("data: expected objects for training and validation: annotate more pictures")
    parts: dict[str, list[Picture]] = {"train": [], "val": []}
    for picture in pictures:
        parts["val" if _original_of(picture) in chosen else "train"].append(picture)
    return parts


def _original_of(picture: Picture) -> str | Path:
    """Return the name before Roboflow's ``.rf.``; for other files, their path."""
    name, mark, _ = picture.file.name.partition(".rf.")
    return name if mark else picture.file


def without_mask(splits: Iterable[Dataset]) -> tuple[int, int, str]:
    """Return the number of objects without a mask, that of all objects, and the first one's position.

    Crowds, which training ignores, are not counted.
    """
    number, total, first = 0, 0, ""
    for split in splits:
        for picture in split:
            for key, each in picture.objects.items():
                total += not each.iscrowd
                if each.segmentation is None and not each.iscrowd:
                    number += 1
                    first = first or split.position.format(picture.source, key)
    return number, total, first


def require_masks(splits: Iterable[Dataset], reason: str, remedy: str) -> None:
    """Raise UserError if objects have no mask; the reason and the remedy are parts of the message."""
    number, _, first = without_mask(splits)
    if number:
        got = f"{counted(number, 'objects')} without one, such as {first}; {remedy}"
        raise UserError(f"data: expected a mask of every object{reason}, got {got}")


def rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 2) for value in values]
