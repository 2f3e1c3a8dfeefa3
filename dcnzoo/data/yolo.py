"""Read YOLO's text files, with boxes or polygons."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dcnzoo.data.dataset import Dataset
from dcnzoo.data.files import InvalidAnnotation, finite, read_lines, read_text
from dcnzoo.data.tree import ALL, WORDS, Tree, by_split, normal, parts_of
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.formats import PICTURES
from dcnzoo.utils.text import counted, few, short

CLASSES = ("classes.txt", "obj.names", "_darknet.labels")  # with a name per line
DESCRIPTIONS = (".yaml", ".yml", ".data")


class Yolo:
    """The reader of YOLO's files.

    Attributes:
        file: the one that describes the data, or names the classes.
        classes: the names.
    """

    name = "YOLO"

    def __init__(self, tree: Tree, file: Path, described: dict[str, Any]) -> None:
        self.tree, self.file = tree, file
        self.notes: list[str] = []
        self._described = described
        self._folders: dict[Path, dict[str, Path]] = {}  # the text files of a folder by their stems

    @classmethod
    def find(cls, tree: Tree, chosen: Path | None) -> "Yolo | None":
        """Return the reader, if there is a description, or names of classes and labels.

        Args:
            chosen: a description or a file with names that the user has named.
        """
        if chosen is not None:
            return cls(tree, chosen, _keys(chosen))
        described = {file: _keys(file) for file in tree.ending(*DESCRIPTIONS)}
        if named := {file: keys for file, keys in described.items() if "train" in keys}:
            nearest = min(len(file.parts) for file in named)
            files = [file for file in named if len(file.parts) == nearest]
            files = [file for file in files if file.stem == "data"] or files
            if len(files) > 1:
                raise UserError(f"data: expected one file like data.yaml, found {few(files)}: name one")
            return cls(tree, files[0], named[files[0]])
        texts = {file: _keys(file) for file in tree.files if file.name in CLASSES}
        texts |= {file: keys for file, keys in described.items() if "names" in keys}
        if not texts:
            return None
        file, keys = next(iter(texts.items()))
        reader = cls(tree, file, keys | _lists_of(tree))
        if not any(map(reader.label_of, tree.pictures)):
            return None
        if any(cls(tree, other, keys).classes != reader.classes for other, keys in texts.items()):
            raise UserError(f"data: expected the same classes in each file, got others in {few([*texts])}")
        return reader

    @property
    def classes(self) -> list[str]:
        """The names of the classes.

        Raises:
            InvalidAnnotation: they are not names of the classes 0, 1, …
        """
        names = self._described.get("names")
        if isinstance(names, str):  # of obj.data: the file with the names
            names = _keys(self.file.parent / parts_of(names)[-1]).get("names")
        if isinstance(names, dict):
            numbers = {str(number): name for number, name in names.items()}
            names = [numbers.get(str(number)) for number in range(len(numbers))]
        are_names = isinstance(names, list) and all(
            isinstance(name, str | int) and not isinstance(name, bool) and str(name).strip() for name in names
        )
        if not names or not are_names:
            raise InvalidAnnotation(f"names: expected names of the classes 0, 1, …, got {short(names)}")
        return [str(name).strip() for name in names]

    def groups(self) -> dict[str, list[Path]]:
        """Return the pictures of each split."""
        if "kpt_shape" in self._described:
            raise InvalidAnnotation("expected boxes or polygons, got keypoints (kpt_shape)")
        if "train" not in self._described:
            pictures = self.tree.pictures
            labelled = {picture.parent for picture in pictures if self.label_of(picture)}
            own = [picture for picture in pictures if picture.parent in labelled]
            return by_split({picture: self.tree.split_of_picture(picture) for picture in own})
        splits: dict[str, list[Path]] = {}
        for key, places in self._described.items():
            if (split := WORDS.get(key)) and places:
                listed = places if isinstance(places, list) else [places]
                splits[split] = [*dict.fromkeys(p for place in listed for p in self._pictures(place))]
                if not splits[split]:
                    self.notes.append(f"{self.file.name} names {short(places)} for {key}: no pictures there")
                    del splits[split]
        if "train" not in splits:
            got = short(self._described.get("train"))
            raise InvalidAnnotation(f"train: expected a folder or list with pictures, got {got}")
        if "val" not in splits:
            splits[ALL] = splits.pop("train")
        return splits

    def _pictures(self, place: object) -> Iterator[Path]:
        """Yield the pictures of a folder, or of a text file with their paths; of what does not exist, none."""
        name, path = str(place).replace("\\", "/"), str(self._described.get("path") or "")
        roots = [self.file.parent / path, self.file.parent]
        if os.path.isabs(path) or (path and Path(path).resolve() != Path.cwd()):
            roots.insert(1, Path(path))
        # Roboflow's ../train/images is below the file, and darknet's data/train.txt beside it
        names = (name, name.removeprefix("../"), name.removeprefix("data/"))
        target = next((root / each for root in roots for each in names if (root / each).exists()), None)
        if target is None:
            return
        if target.is_dir():
            yield from Tree(target).ending(*PICTURES)
            return
        for number, line in read_lines(target):
            line = line.replace("\\", "/")
            tries = (Path(root, line) for root in (*roots, target.parent))
            picture = next(filter(os.path.isfile, tries), None)
            try:
                if picture is None:
                    picture = self.tree.picture(line, target.parent)
            except InvalidAnnotation as error:
                raise InvalidAnnotation(f"{target}: {error}", number) from None
            yield Path(os.path.normpath(picture))

    def label_of(self, picture: Path) -> Path | None:
        """Return ``labels/a.txt`` of ``images/a.jpg``, or the text file beside the picture."""
        folders, parts = [picture.parent], picture.parent.parts
        for number in range(len(parts) - 1, -1, -1):
            if parts[number].lower() in ("images", "jpegimages"):
                folders.insert(0, Path(*parts[:number], "labels", *parts[number + 1 :]))
                break
        stem = normal(picture.stem)
        return next((file for folder in folders if (file := self._texts(folder).get(stem))), None)

    def _texts(self, folder: Path) -> dict[str, Path]:
        if folder not in self._folders:
            files = (file for file in folder.glob("*") if file.suffix.lower() == ".txt")
            self._folders[folder] = {normal(file.stem): file for file in files}
        return self._folders[folder]

    def read(self, files: list[Path], dataset: Dataset) -> None:
        """Add pictures and their lines: ``class x y width height`` or ``class x1 y1 x2 y2 …``, from 0 to 1."""
        dataset.sources.append(self.file)
        classes, used = self.classes, dict[Path, Path]()
        for picture in files:
            with dataset.refusing(picture):
                dataset.add_picture(picture)
                label = self.label_of(picture)
                if label is None:
                    dataset.unlabelled.append(picture)
                    continue
                if label in used:
                    raise InvalidAnnotation(f"expected one picture of {label}, found {used[label]}, too")
                used[label] = picture
                for number, line in read_lines(label):
                    try:
                        _add(line.split(), classes, dataset)
                    except InvalidAnnotation as error:
                        dataset.refuse(f"{label}:{number}", error)
        dataset.sources += used
        self._require_pictures({*used}, files, dataset)

    def _require_pictures(self, used: set[Path], files: list[Path], dataset: Dataset) -> None:
        """Count labels without a picture; they are an error if there are pictures without labels, too."""
        folders = defaultdict[Path, set[Path]](set)
        for label in used:
            folders[label.parent].add(label)
        others = {text for folder in folders for text in self._texts(folder).values()} - used
        strays = [text for text in sorted(others) if _is_label(text)]
        if strays and dataset.unlabelled:
            pictures = f"{counted(len(dataset.unlabelled), 'pictures')} ({few(dataset.unlabelled, 2)})"
            raise UserError(
                f"data: expected a label of each picture, found none of {pictures}, and "
                f"{counted(len(strays), 'labels')} without a picture ({few(strays, 2)})"
            )
        if len(dataset.unlabelled) == len(dataset.sizes) > 0:
            raise UserError(
                f"data: expected labels of {files[0]} beside it or in a folder labels, found none"
            )
        if strays:
            dataset.notes.append(
                f"{counted(len(strays), 'labels')} without a picture, not used: {few(strays, 2)}"
            )


def _keys(file: Path) -> dict[str, Any]:
    """Return the keys of data.yaml, of darknet's obj.data, or the names in a text file; {} of other files."""
    is_named = file.name in CLASSES or file.stem == "data"  # other YAML is somebody else's
    try:
        text = read_text(file)
        if file.suffix == ".data":
            pairs = (line.partition("=") for line in text.splitlines())
            return {key.strip(): value.strip() for key, _, value in pairs}
        if file.name in CLASSES:
            return {"names": text.rstrip().splitlines()}
        content = yaml.safe_load(text)
    except InvalidAnnotation as error:
        if is_named:
            raise UserError(f"{file}: {error}") from None
        return {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if is_named:
            raise UserError(f"{file}: expected YAML: {' '.join(str(error).split())}") from None
        return {}
    return {str(key).lower(): value for key, value in content.items()} if isinstance(content, dict) else {}


def _lists_of(tree: Tree) -> dict[str, str]:
    """Return the files train.txt, val.txt, … with names of pictures, of a folder without a description."""
    lists = {}
    for file in tree.ending(".txt"):
        split = WORDS.get(file.stem.lower())
        if split and file.parent == tree.root:
            lines = [line for _, line in read_lines(file)]
            if lines and all(line.lower().endswith(PICTURES) for line in lines):
                lists[split] = file.name
    return lists if "train" in lists else {}


def _is_label(file: Path) -> bool:
    try:
        _, line = next(read_lines(file), (0, ""))
        return len([float(word) for word in line.split()]) >= 5
    except (InvalidAnnotation, ValueError):
        return False


def _add(words: list[str], names: list[str], dataset: Dataset) -> None:
    if len(words) == 6:
        raise InvalidAnnotation("expected class x y width height, got a sixth value: a prediction's score")
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        expected = "class x y width height, or class x1 y1 x2 y2 x3 y3 …"
        raise InvalidAnnotation(f"expected {expected}, got {counted(len(words), 'values')}")
    label, *values = (finite(word, "line") for word in words)
    if label not in range(len(names)):
        raise InvalidAnnotation(f"class: expected a number from 0 to {len(names) - 1}, got {words[0]}")
    name, (width, height) = names[int(label)], dataset.size
    if len(values) == 4:
        x, y, w, h = values
        if not dataset.clip and max(values) > 1.01:
            raise InvalidAnnotation(f"expected values from 0 to 1, got {max(values):g}")
        left, right, top, bottom = x - w / 2, x + w / 2, y - h / 2, y + h / 2
        dataset.add_box(name, (left * width, top * height, right * width, bottom * height))
    else:
        points = zip(values[::2], values[1::2], strict=True)
        dataset.add_polygons(name, [[(x * width, y * height) for x, y in points]])
