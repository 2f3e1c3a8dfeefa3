"""Read the JSON files of the VGG Image Annotator (VIA): projects, and exported annotations."""

from pathlib import Path
from typing import Any

from dcnzoo.data.conversion import MISSING, CocoBuilder, Polygon, ellipse, image_size
from dcnzoo.data.files import InvalidAnnotation, is_number
from dcnzoo.data.splits import Part, ReadOptions, Tree, parts_by_file
from dcnzoo.utils.progress import track
from dcnzoo.utils.text import few, short

# the attribute of a region that is its class, if there are several
_CLASS = ("class", "label", "name", "category", "type", "object_name")
_NUMBERS = {  # of shapes
    "rect": ("x", "y", "width", "height"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry"),
}
_ONLY_CLASS = "object"  # of regions without attributes: people who annotate one class need none


def find_via(tree: Tree) -> list[Part]:
    """Return the parts of a folder with VIA's files: one for each file."""
    files = {file: images for file, content in tree.json.items() if (images := _images(content))}

    def parse(file: Path, pictures: dict[str, Path], options: ReadOptions) -> CocoBuilder:
        builder = CocoBuilder(options.classes, options.clip)
        builder.sources.append(file)
        with builder.refusing(file):
            attribute = _class_attribute(files[file])
            for image in track(files[file], "reading"):
                with builder.refusing(file, what=f"{image['filename']}: "):
                    picture = pictures.get(image["filename"])
                    if picture is None:
                        number = len(image["regions"])
                        raise InvalidAnnotation("expected its picture, found none", None, MISSING, number)
                    _convert(image, picture, attribute, file, builder)
        return builder

    names = {file: [image["filename"] for image in images] for file, images in files.items()}
    return parts_by_file(tree, names, parse)


def _images(content: Any) -> list[dict]:
    """Return the entries of the images of a project or an export; empty if this is another file."""
    entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    images = [*entries.values()] if isinstance(entries, dict) else []
    is_via = all(
        isinstance(image, dict)
        and isinstance(image.get("filename"), str)
        and isinstance(image.get("regions"), list | dict)
        for image in images
    )
    return images if is_via else []


def _regions(image: dict) -> list:
    """Return the regions of an image: a list in VIA 2, in VIA 1 an object with their numbers."""
    regions = image["regions"]
    return [*regions.values()] if isinstance(regions, dict) else regions


def _class_attribute(images: list[dict]) -> str | None:
    """Return the attribute of the regions that is their class; None if they have no attributes."""
    names: dict[str, None] = {}
    for image in images:
        for region in _regions(image):
            attributes = region.get("region_attributes") if isinstance(region, dict) else None
            names |= dict.fromkeys(attributes if isinstance(attributes, dict) else ())
    if len(names) < 2:
        return next(iter(names), None)
    known = [name for name in _CLASS if name in {each.lower() for each in names}]
    if not known:
        raise InvalidAnnotation(f"region_attributes: expected one of {few(_CLASS, 9)}, got {few([*names])}")
    return next(name for name in names if name.lower() == known[0])


def _convert(image: dict, picture: Path, attribute: str | None, file: Path, builder: CocoBuilder) -> None:
    builder.add_image(picture, image_size(picture))
    for number, region in enumerate(_regions(image)):
        with builder.refusing(file, what=f"{image['filename']}: regions[{number}]: "):
            if not isinstance(region, dict) or not isinstance(region.get("shape_attributes"), dict):
                raise InvalidAnnotation(f"expected a region with shape_attributes, got {short(region)}")
            builder.add_polygons(_class_of(region, attribute), [_outline(region["shape_attributes"])])


def _class_of(region: dict, attribute: str | None) -> str:
    if attribute is None:
        return _ONLY_CLASS
    attributes = region.get("region_attributes")
    value = attributes.get(attribute) if isinstance(attributes, dict) else None
    if isinstance(value, dict):  # boxes that are ticked
        ticked = [name for name, state in value.items() if state]
        value = ticked[0] if len(ticked) == 1 else value
    if not isinstance(value, str) or not value.strip():
        raise InvalidAnnotation(f"region_attributes: {attribute}: expected one name, got {short(value)}")
    return value.strip()


def _outline(shape: dict) -> Polygon:
    kind = shape.get("name")
    if kind == "polygon":
        return _points(shape)
    if not isinstance(kind, str) or kind not in _NUMBERS:
        kinds = ", ".join(["polygon", *_NUMBERS])
        raise InvalidAnnotation(f"name: expected one of {kinds}, got {short(kind)}")
    names = _NUMBERS[kind]
    values = [shape[name] for name in names if is_number(shape.get(name))]
    if len(values) != len(names):
        raise InvalidAnnotation(f"{kind}: expected {', '.join(names)}, finite numbers, got {short(shape)}")
    x, y, *sides = values
    if kind == "rect":
        width, height = sides
        return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    angle = shape.get("theta")
    return ellipse(x, y, sides[0], sides[-1], angle if is_number(angle) else 0.0)


def _points(shape: dict) -> Polygon:
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if not (isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys) >= 3):
        raise InvalidAnnotation(
            f"polygon: expected at least 3 values of x and as many of y, got {short(shape)}"
        )
    if not all(map(is_number, xs + ys)):
        raise InvalidAnnotation(f"polygon: expected finite numbers, got {short(shape)}")
    return [*zip(xs, ys, strict=True)]
