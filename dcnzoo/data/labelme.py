"""Read LabelMe's JSON files, also those of AnyLabeling and X-AnyLabeling."""

import math
from itertools import chain
from pathlib import Path

from dcnzoo.data.builder import Builder
from dcnzoo.data.dataset import Object
from dcnzoo.data.files import InvalidAnnotation, read_json
from dcnzoo.data.geometry import Polygon
from dcnzoo.data.tree import Reader, Tree
from dcnzoo.utils.text import counted, short

LEAST_POINTS = {"polygon": 3, "rotation": 3, "rectangle": 2}  # by the type of a shape


class LabelMe(Reader):
    """The reader of LabelMe's files."""

    name, position = "LabelMe", "{}: shapes[{}]"
    lists_classes = False

    @classmethod
    def find(cls, tree: Tree) -> "LabelMe | None":
        """Return the reader, if there are files with a list of shapes."""
        files = [file for file, content in tree.json.items() if content.is_labelme]
        return cls(tree, files) if files else None

    def add(self, file: Path, split: str, builder: Builder) -> None:
        """Add a picture and its shapes. Shapes with the same label and ``group_id`` are one object."""
        content = read_json(file)
        path = self.tree.picture(str(content.get("imagePath")), file.parent, self.tree.split_of(file))
        groups: dict[object, tuple[int, list[dict]]] = {}  # the number of the first shape, and all
        for number, shape in enumerate(content["shapes"]):
            if not isinstance(shape, dict):
                raise InvalidAnnotation(f"shapes[{number}]: expected an object, got {short(shape)}")
            group = shape.get("group_id")
            key = number if group is None else repr((group, shape.get("label")))
            groups.setdefault(key, (number, []))[1].append(shape)
        size = content.get("imageWidth"), content.get("imageHeight")
        builder.add(split, path, groups.values(), _object, file, size)


def _object(shapes: list[dict], size: tuple[int, int], builder: Builder) -> Object:
    label = shapes[0].get("label")
    if not isinstance(label, str) or not label.strip():
        raise InvalidAnnotation(f"label: expected a name, got {short(label)}")
    try:
        outlines = [*map(_outline, shapes)]
    except (LookupError, TypeError, ValueError) as error:
        raise InvalidAnnotation(f"expected a shape with points, got {short(shapes[0])}: {error}") from None
    if any(shape.get("shape_type") == "rectangle" for shape in shapes):  # a box has no mask
        xs, ys = zip(*chain(*outlines), strict=True)
        return builder.new_box(label.strip(), (min(xs), min(ys), max(xs), max(ys)), size)
    return builder.new_polygons(label.strip(), outlines, size)


def _outline(shape: dict) -> Polygon:
    kind, points = shape.get("shape_type", "polygon"), [(float(x), float(y)) for x, y in shape["points"]]
    if len(points) < LEAST_POINTS.get(kind, math.inf):
        got = f"{short(kind)} of {counted(len(points), 'points')}"
        raise InvalidAnnotation(f"expected a polygon of 3 points or more, or a rectangle of 2, got {got}")
    return points
