"""Read LabelMe's JSON files."""

import base64
import functools
import io
import math
import os
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from dcnzoo.data.conversion import MISSING, CocoBuilder, Polygon, ellipse, image_size, wrong_size
from dcnzoo.data.files import InvalidAnnotation, is_number, read_json
from dcnzoo.data.splits import Part, ReadOptions, Tree, parts_by_split
from dcnzoo.utils.formats import PICTURES
from dcnzoo.utils.text import few, short

# those with an area → the number of points; X-AnyLabeling writes four corners, also of rotated rectangles
_POINTS = {
    "polygon": ("at least 3", range(3, sys.maxsize)),
    "rectangle": ("2 or 4", (2, 4)),
    "rotation": ("4", (4,)),
    "circle": ("2", (2,)),
    "mask": ("2", (2,)),
}


def find_labelme(tree: Tree) -> list[Part]:
    """Return the parts of a folder with LabelMe's files.

    Polygons, rectangles, circles and masks become objects. Shapes with the same label and ``group_id`` in a
    file become one object. Shapes without an area (points, lines) are problems.
    """
    files = {file: tree.part_of(file) for file, each in tree.json.items() if is_labelme(each)}

    def parse(own: tuple[Path, ...], split: str, options: ReadOptions) -> CocoBuilder:
        builder = CocoBuilder(options.classes, options.clip, tree.root)
        builder.convert(own, functools.partial(_convert_file, tree, builder, options.extract, split))
        if joined := sum(len(tree.json[file]["shapes"]) - len(_groups(tree.json[file])) for file in own):
            builder.repaired.append(f"shapes joined to others with their label and group_id: {joined}")
        return builder

    return parts_by_split(files, parse)


def is_labelme(content: object) -> bool:
    """Whether this is the content of one of LabelMe's files."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _convert_file(tree: Tree, conversion: CocoBuilder, extract: Path | None, split: str, file: Path) -> None:
    content = tree.json[file]
    image, pixels = _image(file, tree, content, extract, split)
    conversion.sources.append(image)
    size = image_size(image if pixels is None else io.BytesIO(pixels), str(image))
    stated = (content.get("imageWidth"), content.get("imageHeight"))
    if stated not in (size, (None, None)):
        raise InvalidAnnotation(f"imageWidth, imageHeight: {wrong_size(stated, size, image)}")
    conversion.add_image(image, size)
    if pixels is not None:
        # read again when written: the images of a folder may not fit into memory
        conversion.extracted.append((image, lambda: base64.b64decode(read_json(file)["imageData"])))
    for shapes in _groups(content):
        places = ", ".join(f"shapes[{index}]" for index, _ in shapes)
        with conversion.refusing(file, what=f"{places}: "):
            _convert_shapes([shape for _, shape in shapes], conversion)


def _groups(content: dict) -> Collection[list[tuple[int, dict]]]:
    """Return the shapes of each object, with their numbers."""
    groups: dict[object, list[tuple[int, dict]]] = {}
    for index, shape in enumerate(content["shapes"]):
        group = shape.get("group_id") if isinstance(shape, dict) else None
        key = index if group is None else (str(group), str(shape.get("label")).strip())
        groups.setdefault(key, []).append((index, shape))
    return groups.values()


def _image(
    file: Path, tree: Tree, content: dict, extract: Path | None, split: str
) -> tuple[Path, bytes | None]:
    """Return the image's file, and its bytes if it exists only in the JSON."""
    named = content.get("imagePath")
    if isinstance(named, str) and named:
        image = file.parent / named.replace("\\", "/")
        if os.path.isfile(image):  # Path.is_file raises if the name is too long
            beside = [each.name for each in tree.by_stem.get(file.stem) if each.parent == file.parent]
            if beside and image.name not in beside:
                raise InvalidAnnotation(
                    f"imagePath: expected {few(beside)}, beside the file, got {short(named)}"
                )
            return Path(os.path.normpath(image)), None
        paths = tree.of(file, named, split)  # the name is that on another machine, or an older one
        if len(paths) == 1:
            return paths[0], None
    content = read_json(file)  # again: the content that was handed over may lack imageData
    if not content.get("imageData"):
        raise InvalidAnnotation(
            f"expected an image at imagePath or in imageData, found none at {short(named)}",
            kind=MISSING,
            objects=len(content["shapes"]),
        )
    if extract is None:
        raise InvalidAnnotation(
            f"expected an image at {short(named)}; extract=FOLDER writes the one in imageData"
        )
    pixels, embedded = _decode(content["imageData"], "imageData")
    kind = str(embedded.format)
    suffix = ".jpg" if kind in ("JPEG", "MPO") else f".{kind.lower()}"
    if suffix not in PICTURES:
        raise InvalidAnnotation(f"imageData: expected one of {', '.join(PICTURES)}, got {kind}")
    # from the JSON file's name: a path in its content could point anywhere
    return (extract / file.relative_to(tree.root)).with_suffix(suffix), pixels


def _decode(data: object, field: str) -> tuple[bytes, Image.Image]:
    """Decode an image in base64; return its bytes and the image."""
    try:
        content = base64.b64decode(str(data), validate=True)
        image = Image.open(io.BytesIO(content))
        image.load()  # decode it completely, to detect a truncated image
        return content, image
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise InvalidAnnotation(f"{field}: expected an image in base64, got {short(data)}: {error}") from None


def _convert_shapes(shapes: list, conversion: CocoBuilder) -> None:
    """Convert the shapes of one object."""
    for shape in shapes:
        _check(shape)
    name = shapes[0]["label"].strip()
    outlines = [_outline(shape) for shape in shapes if shape.get("shape_type") != "mask"]
    masks = [_mask(shape, conversion.size) for shape in shapes if shape.get("shape_type") == "mask"]
    if masks and outlines:
        raise InvalidAnnotation(f"{name}: expected masks or outlines in one group_id, got both")
    if masks:
        conversion.add_mask(name, np.any(masks, axis=0))
    else:
        conversion.add_polygons(name, outlines)


def _check(shape: object) -> None:
    if not isinstance(shape, dict):
        raise InvalidAnnotation(f"expected a shape with label and points, got {short(shape)}")
    label, kind, points = shape.get("label"), shape.get("shape_type", "polygon"), shape.get("points")
    if not isinstance(label, str) or not label.strip():
        raise InvalidAnnotation(f"label: expected a name, got {short(label)}")
    if not isinstance(kind, str) or kind not in _POINTS:
        kinds = ", ".join(_POINTS)
        raise InvalidAnnotation(f"{label}: shape_type: expected one of {kinds}, got {short(kind)}")
    expected, valid = _POINTS[kind]
    if not isinstance(points, list) or len(points) not in valid:
        raise InvalidAnnotation(f"{label}: points: expected {expected} for a {kind}, got {short(points)}")
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(map(is_number, point)):
            raise InvalidAnnotation(f"{label}: points: expected [x, y], finite numbers, got {short(point)}")


def _outline(shape: dict) -> Polygon:
    kind, points = shape.get("shape_type", "polygon"), shape["points"]
    if kind in ("polygon", "rotation") or len(points) == 4:
        return [(x, y) for x, y in points]
    (x1, y1), (x2, y2) = points
    if kind == "rectangle":
        return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    radius = math.hypot(x2 - x1, y2 - y1)  # a circle is given by its centre and a point on it
    return ellipse(x1, y1, radius, radius)


def _mask(shape: dict, size: tuple[int, int]) -> np.ndarray:  # [H, W], bool
    """Return a mask of the image; ``mask`` is an image of the region between the two points."""
    label = shape["label"]
    part = np.asarray(_decode(shape.get("mask"), f"{label}: mask")[1].convert("L")) > 0
    (x1, y1), (x2, y2) = ((round(x), round(y)) for x, y in shape["points"])
    height, width = part.shape
    if (x2 - x1 + 1, y2 - y1 + 1) != (width, height):
        expected = f"{x2 - x1 + 1} × {y2 - y1 + 1} pixels, the region between its points"
        raise InvalidAnnotation(f"{label}: mask: expected {expected}, got {width} × {height}")
    if min(x1, y1) < 0 or x2 >= size[0] or y2 >= size[1]:
        got = short(shape["points"])
        raise InvalidAnnotation(f"{label}: mask: expected points inside the image, {size}, got {got}")
    mask = np.zeros((size[1], size[0]), bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = part
    return mask
