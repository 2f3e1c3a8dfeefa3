"""Read YOLO's text files, with boxes or polygons."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dcnzoo.data.dataset import Split
from dcnzoo.data.files import InvalidAnnotation, finite, read_lines, read_text
from dcnzoo.data.tree import WORDS, Tree, normal, parts_of
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.text import counted, few, short

CLASSES = ("classes.txt", "obj.names", "_darknet.labels")  # with a name per line


def description(tree: Tree) -> Path | None:
    """Return the file that names the pictures of a folder: data.yaml, whatever its name, or obj.data."""
    named = [file for file in tree.ending(".yaml", ".yml", ".data") if "train" in _keys(file)]
    nearest = min((len(file.parts) for file in named), default=0)
    files = [file for file in named if len(file.parts) == nearest]
    files = [file for file in files if file.stem == "data"] or files
    if len(files) > 1:
        raise UserError(f"data: expected one file like data.yaml, found {few(files)}: choose one as data")
    return next(iter(files), None)


def names_file(tree: Tree) -> Path | None:
    """Return the file with the names of the classes of a folder without a description."""
    files = [file for file in tree.files if file.name in CLASSES]
    files += [file for file in tree.ending(".yaml", ".yml") if "names" in _keys(file)]
    if len({tuple(_names(file)) for file in files}) > 1:
        raise UserError(f"data: expected the same classes in each file, found {few(files)} with others")
    return next(iter(files), None)


@functools.cache
def _read(file: Path) -> dict[str, Any]:
    """Return the keys of data.yaml, of darknet's obj.data, or the names in a text file."""
    text = read_text(file)
    if file.suffix == ".data":
        pairs = (line.partition("=") for line in text.splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}
    if file.name in CLASSES:
        return {"names": text.split("\n") if not text.endswith("\n") else text.split("\n")[:-1]}
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidAnnotation(f"expected YAML: {' '.join(str(error).split())}") from None
    return content if isinstance(content, dict) else {}


def _keys(file: Path) -> set[str]:
    try:
        return {str(key).lower() for key in _read(file)}
    except InvalidAnnotation as error:
        raise UserError(f"{file}: {error}") from None


def _names(file: Path) -> list[str]:
    names = _read(file).get("names")
    if isinstance(names, str):  # of obj.data: the file with the names
        base = file.parent / parts_of(names)[-1]
        return _names(base)
    if isinstance(names, dict):
        numbers = {int(number): name for number, name in names.items()}
        names = [numbers.get(number) for number in range(len(numbers))]
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(n, str | int) and str(n).strip() for n in names)
    ):
        raise InvalidAnnotation(f"names: expected names of the classes 0, 1, …, got {short(names)}")
    return [str(name).strip() for name in names]


def splits_of(file: Path, tree: Tree) -> dict[str, list[Path]]:
    """Return the pictures of the splits that a description names. A folder that does not exist has none."""
    described = _read(file)
    if "kpt_shape" in described:
        raise InvalidAnnotation("expected boxes or polygons, got keypoints (kpt_shape)")
    path = str(described.get("path") or "")
    roots = [
        root for root in (file.parent / path, Path(path), file.parent) if path != "" or root != Path(path)
    ]
    splits: dict[str, list[Path]] = {}
    for key, places in described.items():
        if (split := WORDS.get(str(key).lower())) and places:
            found = [
                p
                for place in (places if isinstance(places, list) else [places])
                for p in _pictures(place, roots, tree)
            ]
            splits[split] = [*dict.fromkeys(found)]
    if not splits.get("train"):
        raise InvalidAnnotation(
            f"train: expected a folder or list with pictures, got {short(described.get('train'))}"
        )
    return {split: pictures for split, pictures in splits.items() if pictures}


def _pictures(place: object, roots: list[Path], tree: Tree) -> Iterator[Path]:
    """Yield the pictures of a folder, or of a text file with their paths."""
    name = str(place).replace("\\", "/")
    tries = [
        root / each for root in roots for each in (name, name.removeprefix("../"), name.removeprefix("data/"))
    ]
    path = next(filter(os.path.exists, tries), None)
    if path is None:
        return
    if path.is_dir():
        yield from Tree(path).pictures
        return
    for number, line in read_lines(path):
        line = line.replace("\\", "/")
        tries = [root / line for root in (*roots, path.parent)]
        picture = next(filter(os.path.isfile, tries), None)
        try:
            yield Path(os.path.normpath(picture)) if picture else tree.picture(line, path.parent, "")
        except InvalidAnnotation as error:
            raise InvalidAnnotation(f"{path}: {error}", number) from None


@functools.cache
def _texts(folder: Path) -> dict[str, Path]:
    return {normal(file.stem): file for file in folder.glob("*") if file.suffix.lower() == ".txt"}


def forget() -> None:
    """Forget what was read: the files may have changed."""
    _read.cache_clear()
    _texts.cache_clear()


def label_of(picture: Path) -> Path | None:
    """Return ``labels/a.txt`` of ``images/a.jpg``, or the text file beside the picture."""
    folders, parts = [picture.parent], picture.parent.parts
    for number in range(len(parts) - 1, -1, -1):
        if parts[number].lower() in ("images", "jpegimages"):
            folders.insert(0, Path(*parts[:number], "labels", *parts[number + 1 :]))
            break
    return next((file for folder in folders if (file := _texts(folder).get(normal(picture.stem)))), None)


def read_yolo(pictures: list[Path], names: list[str], split: Split) -> None:
    """Add pictures and the lines of their text files: ``class x y width height`` or ``class x1 y1 x2 y2 …``."""
    used: set[Path] = set()
    for picture in pictures:
        with split.refusing(picture):
            split.add_picture(picture)
            label = label_of(picture)
            if label is None:
                split.unlabelled.append(picture)
                continue
            if label in used:
                raise InvalidAnnotation(f"expected one picture of {label}, found another")
            used.add(label)
            for number, line in read_lines(label):
                with split.refusing(f"{label}:{number}"):
                    _add(line.split(), names, split)
    split.sources += used
    others = {text for folder in {label.parent for label in used} for text in _texts(folder).values()} - used
    strays = [text for text in sorted(others) if _is_label(text)]
    if strays and split.unlabelled:
        what = f"{counted(len(split.unlabelled), 'pictures')} have no labels ({few(split.unlabelled, 2)})"
        raise UserError(
            f"data: {counted(len(strays), 'labels')} have no picture ({few(strays, 2)}), while {what}"
        )
    if len(split.unlabelled) == len(split.sizes):
        raise UserError(
            f"data: expected labels of {few(pictures, 1)} beside it or in a folder labels, found none"
        )
    if strays:
        split.notes.append(f"{counted(len(strays), 'labels')} without a picture, not used: {few(strays, 2)}")


def _is_label(file: Path) -> bool:
    try:
        _, line = next(read_lines(file), (0, ""))
        return len([float(word) for word in line.split()]) >= 5
    except (InvalidAnnotation, ValueError):
        return False


def _add(words: list[str], names: list[str], split: Split) -> None:
    if len(words) == 6:
        raise InvalidAnnotation(
            "expected class x y width height, got a sixth value: the score of a prediction"
        )
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise InvalidAnnotation(
            f"expected class x y width height, or class x1 y1 x2 y2 x3 y3 …, got {len(words)} values"
        )
    label, *values = (finite(word, "line") for word in words)
    if label not in range(len(names)):
        raise InvalidAnnotation(f"class: expected a number from 0 to {len(names) - 1}, got {words[0]}")
    name, (width, height) = names[int(label)], split.size
    if len(values) == 4:
        x, y, w, h = values
        if max(values) > 1.01 and not split.clip:
            raise InvalidAnnotation(f"expected values from 0 to 1, got {max(values):g}")
        split.add_box(
            name, ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        )
    else:
        split.add_polygons(
            name, [[(x * width, y * height) for x, y in zip(values[::2], values[1::2], strict=True)]]
        )
