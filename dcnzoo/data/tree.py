"""The files of a data set: find the picture that a name means. The base class of the readers."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from dcnzoo.data.builder import Builder
from dcnzoo.data.coco_file import CocoFile
from dcnzoo.data.dataset import ALL
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.folders import is_work_dir
from dcnzoo.utils.formats import PICTURES, walk
from dcnzoo.utils.progress import track
from dcnzoo.utils.text import few

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_OF_PICTURES = {"images", "image", "img", "imgs", "jpegimages", "data"}  # folders of pictures, not of masks
_OF_RUNS = ("runs", "work_dirs")  # the default folders of Ultralytics and of dcnzoo


def split_of(names: Iterable[str]) -> str:
    """Return the split of the first name that has one of the words, such as ``instances_train2017``."""
    for name in names:
        words = map(str.lower, re.findall("[A-Z]?[a-z]+|[A-Z]+", name))
        if len(splits := {WORDS[word] for word in words if word in WORDS}) == 1:
            return splits.pop()
    return ""


def by_split(stated: Collection[tuple[Path, str]]) -> dict[str, list[Path]]:
    """Group files into train and val, or into ALL if either is missing; test is apart from train or val.

    Raises:
        UserError: train and val exist, but a file belongs to no split.
    """
    states = {split for _, split in stated}
    is_divided = {"train", "val"} <= states
    groups: dict[str, list[Path]] = defaultdict(list)
    for file, split in stated:
        is_apart = split == "test" and not states.isdisjoint(("train", "val"))
        groups[split if is_divided or is_apart else ALL].append(file)
    if is_divided and (others := groups.pop("", None)):
        raise UserError(
            f"data: expected each file in train, val or test, got {few(others, 3)} in none: move it away"
        )
    return groups


def normal(name: str) -> str:
    """Return a name in one Unicode form and in lower case."""
    return unicodedata.normalize("NFC", name).casefold()


def parts_of(name: str) -> list[str]:
    """Return the parts of a path that may have been written on Windows, without drive, ``.`` and ``..``."""
    parts = re.sub("^[A-Za-z]:", "", name.replace("\\", "/")).split("/")
    return [part for part in parts if part not in ("", ".", "..")]


def without_dots(path: Path) -> Path:
    """Return a path without ``..``, as others are spelled, unless it then leads elsewhere, past a link."""
    shorter = Path(os.path.normpath(path)) if ".." in path.parts else path
    return shorter if shorter.exists() and shorter.samefile(path) else path


def is_of_training(folder: Path) -> bool:
    """Whether a folder is a work directory, or the data that a training has written there."""
    written = ("train.json", "val.json", f"{folder.resolve().parent.name}.py")
    return is_work_dir(folder) or all((folder / name).is_file() for name in written)


class Tree:
    """The files of a data set, without hidden files and without the files of trainings.

    Attributes:
        root: the folder of the data.
        chosen: the file that the user passed in place of a folder.
        files: the files below the root.
        pictures: those below the root; if there are none, below its parent, as for COCO's ``annotations``.
        base: the folder of the pictures.
        splits: the split that each folder of pictures states.
    """

    def __init__(self, data: Path) -> None:
        self.chosen = None if data.is_dir() else data
        self.root = self.base = data.parent if self.chosen else data
        self.files = files_below(self.root)
        self.pictures = pictures_of(self.files)
        if not self.pictures:
            self.base = self.root.absolute().parent
            self.pictures = pictures_of(files_below(self.base))
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for picture in self.pictures:
            self._by_stem[normal(picture.stem)].append(picture)
        folders = {picture.parent for picture in self.pictures}
        self.splits = {each: split_of(reversed(each.relative_to(self.base).parts)) for each in folders}

    @property
    def candidates(self) -> list[Path]:
        """The files that may be annotations."""
        return [self.chosen] if self.chosen else self.files

    @cached_property
    def json(self) -> dict[Path, CocoFile]:
        """The contents of the candidates in JSON; raises UserError if one is no JSON."""
        contents = dict[Path, CocoFile]()
        for file in track([file for file in self.candidates if file.suffix.lower() == ".json"], "reading"):
            try:
                contents[file] = CocoFile(file)
            except InvalidAnnotation as error:
                raise UserError(f"{file}: {error}") from None
        return contents

    def split_of(self, file: Path) -> str:
        """Return the split that a file's folders state."""
        return split_of(reversed(file.relative_to(self.root).parent.parts))

    def picture(self, name: str, beside: Path, split: str = "") -> Path:
        """Find the picture that an annotation names.

        If the path relative to ``beside`` does not exist, return the nearest picture with this file name.

        Args:
            beside: the folder of the annotation.
            split: the split that the annotation states.

        Raises:
            InvalidAnnotation: there is none, or several are equally near.
        """
        if os.path.isfile(path := beside / name.replace("\\", "/")):
            return without_dots(path)
        # Label Studio: /data/local-files/?d=folder/a%20b.jpg
        *folders, last = [*map(normal, parts_of(unquote(name.partition("?d=")[2] or name)))] or [""]
        stem, ending = os.path.splitext(last)
        pictures = [picture for picture in self._by_stem.get(stem, ()) if normal(picture.suffix) == ending]
        return self._nearest(name, pictures, folders, beside, split)

    def picture_named_as(self, file: Path) -> Path:
        """Find the picture that has the same name as an annotation file; see :meth:`picture`."""
        folders = [*map(normal, file.relative_to(self.root).parent.parts)]
        pictures = self._by_stem.get(normal(file.stem), [])
        return self._nearest(file.stem, pictures, folders, file.parent, self.split_of(file))

    def _nearest(self, name: str, pictures: list[Path], folders: list[str], beside: Path, split: str) -> Path:
        """Return the nearest of the pictures with one file name, without those of another split.

        Args:
            folders: the folders in the name, as :func:`normal` returns them.
        """
        pictures = [each for each in pictures if not split or self.splits[each.parent] in ("", split)]
        for _, nearness in NEARNESS:
            if len(pictures) > 1:
                values = {each: nearness(self, each, folders, beside, split) for each in pictures}
                nearest = max(values.values())
                pictures = [each for each, value in values.items() if value == nearest]
        if len(pictures) != 1:
            raise InvalidAnnotation(f"expected one picture {name} in {self.base}, found {few(pictures, 2)}")
        return pictures[0]


def _equal_folders(tree: Tree, picture: Path, folders: list[str], beside: Path, split: str) -> int:
    """Return how many of the last folders are those of the name."""
    above = [*map(normal, picture.absolute().parent.parts)]
    return sum(above[-n:] == folders[-n:] for n in range(1, len(folders) + 1))


def _is_with_pictures(tree: Tree, picture: Path, *named: object) -> bool:
    return not _OF_PICTURES.isdisjoint(map(normal, picture.parent.relative_to(tree.base).parts))


def _common_folders(tree: Tree, picture: Path, folders: list[str], beside: Path, split: str) -> int:
    return len(Path(os.path.commonpath([picture.absolute(), beside.absolute()])).parts)


# Each row has the tools that write such folders, and a function that returns how near a picture is to its
# annotation. Of pictures with one file name, the first row keeps the nearest; the next decides among these.
NEARNESS: tuple[tuple[str, Callable[[Tree, Path, list[str], Path, str], int]], ...] = (
    ("LabelMe, Roboflow: beside the annotation", lambda tree, file, _, beside, split: file.parent == beside),
    ("COCO's and Label Studio's names with folders", _equal_folders),
    (
        "Ultralytics, FiftyOne: a folder for each split; otherwise, a folder without one",
        lambda tree, file, _, beside, split: tree.splits[file.parent] == split,
    ),
    ("masks with the names of the pictures, in folders of their own", _is_with_pictures),
    ("CVAT: a folder for each task", _common_folders),
)


class Reader:
    """The base class of the readers, one for each format.

    Attributes:
        name: the name of the format.
        position: see :class:`dcnzoo.data.dataset.Dataset`.
        lists_classes: whether the format has a list of classes, whose order counts.
        counts_pixels: whether coordinates are numbers of pixels from 1, unless ``zero_based`` is set.
        files: the files by which the format is recognised.
        lists: the files with names of pictures or classes that were read.
        notes: lines for the user.
    """

    name = position = ""
    lists_classes, counts_pixels = True, False

    def __init__(self, tree: Tree, files: Sequence[Path]) -> None:
        self.tree, self.files, self.lists, self.notes = tree, files, list[Path](), list[str]()

    @classmethod
    def find(cls, tree: Tree) -> "Reader | None":
        """Return the reader, if the tree has files of the format."""
        raise NotImplementedError

    @property
    def classes(self) -> list[str]:
        """The names of the classes that a file lists, in their order."""
        return []

    def groups(self) -> dict[str, list[Path]]:
        """Return the files of each split, which their folders determine."""
        return by_split([(file, self.tree.split_of(file)) for file in self.files])

    def add(self, file: Path, split: str, builder: Builder) -> None:
        """Add the pictures and objects of one of the files that :meth:`groups` returns."""
        raise NotImplementedError

    def read(self, builder: Builder) -> None:
        """Add the pictures and objects of all splits."""
        for split, files in self.groups().items():
            builder.data.splits[split] = []
            for file in track(files, f"reading {split}"):
                with builder.refusing(file):
                    self.add(file, split, builder)


def pictures_of(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in PICTURES]


def files_below(root: Path) -> list[Path]:
    """List the files below a folder, except hidden files and the files of trainings."""
    files: list[Path] = []
    for folder, folders, names in walk(root):
        if folder != root and is_of_training(folder):
            folders.clear()
            continue
        folders[:] = [name for name in folders if name not in _OF_RUNS]
        files += [folder / name for name in names]
    return sorted(files)
