"""The pictures and objects of a data set, which every reader fills in, and their COCO files.

Coordinates are COCO's: (0, 0) is the upper left corner of the first pixel, (1, 1) its lower right corner.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
from pycocotools import mask as coco_mask

from dcnzoo.data.files import InvalidAnnotation, image_size
from dcnzoo.utils.files import writing
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import few, short
from dcnzoo.version import __version__

TOLERANCE = 1.0  # pixels; an edge that rounding moved out of the picture by at most this is moved back

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2
Polygon = Sequence[tuple[float, float]]


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

    picture: int  # its number, from 1
    name: str
    bbox: list[float]  # x, y, width, height
    area: float
    iscrowd: int
    segmentation: Any

    def entry(self, number: int, labels: Mapping[str, int]) -> dict[str, Any]:
        """Return COCO's annotation."""
        mask = [] if self.segmentation is None else self.segmentation
        ids = {"id": number, "image_id": self.picture, "category_id": labels[self.name]}
        return {**ids, "bbox": self.bbox, "area": self.area, "iscrowd": self.iscrowd, "segmentation": mask}


@dataclass(eq=False)
class Dataset:
    """Pictures and objects of one split. Objects belong to the picture that was added last.

    Attributes:
        classes: names in the order of their labels; all splits share them.
        options: how the annotations are read. If it has classes, any other class is a problem.
        problems: the pictures, objects and files that cannot be used.
        sources: the files that were read.
        unlabelled: pictures without a file of annotations, which are used as empty ones.
        sizes: the pictures, with (width, height).
        objects: in the order of the pictures.
        clipped: the number of polygons and boxes that were clipped.
        file: the COCO file, when it is written.
    """

    classes: dict[str, None]
    options: ReadOptions = ReadOptions()
    problems: list[Finding] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)
    sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)
    objects: list[Object] = field(default_factory=list)
    clipped: int = 0
    file: Path = Path()
    size: tuple[int, int] = (0, 0)  # of the last picture

    @contextmanager
    def refusing(self, where: object) -> Iterator[None]:
        """Context in which an InvalidAnnotation becomes a problem of ``where``."""
        try:
            yield
        except InvalidAnnotation as error:
            self.refuse(where, error)

    def refuse(self, where: object, error: InvalidAnnotation) -> None:
        self.problems.append(Finding(str(where), str(error)))

    def add_picture(self, file: Path, stated: object = None) -> None:
        """Add a picture; ``stated`` is its (width, height) in the annotations, if they have it."""
        if file in self.sizes:
            raise InvalidAnnotation(f"expected each picture once, got {file} again")
        size = image_size(file)
        if stated not in (None, (None, None), (0, 0), size):
            raise InvalidAnnotation(f"expected {size}, the width and height of {file}, got {short(stated)}")
        self.sizes[file] = self.size = size

    def add_box(self, name: str, corners: Corners, iscrowd: int = 0) -> None:
        """Add an object without an outline."""
        (x1, y1), (x2, y2) = self._inside([corners[:2], corners[2:]])
        self.add(name, rounded([x1, y1, x2 - x1, y2 - y1]), (x2 - x1) * (y2 - y1), iscrowd)

    def add_polygons(self, name: str, polygons: Sequence[Polygon], iscrowd: int = 0) -> None:
        """Add an object whose parts have these outlines. If they overlap, the common area counts twice."""
        outlines = [self._inside(polygon) for polygon in polygons]
        xs, ys = zip(*(point for outline in outlines for point in outline), strict=True)
        box = rounded([min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)])
        mask = [rounded(value for point in outline for value in point) for outline in outlines]
        self.add(name, box, sum(map(polygon_area, outlines)), iscrowd, mask)

    def _inside(self, points: Polygon) -> list[tuple[float, float]]:
        """Move points into the picture; without ``clip``, refuse points that are beyond the tolerance."""
        width, height = self.size
        inside = [(min(max(x, 0.0), width), min(max(y, 0.0), height)) for x, y in points]
        pairs = zip(chain(*points), chain(*inside), strict=True)
        off = max(abs(old - new) for old, new in pairs)
        if not (self.options.clip or off <= TOLERANCE):
            raise InvalidAnnotation(f"expected coordinates in {width} × {height} pixels, got {short(points)}")
        self.clipped += off > TOLERANCE
        return inside

    def add(
        self, name: str, box: list[float], area: float, iscrowd: int = 0, segmentation: Any = None
    ) -> None:
        """Add an object with a box in the picture: x, y, width, height."""
        if not (min(box[2:]) > 0 and area > 0):
            raise InvalidAnnotation(f"{name}: expected an object with an area, got the box {box}")
        if name not in self.classes:
            if self.options.classes:
                known = few([*self.classes])
                raise InvalidAnnotation(f"expected one of the classes {known}, got {short(name)}")
            self.classes[name] = None
        self.objects.append(Object(len(self.sizes), name, box, round(area, 2), iscrowd, segmentation))

    @property
    def folder(self) -> Path:
        """The deepest folder with all pictures."""
        return Path(os.path.commonpath({os.path.abspath(file.parent) for file in self.sizes} or ["."]))

    @property
    def per_class(self) -> dict[str, int]:
        """The number of objects of each class."""
        numbers = Counter(each.name for each in self.objects)
        return {name: numbers[name] for name in self.classes}

    @property
    def crowds(self) -> int:
        """The number of objects that training ignores."""
        return sum(bool(each.iscrowd) for each in self.objects)

    @property
    def without_mask(self) -> int:
        """The number of objects without a mask, except crowds."""
        return sum(each.segmentation is None and not each.iscrowd for each in self.objects)

    def select(self, chosen: Collection[Path]) -> "Dataset":
        """Return a data set with the chosen pictures and their objects, in the same order."""
        part, new = Dataset(self.classes), dict[int, int]()
        for number, (file, size) in enumerate(self.sizes.items(), 1):
            if file in chosen:
                part.sizes[file] = size
                new[number] = len(part.sizes)
        for each in self.objects:
            if each.picture in new:
                part.objects.append(msgspec.structs.replace(each, picture=new[each.picture]))
        return part

    def write(self, out: Path) -> None:
        """Write a COCO file."""
        folder, labels = self.folder, {name: number for number, name in enumerate(self.classes, 1)}
        images = (
            {"id": n, "file_name": os.path.relpath(file, folder), "width": size[0], "height": size[1]}
            for n, (file, size) in enumerate(self.sizes.items(), 1)
        )
        annotations = (each.entry(number, labels) for number, each in enumerate(self.objects, 1))
        head = {
            "info": {"description": f"written by dcnzoo {__version__}"},
            "categories": [{"id": number, "name": name} for name, number in labels.items()],
        }
        encode = msgspec.json.Encoder().encode
        with writing(out) as opened:
            opened.write(encode(head)[:-1])
            for key, entries in (("images", images), ("annotations", annotations)):
                opened.write(b',\n"%b":[' % key.encode())
                for number, entry in enumerate(entries):  # one by one: a list of all would take gigabytes
                    opened.write((b",\n" if number else b"\n") + encode(entry))
                opened.write(b"]")
            opened.write(b"}\n")
        self.file = out


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


def rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 2) for value in values]


def polygon_area(polygon: Polygon) -> float:
    """Return the enclosed area; parts with the opposite orientation count as negative."""
    x0, y0 = polygon[0]  # far from the origin, the products would lose precision
    points = [(x - x0, y - y0) for x, y in polygon]
    pairs = zip(points, [*points[1:], points[0]], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2


def turned_box(corners: Corners, angle: float, size: tuple[int, int]) -> Corners:
    """Return the upright box, clipped to the picture, around a box that CVAT turned by ``angle`` degrees."""
    x1, y1, x2, y2 = corners
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    u, v = ((x2 - x1) * cos + (y2 - y1) * sin) / 2, ((x2 - x1) * sin + (y2 - y1) * cos) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return max(x - u, 0), max(y - v, 0), min(x + u, size[0]), min(y + v, size[1])
