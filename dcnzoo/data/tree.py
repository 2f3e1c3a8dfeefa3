"""The files of a data set: which split a name states, which picture a name means."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote

from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.folders import is_work_dir
from dcnzoo.utils.formats import PICTURES, walk
from dcnzoo.utils.text import few

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_FOLDERS = {"images", "image", "img", "imgs", "jpegimages", "data"}  # of pictures, not of masks beside them


def split_of(names: Iterable[str]) -> str:
    """Return the split that the first of these names with such a word states: ``instances_train2017``."""
    for name in names:
        words = re.findall("[A-Z]?[a-z]+|[A-Z]+", name)
        if len(splits := {WORDS[word.lower()] for word in words if word.lower() in WORDS}) == 1:
            return splits.pop()
    return ""


def by_split(named: Mapping[Path, str]) -> dict[str, list[Path]]:
    """Return the files of train, val and test; without train or val, all but those of test are ``all``.

    Raises:
        UserError: there are train and val, and a file of neither.
    """
    is_divided = {"train", "val"} <= {*named.values()}
    groups: dict[str, list[Path]] = defaultdict(list)
    for file, split in named.items():
        groups[split if is_divided or split == "test" else "all"].append(file)
    if is_divided and (others := groups.pop("", None)):
        raise UserError(f"data: expected each file in train, val or test, got {few(others, 3)} in none")
    return groups


def normal(name: str) -> str:
    """Return a name in one Unicode form and in small letters."""
    return unicodedata.normalize("NFC", name).casefold()


def parts_of(name: str) -> list[str]:
    """Return the parts of a path that may have been written on Windows, without drive, ``.`` and ``..``."""
    parts = re.sub("^[A-Za-z]:", "", name.replace("\\", "/")).split("/")
    return [part for part in parts if part not in ("", ".", "..")]


class Tree:
    """The files below a folder, without hidden ones and those of trainings."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[Path] = []
        for folder, folders, names in walk(root):
            if is_work_dir(folder):
                folders.clear()
            else:
                self.files += [folder / name for name in names]
        self.files.sort()
        self.pictures = self.ending(*PICTURES)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for picture in self.pictures:
            self._by_stem[normal(picture.stem)].append(picture)

    def ending(self, *suffixes: str) -> list[Path]:
        return [file for file in self.files if file.suffix.lower() in suffixes]

    def split_of(self, file: Path, own: bool) -> str:
        """Return the split that a file's folders state; with ``own``, first the one of its name."""
        folders = file.relative_to(self.root).parent.parts
        return split_of([file.stem] * own + [*reversed(folders)])

    def picture(self, name: str, beside: Path, split: str, any_ending: bool = False) -> Path:
        """Find the picture of an annotation.

        It is in the folder of the annotation; else it is the one below the root whose path ends most like
        the name: not in a folder of another split, and rather in one called ``images`` than in ``masks``.

        Raises:
            InvalidAnnotation: there is none, or several qualify.
        """
        parts = parts_of(unquote(name.partition("?d=")[2] or name)) or [""]
        own = beside / name.replace("\\", "/")
        if not any_ending and os.path.isfile(own):
            return Path(os.path.normpath(own))
        last = Path(parts[-1])
        stem = parts[-1] if any_ending else last.stem
        known = [normal(part) for part in parts[:-1]]
        best: list[Path] = []
        most: tuple = ()
        for picture in self._by_stem.get(normal(stem), ()):
            if not any_ending and normal(picture.suffix) != normal(last.suffix):
                continue
            folders = [normal(part) for part in picture.parent.parts]
            states = self.split_of(picture, own=False)
            if split in WORDS.values() and states not in ("", split):
                continue
            equal = 0
            while equal < len(known) and equal < len(folders) and known[-1 - equal] == folders[-1 - equal]:
                equal += 1
            above = len(Path(os.path.commonpath([picture, beside])).parts)
            value = (picture.parent == beside, equal, states == split, bool(_FOLDERS & {*folders}), above)
            if value > most or not best:
                best, most = [picture], value
            elif value == most:
                best.append(picture)
        if len(best) != 1:
            raise InvalidAnnotation(f"expected one picture {name} in {self.root}, found {few(best, 2)}")
        return best[0]
