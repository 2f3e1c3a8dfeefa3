"""Read the annotated pictures of other tools: a folder with one format becomes a data set.

docs/train_your_data.md lists the accepted data; everything else is refused. Each picture and object of the
annotation files is either used or a problem. Problems stop the command, or are skipped and counted.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcnzoo.data.builder import Builder
from dcnzoo.data.coco import Coco
from dcnzoo.data.dataset import Dataset, ReadOptions, without_mask
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.labelme import LabelMe
from dcnzoo.data.tree import Reader, Tree, is_of_training
from dcnzoo.data.voc import Voc
from dcnzoo.data.yolo import Yolo
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import expanded, require_exists
from dcnzoo.utils.findings import Finding, shown
from dcnzoo.utils.formats import PICTURES
from dcnzoo.utils.progress import waiting
from dcnzoo.utils.text import columns, counted, cut, few

FORMATS: tuple[type[Reader], ...] = (Yolo, Coco, LabelMe, Voc)


class DataError(UserError):
    """Annotations have problems; the message names the first ones.

    Attributes:
        problems: all of them.
    """

    def __init__(self, problems: list[Finding]) -> None:
        hint = "skip_invalid=True leaves out what is invalid, clip=True clips objects"
        super().__init__(f"{counted(len(problems), 'problems')}; {hint}", *shown(problems))
        self.problems = problems


def read(path: str | os.PathLike[str], **options: Any) -> Dataset:
    """Read the annotated pictures of a folder or file, as docs/train_your_data.md describes::

        data = dcnzoo.data.read("fruits/")
        data.split()["train"].write("train.json")

    Args:
        options: those of :class:`dcnzoo.data.dataset.ReadOptions`: ``zero_based``, ``clip``,
            ``skip_invalid``, ``classes``.

    Raises:
        UserError: no format or several are found.
        DataError: the annotations have problems, one line each.
    """
    path, of_read = expanded(path), ReadOptions(**options)
    require_exists(path, "data")
    with waiting(f"listing {path}"):
        tree = Tree(path)
    try:
        reader = _reader(path, tree, of_read)
        classes = dict.fromkeys(of_read.classes or reader.classes)
        data = Dataset(classes, path, reader.name, reader.position)
        builder = Builder(data, of_read)
        reader.read(builder)
    except InvalidAnnotation as error:
        raise UserError(f"{path}: {error}") from None
    if not (reader.lists_classes or of_read.classes):
        data.classes = dict.fromkeys(sorted(data.classes))
    data.notes += reader.notes
    if data.problems and not of_read.skip_invalid:
        raise DataError(data.problems)
    if data.problems:
        number = counted(len(data.problems), "problems")
        data.notes.append(f"{number} skipped, such as {data.problems[0]}")
    if builder.clipped:
        data.notes.append(f"clipped to their pictures: {counted(builder.clipped, 'boxes or polygons')}")
    if "test" in data.splits and not any(picture.objects for picture in data.splits["test"]):
        del data.splits["test"]
        data.notes.append("test is not used: it has no objects")
    for name, pictures in data.splits.items():
        split = data.part(name, pictures)
        _require_objects(name, split)
        if split.unlabelled:
            number = counted(len(split.unlabelled), "pictures")
            data.notes.append(f"{name}: {number} without a file of labels, used as empty ones")
    data.notes += _unused(tree, reader, data)
    return data


def describe(data: Dataset, splits: Mapping[str, Dataset]) -> list[str]:
    """Return lines about a data set, and about those of its parts that are used."""
    lines = [f"data      {data.path}, {data.format}", *map(_line_of, splits, splits.values())]
    notes = [*data.notes]
    bare, total, first = without_mask(splits.values())
    if 0 < bare < total:
        notes.append(
            f"masks: no, {bare:,} of {total:,} objects {'has' if bare == 1 else 'have'} none: {first}"
        )
    numbers = {name: split.per_class for name, split in splits.items()}
    used = [name for name in data.classes if any(each[name] for each in numbers.values())]
    if absent := [name for name in data.classes if name not in used]:
        notes.append(f"no objects of {counted(len(absent), 'classes')}: {few(absent)}")
    if "val" in splits and "val" not in data.splits:
        share = len(splits["val"].pictures) / sum(len(split.pictures) for split in splits.values())
        notes.append(f"{share:.0%} of the pictures, chosen at random (seed 0), are for validation")
    rows = [(cut(name), *(str(each[name]) for each in numbers.values())) for name in used]
    lines += [f"          {row}" for row in columns([("class", *splits), *rows], numbers=True)]
    return [*lines, *(f"note      {note}" for note in notes)]


def _line_of(name: str, split: Dataset) -> str:
    """Return a line with the numbers of a split."""
    numbers = f"{counted(len(split.pictures), 'pictures')}, {counted(len(split.objects), 'objects')}"
    ignored = f", of which training ignores {split.crowds}" if split.crowds else ""
    empty = sum(not picture.objects for picture in split)
    return f"{name:8}  {numbers}{ignored}, {empty} without objects: {split.folder}"


def _reader(data: Path, tree: Tree, options: ReadOptions) -> Reader:
    """Return the reader of the one format of a folder or file.

    Raises:
        UserError: no format or several are found, or a file that may belong to a format cannot be read.
    """
    if data.is_dir() and is_of_training(data):
        raise UserError(f"data: expected annotated pictures, got the work directory of a training, {data}")
    readers = [reader for kind in FORMATS if (reader := kind.find(tree))]
    if len(readers) > 1:
        seen = ", ".join(f"{each.name} ({next(iter(each.files))})" for each in readers)
        raise UserError(f"data: expected one format in {data}, found {seen}: name the file or folder of one")
    if readers and options.zero_based and not readers[0].counts_pixels:
        raise UserError(f"zero_based: expected data in the format of Pascal VOC, got {readers[0].name}")
    if readers:
        return readers[0]
    if scored := [file for file, content in tree.json.items() if content.is_coco]:
        raise UserError(f"data: expected annotations, got predictions with a score in {few(scored, 2)}")
    expected = "YOLO's data.yaml or classes.txt, COCO's or LabelMe's JSON files or Pascal VOC's XML files"
    files = tree.candidates
    telling = [file for file in files if file.suffix.lower() not in PICTURES] or files
    got = f"{data} with {counted(len(files), 'files')}, such as {few(telling[:1])}"
    raise UserError(f"data: expected {expected}, got {got}; most tools can export COCO")


def _require_objects(name: str, split: Dataset) -> None:
    """Raise UserError if a split has no objects to learn from, or to compare with."""
    if split.crowds == len(split.objects):
        got = f"{counted(split.crowds, 'crowds')} or difficult ones" if split.objects else "none"
        if split.unlabelled:
            got += f"; no labels of {split.unlabelled[0]} are beside it or in a folder labels"
        raise UserError(f"data: {name}: expected objects, got {got}")


def _unused(tree: Tree, reader: Reader, data: Dataset) -> list[str]:
    """Return a line each for the pictures and files that are not used."""
    files = {file for picture in data for file in (picture.file, picture.source) if file is not None}
    used = {file.absolute() for file in (*files, *reader.files, *reader.lists)}
    pictures = [file for file in tree.pictures if file.absolute() not in used]
    others = sorted(file for file in {*tree.files} - {*tree.pictures} if file.absolute() not in used)
    kinds = {"pictures without annotations": pictures, "other files": others}
    return [f"{kind}, not used: {len(files)} ({few(files, 2)})" for kind, files in kinds.items() if files]
