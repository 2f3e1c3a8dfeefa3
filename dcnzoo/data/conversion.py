"""Shared code of the readers: image sizes, geometry, and the content of a COCO file that they build.

Coordinates are COCO's: (0, 0) is the upper left corner of the first pixel, (1, 1) its lower right corner.
"""

import functools
import math
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import shapely
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from pycocotools import mask as coco_mask

from dcnzoo.data.files import Entries, InvalidAnnotation, read_lines
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.progress import track
from dcnzoo.utils.text import few, short
from dcnzoo.version import __version__

# An edge may lie this far outside the image because of rounding; it is moved to the border.
TOLERANCE = 1.0  # pixels
# Larger than any image. pycocotools crashes at much larger coordinates.
FAR = 1_000_000  # pixels
MISSING = "missing-image"  # kind of problem: the picture of the annotations does not exist
_ORIENTATION = 0x0112

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2
Polygon = Sequence[tuple[float, float]] | np.ndarray  # [points, 2], (x, y)


def image_size(file: Path | BinaryIO, name: str | None = None, decode: bool = False) -> tuple[int, int]:
    """Return (width, height) of an image as MMDetection loads it: rotated by its EXIF orientation.

    Args:
        file: a path, or an open file.
        name: of the image in messages; by default its path.
        decode: read all pixels, to detect a damaged file.

    Raises:
        InvalidAnnotation: it does not exist, is not an image or is damaged.
    """
    name = name or str(file)
    if isinstance(file, Path) and not os.path.isfile(file):  # opening a pipe would wait for its other end
        raise InvalidAnnotation(f"expected an image, found none at {name}", kind=MISSING)
    try:
        with Image.open(file) as image:
            if image.format == "AVIF" and not _opencv_reads_avif():
                raise InvalidAnnotation("AVIF, which this OpenCV cannot read")
            turned = image.format != "AVIF" and orientation(image) > 4  # which OpenCV does not rotate
            if decode:
                image.load()
            return image.size[::-1] if turned else image.size
    except Exception as error:  # each decoder has its own errors: OSError, SyntaxError, zlib.error, …
        if isinstance(error, Image.DecompressionBombError) and (size := _size_by_opencv(file)):
            return size
        raise InvalidAnnotation(f"expected an image at {name}, got another file: {error}") from None


@functools.cache
def _opencv_reads_avif() -> bool:
    import cv2

    return cv2.haveImageWriter("a.avif")


def _size_by_opencv(file: Path | BinaryIO) -> tuple[int, int] | None:
    """Decode a picture of more than 178 megapixels, which Pillow refuses and MMDetection reads."""
    import cv2

    if not isinstance(file, Path):
        file.seek(0)
    content = file.read_bytes() if isinstance(file, Path) else file.read()
    with suppress(cv2.error):
        if (picture := cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)) is not None:
            return picture.shape[1], picture.shape[0]
    return None


def orientation(image: Image.Image) -> int:
    """Return that of the EXIF data: 1 is upright, 5 to 8 swap width and height.

    OpenCV ignores an orientation in XMP or in other texts.
    """
    exif = Image.Exif()
    exif.load(_png_exif(image) if isinstance(image, PngImageFile) else image.info.get("exif", b""))
    value: Any = exif.get(_ORIENTATION)
    return value if value in range(1, 9) else 1


def _png_exif(image: PngImageFile) -> bytes:
    """Return the EXIF data, also from behind the pixels, which Pillow would decode first."""
    file = image.fp
    assert file is not None
    position = file.tell()
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IEND":
                return b""
            if kind == b"eXIf":
                return file.read(length)
            file.seek(length + 4, os.SEEK_CUR)  # with the checksum
    finally:
        file.seek(position)
    image.load()  # the file is cut off, perhaps before its last pixels
    return b""


def wrong_size(stated: Sequence[object], size: tuple[int, int], file: Path) -> str:
    """Explain that the stated (width, height) is not that of an image."""
    text = f"expected {size[0]} × {size[1]}, the size of {file}, got {short(stated[0])} × {short(stated[1])}"
    swapped = tuple(stated) == size[::-1]
    return f"{text}; width and height are swapped, as by an EXIF orientation" if swapped else text


def polygon_area(polygon: Polygon) -> float:
    """Return the enclosed area; parts with the opposite orientation count as negative."""
    first, *corners = _pairs(polygon)
    before, total = 0.0, 0.0
    # relative to the first corner: far from the origin, the products would lose precision
    for (x, y), (_, after) in zip(corners, [*corners[1:], first], strict=True):
        total += (x - first[0]) * (before - (after - first[1]))
        before = y - first[1]
    return abs(total / 2)


def _pairs(points: Polygon) -> Sequence[Any]:
    """Return pairs of numbers: for the usual few points, they are faster than arrays."""
    return points.tolist() if isinstance(points, np.ndarray) else points


def corners_of(points: Polygon) -> Corners:
    """Return the corners of the box around points."""
    xs, ys = zip(*_pairs(points), strict=True)
    return float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))


def ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0) -> Polygon:
    """Return an outline of 64 corners, whose area is 0.2 % smaller; ``a`` and ``b`` are half the axes."""
    steps = [2 * math.pi * step / 64 for step in range(64)]
    cos, sin = math.cos(angle), math.sin(angle)
    points = [(a * math.cos(step), b * math.sin(step)) for step in steps]
    return [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in points]


def is_inside(corners: Corners, size: tuple[int, int], tolerance: float = 0.0) -> bool:
    """Whether a box extends beyond the image by at most ``tolerance`` pixels."""
    x1, y1, x2, y2 = corners  # not a loop: a file can have a million boxes
    return min(x1, y1) >= -tolerance and x2 <= size[0] + tolerance and y2 <= size[1] + tolerance


def box_and_area(mask: list | dict) -> tuple[list[float], float]:
    """Return the box, [x, y, width, height], and the area of a valid mask, polygons [x, y, …] or RLE."""
    if isinstance(mask, dict):
        extent = [int(side) for side in mask["size"]]  # a file may have 30.0
        mask = {**mask, "size": extent}
        rle = mask if isinstance(mask["counts"], str | bytes) else coco_mask.frPyObjects(mask, *extent)
        return coco_mask.toBbox(rle).tolist(), float(coco_mask.area(rle))
    polygons = [[*zip(each[::2], each[1::2], strict=True)] for each in mask]
    x1, y1, x2, y2 = corners_of([*chain.from_iterable(polygons)])
    area = polygon_area(polygons[0])
    if len(polygons) > 1:  # they may overlap
        area = shapely.area(
            shapely.union_all(shapely.make_valid([shapely.polygons(each) for each in polygons]))
        )
    return [x1, y1, x2 - x1, y2 - y1], float(area)


def clip_box(corners: Corners, size: tuple[int, int]) -> Corners:
    """Return the part of a box inside the image."""
    (x1, y1, x2, y2), (width, height) = corners, size
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)


def turned_box(corners: Corners, angle: float, size: tuple[int, int]) -> Corners:
    """Return the upright box inside the image around one that is turned by an angle in degrees."""
    x1, y1, x2, y2 = corners
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    u, v = ((x2 - x1) * cos + (y2 - y1) * sin) / 2, ((x2 - x1) * sin + (y2 - y1) * cos) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return clip_box((x - u, y - v, x + u, y + v), size)


def clip_polygons(polygons: Sequence[Polygon], size: tuple[int, int]) -> list[list[float]]:
    """Return the parts of polygons inside the image, as in a COCO file: [x, y, …], rounded, with an area."""
    parts = [_rounded(part) for polygon in polygons for part in clip_polygon(polygon, size)]
    return [[*chain.from_iterable(part)] for part in parts if polygon_area(part) > 0]


def _rounded(points: Polygon) -> list[tuple[float, float]]:
    """Return points in hundredths of pixels, as ``np.round``."""
    return [(round(x * 100) / 100, round(y * 100) / 100) for x, y in _pairs(points)]


def clip_polygon(polygon: Polygon, size: tuple[int, int]) -> list[Polygon]:
    """Return the parts of a polygon inside the image: none, one, or several if it is concave."""
    if is_inside(corners_of(polygon), size):
        return [polygon]
    # shapely.intersection does not accept polygons with crossing sides
    valid = shapely.make_valid(shapely.polygons(np.asarray(polygon, float)))
    inside = shapely.intersection(valid, shapely.box(0, 0, *size))
    parts = shapely.get_parts(shapely.get_parts(inside))
    return [_outline(part) for part in parts if part.geom_type == "Polygon" and not part.is_empty]


def _outline(part: shapely.Polygon) -> Polygon:
    """Return the corners, each once. COCO's polygons have no holes: join each hole by a line of no width."""
    points = list(part.exterior.coords)
    for hole in part.interiors:
        points += [*hole.coords, points[0]]
    return points[:-1]


@dataclass
class _Built(Entries):
    objects: list[tuple[str, bytes]]  # class name, the fields other than id and category_id
    category_ids: dict[str, int]

    def __len__(self) -> int:
        return len(self.objects)

    def texts(self, numbers: slice | np.ndarray) -> list[bytes]:
        return [
            b'{"id":%d,"category_id":%d,%b' % (number + 1, self.category_ids[name], fields[1:])
            for number in np.arange(len(self))[numbers].tolist()
            for name, fields in [self.objects[number]]
        ]


@dataclass(eq=False, kw_only=True)
class Reading:
    """What was found while the files of a split were read.

    Attributes:
        problems: of the files, those of an annotation file in its order.
        sources: the files that were read.
        extracted: pictures to write with the COCO file: path, and a function that returns the content.
        repaired: a text for each kind of repair or decision.
        missing: the files or entries whose pictures do not exist.
        lost: the number of their objects.
        unlabelled: the pictures that have no file of annotations.
        emptied: the number of pictures whose objects all have problems.
    """

    problems: list[Finding] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    extracted: list[tuple[Path, Callable[[], bytes]]] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    missing: list[Finding] = field(default_factory=list)
    lost: int = 0
    unlabelled: list[Path] = field(default_factory=list)
    emptied: int = 0


class CocoBuilder(Reading):
    """Collects images, objects and problems, for the content of a COCO file.

    Objects belong to the image that was added last. ``add_box``, ``add_polygons`` and ``add_mask`` raise
    InvalidAnnotation if the object has no area, extends beyond the image or has an unknown class.

    Args:
        classes: names in the order of their labels; None: the names that occur, sorted.
        clip: clip objects to the image; otherwise, more than a pixel outside is a problem.
        folder: to which the names of the images are relative; None: the deepest that contains them all.

    Attributes:
        clipped, turned: numbers of objects that were clipped, or got the upright box around them.
    """

    def __init__(
        self, classes: Sequence[str] | None = None, clip: bool = False, folder: Path | None = None
    ) -> None:
        if classes is not None:
            repeated = [name for name, count in Counter(classes).items() if count > 1]
            if not classes or repeated or not all(classes):
                found = f"{', '.join(repeated)} more than once" if repeated else f"{list(classes)}"
                raise UserError(f"classes: expected at least 1 name, each once, got {found}")
        super().__init__()
        self.classes = None if classes is None else tuple(classes)
        self._known = frozenset(classes or ())
        self.clip, self.tolerance = clip, math.inf if clip else TOLERANCE
        self.clipped = self.turned = 0
        self.size = (0, 0)  # (width, height) of the last image
        self._folder = folder
        self._images: dict[Path, tuple[int, int]] = {}  # (width, height)
        self._objects: list[tuple[str, bytes]] = []
        self._annotated, self._incomplete = set[int](), set[int]()  # numbers of images
        self._is_reading = False  # whether the last image is that of the current file

    @property
    def pictures(self) -> list[Path]:
        """The files of the images, in the order of the content."""
        return [*self._images]

    @property
    def folder(self) -> Path:
        """The folder to which the names of the images are relative."""
        if self._folder is None and self._images:
            self._folder = Path(os.path.commonpath({file.parent for file in self._images}))
        return self._folder or Path()

    def add_image(self, file: Path, size: tuple[int, int]) -> None:
        """Add an image of this size, (width, height).

        Raises:
            InvalidAnnotation: the image has been added before.
        """
        if file in self._images:
            raise InvalidAnnotation(f"expected each image once, got {file} again")
        self._images[file] = self.size = size
        self._is_reading = True

    def add_box(self, name: str, corners: Corners, iscrowd: int = 0, **extra: object) -> None:
        """Add an object without an outline."""
        self._check_inside([corners[:2], corners[2:]])
        (x1, y1, x2, y2), kept = corners, clip_box(corners, self.size)
        # test before clipping: an inverted box is not clipped
        if x1 < x2 and y1 < y2:
            x1, y1, x2, y2 = kept
        if not min(round(x2 - x1, 2), round(y2 - y1, 2)) > 0:  # rounded as in the file
            raise InvalidAnnotation(f"{name}: expected a box with an area, got {x2 - x1:g} × {y2 - y1:g}")
        self.clipped += (x1, y1, x2, y2) != corners
        self._add(name, [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1), iscrowd=iscrowd, **extra)

    def add_polygons(self, name: str, polygons: Sequence[Polygon]) -> None:
        """Add an object whose parts have these outlines, of at least three points each."""
        corners = [self._check_inside(polygon) for polygon in polygons]
        areas = [polygon_area(polygon) for polygon in polygons]
        if not min(areas) > 0:
            raise InvalidAnnotation(f"{name}: expected a polygon with an area, got {min(areas):g} pixels²")
        inside = all(is_inside(each, self.size) for each in corners)
        self.clipped += not inside
        if inside and len(polygons) == 1:  # the usual object: nothing is computed twice
            outline = _rounded(polygons[0])
            (x1, y1), (x2, y2) = _rounded([corners[0][:2], corners[0][2:]])
            box, area = [x1, y1, x2 - x1, y2 - y1], polygon_area(outline)
            mask = [[*chain.from_iterable(outline)]]
        else:
            mask = clip_polygons(polygons, self.size)
            box, area = box_and_area(mask) if mask else ([], 0)
        if not area > 0:
            raise InvalidAnnotation(f"{name}: expected a polygon with an area in the image, got 0 pixels²")
        self._add(name, box, area, iscrowd=0, segmentation=mask)

    def add_mask(self, name: str, mask: np.ndarray) -> None:
        """Add an object that covers the pixels of a mask.  # mask: [H, W] of the image, bool"""
        if not mask.any():
            raise InvalidAnnotation(f"{name}: expected a mask that covers at least 1 pixel, got 0")
        encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        rle = {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode()}
        self._add(name, *box_and_area(rle), iscrowd=0, segmentation=rle)

    def _check_inside(self, points: Polygon) -> Corners:
        """Return the corners of points, unless they are outside."""
        x1, y1, x2, y2 = corners = corners_of(points)
        if not (min(x1, y1) >= -FAR and max(x2, y2) <= FAR) or math.isnan(sum(map(sum, points))):
            raise InvalidAnnotation(f"expected coordinates of at most {FAR:,} pixels, got {short([*points])}")
        if not is_inside(corners, self.size, self.tolerance):
            size = f"{self.size[0]} × {self.size[1]}"
            raise InvalidAnnotation(
                f"expected coordinates inside of the image, {size}, got {short([*points])}"
            )
        return corners

    def _add(self, name: str, box: Sequence[float], area: float, **more: object) -> None:
        if self.classes is not None and name not in self._known:
            raise InvalidAnnotation(f"expected one of the classes {few(self.classes)}, got {short(name)}")
        box = [round(value, 2) for value in box]
        entry = {"image_id": len(self._images), "bbox": box, "area": round(area, 2), **more}
        self._objects.append((name, msgspec.json.encode(entry)))
        self._annotated.add(len(self._images))

    @contextmanager
    def refusing(self, file: Path, line: int | None = None, what: str = "") -> Iterator[None]:
        """Record an InvalidAnnotation of the block. Its line number takes precedence over ``line``."""
        try:
            yield
        except InvalidAnnotation as error:
            line = error.line or line
            where = f"{file}:{line}" if line else str(file)
            finding = Finding(where, f"{what}{error}", error.kind)
            (self.missing if error.kind == MISSING else self.problems).append(finding)
            self.lost += error.objects
            if self._is_reading and error.kind != MISSING:
                self._incomplete.add(len(self._images))

    def convert(self, files: Sequence[Path], read: Callable[[Path], None]) -> None:
        """Call ``read`` with each file."""
        self.sources += files
        for file in track(files, "reading"):
            self._is_reading = False
            with self.refusing(file):
                if file.is_fifo():  # reading would wait for the other end
                    raise InvalidAnnotation("expected a file, got a pipe")
                read(file)

    def listed(self, listing: Path, file_of: Callable[[str], Path]) -> Iterator[Path]:
        """Yield the file of each line of a text file; a file that does not exist is a problem."""
        with self.refusing(listing):
            for number, line in read_lines(listing):
                with self.refusing(listing, number):
                    file = file_of(line)
                    if not os.path.isfile(file):  # Path.is_file raises if the name is too long
                        raise InvalidAnnotation(f"expected a file, found none at {file}")
                    yield file

    def content(self) -> dict:
        """Return the content of the COCO file, with all given classes and :class:`Entries`."""
        self.emptied = len(self._incomplete - self._annotated)
        names = self.classes or tuple(sorted({name for name, _ in self._objects}))
        ids = {name: number for number, name in enumerate(names, 1)}
        images = [
            {"id": number, "file_name": relative(file, self.folder), "width": width, "height": height}
            for number, (file, (width, height)) in enumerate(self._images.items(), 1)
        ]
        return {
            "info": {"description": f"written by dcnzoo {__version__}"},
            "images": images,
            "annotations": _Built(self._objects, ids),
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
        }


def relative(file: Path, folder: Path) -> str:
    """Return a relative path for a COCO file, with slashes on every system."""
    return Path(os.path.relpath(file, folder)).as_posix()
