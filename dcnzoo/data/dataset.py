"""Pictures and objects of a data set, which every reader fills, and their COCO files.

Coordinates are COCO's: (0, 0) is the upper left corner of the first pixel, (1, 1) its lower right corner.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from dcnzoo.data.files import InvalidAnnotation, write_json
from dcnzoo.data.pictures import image_size
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import few, short
from dcnzoo.version import __version__

TOLERANCE = 1.0  # pixels by which rounding may move an edge out of the picture; it is moved back

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


@dataclass(eq=False)
class Split:
    """Pictures and objects. Objects belong to the picture that was added last.

    Attributes:
        classes: names in the order of their labels: one list for all splits of a data set.
        fixed: whether other names are problems.
        problems: what cannot be used.
        sources: the files that were read.
        unlabelled: pictures without a file of annotations, which are used as empty ones.
        notes: texts for the user.
        sizes: (width, height) of the pictures.
        objects: the picture's number, the class and the fields of each object.
        file: the COCO file, when it is written.
    """

    classes: list[str]
    fixed: bool = False
    clip: bool = False
    problems: list[Finding] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)
    objects: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    clipped: int = 0
    file: Path = Path()
    _size: tuple[int, int] = (0, 0)

    @contextmanager
    def refusing(self, where: object) -> Iterator[None]:
        """Context in which an InvalidAnnotation becomes a problem of ``where``."""
        try:
            yield
        except InvalidAnnotation as error:
            line = "" if error.line is None else f":{error.line}"
            self.problems.append(Finding(f"{where}{line}", str(error)))

    def add_picture(self, file: Path, stated: object = None) -> None:
        """Add a picture; ``stated`` is its (width, height) in the annotations, if they have it."""
        if file in self.sizes:
            raise InvalidAnnotation(f"expected each picture once, got {file} again")
        size = image_size(file)
        if stated not in (None, (None, None), (0, 0), size):
            raise InvalidAnnotation(f"expected {size}, the width and height of {file}, got {short(stated)}")
        self.sizes[file] = self._size = size

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the last picture."""
        return self._size

    def add_box(self, name: str, corners: Corners, **more: Any) -> None:
        """Add an object without an outline."""
        (x1, y1), (x2, y2) = self._inside([corners[:2], corners[2:]])
        self._add(name, [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1), **more)

    def add_polygons(self, name: str, polygons: Sequence[Polygon], **more: Any) -> None:
        """Add an object whose parts have these outlines."""
        outlines = [self._inside(polygon) for polygon in polygons]
        xs, ys = zip(*(point for outline in outlines for point in outline), strict=True)
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        mask = [[round(value, 2) for point in outline for value in point] for outline in outlines]
        self._add(name, box, sum(map(polygon_area, outlines)), segmentation=mask, **more)

    def add_mask(self, name: str, rle: dict[str, Any], **more: Any) -> None:
        """Add an object with a mask in COCO's run-length encoding."""
        try:
            width, height = self._size
            if isinstance(rle["counts"], list):
                rle = coco_mask.frPyObjects(rle, height, width)
                rle["counts"] = rle["counts"].decode()
            if [*map(int, rle["size"])] != [height, width]:
                raise InvalidAnnotation(f"expected RLE of {[height, width]}, got {short(rle['size'])}")
            box, area = coco_mask.toBbox(rle).tolist(), float(coco_mask.area(rle))
        except (LookupError, TypeError, ValueError) as error:
            raise InvalidAnnotation(
                f"{name}: expected run-length encoding, got {short(rle)}: {error}"
            ) from None
        self._add(name, box, area, segmentation=rle, **more)

    def _inside(self, points: Polygon) -> list[tuple[float, float]]:
        """Return points inside the picture; further out than the tolerance they are clipped, or a problem."""
        width, height = self._size
        inside = [(min(max(x, 0.0), width), min(max(y, 0.0), height)) for x, y in points]
        off = max(
            abs(a - b) for old, new in zip(points, inside, strict=True) for a, b in zip(old, new, strict=True)
        )
        if not off <= (math.inf if self.clip else TOLERANCE) or math.isnan(sum(map(sum, points))):
            raise InvalidAnnotation(
                f"expected coordinates in {width} × {height} pixels, got {short([*points])}"
            )
        self.clipped += off > TOLERANCE
        return inside

    def _add(self, name: str, box: Sequence[float], area: float, **more: Any) -> None:
        box = [round(value, 2) for value in box]
        if not (min(box[2:]) > 0 and area > 0):
            raise InvalidAnnotation(f"{name}: expected an object with an area, got the box {box}")
        if name not in self.classes:
            if self.fixed:
                raise InvalidAnnotation(f"expected one of the classes {few(self.classes)}, got {short(name)}")
            self.classes.append(name)
        self.objects.append(
            (len(self.sizes), name, {"bbox": box, "area": round(area, 2), "iscrowd": 0, **more})
        )

    # What others ask of a split

    @property
    def folder(self) -> Path:
        """The deepest folder with all pictures."""
        return Path(os.path.commonpath([os.path.abspath(file.parent) for file in self.sizes] or ["."]))

    @property
    def counts(self) -> dict[str, int]:
        return {"images": len(self.sizes), "annotations": len(self.objects), "categories": len(self.classes)}

    @property
    def per_class(self) -> dict[str, int]:
        """The number of objects of each class."""
        numbers = Counter(name for _, name, _ in self.objects)
        return {name: numbers[name] for name in self.classes}

    @property
    def crowds(self) -> int:
        """The number of objects that training ignores."""
        return sum(bool(each["iscrowd"]) for _, _, each in self.objects)

    @property
    def without_mask(self) -> int:
        return sum(not each["iscrowd"] and not each.get("segmentation") for _, _, each in self.objects)

    def select(self, chosen: Sequence[Path]) -> "Split":
        """Return a split with some of the pictures."""
        numbers = {file: number for number, file in enumerate(self.sizes, 1)}
        new = {numbers[file]: number for number, file in enumerate(chosen, 1)}
        objects = [(new[number], *rest) for number, *rest in self.objects if number in new]
        return Split(self.classes, sizes={file: self.sizes[file] for file in chosen}, objects=objects)  # type: ignore[arg-type]

    def write(self, out: Path) -> None:
        """Write a COCO file."""
        folder, labels = self.folder, {name: number for number, name in enumerate(self.classes, 1)}
        content = {
            "info": {"description": f"written by dcnzoo {__version__}"},
            "images": [
                {
                    "id": n,
                    "file_name": Path(os.path.relpath(file, folder)).as_posix(),
                    "width": w,
                    "height": h,
                }
                for n, (file, (w, h)) in enumerate(self.sizes.items(), 1)
            ],
            "annotations": [
                {"id": n, "image_id": image, "category_id": labels[name], **fields}
                for n, (image, name, fields) in enumerate(self.objects, 1)
            ],
            "categories": [{"id": number, "name": name} for name, number in labels.items()],
        }
        write_json(content, out)
        self.file = out


def polygon_area(polygon: Polygon) -> float:
    """Return the enclosed area; parts with the opposite orientation count as negative."""
    x0, y0 = polygon[0]  # far from the origin, the products would lose precision
    points = [(x - x0, y - y0) for x, y in polygon]
    pairs = zip(points, [*points[1:], points[0]], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2


def ellipse(x: float, y: float, a: float, b: float) -> Polygon:
    """Return an outline of 64 corners; ``a`` and ``b`` are half the axes."""
    steps = [2 * math.pi * step / 64 for step in range(64)]
    return [(x + a * math.cos(step), y + b * math.sin(step)) for step in steps]


def turned_box(corners: Corners, angle: float, size: tuple[int, int]) -> Corners:
    """Return the upright box inside the picture around one that CVAT has turned by an angle in degrees."""
    x1, y1, x2, y2 = corners
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    u, v = ((x2 - x1) * cos + (y2 - y1) * sin) / 2, ((x2 - x1) * sin + (y2 - y1) * cos) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return max(x - u, 0), max(y - v, 0), min(x + u, size[0]), min(y + v, size[1])
