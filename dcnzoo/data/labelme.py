"""Convert LabelMe's JSON files to COCO's format."""

from __future__ import annotations

import base64
import binascii
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dcnzoo.data.conversion import (
    SUFFIXES,
    CocoBuilder,
    InvalidAnnotation,
    Polygon,
    Step,
    image_size,
    is_number,
    read_json,
    relative,
    short,
    wrong_size,
)
from dcnzoo.utils.errors import UserError

_CIRCLE = 64  # corners of the polygon for a circle; its area is 0.2 % smaller
_KEPT = ("polygon", "rectangle", "circle", "mask")
_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def convert_labelme(
    root: str | Path,
    classes: Sequence[str] | None = None,
    extract: str | Path | None = None,
    clip: bool = False,
    step: Step = lambda done, total: None,
) -> tuple[CocoBuilder, Path]:
    """Read LabelMe's files in a folder and its subfolders.

    Polygons, rectangles, circles and masks become objects. Shapes with the same label and ``group_id`` in a
    file become one object. Shapes without an area (points, lines) are problems.

    Args:
        root: the folder.
        classes: names in the order of their labels; by default the names that occur, sorted.
        extract: folder for images that exist only inside their JSON files; they are written together with the
            COCO file.
        clip: see :class:`~dcnzoo.data.conversion.CocoBuilder`.
        step: called after each file.

    Returns:
        The conversion, with its problems, and the folder to which the images' names are relative: ``root``.

    Raises:
        UserError: the folder does not exist or contains no JSON file.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise UserError(f"folder: expected a folder, found none at {root}")
    conversion = CocoBuilder(classes, clip)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() == ".json")
    if not files:
        raise UserError(f"folder: expected LabelMe's JSON files, found none in {root}")
    folder = None if extract is None else Path(extract)
    conversion.convert(files, lambda file: _convert_file(file, root, conversion, folder), step)
    return conversion, root


def _convert_file(file: Path, root: Path, conversion: CocoBuilder, extract: Path | None) -> None:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise InvalidAnnotation("expected LabelMe's JSON, with a list of shapes")
    image, pixels = _image(file, root, content, extract)
    conversion.sources.append(image)
    size = image_size(image if pixels is None else io.BytesIO(pixels), str(image))
    said = (content.get("imageWidth"), content.get("imageHeight"))
    if said != size and said != (None, None):
        raise InvalidAnnotation(f"imageWidth, imageHeight: {wrong_size(said, size, image)}")
    number = conversion.add_image(relative(image, root), size)
    if pixels is not None:
        # read again when written: the images of a folder may not fit into memory
        conversion.add_extracted(image, lambda: _decode(read_json(file)["imageData"], "imageData")[0])
    groups: dict[object, list[tuple[int, dict]]] = {}  # shapes by object
    for index, shape in enumerate(content["shapes"]):
        group = shape.get("group_id") if isinstance(shape, dict) else None
        key = index if group is None else (str(group), str(shape.get("label")))
        groups.setdefault(key, []).append((index, shape))
    for shapes in groups.values():
        places = ", ".join(f"shapes[{index}]" for index, _ in shapes)
        with conversion.refusing(file, what=f"{places}: "):
            _convert_shapes([shape for _, shape in shapes], number, size, conversion)


def _image(file: Path, root: Path, content: dict, extract: Path | None) -> tuple[Path, bytes | None]:
    """Return the image's file, and its bytes if it exists only in the JSON."""
    named = content.get("imagePath")
    if isinstance(named, str) and named:
        image = file.parent / named.replace("\\", "/")
        if os.path.isfile(image):  # Path.is_file raises if the name is too long
            return image, None
    data = content.get("imageData")
    if not isinstance(data, str) or not data:
        raise InvalidAnnotation(
            "expected an image at imagePath or in imageData, "
            f"got imagePath {short(named)}, which does not exist"
        )
    if extract is None:
        raise InvalidAnnotation(
            f"expected an image, found none at imagePath {short(named)}; "
            "--extract FOLDER writes the embedded image"
        )
    pixels, embedded = _decode(data, "imageData")
    kind = str(embedded.format)
    suffix = ".jpg" if kind in ("JPEG", "MPO") else f".{kind.lower()}"
    if suffix not in SUFFIXES:
        raise InvalidAnnotation(f"imageData: expected one of {', '.join(SUFFIXES)}, got {kind}")
    # from the JSON file's name: a path in its content could point anywhere
    return (extract / file.relative_to(root)).with_suffix(suffix), pixels


def _decode(data: str, what: str) -> tuple[bytes, Image.Image]:
    """Decode an image in base64; return its bytes and the image."""
    try:
        content = base64.b64decode(data, validate=True)
        image = Image.open(io.BytesIO(content))
        image.load()  # decode it completely, to detect a truncated image
        return content, image
    except UnidentifiedImageError:
        raise InvalidAnnotation(
            f"{what}: expected an image in base64, got {len(content)} bytes of another format"
        ) from None
    except (binascii.Error, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise InvalidAnnotation(f"{what}: expected an image in base64: {error}") from None


def _convert_shapes(shapes: list, image: int, size: tuple[int, int], conversion: CocoBuilder) -> None:
    """Convert the shapes of one object."""
    for shape in shapes:
        _check(shape)
    name = shapes[0]["label"]
    outlines = [_outline(shape) for shape in shapes if shape.get("shape_type") != "mask"]
    masks = [_mask(shape, size) for shape in shapes if shape.get("shape_type") == "mask"]
    if masks and outlines:
        raise InvalidAnnotation(f"{name}: expected masks or outlines in one group_id, got both")
    if masks:
        conversion.add_mask(image, name, np.any(masks, axis=0))
    else:
        conversion.add_polygons(image, size, name, outlines)


def _check(shape: object) -> None:
    if not isinstance(shape, dict):
        raise InvalidAnnotation(f"expected a shape with label and points, got {short(shape)}")
    label, kind, points = shape.get("label"), shape.get("shape_type", "polygon"), shape.get("points")
    if not isinstance(label, str) or not label:
        raise InvalidAnnotation(f"label: expected a name, got {short(label)}")
    if kind in _WITHOUT_AREA:
        raise InvalidAnnotation(f"{label}: expected a shape with an area, got a {kind}")
    if kind not in _KEPT:
        raise InvalidAnnotation(f"{label}: shape_type: expected one of {', '.join(_KEPT)}, got {short(kind)}")
    wanted = "at least 3" if kind == "polygon" else "2"
    if not isinstance(points, list) or (len(points) < 3 if kind == "polygon" else len(points) != 2):
        got = len(points) if isinstance(points, list) else short(points)
        raise InvalidAnnotation(f"{label}: points: expected {wanted} points [x, y] for a {kind}, got {got}")
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(map(is_number, point)):
            raise InvalidAnnotation(
                f"{label}: points: expected [x, y], two finite numbers, got {short(point)}"
            )


def _outline(shape: dict) -> Polygon:
    kind, points = shape.get("shape_type", "polygon"), shape["points"]
    if kind == "polygon":
        return [(x, y) for x, y in points]
    (x1, y1), (x2, y2) = points
    if kind == "rectangle":
        return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    radius = math.hypot(x2 - x1, y2 - y1)  # a circle is given by its centre and a point on it
    angles = (2 * math.pi * step / _CIRCLE for step in range(_CIRCLE))
    return [(x1 + radius * math.cos(angle), y1 + radius * math.sin(angle)) for angle in angles]


def _mask(shape: dict, size: tuple[int, int]) -> np.ndarray:  # [H, W], bool
    """Return a mask of the image; ``mask`` is an image of the region between the two points."""
    label, data = shape["label"], shape.get("mask")
    if not isinstance(data, str):
        raise InvalidAnnotation(f"{label}: mask: expected an image in base64, got {type(data).__name__}")
    _, image = _decode(data, f"{label}: mask")
    part = np.asarray(image.convert("L")) > 0
    (x1, y1), (x2, y2) = ((round(x), round(y)) for x, y in shape["points"])
    height, width = part.shape
    if (x2 - x1 + 1, y2 - y1 + 1) != (width, height):
        raise InvalidAnnotation(
            f"{label}: mask: expected {x2 - x1 + 1} × {y2 - y1 + 1} pixels, the region between its two "
            f"points, got {width} × {height}"
        )
    if min(x1, y1) < 0 or x2 >= size[0] or y2 >= size[1]:
        raise InvalidAnnotation(
            f"{label}: mask: expected points inside the image, {size[0]} × {size[1]}, "
            f"got {short(shape['points'])}"
        )
    whole = np.zeros((size[1], size[0]), bool)
    whole[y1 : y2 + 1, x1 : x2 + 1] = part
    return whole
