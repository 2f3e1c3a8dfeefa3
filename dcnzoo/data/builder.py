"""Fill a data set: every reader adds its pictures and objects here, where they are checked and clipped."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from dcnzoo.data.dataset import Dataset, Object, Picture, ReadOptions
from dcnzoo.data.files import InvalidAnnotation, image_size
from dcnzoo.data.geometry import Corners, Point, Polygon, clip_polygon, polygon_area
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import few, problem_of_size, short

TOLERANCE = 1.0  # pixels; an edge that rounding moved out of the picture by at most this is moved back


class Builder:
    """Fills a data set.

    Attributes:
        data: the data set.
        options: how the annotations are read. If it has classes, any other class is a problem.
        clipped: the number of polygons and boxes that were clipped, of objects that are used.
    """

    def __init__(self, data: Dataset, options: ReadOptions) -> None:
        self.data, self.options, self.clipped = data, options, 0
        self._added = set[tuple[str, Path]]()

    @contextmanager
    def refusing(self, where: object) -> Iterator[None]:
        """Context in which an InvalidAnnotation becomes a problem of ``where``."""
        try:
            yield
        except InvalidAnnotation as error:
            self.refuse(where, error)

    def refuse(self, where: object, error: InvalidAnnotation) -> None:
        self.data.problems.append(Finding(str(where), str(error)))

    def add(
        self, split: str, file: Path, entries: Iterable[tuple[int, Any]], read: Callable[..., Object],
        source: Path | None = None, stated: Sequence[Any] = (None, None),
    ) -> None:  # fmt: skip
        """Add a picture with its objects; an invalid object is a problem, and the others are added.

        Args:
            entries: the number of each object in the annotation, and what the annotation says about it.
            read: returns the object from that, the picture's size and this builder.
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
                self.refuse(self.data.position.format(source, number), error)
            else:
                self.data.classes.setdefault(each.name)
        self._added.add((split, file))
        self.data.splits.setdefault(split, []).append(Picture(file, size, source, objects))

    def new_box(self, name: str, corners: Corners, size: tuple[int, int], iscrowd: int = 0) -> Object:
        """Return an object without an outline, in a picture of this size."""
        ((x1, y1), (x2, y2)), is_near = self._inside([corners[:2], corners[2:]], size)
        box = rounded([x1, y1, x2 - x1, y2 - y1])
        new = self.new_object(name, box, (x2 - x1) * (y2 - y1), iscrowd)
        self.clipped += not is_near
        return new

    def new_polygons(
        self, name: str, polygons: Sequence[Polygon], size: tuple[int, int], iscrowd: int = 0
    ) -> Object:
        """Return an object whose parts have these outlines; where they overlap, the area counts twice."""
        parts: list[Polygon] = []
        clipped = 0
        for polygon in polygons:
            inside, is_near = self._inside(polygon, size)
            parts += [inside] if is_near else clip_polygon(polygon, size)
            clipped += not is_near
        if not parts:
            raise InvalidAnnotation(f"{name}: expected an object with an area, got none in the picture")
        xs, ys = zip(*chain(*parts), strict=True)
        box = rounded([min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)])
        mask = [rounded(chain(*part)) for part in parts]
        new = self.new_object(name, box, sum(map(polygon_area, parts)), iscrowd, mask)
        self.clipped += clipped
        return new

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
        return inside, is_near

    def new_object(
        self, name: str, box: list[float], area: float, iscrowd: int = 0, segmentation: Any = None
    ) -> Object:
        """Return an object with a box in the picture: x, y, width, height; a training skips smaller ones."""
        if not (min(box[2:]) >= 1 and area > 0):
            raise InvalidAnnotation(f"{name}: expected an area of at least 1 × 1 pixels, got the box {box}")
        if self.options.classes and name not in self.data.classes:
            known = few([*self.data.classes])
            raise InvalidAnnotation(f"expected one of the classes {known}, got {short(name)}")
        return Object(name, box, round(area, 2), iscrowd, segmentation)


def rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 2) for value in values]
