"""Shared code of the converters to COCO's format: image sizes, geometry, categories, problems.

Coordinates are COCO's: (0, 0) is the upper left corner of the first pixel, (1, 1) its lower right corner.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import numpy as np
import shapely
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.files import write_bytes
from dcnzoo.version import __version__

# the formats that mmcv reads; files with other suffixes are ignored
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# An edge may lie this far outside the image because of rounding; it is moved to the border.
TOLERANCE = 1.0  # pixels
# Larger than any image. pycocotools crashes at much larger coordinates.
FAR = 1_000_000  # pixels
_ORIENTATION = 0x0112
_SHOWN = 20

Polygon = Sequence[tuple[float, float]] | np.ndarray  # [points, 2], (x, y)
Step = Callable[[int, int], None]  # (done, total)


class Problem(NamedTuple):
    """An object or file in the source that cannot be converted."""

    file: Path
    line: int | None
    text: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.text}"


class InvalidAnnotation(Exception):
    """An invalid object or file; the caller adds the position and converts it to a :class:`Problem`."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


def image_size(file: Path | BinaryIO, name: str | None = None) -> tuple[int, int]:
    """Return (width, height) of an image as MMDetection loads it: rotated by its EXIF orientation.

    Args:
        file: a path, or an open file.
        name: of the image in messages; by default its path.

    Raises:
        InvalidAnnotation: it does not exist or is not an image.
    """
    name = name or str(file)
    if isinstance(file, Path) and not os.path.isfile(file):  # opening a pipe would wait for its other end
        raise InvalidAnnotation(f"expected an image, found none at {name}")
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            # for TIFF, Pillow's size is that of the rotated image
            return image.size[::-1] if turned and image.format != "TIFF" else image.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidAnnotation(f"expected an image at {name}, got another file: {error}") from None


def wrong_size(stated: Sequence[object], size: tuple[int, int], file: Path) -> str:
    """Explain that the stated (width, height) is not that of an image."""
    text = f"expected {size[0]} × {size[1]}, the size of {file}, got {short(stated[0])} × {short(stated[1])}"
    swapped = tuple(stated) == size[::-1]
    return f"{text}; width and height are swapped, as by an EXIF orientation" if swapped else text


def polygon_area(polygon: Polygon) -> float:
    """Return the enclosed area; parts with the opposite orientation count as negative."""
    # relative to the first corner: far from the origin, the products would lose precision
    return float(shapely.area(shapely.polygons(np.asarray(polygon, float) - polygon[0])))


def clip_box(
    corners: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return the part of a box inside the image; x1, y1, x2, y2."""
    (x1, y1, x2, y2), (width, height) = corners, size
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)


def clip_polygon(polygon: Polygon, size: tuple[int, int]) -> list[Polygon]:
    """Return the parts of a polygon inside the image: none, one, or several if it is concave."""
    if _is_inside(polygon, size):
        return [polygon]
    # shapely.intersection does not accept polygons with crossing sides
    whole = shapely.make_valid(shapely.polygons(np.asarray(polygon, float)))
    inside = shapely.intersection(whole, shapely.box(0, 0, *size))
    parts = shapely.get_parts(shapely.get_parts(inside))
    return [_outline(part) for part in parts if part.geom_type == "Polygon" and not part.is_empty]


def _outline(part: shapely.Polygon) -> Polygon:
    """Return the corners, each once. COCO's polygons have no holes: join each hole by a line of no width."""
    points = list(part.exterior.coords)
    for hole in part.interiors:
        points += [*hole.coords, points[0]]
    return points[:-1]


def _is_inside(points: Polygon, size: tuple[int, int], tolerance: float = 0.0) -> bool:
    return all(
        -tolerance <= value <= extent + tolerance
        for point in points
        for value, extent in zip(point, size, strict=True)
    )


class CocoBuilder:
    """Collects images, objects and problems, and writes the COCO file.

    Args:
        classes: names in the order of their labels; None: the names that occur, sorted.
        clip: clip objects to the image; otherwise, more than a pixel outside is a problem.
    """

    def __init__(self, classes: Sequence[str] | None = None, clip: bool = False) -> None:
        if classes is not None:
            repeated = [name for name, count in Counter(classes).items() if count > 1]
            if not classes or repeated or not all(classes):
                found = f"{', '.join(repeated)} more than once" if repeated else f"{list(classes)}"
                raise UserError(f"classes: expected at least 1 name, each once, got {found}")
        self.classes = None if classes is None else tuple(classes)
        self.tolerance = math.inf if clip else TOLERANCE
        self.problems: list[Problem] = []
        self.sources: list[Path] = []  # files that are read
        self.clipped = 0  # number of objects that were clipped
        self._images: dict[str, dict] = {}  # by file name
        # images that are written with the COCO file
        self._extracted: list[tuple[Path, Callable[[], bytes]]] = []
        self._objects: list[tuple[str, dict]] = []  # class name, entry

    def add_image(self, file_name: str, size: tuple[int, int]) -> int:
        """Add an image and return its id.

        Args:
            file_name: relative to the future ``data_prefix``.
            size: (width, height)

        Raises:
            InvalidAnnotation: the image has been added before.
        """
        if file_name in self._images:
            raise InvalidAnnotation(f"expected each image once, got {file_name} again")
        width, height = size
        number = len(self._images) + 1
        self._images[file_name] = {"id": number, "file_name": file_name, "width": width, "height": height}
        return number

    def add_extracted(self, target: Path, read: Callable[[], bytes]) -> None:
        """Write the bytes that ``read`` returns to ``target`` when the COCO file is written."""
        self._extracted.append((target, read))

    def add_box(
        self,
        image: int,
        size: tuple[int, int],
        name: str,
        corners: tuple[float, float, float, float],  # x1, y1, x2, y2
        iscrowd: int = 0,
        **extra: object,
    ) -> None:
        """Add an object without an outline.

        Raises:
            InvalidAnnotation: it extends beyond the image or has no area, or its class is unknown.
        """
        self._check_inside([corners[:2], corners[2:]], size)
        (x1, y1, x2, y2), kept = corners, clip_box(corners, size)
        # test before clipping: an inverted box is not clipped
        if x1 < x2 and y1 < y2:
            self.clipped += kept != corners
            x1, y1, x2, y2 = kept
        if not min(round(x2 - x1, 2), round(y2 - y1, 2)) > 0:  # rounded as in the file
            raise InvalidAnnotation(
                f"{name}: expected a box with an area, got {x2 - x1:g} × {y2 - y1:g} pixels"
            )
        self._add(image, name, [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1), iscrowd, extra)

    def add_polygons(
        self, image: int, size: tuple[int, int], name: str, polygons: Sequence[Polygon], **extra: object
    ) -> None:
        """Add an object whose parts have these outlines.

        Raises:
            InvalidAnnotation: as :meth:`add_box`; or an outline has fewer than three points.
        """
        for polygon in polygons:
            if len(polygon) < 3:
                raise InvalidAnnotation(
                    f"{name}: expected a polygon of at least 3 points, got {len(polygon)}"
                )
            self._check_inside(polygon, size)
        areas = [polygon_area(polygon) for polygon in polygons]
        if not min(areas) > 0:
            raise InvalidAnnotation(f"{name}: expected a polygon with an area, got {min(areas):g} pixels²")
        self.clipped += any(not _is_inside(polygon, size) for polygon in polygons)
        parts = [clip_polygon(polygon, size) for polygon in polygons]
        flat = [kept for polygon in parts for part in polygon if (kept := flattened(part))]
        if not flat:
            raise InvalidAnnotation(f"{name}: expected a polygon with an area in the image, got 0 pixels²")
        corners = [np.reshape(part, (-1, 2)) for part in flat]
        area = sum(polygon_area(polygon) for polygon in corners)
        if len(parts) > 1:  # the parts may overlap
            area = float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(flat, size[1], size[0]))))
        points = np.concatenate(corners)
        (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
        self._add(image, name, [x1, y1, x2 - x1, y2 - y1], area, 0, extra, flat)

    def add_mask(self, image: int, name: str, mask: np.ndarray, **extra: object) -> None:
        """Add an object that covers the pixels of a mask.  # mask: [H, W] of the image, bool

        Raises:
            InvalidAnnotation: the mask is empty, or its class is unknown.
        """
        if not mask.any():
            raise InvalidAnnotation(f"{name}: expected a mask that covers at least 1 pixel, got 0")
        encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        rle = {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode()}
        box = [float(value) for value in coco_mask.toBbox(encoded)]
        self._add(image, name, box, float(mask.sum()), 0, extra, rle)

    def _check_inside(self, points: Polygon, size: tuple[int, int]) -> None:
        if not all(math.isfinite(value) for point in points for value in point):
            raise InvalidAnnotation(f"expected finite coordinates, got {_text(points)}")
        if not all(abs(value) <= FAR for point in points for value in point):
            raise InvalidAnnotation(f"expected coordinates of at most {FAR:,} pixels, got {_text(points)}")
        if not _is_inside(points, size, self.tolerance):
            raise InvalidAnnotation(
                f"expected coordinates inside of the image, {size[0]} × {size[1]} pixels, got {_text(points)}"
            )

    def _add(
        self,
        image: int,
        name: str,
        box: Sequence[float],
        area: float,
        iscrowd: int,
        extra: dict,
        segmentation: list | dict | None = None,
    ) -> None:
        if self.classes is not None and name not in self.classes:
            raise InvalidAnnotation(f"expected one of the classes {few(self.classes)}, got {short(name)}")
        entry = {
            "image_id": image,
            "bbox": [round(value, 2) for value in box],
            "area": round(area, 2),
            "iscrowd": iscrowd,
            **extra,
        }
        if segmentation is not None:
            entry["segmentation"] = segmentation
        self._objects.append((name, entry))

    @contextmanager
    def refusing(self, file: Path, line: int | None = None, what: str = "") -> Iterator[None]:
        """Record an InvalidAnnotation of the block. Its line number takes precedence over ``line``."""
        try:
            yield
        except InvalidAnnotation as error:
            self.problems.append(Problem(file, error.line or line, f"{what}{error}"))

    def convert(self, files: Sequence[Path], read: Callable[[Path], None], step: Step) -> None:
        """Call ``read`` with each file, and ``step`` after it."""
        self.sources += files
        for done, file in enumerate(files, 1):
            with self.refusing(file):
                if file.is_fifo():  # reading would wait for the other end
                    raise InvalidAnnotation("expected a file, got a pipe")
                read(file)
            step(done, len(files))

    def content(self) -> dict:
        """Return the content of the COCO file. It includes all given classes, even if they do not occur."""
        names = self.classes or tuple(sorted({name for name, _ in self._objects}))
        ids = {name: number for number, name in enumerate(names, 1)}
        annotations = [
            {"id": number, "category_id": ids[name], **entry}
            for number, (name, entry) in enumerate(self._objects, 1)
        ]
        return {
            "info": {"description": f"written by dcnzoo {__version__}"},
            "images": list(self._images.values()),
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
        }

    def write(self, out: Path, skip_invalid: bool = False) -> dict:
        """Write the COCO file atomically; return its content.

        Raises:
            UserError: there are :attr:`problems` and ``skip_invalid`` is False, nothing is left; or ``out``
                is one of the sources.
        """
        if os.path.exists(out) and os.path.realpath(out) in map(os.path.realpath, self.sources):
            raise UserError(f"out: expected a new file, got {out}, a source of the conversion")
        if self.problems and not skip_invalid:
            number, files = len(self.problems), len({problem.file for problem in self.problems})
            text = f"{counted(number, 'problems')} in {counted(files, 'files')}"
            raise UserError(f"{text}, nothing is written; --skip-invalid skips them")
        content = self.content()
        for key in ("images", "annotations"):
            if not content[key]:
                raise UserError(f"{key}: expected at least 1, found 0; nothing is written")
        for target, read in self._extracted:
            try:
                pixels = read()
            except InvalidAnnotation as error:
                raise UserError(f"{target}: {error}; the file changed during the conversion") from None
            write_bytes(target, pixels)
        write_json(content, out)
        return content


def shown(problems: Sequence[object]) -> list[str]:
    """Return one line for each of the first problems, and the number of the others."""
    lines = [cut(printable(str(problem)), 500) for problem in problems[:_SHOWN]]
    more = len(problems) - _SHOWN
    return [*lines, f"… and {more} more"] if more > 0 else lines


def relative(file: Path, folder: Path) -> str:
    """Return a relative path for a COCO file, with slashes on every system."""
    return Path(os.path.relpath(file, folder)).as_posix()


def read_text(file: Path) -> str:
    """Read a file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        InvalidAnnotation: it has another encoding, or cannot be read.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InvalidAnnotation(f"expected a readable file: {error.strerror}") from None
    encoding = json.detect_encoding(content)  # by the byte order mark, or by the position of zero bytes
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        got = f"byte {error.object[error.start]:#04x}" if error.start < len(error.object) else error.reason
        raise InvalidAnnotation(f"expected text in {name}, got {got}") from None
    if "\0" in text:
        raise InvalidAnnotation("expected text in UTF-8, got the character NUL")
    return text


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
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise InvalidAnnotation(f"expected JSON: {error}", error.lineno) from None
    except RecursionError:
        raise InvalidAnnotation("expected JSON, got lists or objects that are nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise InvalidAnnotation(f"expected JSON: {error}") from None


def _object(pairs: list[tuple[str, object]]) -> dict:
    whole = dict(pairs)
    if len(whole) != len(pairs):
        ((key, count),) = Counter(key for key, _ in pairs).most_common(1)
        where = f", in the object with id {short(whole['id'])}" if key != "id" and "id" in whole else ""
        raise InvalidAnnotation(f"expected each key once in an object, got {short(key)} {count} times{where}")
    return whole


def write_json(content: dict, out: str | Path) -> None:
    """Write a JSON file atomically."""
    try:
        text = json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a file name that is not valid UTF-8: escape it
        text = json.dumps(content).encode()
    write_bytes(out, text + b"\n")


def number(text: str) -> float:
    """Convert text to a finite number. Unlike Python's ``float``, reject underscores as in ``1_000``.

    Raises:
        ValueError: it is not a finite number.
    """
    value = float(text)
    if "_" in text or not math.isfinite(value):
        raise ValueError(text)
    return value


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a finite number below 2^63."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**63 and math.isfinite(value)  # isfinite raises OverflowError for larger integers


# shortens long and deeply nested values
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 3


def short(value: object) -> str:
    """Format a value from a file for a message."""
    return cut(_SHORT.repr(value))


def cut(text: str, most: int = 60) -> str:
    """Shorten a text in the middle."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]}…{text[-most // 4 :]}"


def counted(number: int, plural: str) -> str:
    """``1 image``, ``2 images``"""
    return f"{number} {plural if number != 1 else plural.replace('ies', 'y').removesuffix('s')}"


def few(names: Sequence[object], shown: int = 5) -> str:
    """List the first names, and the number of the others."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(cut(str(name)) for name in names[:shown]) + rest or "none"


def flattened(polygon: Polygon) -> list[float] | None:
    """Return ``[x, y, x, y, …]``, rounded as in the file; None if rounding leaves no area."""
    flat = [round(float(value), 2) for point in polygon for value in point]
    return flat if polygon_area(list(zip(flat[::2], flat[1::2], strict=True))) > 0 else None


def _text(points: Polygon) -> str:
    text = ", ".join(f"({x:g}, {y:g})" for x, y in points[:4])
    return text + (", …" if len(points) > 4 else "")
