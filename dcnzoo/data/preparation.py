"""Annotated pictures of other tools: one format in a folder, a data set for each split.

What is accepted is the statement in ``dcnzoo train --help``; everything else is refused. Each picture and each
object of the annotation files is used, or is a problem, which stops the command or is counted.
"""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from dcnzoo.data.coco import Coco
from dcnzoo.data.coco_file import CocoFile
from dcnzoo.data.dataset import Dataset, ReadOptions
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.labelme import LabelMe
from dcnzoo.data.tree import ALL, Tree, is_of_training
from dcnzoo.data.voc import Voc
from dcnzoo.data.yolo import CLASSES, DESCRIPTIONS, Yolo
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.findings import shown
from dcnzoo.utils.progress import track, waiting
from dcnzoo.utils.text import columns, counted, cut, few

VALIDATION = 0.2  # share of the pictures, if the data has no validation set
_SHOWN = 20  # classes
ACCEPTED = "YOLO's data.yaml, or JSON files of COCO, XML files of Pascal VOC, JSON files of LabelMe"


class Reader(Protocol):
    """One format."""

    name: str
    notes: list[str]

    def groups(self) -> dict[str, list[Path]]:
        """Return the files of each split: train and val, or all; perhaps test."""

    def read(self, files: list[Path], dataset: Dataset) -> None:
        """Add the pictures and objects of files to a data set."""


def read_splits(data: Path, options: ReadOptions) -> tuple[str, dict[str, Dataset], list[str]]:
    """Return the format of a folder or file, its splits (train and val, or all; perhaps test), and notes.

    Raises:
        UserError: no format or several are found, or the annotations have problems, one line each.
    """
    with waiting(f"listing {data}"):
        tree = Tree(data if data.is_dir() else data.parent)
    try:
        reader = _reader(data, tree, options)
        if options.zero_based and not isinstance(reader, Voc):
            raise UserError(f"zero_based: expected data in the format of Pascal VOC, got {reader.name}")
        groups = reader.groups()
        splits = _read(reader, groups, options)
    except InvalidAnnotation as error:
        raise UserError(f"{data}: {error}") from None
    notes = [*reader.notes]
    problems = [problem for each in splits.values() for problem in each.problems]
    if problems and not options.skip_invalid:
        hint = "skip_invalid=True leaves out what is invalid, clip=True clips objects"
        *lines, last = shown(problems)
        raise UserError(*lines, f"{last}; {hint}")
    if problems:
        notes.append(f"{counted(len(problems), 'problems')} skipped, such as {problems[0]}")
    if clipped := sum(each.clipped for each in splits.values()):
        notes.append(f"clipped to their pictures: {counted(clipped, 'boxes or polygons')}")
    if "test" in splits and not splits["test"].objects:
        del splits["test"]
        notes.append("test is not used: it has no objects")
    for name, split in splits.items():
        _require_objects(name, split)
        notes += [f"{name}: {note}" for note in split.notes]
        if split.unlabelled:
            pictures = counted(len(split.unlabelled), "pictures")
            notes.append(f"{name}: {pictures} without a file of labels, used as empty ones")
    return reader.name, splits, notes + _unused(tree, splits)


def read_data(data: Path, options: ReadOptions) -> tuple[dict[str, Dataset], list[str]]:
    """Return :func:`read_splits`, with train and val in any case, and a line for each decision.

    Raises:
        UserError: as there; or a picture is in two splits.
    """
    kind, splits, notes = read_splits(data, options)
    _require_apart(splits)
    if pool := splits.pop(ALL, None):
        splits = {**divide(pool, VALIDATION), **splits}
        notes.append(f"{VALIDATION:.0%} of the pictures, chosen at random (seed 0), are for validation")
    lines = [f"data      {data}, {kind}", *map(line_of, splits, splits.values())]
    return splits, [*lines, *_table_of_classes(splits), *(f"note      {note}" for note in notes)]


def line_of(name: str, split: Dataset) -> str:
    """Return a line with the numbers of a split."""
    numbers = f"{counted(len(split.sizes), 'pictures')}, {counted(len(split.objects), 'objects')}"
    ignored = f", of which training ignores {split.crowds}" if split.crowds else ""
    empty = len(split.sizes) - len({each.picture for each in split.objects})
    return f"{name:8}  {numbers}{ignored}, {empty} without objects: {split.folder}"


def _reader(data: Path, tree: Tree, options: ReadOptions) -> Reader:
    """Return the reader of the one format of a folder or file.

    Raises:
        UserError: there is none, or several.
    """
    if data.is_dir() and is_of_training(data):
        raise UserError(f"data: expected annotated pictures, got the work directory of a training, {data}")
    files = [data] if data.is_file() else tree.files
    json, unread = _open_json([file for file in files if file.suffix.lower() == ".json"])
    is_description = data.is_file() and (data.suffix in DESCRIPTIONS or data.name in CLASSES)
    yolo = Yolo.find(tree, data if is_description else None) if is_description or data.is_dir() else None
    found = (yolo, Coco.find(tree, json), LabelMe.find(tree, json), Voc.find(tree, files, options.zero_based))
    readers = [reader for reader in found if reader is not None]
    if len(readers) > 1:
        seen = ", ".join(f"{reader.name} ({_example(reader)})" for reader in readers)
        raise UserError(f"data: expected one format in {data}, found {seen}: name the file or folder of one")
    if unread and not (readers and readers[0] in (yolo, found[3])):  # JSON may have annotations
        raise unread[0]
    if readers:
        return readers[0]
    if scored := [file for file, content in json.items() if content.is_coco]:
        raise UserError(
            f"data: expected annotations, got predictions: they have a score, in {few(scored, 2)}"
        )
    endings = Counter(file.suffix.lower() or "without ending" for file in files).most_common(5)
    seen = ", ".join(f"{number} {ending}" for ending, number in endings) or "nothing"
    raise UserError(f"data: expected {ACCEPTED}, got {data} with {seen}; most tools can export COCO")


def _example(reader: Reader) -> Path:
    return reader.file if isinstance(reader, Yolo) else next(iter(reader.files))  # type: ignore[attr-defined]


def _open_json(files: list[Path]) -> tuple[dict[Path, CocoFile], list[UserError]]:
    """Return the JSON files by their paths, and an error for each that cannot be read."""
    contents: dict[Path, CocoFile] = {}
    errors = []
    for file in track(files, "reading"):
        try:
            contents[file] = CocoFile(file)
        except InvalidAnnotation as error:
            errors.append(UserError(f"{file}: {error}"))
    return contents, errors


def _read(reader: Reader, groups: Mapping[str, list[Path]], options: ReadOptions) -> dict[str, Dataset]:
    """Read the files of each split."""
    classes = dict.fromkeys(options.classes or (reader.classes if isinstance(reader, Yolo) else ()))
    splits = {name: Dataset(classes, bool(options.classes), options.clip) for name in groups}
    for name, split in splits.items():
        reader.read([*track(groups[name], f"reading {name}")], split)
    if not options.classes and isinstance(reader, LabelMe | Voc):  # they have no list of classes
        names = sorted(classes)
        classes.clear()
        classes.update(dict.fromkeys(names))
    return splits


def _require_objects(name: str, split: Dataset) -> None:
    if split.crowds < len(split.objects) or (name == "val" and not split.objects):
        return
    got = f"{counted(split.crowds, 'crowds')} or difficult ones" if split.objects else "none"
    raise UserError(f"data: {name}: expected objects, got {got}")


def _unused(tree: Tree, splits: Mapping[str, Dataset]) -> list[str]:
    """Return a line each for the pictures and files that are not used."""
    used = {picture.absolute() for split in splits.values() for picture in split.sizes}
    used |= {file.absolute() for split in splits.values() for file in split.sources}
    pictures = [file for file in tree.pictures if file.absolute() not in used]
    others = [file for file in {*tree.files} - {*tree.pictures} if file.absolute() not in used]
    return [
        f"{what}, not used: {len(files)} ({few(sorted(files), 2)})"
        for what, files in (("pictures without annotations", pictures), ("other files", others))
        if files
    ]


def _require_apart(splits: Mapping[str, Dataset]) -> None:
    """Raise UserError if a picture, or a copy with the same bytes, is in two splits."""
    alike: dict[tuple, list[tuple[str, Path]]] = defaultdict(list)
    for name, split in splits.items():
        for file, size in split.sizes.items():
            alike[(*size, file.stat().st_size)].append((name, file))
    first: dict[bytes, tuple[str, Path]] = {}
    shared = []
    for files in alike.values():
        for name, file in files if len({name for name, _ in files}) > 1 else ():
            other, copy = first.setdefault(hashlib.sha256(file.read_bytes()).digest(), (name, file))
            if other != name:
                shared.append(f"{file} of {name} = {copy} of {other}")
    if shared:
        number = counted(len(shared), "pictures")
        raise UserError(f"data: expected no picture in two splits, got {number}: {few(shared, 2)}")


def divide(pool: Dataset, share: float, seed: int = 0) -> dict[str, Dataset]:
    """Divide pictures at random into train and val; those that Roboflow made of one picture stay together.

    The last picture of a class stays in train.

    Raises:
        UserError: a part would have no object.
    """
    groups: dict[object, list[Path]] = defaultdict(list)
    for file in pool.sizes:
        groups[file.name.partition(".rf.")[0] if ".rf." in file.name else file].append(file)
    files, names = [*pool.sizes], defaultdict[Path, set[str]](set)
    for each in pool.objects:
        if not each.iscrowd:
            names[files[each.picture - 1]].add(each.name)
    own = {key: {name for file in group for name in names[file]} for key, group in groups.items()}
    left = Counter(name for classes in own.values() for name in classes)
    number, chosen = max(1, round(share * len(groups))), set[Path]()
    order = random.Random(seed).sample([*groups], len(groups))  # nosec B311
    for key in _first_of_both(order, own):
        if number > 0 and all(left[name] > 1 for name in own[key]):
            left.subtract(own[key])
            chosen |= {*groups[key]}
            number -= 1
    if not any(names[file] for file in chosen) or not any(
        names[file] for file in files if file not in chosen
    ):
        raise UserError("data: expected objects for training and validation: annotate more pictures")
    return {
        "train": pool.select([file for file in files if file not in chosen]),
        "val": pool.select([file for file in files if file in chosen]),
    }


def _first_of_both(order: list[object], classes: Mapping[object, Iterable[str]]) -> list[object]:
    """Return the order with the first group with objects in front, so that val has some."""
    annotated = next((key for key in order if classes[key]), None)
    return order if annotated is None else [annotated, *(key for key in order if key != annotated)]


def _table_of_classes(splits: Mapping[str, Dataset]) -> list[str]:
    """Return lines with the number of objects of each class by split."""
    numbers = {name: split.per_class for name, split in splits.items()}
    names = [*next(iter(numbers.values()))]
    rows = [(cut(name), *(str(each[name]) for each in numbers.values())) for name in names[:_SHOWN]]
    lines = [f"          {line}" for line in columns([("class", *numbers), *rows], numbers=True)]
    if len(names) > _SHOWN:
        lines.append(f"          and {len(names) - _SHOWN} more")
    return lines
