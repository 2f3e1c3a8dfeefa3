"""Read YOLO's text files, with boxes or polygons."""

import re
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from dcnzoo.data.builder import Builder
from dcnzoo.data.dataset import ALL, Object
from dcnzoo.data.files import InvalidAnnotation, finite, read_lines, read_text
from dcnzoo.data.tree import (
    WORDS,
    Reader,
    Tree,
    by_split,
    files_below,
    normal,
    parts_of,
    pictures_of,
    without_dots,
)
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.formats import PICTURES
from dcnzoo.utils.text import counted, few, short

CLASSES = ("classes.txt", "obj.names", "_darknet.labels")  # files with a class name per line
DESCRIPTIONS = (".yaml", ".yml", ".data")
LABELS = ("labels", "Labels", "LABELS")  # in place of images; other labels are beside their pictures


def _below_ends(file: Path, path: str, name: str) -> list[Path]:
    """Return ``name``, without ``..``, below each end of ``path``; the last end is empty."""
    parts = parts_of(path)
    return [file.parent.joinpath(*parts[start:], *parts_of(name)) for start in range(len(parts) + 1)]


# Each row has the tools that write such paths, and a function that returns where a path may be. Its arguments
# are the description's file, the value of its key ``path``, and the path that the description states.
PATHS: tuple[tuple[str, Callable[[Path, str, str], list[Path]]], ...] = (
    ("Ultralytics", lambda file, path, name: [file.parent / path / name]),
    ("Roboflow (../train/images is beside the file), Ultralytics on another machine", _below_ends),
    (
        "CVAT: data/train.txt is beside the file",
        lambda file, path, name: [file.parent / name.removeprefix("data/")],
    ),
    (
        "darknet, which runs in the folder above obj.data",
        lambda file, path, name: [file.parent.parent / name] if file.suffix == ".data" else [],
    ),
)


class Yolo(Reader):
    """The reader of YOLO's files.

    Attributes:
        file: the file that describes the data, or names the classes.
    """

    name, position = "YOLO", "{}:{}"

    def __init__(self, tree: Tree, file: Path, keys: dict[str, Any]) -> None:
        super().__init__(tree, [file])
        self.file, self._keys = file, keys
        self.names_file: Path | None = None  # of obj.data
        if isinstance(names := keys.get("names"), str):
            self.names_file = file.parent / (parts_of(names) or [""])[-1]
            self.lists.append(self.names_file)
        self._folders: dict[Path, dict[str, Path]] = {}  # folder → stem → text file
        self._used: dict[Path, Path] = {}  # label → picture

    @classmethod
    def find(cls, tree: Tree) -> "Yolo | None":
        """Return the reader, if there is a description, or class names and at least one label file."""
        files = [file for file in tree.candidates if file.suffix in DESCRIPTIONS or file.name in CLASSES]
        contents = {file: _keys_of(file) for file in files}
        if described := [file for file, keys in contents.items() if "train" in keys]:
            if len(described) > 1:
                raise UserError(f"data: expected one file like data.yaml, found {few(described)}: name one")
            return cls(tree, described[0], contents[described[0]])
        readers = [cls(tree, file, keys) for file, keys in contents.items() if "names" in keys]
        if not readers or not any(map(readers[0].label_of, tree.pictures)):
            return None
        if others := [each.file for each in readers if each.classes != readers[0].classes]:
            raise UserError(f"data: expected the classes of {readers[0].file}, got others in {few(others)}")
        reader = cls(tree, readers[0].file, contents[readers[0].file] | _lists_of(tree))
        reader.lists += [each.file for each in readers[1:]]
        return reader

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes; raises InvalidAnnotation unless each class 0, 1, … has a name."""
        names = self._keys.get("names")
        if self.names_file:
            if not self.names_file.is_file():
                raise InvalidAnnotation(f"names: expected a file, found none at {self.names_file}")
            names = read_text(self.names_file).rstrip().splitlines()  # the line is the class's number
        if isinstance(names, dict):
            numbers = {str(number): name for number, name in names.items()}
            names = [numbers.get(str(number)) for number in range(len(numbers))]
        texts = [str(name).strip() for name in names or () if type(name) in (str, int)]
        if not texts or len(texts) < len(names or ()) or "" in texts or len({*texts}) < len(texts):
            raise InvalidAnnotation(f"names: expected a name for each class 0, 1, …, got {short(names)}")
        return texts

    def groups(self) -> dict[str, list[Path]]:
        """Return the pictures of each split."""
        if "kpt_shape" in self._keys:
            raise InvalidAnnotation("expected boxes or polygons, got keypoints (kpt_shape)")
        if "train" not in self._keys:
            pictures = self.tree.pictures
            labelled = {picture.parent for picture in pictures if self.label_of(picture)}
            own = [picture for picture in pictures if picture.parent in labelled]
            return by_split([(picture, self.tree.splits[picture.parent]) for picture in own])
        splits: dict[str, list[Path]] = {}
        for key, places in self._keys.items():
            if key in WORDS and places:
                listed = places if isinstance(places, list) else [places]
                pictures = [*dict.fromkeys(picture for each in listed for picture in self._pictures(each))]
                if pictures:
                    splits[WORDS[key]] = pictures
                else:
                    self.notes.append(f"{self.file.name} names {short(places)} for {key}: no pictures there")
        if "train" not in splits:
            raise InvalidAnnotation(f"train: expected a folder or list, got {short(self._keys['train'])}")
        if "val" not in splits:
            splits[ALL] = splits.pop("train")
        return splits

    def _pictures(self, place: object) -> Iterator[Path]:
        """Yield the pictures of a folder or list: of its places in :data:`PATHS`, the first that exists."""
        name, below = str(place).replace("\\", "/"), str(self._keys.get("path") or "")
        paths = (path for _, places in PATHS for path in places(self.file, below, name))
        target = next(filter(Path.exists, paths), None)
        if target and target.is_dir():
            yield from pictures_of(files_below(without_dots(target)))
        elif target:
            self.lists.append(target)
            for number, line in read_lines(target):
                try:
                    yield self.tree.picture(line, target.parent)
                except InvalidAnnotation as error:
                    raise InvalidAnnotation(f"{target}:{number}: {error}") from None

    def label_of(self, picture: Path) -> Path | None:
        """Return the text of a picture in a folder of :data:`LABELS`, or the one beside the picture."""
        stem, folders = normal(picture.stem), [picture.parent]
        if parts := re.fullmatch("(.*/|)(?:jpeg)?images(/.*|)", picture.parent.as_posix(), re.IGNORECASE):
            folders = [*(Path(f"{parts[1]}{name}{parts[2]}") for name in LABELS), picture.parent]
        return next((file for folder in folders if (file := self._texts(folder).get(stem))), None)

    def _texts(self, folder: Path) -> dict[str, Path]:
        if folder not in self._folders:
            files = (file for file in folder.glob("*") if file.suffix.lower() == ".txt")
            self._folders[folder] = {normal(file.stem): file for file in files}
        return self._folders[folder]

    def add(self, file: Path, split: str, builder: Builder) -> None:
        """Add a picture and its objects, lines ``class x y width height`` or ``class x1 y1 x2 y2 …``."""
        label = self.label_of(file)
        if label is not None:
            other = self._used.setdefault(label, file)
            if other != file:
                raise InvalidAnnotation(f"expected one picture of {label}, found {other}, too")
        builder.add(split, file, read_lines(label) if label else (), partial(_object, self.classes), label)

    def read(self, builder: Builder) -> None:
        """Add all pictures. A label without a picture is a problem if there are pictures without a label."""
        super().read(builder)
        folders = {label.parent for label in self._used}
        texts = {text for folder in folders for text in self._texts(folder).values()}
        if unlabelled := builder.data.unlabelled:
            got = f"{counted(len(unlabelled), 'pictures')} without a label ({few(unlabelled, 2)})"
            for stray in filter(_is_label, sorted(texts - self._used.keys())):
                builder.refuse(stray, InvalidAnnotation(f"expected a picture of this label, got {got}"))


def _keys_of(file: Path) -> dict[str, Any]:
    """Return the keys of data.yaml, of darknet's obj.data, or the names in a text file; {} for others."""
    try:
        text = read_text(file)
        if file.suffix == ".data":
            pairs = (line.partition("=") for line in text.splitlines())
            return {key.strip(): value.strip() for key, _, value in pairs}
        if file.name in CLASSES:
            return {"names": text.rstrip().splitlines()}
        content = yaml.safe_load(text)
    except (InvalidAnnotation, yaml.YAMLError, ValueError, RecursionError) as error:
        if file.name not in CLASSES and file.stem != "data":  # a file of another program
            return {}
        raise UserError(f"{file}: expected YAML or names: {' '.join(str(error).split())}") from None
    return {str(key).lower(): value for key, value in content.items()} if isinstance(content, dict) else {}


def _lists_of(tree: Tree) -> dict[str, str]:
    """Return the lists of pictures train.txt, val.txt, … of a folder without a description."""
    files = {file.stem.lower(): file for file in tree.files if file.parent == tree.root}
    lists = {name: file.name for name, file in files.items() if name in WORDS and file.suffix == ".txt"}
    lines = (line.lower() for name in lists.values() for _, line in read_lines(tree.root / name))
    return lists if "train" in lists and all(line.endswith(PICTURES) for line in lines) else {}


def _is_label(file: Path) -> bool:
    try:
        _, line = next(read_lines(file), (0, ""))
        return len([float(word) for word in line.split()]) >= 5
    except (InvalidAnnotation, ValueError):
        return False


def _object(names: list[str], line: str, size: tuple[int, int], builder: Builder) -> Object:
    words = line.split()
    if len(words) == 6:
        raise InvalidAnnotation("expected class x y width height, got a sixth value: a prediction's score")
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        expected = "class x y width height, or class x1 y1 x2 y2 x3 y3 …"
        raise InvalidAnnotation(f"expected {expected}, got {counted(len(words), 'values')}")
    label, *values = (finite(word, "line") for word in words)
    if label not in range(len(names)):
        raise InvalidAnnotation(f"class: expected a number from 0 to {len(names) - 1}, got {words[0]}")
    name, (width, height) = names[int(label)], size
    if len(values) == 4:
        x, y, w, h = values
        left, right, top, bottom = x - w / 2, x + w / 2, y - h / 2, y + h / 2
        return builder.new_box(name, (left * width, top * height, right * width, bottom * height), size)
    points = zip(values[::2], values[1::2], strict=True)
    return builder.new_polygons(name, [[(x * width, y * height) for x, y in points]], size)
