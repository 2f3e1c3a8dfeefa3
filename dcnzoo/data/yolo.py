"""Convert YOLO's text files, with boxes or polygons, to COCO's format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from dcnzoo.data.conversion import (
    SUFFIXES,
    CocoBuilder,
    InvalidAnnotation,
    Step,
    counted,
    image_size,
    number,
    read_lines,
    read_text,
    relative,
    short,
)
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import require_file


def convert_yolo(
    source: str | Path,
    split: str = "train",
    classes: Sequence[str] | None = None,
    clip: bool = False,
    step: Step = lambda done, total: None,
) -> tuple[CocoBuilder, Path]:
    """Read a data set in the format of Ultralytics' YOLO.

    The labels of ``images/a.jpg`` are in ``labels/a.txt``, one line per object: ``class x y width height``
    with the centre of the box, or ``class x1 y1 x2 y2 x3 y3 …`` with an outline. Coordinates are normalised
    to 0–1 by the image's width and height. An image without a label file has no objects.

    Args:
        source: ``data.yaml`` or darknet's ``obj.data``, or the folder that contains it.
        split: of ``data.yaml``: a folder of images, several folders, or a text file that lists images.
        classes: names in the order of their numbers; overrides the names in ``data.yaml``.
        clip: see :class:`~dcnzoo.data.conversion.CocoBuilder`.
        step: called after each image.

    Returns:
        The conversion, with its problems, and the folder to which the images' names are relative.

    Raises:
        UserError: ``data.yaml`` does not exist or lacks the names or the split, or there are no images.
    """
    file = Path(source)
    if os.path.isdir(file):
        file = next(
            (path for name in ("data.yaml", "data.yml", "obj.data") if (path := file / name).is_file()),
            file / "data.yaml",
        )
    described = _read_yaml(file)
    names = _names(file, described) if classes is None else list(classes)
    if "kpt_shape" in described:
        raise UserError(f"{file}: expected boxes or polygons, got keypoints (kpt_shape)")
    root = _root(file, described)
    conversion = CocoBuilder(names, clip)
    images = list(dict.fromkeys(_images(file, described, split, root, conversion)))
    if not images and not conversion.problems:
        raise UserError(f"{file}: {split}: expected images, found none")
    conversion.sources += [file, *map(_labels, images)]

    def convert(image: Path) -> None:
        size = image_size(image)
        added = conversion.add_image(relative(image, root), size)
        _convert_labels(_labels(image), added, size, conversion)

    conversion.convert(images, convert, step)
    return conversion, root


def _read_yaml(file: Path) -> dict:
    if not os.path.isfile(file):
        raise UserError(f"data.yaml: expected a file, found none at {file}")
    try:
        text = read_text(file)
        if file.suffix == ".data":
            return _read_darknet(file, text)
        described = yaml.safe_load(text)
    except InvalidAnnotation as error:
        raise UserError(f"{file}: {error}") from None
    # ValueError: an impossible date, or an integer of thousands of digits
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{file}: expected YAML: {' '.join(str(error).split())}") from None
    if not isinstance(described, dict):
        raise UserError(f"{file}: expected keys such as names and train, got {type(described).__name__}")
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


def _names(file: Path, described: dict) -> list[str]:
    names = described.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(
                f"{file}: names: expected the numbers 0 to {len(names) - 1}, got {short(list(names))}"
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: names: expected a list of names, got {short(names)}")
    if "nc" in described and described["nc"] != len(names):
        raise UserError(
            f"{file}: nc: expected {len(names)}, the number of names, got {short(described['nc'])}"
        )
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):  # YAML reads no as False and ~ as None
            raise UserError(f"{file}: names: expected strings, got {short(name)}: put it in quotes")
    return [str(name) for name in names]


def _root(file: Path, described: dict) -> Path:
    """Return the data set's folder: ``path``, relative to the file if it exists there, else as given."""
    given = str(described.get("path") or ".")
    for folder in (file.parent / given, Path(given)):
        if os.path.isdir(folder):  # Path.is_dir raises if the name is too long
            return folder
    raise UserError(f"{file}: path: expected a folder, found none at {short(given)}")


def _images(file: Path, described: dict, split: str, root: Path, conversion: CocoBuilder) -> Iterator[Path]:
    places = described.get(split)
    if not places or not isinstance(places, str | list):
        known = ", ".join(key for key in ("train", "val", "test") if described.get(key)) or "none"
        raise UserError(f"{file}: expected a split {split!r}, found {known}")
    for place in [places] if isinstance(places, str) else places:
        # Roboflow writes ../train for a folder next to the file
        candidates = [root / str(place), root / str(place).removeprefix("../")]
        found = next((path for path in candidates if os.path.exists(path)), None)
        if found is None:
            raise UserError(
                f"{file}: {split}: expected a folder or a list of images, found none at {root / str(place)}"
            )
        if found.is_dir():
            yield from sorted(path for path in found.rglob("*") if path.suffix.lower() in SUFFIXES)
            continue
        try:
            lines = list(read_lines(found))
        except InvalidAnnotation as error:
            raise UserError(f"{found}: {error}") from None
        for at, line in lines:
            # ./ refers to the folder of the list
            image = (found.parent if line.startswith("./") else root) / line
            with conversion.refusing(found, at):
                if not os.path.isfile(image):
                    raise InvalidAnnotation(f"expected an image, found none at {image}")
                yield image


def _labels(image: Path) -> Path:
    """Return ``…/labels/….txt`` for ``…/images/….jpg``; without a folder ``images``, next to the image."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _convert_labels(file: Path, image: int, size: tuple[int, int], conversion: CocoBuilder) -> None:
    if not os.path.isfile(file):
        return
    with conversion.refusing(file):
        for at, line in read_lines(file):
            with conversion.refusing(file, at):
                _convert_line(line.split(), image, size, conversion)


def _convert_line(words: list[str], image: int, size: tuple[int, int], conversion: CocoBuilder) -> None:
    names = conversion.classes or ()
    label, *values = (_number(word, _field(index, len(words) == 5)) for index, word in enumerate(words))
    if label not in range(len(names)):
        raise InvalidAnnotation(f"class: expected a number from 0 to {len(names) - 1}, got {short(words[0])}")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise InvalidAnnotation(
            "expected class x y width height, or class and at least 3 points, "
            f"got {counted(len(words), 'values')}"
        )
    for index, value in enumerate(values, 1):
        if not 0 <= value <= 1:
            field = _field(index, len(values) == 4)
            raise InvalidAnnotation(
                f"{field}: expected a number from 0 to 1, normalised to the image, got {value:g}"
            )
    name = names[int(label)]
    width, height = size
    if len(values) == 4:
        x, y, w, h = values
        corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        conversion.add_box(image, size, name, corners)
    else:
        points = zip(values[::2], values[1::2], strict=True)
        conversion.add_polygons(image, size, name, [[(x * width, y * height) for x, y in points]])


def _number(word: str, field: str) -> float:
    try:
        return number(word)
    except ValueError:
        raise InvalidAnnotation(f"{field}: expected a finite number, got {short(word)}") from None


def _field(index: int, is_box: bool) -> str:
    """Return the name of a field in a line; the first is the class."""
    if is_box or index == 0:
        return ("class", "x", "y", "width", "height")[index]
    return f"{'yx'[index % 2]}{(index + 1) // 2}"
