"""Read LabelMe's JSON files, also those of AnyLabeling and X-AnyLabeling."""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from dcnzoo.data.dataset import Polygon, Split, ellipse
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.tree import Tree
from dcnzoo.utils.text import short


def is_labelme(content: object) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def read_labelme(
    files: list[Path], contents: Mapping[Path, Any], tree: Tree, name: str, split: Split
) -> None:
    """Add pictures and shapes. Shapes with the same label and ``group_id`` in a file become one object."""
    split.sources += files
    for file in files:
        content = contents[file]
        with split.refusing(file):
            picture = tree.picture(str(content.get("imagePath")), file.parent, name)
            split.add_picture(picture, (content.get("imageWidth"), content.get("imageHeight")))
            groups: dict[object, list[dict]] = defaultdict(list)
            for number, shape in enumerate(content["shapes"]):
                group = shape.get("group_id")
                groups[number if group is None else (group, shape.get("label"))].append(shape)
            for shapes in groups.values():
                with split.refusing(f"{file}: {short(shapes[0].get('label'))}"):
                    _add(shapes, split)


def _add(shapes: list[dict], split: Split) -> None:
    label = shapes[0].get("label")
    if not isinstance(label, str) or not label.strip():
        raise InvalidAnnotation(f"label: expected a name, got {short(label)}")
    try:
        if all(shape.get("shape_type") == "mask" for shape in shapes):
            mask = np.any([_mask(shape, split.size) for shape in shapes], axis=0)
            rle: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            split.add_mask(label.strip(), {"size": rle["size"], "counts": rle["counts"].decode()})
        else:
            split.add_polygons(label.strip(), [*map(_outline, shapes)])
    except (LookupError, TypeError, ValueError, OSError) as error:
        raise InvalidAnnotation(f"expected a shape with points, got {short(shapes[0])}: {error}") from None


def _outline(shape: dict) -> Polygon:
    kind, points = shape.get("shape_type", "polygon"), [(float(x), float(y)) for x, y in shape["points"]]
    if kind in ("polygon", "rectangle", "rotation") and len(points) > 2:
        return points
    if len(points) == 2 and kind == "rectangle":
        (x1, y1), (x2, y2) = points
        return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    if len(points) == 2 and kind == "circle":  # its centre and a point on it
        radius = math.dist(*points)
        return ellipse(*points[0], radius, radius)
    raise InvalidAnnotation(
        f"expected a polygon, rectangle, circle or mask, got {kind} of {len(points)} points"
    )


def _mask(shape: dict, size: tuple[int, int]) -> np.ndarray:  # [H, W], bool
    """Return a mask of the picture; ``mask`` is an image of the region between the two points."""
    part = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))).convert("L")) > 0
    (x, y), _ = ((round(a), round(b)) for a, b in shape["points"])
    mask = np.zeros((size[1], size[0]), bool)
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part
    return mask
