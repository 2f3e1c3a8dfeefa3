"""Convert YOLO's text files, with boxes or polygons, to COCO's format."""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dcnzoo.data.conversion import CocoBuilder, image_size
from dcnzoo.data.files import InvalidAnnotation, finite, read_lines, read_text
from dcnzoo.data.splits import SPLITS, Part, ReadOptions, Tree, parts_by_split, path_parts
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import require_file
from dcnzoo.utils.progress import track
from dcnzoo.utils.text import counted, few, short

CLASSES = ("classes.txt", "obj.names", "_darknet.labels")  # files with a name per line
YOLO = ("data.yaml", "data.yml", "obj.data")  # the file that describes a data set, in its folder


def convert_yolo(
    source: str | Path,
    split: str = "train",
    classes: Sequence[str] | None = None,
    clip: bool = False,
) -> CocoBuilder:
    """Read a data set in the format of Ultralytics' YOLO.

    The labels of ``images/a.jpg`` are in ``labels/a.txt``, one line per object: ``class x y width height``
    with the centre of the box, or ``class x1 y1 x2 y2 x3 y3 …`` with an outline. Coordinates are normalised
    to 0–1 by the image's width and height. An image without a label file has no objects.

    Args:
        source: ``data.yaml``, darknet's ``obj.data``, or a file of the names beside lists such as
            ``train.txt``; or the folder that contains it.
        split: of ``data.yaml``: a folder of images, several folders, or a text file that lists images.
        classes: the order of the classes in the result, names of ``data.yaml``; if it has none, the names of
            the numbers.
        clip: see :mod:`dcnzoo.data.conversion`, also for the result.

    Raises:
        UserError: ``data.yaml`` does not exist or lacks the names or the split, or there are no images.
    """
    file = Path(source)
    if os.path.isdir(file):
        file = _description(Tree(file)) or file / YOLO[0]
    try:
        described = _read(file)
        names = _names(described) if classes is None or "names" in described else classes
        if unknown := [name for name in classes or () if name not in names]:
            raise InvalidAnnotation(f"classes: expected names among {few(names)}, got {few(unknown)}")
        root = _root(file, described, split)
        builder = CocoBuilder(classes or names, clip, root)
        images = list(dict.fromkeys(_images(described, split, root, builder)))
        if not images and not builder.problems:
            raise InvalidAnnotation(f"{split}: expected images, found none")
    except InvalidAnnotation as error:
        raise UserError(f"{file}: {error}") from None
    builder.sources.append(file)
    return _convert(images, names, builder)


def find_yolo(tree: Tree) -> list[Part]:
    """Return the parts of a folder with a file that describes them."""
    file = _description(tree)
    if file is None:
        return []
    try:
        described = _read(file)
        _names(described)
    except InvalidAnnotation as error:
        raise UserError(f"{file}: {error}") from None

    def parse(split: str, options: ReadOptions) -> CocoBuilder:
        return _require_labels(convert_yolo(file, split, clip=options.clip), split)

    splits = {SPLITS.get(str(key).lower()) for key, value in described.items() if value}
    return [Part(split, (file,), functools.partial(parse, split)) for split in sorted(filter(None, splits))]


def _description(tree: Tree) -> Path | None:
    """Find the file that describes a data set, the nearest to the root: with the keys of ``data.yaml``, or
    with names of classes beside lists of splits.
    """
    if tree.description:
        return tree.description
    files = [file for name in YOLO if (file := tree.root / name).is_file() and file in tree.files]
    if files:
        return files[0]
    for file in sorted(tree.ending(".yaml", ".yml", ".data"), key=lambda file: len(file.parts)):
        with contextlib.suppress(InvalidAnnotation, UserError):
            keys = {str(key).lower() for key in _read(file)}
            if "names" in keys and keys & {*SPLITS}:
                files.append(file)
    files = files or [file for file in tree.files if is_names(file) and _lists(file)]
    nearest = [file for file in files if len(file.parts) == len(files[0].parts)]
    if len(nearest) > 1:
        raise UserError(
            f"data: expected one description of a data set, found {few(nearest)}: pass one as data"
        )
    return nearest[0] if nearest else None


def find_plain_yolo(tree: Tree) -> list[Part]:
    """Return the parts of a folder with labels and the names of the classes in a text file."""
    pictures = [picture for picture in track(tree.pictures, "listing") if has_boxes(_labels(picture))]
    if not pictures:
        return []
    folders = {picture.parent for picture in pictures}  # of a folder with labels, all pictures are used
    files = [file for file in tree.files if is_names(file)]
    names = {tuple(line for _, line in read_lines(file)) for file in files}  # LabelImg: one in each folder
    if len(names) != 1:
        expected = f"the names of the classes in one of {', '.join(CLASSES)} or in a file like data.yaml"
        raise UserError(f"data: expected {expected}, found {few(files)}")
    images = {p: tree.split_of(p, own=False) for p in tree.pictures if p.parent in folders}

    def parse(own: tuple[Path, ...], split: str, options: ReadOptions) -> CocoBuilder:
        builder = CocoBuilder(next(iter(names)), options.clip, tree.root)
        builder.sources += files
        return _require_labels(_convert(own, builder.classes or (), builder), split)

    parts = parts_by_split(images, parse)
    for part in parts:
        part.files = (files[0],)  # not the pictures: they are many
    return parts


def is_names(file: Path) -> bool:
    """Whether a file has the name of a class in each line."""
    return file.name in CLASSES or file.suffix == ".names"


def _lists(names: Path) -> dict[str, str]:
    """Return the lists of pictures beside a file of names, by their splits."""
    files = [file for file in names.parent.glob("*.txt") if file.stem.lower() in SPLITS]
    return {file.stem: file.name for file in sorted(files) if file.stat().st_size and not has_boxes(file)}


def has_boxes(labels: Path) -> bool:
    """Whether the first line of a text file has a class and four or more numbers."""
    try:
        _, line = next(read_lines(labels), (0, ""))
        return len([float(word) for word in line.split()]) >= 5
    except (InvalidAnnotation, ValueError):
        return False


def _convert(images: Sequence[Path], names: Sequence[str], builder: CocoBuilder) -> CocoBuilder:
    """Add images and the objects in their labels, whose numbers are those of the names."""
    tracks = []

    def convert(image: Path) -> None:
        builder.add_image(image, image_size(image))
        labels = _labels(image)
        if not os.path.isfile(labels):
            return
        builder.sources.append(labels)
        with builder.refusing(labels):
            for at, line in read_lines(labels):
                words = line.split()
                tracks.append(len(words) == 7 and words[-1].isdigit())
                with builder.refusing(labels, at):
                    _convert_line(words, names, builder)

    builder.convert(images, convert)
    if tracks and all(tracks):
        expected = "lines of class x y width height, or of polygons"
        got = "only lines of seven values: a class, a box, a confidence and the number of a track"
        raise UserError(f"{_labels(images[0]).parent}: expected {expected}, got {got}")
    return builder


def _require_labels(builder: CocoBuilder, split: str) -> CocoBuilder:
    images = builder.pictures
    if images and split != "test" and not any(map(os.path.isfile, map(_labels, images))):
        raise UserError(
            f"data: expected labels of the {counted(len(images), 'pictures')} of {split or 'the data'}, "
            f"found no text file in {_labels(images[0]).parent} or beside the pictures"
        )
    return builder


def _read(file: Path) -> dict:
    text = read_text(file)
    if file.suffix == ".data":
        return _read_darknet(file, text)
    if is_names(file):
        return {**_lists(file), "names": [line for _, line in read_lines(file)]}
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
    values: dict[str, Any] = {key.strip(): value.strip() for key, _, value in pairs}
    root, name = file.resolve().parent, values.get("names") or "obj.names"
    names = _located(name, root)
    if names is None:  # paths are relative to darknet's folder: data/obj.data's parent
        root = root.parent
        names = root / name
        require_file(str(names), f"{file}: names")
    return {**values, "path": str(root), "names": [line for _, line in read_lines(names)]}


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


def _root(file: Path, described: dict, split: str) -> Path:
    """Return the folder to which the paths are relative.

    ``path`` is relative to the file, to the current folder or, as Ultralytics reads it, to a folder of data
    sets; or it is that of another machine. Then its last folders, or none, are those beside the file.
    """
    path, places = str(described.get("path") or "."), _places(described, split)
    parts = path_parts(path)
    beside = [file.parent.joinpath(*parts[cut:]) for cut in range(len(parts) + 1)]
    roots = [file.parent / path, Path(path), *beside]
    for root in roots:
        # Path.is_dir raises if the name is too long
        if os.path.isdir(root) and all(_located(place, root) for place in places):
            return root
    return roots[0]


def _places(described: dict, split: str) -> list:
    """Return the folders and lists of a split, whose key may be ``validation`` or ``Train``."""
    keys = [key for key in described if key == split or SPLITS.get(str(key).lower()) == split]
    places = [described[key] for key in keys if described[key]]
    flat = [place for each in places for place in (each if isinstance(each, list) else [each])]
    if not flat or not all(isinstance(place, str) for place in flat):
        known = ", ".join(key for key in described if str(key).lower() in SPLITS and described[key]) or "none"
        raise InvalidAnnotation(f"expected a split {split!r}, found {known}")
    return flat


def _located(place: str, root: Path, base: Path | None = None) -> Path | None:
    """Find a file or folder that a description or list names, perhaps as it was on another machine.

    Args:
        base: folder of the list, to which ``./`` refers.
    """
    slashes = place.replace("\\", "/")
    # Roboflow writes ../train for a folder next to the file; darknet's and CVAT's paths start with data/
    candidates = [root / slashes, root / slashes.removeprefix("../"), root / slashes.removeprefix("data/")]
    if base is not None:
        candidates = (
            [base / slashes, *candidates] if slashes.startswith("./") else [*candidates, base / slashes]
        )
    parts = path_parts(place)
    absolute = slashes.startswith("/") or slashes[1:2] == ":"
    # without the first folders, of another machine
    candidates += [root.joinpath(*parts[cut:]) for cut in range(len(parts) - (0 if absolute else 1))]
    return next((path for path in candidates if os.path.exists(path)), None)


def _images(described: dict, split: str, root: Path, builder: CocoBuilder) -> Iterator[Path]:
    for place in _places(described, split):
        path = _located(place, root)
        if path is None:
            raise InvalidAnnotation(f"{split}: expected a folder or a list, found none at {root / place}")
        if path.is_dir():
            yield from Tree(path, descend=False).pictures
        else:
            builder.sources.append(path)
            yield from builder.listed(path, functools.partial(_of_line, root=root, base=path.parent))


def _of_line(line: str, root: Path, base: Path) -> Path:
    return _located(line, root, base) or root / line


def _labels(image: Path) -> Path:
    """Return ``…/labels/….txt`` for ``…/images/….jpg``, or the file next to it; capitals may differ."""
    files = [image.with_suffix(".txt")]
    for index in range(len(image.parts) - 2, -1, -1):
        if image.parts[index].lower() in ("images", "jpegimages"):
            above, below = image.parts[:index], files[0].parts[index + 1 :]
            files = [Path(*above, name, *below) for name in ("labels", "Labels")] + files
            break
    files += [file.with_suffix(".TXT") for file in files]
    return next(filter(os.path.isfile, files), files[0])


def _convert_line(words: list[str], names: Sequence[str], conversion: CocoBuilder) -> None:
    is_box = len(words) == 5
    if not is_box and (len(words) < 7 or len(words) % 2 == 0):
        got = counted(len(words), "values")
        raise InvalidAnnotation(f"expected class x y width height, or class and 3 or more points, got {got}")
    try:
        label, *values = map(float, words)
        usual = label in range(len(names)) and min(values) >= 0 and max(values) <= 1 and sum(values) >= 0
    except ValueError:
        usual = False
    if not usual:
        label, *values = _checked(words, is_box, len(names), conversion.clip)
    name, (width, height) = names[int(label)], conversion.size
    if is_box:
        x, y, w, h = values
        box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        conversion.add_box(name, box)
    else:
        points = zip(values[::2], values[1::2], strict=True)
        conversion.add_polygons(name, [[(x * width, y * height) for x, y in points]])


def _checked(words: list[str], is_box: bool, classes: int, clip: bool) -> list[float]:
    """Return the numbers of a line, or name the first one that is wrong."""
    corners = [f"{axis}{number}" for number in range(1, len(words) // 2 + 1) for axis in "xy"]
    fields = ["x", "y", "width", "height"] if is_box else corners
    label, *values = map(finite, words, ["class", *fields])
    if label not in range(classes):
        raise InvalidAnnotation(f"class: expected a number from 0 to {classes - 1}, got {short(words[0])}")
    for field, value in zip(fields, values, strict=True):
        # Ultralytics allows a hundredth; the builder allows a pixel
        if not -0.01 <= value <= 1.01 and not clip:
            raise InvalidAnnotation(f"{field}: expected a number from 0 to 1, got {value:g}")
    return [label, *values]
