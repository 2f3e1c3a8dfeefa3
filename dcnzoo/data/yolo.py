"""Convert YOLO's text files, with boxes or polygons, to COCO's format."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from dcnzoo.data.conversion import (
    CocoBuilder,
    InvalidAnnotation,
    finite,
    image_size,
    read_lines,
    read_text,
    relative,
)
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import PICTURES, require_file
from dcnzoo.utils.text import counted, short

YOLO = ("data.yaml", "data.yml", "obj.data")  # the file that describes a data set, in its folder


def convert_yolo(
    source: str | Path,
    split: str = "train",
    classes: Sequence[str] | None = None,
    clip: bool = False,
) -> tuple[CocoBuilder, Path]:
    """Read a data set in the format of Ultralytics' YOLO.

    The labels of ``images/a.jpg`` are in ``labels/a.txt``, one line per object: ``class x y width height``
    with the centre of the box, or ``class x1 y1 x2 y2 x3 y3 …`` with an outline. Coordinates are normalised
    to 0–1 by the image's width and height. An image without a label file has no objects.

    Args:
        source: ``data.yaml`` or darknet's ``obj.data``, or the folder that contains it.
        split: of ``data.yaml``: a folder of images, several folders, or a text file that lists images.
        classes: names in the order of their numbers; overrides the names in ``data.yaml``.
        clip: see :mod:`dcnzoo.data.conversion`, also for the result.

    Raises:
        UserError: ``data.yaml`` does not exist or lacks the names or the split, or there are no images.
    """
    file = Path(source)
    if os.path.isdir(file):
        names = [name for name in YOLO if (file / name).is_file()]
        file = file / (names or YOLO)[0]
    try:
        described = _read(file)
        conversion = CocoBuilder(_names(described) if classes is None else classes, clip)
        root = _root(file, described)
        images = list(dict.fromkeys(_images(described, split, root, conversion)))
        if not images and not conversion.problems:
            raise InvalidAnnotation(f"{split}: expected images, found none")
    except InvalidAnnotation as error:
        raise UserError(f"{file}: {error}") from None
    conversion.sources += [file, *map(_labels, images)]

    def convert(image: Path) -> None:
        conversion.add_image(relative(image, root), image_size(image))
        labels = _labels(image)
        if not os.path.isfile(labels):
            return
        with conversion.refusing(labels):
            for at, line in read_lines(labels):
                with conversion.refusing(labels, at):
                    _convert_line(line.split(), conversion)

    conversion.convert(images, convert)
    return conversion, root


def _read(file: Path) -> dict:
    text = read_text(file)
    if file.suffix == ".data":
        return _read_darknet(file, text)
    try:
        described = yaml.safe_load(text)
    # ValueError: an impossible date, or an integer of thousands of digits
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidAnnotation(f"expected YAML: {' '.join(str(error).split())}") from None
    if not isinstance(described, dict):
        raise InvalidAnnotation(f"expected keys such as names and train, got {short(described)}")
    if "kpt_shape" in described:
        raise InvalidAnnotation("expected boxes or polygons, got keypoints (kpt_shape)")
    return described


def _read_darknet(file: Path, text: str) -> dict:
    """Return darknet's ``obj.data``, lines of ``key = value``, as the keys of ``data.yaml``."""
    pairs = (line.partition("=") for line in text.splitlines())
    values = {key.strip(): value.strip() for key, _, value in pairs}
    root, names = file.resolve().parent, values.get("names", "")
    if not os.path.isfile(root / names):  # paths are relative to darknet's folder: data/obj.data's parent
        root = root.parent
    require_file(str(root / names), f"{file}: names")
    classes = [line for _, line in read_lines(root / names)]
    return {"path": str(root), "names": classes, "train": values.get("train"), "val": values.get("valid")}


def _names(described: dict) -> list[str]:
    names = described.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise InvalidAnnotation(f"names: expected 0 to {len(names) - 1}, got {short(list(names))}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InvalidAnnotation(f"names: expected a list of names, got {short(names)}")
    number = described.get("nc", len(names))
    if number != len(names):
        raise InvalidAnnotation(f"nc: expected {len(names)}, the number of names, got {short(number)}")
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):  # YAML reads no as False and ~ as None
            raise InvalidAnnotation(f"names: expected strings, got {short(name)}: put it in quotes")
    return [str(name) for name in names]


def _root(file: Path, described: dict) -> Path:
    """Return the data set's folder: ``path``, relative to the file if it exists there, else as given."""
    path = str(described.get("path") or ".")
    for folder in (file.parent / path, Path(path)):
        if os.path.isdir(folder):  # Path.is_dir raises if the name is too long
            return folder
    raise InvalidAnnotation(f"path: expected a folder, found none at {short(path)}")


def _images(described: dict, split: str, root: Path, conversion: CocoBuilder) -> Iterator[Path]:
    places = described.get(split)
    if not places or not isinstance(places, str | list):
        known = ", ".join(key for key in ("train", "val", "test") if described.get(key)) or "none"
        raise InvalidAnnotation(f"expected a split {split!r}, found {known}")
    for place in [places] if isinstance(places, str) else places:
        # Roboflow writes ../train for a folder next to the file
        candidates = [root / str(place), root / str(place).removeprefix("../")]
        path = next((path for path in candidates if os.path.exists(path)), None)
        if path is None:
            raise InvalidAnnotation(f"{split}: expected a folder or a list, found none at {candidates[0]}")
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
        else:
            yield from _listed(path, root, conversion)


def _listed(listing: Path, root: Path, conversion: CocoBuilder) -> Iterator[Path]:
    def image_of(line: str) -> Path:
        # ./ refers to the folder of the list
        return (listing.parent if line.startswith("./") else root) / line

    return conversion.listed(listing, image_of)


def _labels(image: Path) -> Path:
    """Return ``…/labels/….txt`` for ``…/images/….jpg``; without a folder ``images``, next to the image."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _convert_line(words: list[str], conversion: CocoBuilder) -> None:
    is_box, names = len(words) == 5, conversion.classes or ()
    if not is_box and (len(words) < 7 or len(words) % 2 == 0):
        got = counted(len(words), "values")
        raise InvalidAnnotation(f"expected class x y width height, or class and 3 or more points, got {got}")
    corners = [f"{axis}{number}" for number in range(1, len(words) // 2 + 1) for axis in "xy"]
    fields = ["x", "y", "width", "height"] if is_box else corners
    label, *values = map(finite, words, ["class", *fields])
    if label not in range(len(names)):
        raise InvalidAnnotation(f"class: expected a number from 0 to {len(names) - 1}, got {short(words[0])}")
    for field, value in zip(fields, values, strict=True):
        if not 0 <= value <= 1 and not conversion.clip:
            raise InvalidAnnotation(f"{field}: expected a number from 0 to 1, got {value:g}")
    name, (width, height) = names[int(label)], conversion.size
    if is_box:
        x, y, w, h = values
        box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        conversion.add_box(name, box)
    else:
        points = zip(values[::2], values[1::2], strict=True)
        conversion.add_polygons(name, [[(x * width, y * height) for x, y in points]])
