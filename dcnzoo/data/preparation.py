"""Annotated pictures of other tools: one format in a folder, a COCO file for each split.

What is accepted is the table in docs/train_your_data.md; everything else is refused. Each picture and each
object of the annotation files is used, or is a problem, which stops the command or is counted.
"""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dcnzoo.data import coco, labelme, voc, yolo
from dcnzoo.data.dataset import ReadOptions, Split
from dcnzoo.data.files import InvalidAnnotation, read_json
from dcnzoo.data.tree import Tree, by_split
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.findings import shown
from dcnzoo.utils.progress import track, waiting
from dcnzoo.utils.text import columns, counted, cut, few

VALIDATION = 0.2  # share of the pictures, if the data has no validation set
_SHOWN = 20  # classes
ACCEPTED = "data.yaml, COCO's JSON, Pascal VOC's XML or LabelMe's JSON files"


def read_splits(data: Path, options: ReadOptions) -> tuple[str, dict[str, Split], list[str]]:
    """Return the format of a folder or file, its splits (train and val, or all; perhaps test), and notes.

    Raises:
        UserError: no format or several are found, the annotations have problems, one line each, or a picture
            is in two splits.
    """
    yolo.forget()
    with waiting(f"listing {data}"):
        tree = Tree(data if data.is_dir() else data.parent)
    try:
        kind, read = _reader(data, tree, options)
        splits, notes = read()
    except InvalidAnnotation as error:
        raise UserError(f"{data}: {error}") from None
    if problems := [problem for each in splits.values() for problem in each.problems]:
        if not options.skip_invalid:
            *lines, last = shown(problems)
            raise UserError(
                *lines, f"{last}; skip_invalid=True leaves out what is invalid, clip=True clips objects"
            )
        notes.append(f"{counted(len(problems), 'problems')} skipped, such as {problems[0]}")
    if options.zero_based and kind != "Pascal VOC":
        raise UserError(f"zero_based: expected data in the format of Pascal VOC, got {kind}")
    if "test" in splits and not splits["test"].objects:
        del splits["test"]
        notes.append("test is not used: it has no objects")
    for name, split in splits.items():
        if split.crowds == len(split.objects) and (split.objects or name != "val"):
            got = f"{counted(split.crowds, 'crowds')} or difficult ones" if split.objects else "none"
            raise UserError(f"data: {name}: expected objects, got {got}")
        notes += split.notes
        if split.unlabelled:
            notes.append(
                f"{name}: {counted(len(split.unlabelled), 'pictures')} without labels are used as empty ones"
            )
    _require_apart(splits)
    used = {*(p for s in splits.values() for p in s.sizes), *(f for s in splits.values() for f in s.sources)}
    unused = [file for file in tree.pictures if file not in used]
    for what, files in (
        ("pictures without annotations", unused),
        ("other files", [*{*tree.files} - used - {*unused}]),
    ):
        if files:
            notes.append(f"{what}, not used: {len(files)} ({few(sorted(files), 2)})")
    return kind, splits, notes


def read_data(data: Path, options: ReadOptions) -> tuple[dict[str, Split], list[str]]:
    """Return :func:`read_splits`, with train and val in any case, and a line for each decision."""
    kind, splits, notes = read_splits(data, options)
    if pool := splits.pop("all", None):
        splits = {**divide(pool, VALIDATION), **splits}
        notes.append(f"{VALIDATION:.0%} of the pictures, chosen at random (seed 0), are for validation")
    decisions = [f"data      {data}, {kind}"]
    for name, split in splits.items():
        numbers = f"{counted(len(split.sizes), 'pictures')}, {counted(len(split.objects), 'objects')}"
        ignored = f", of which training ignores {split.crowds}" if split.crowds else ""
        empty = len(split.sizes) - len({number for number, *_ in split.objects})
        decisions.append(f"{name:8}  {numbers}{ignored}, {empty} without objects: {split.folder}")
    return splits, [*decisions, *_table_of_classes(splits), *(f"note      {note}" for note in notes)]


Read = Callable[[], tuple[dict[str, Split], list[str]]]


def _reader(data: Path, tree: Tree, options: ReadOptions) -> tuple[str, Read]:
    """Return the format of a folder or file, and a function that reads it."""
    classes = [*options.classes]

    def new() -> Split:
        return Split(classes, bool(options.classes), options.clip)

    def read_yolo(file: Path) -> tuple[dict[str, Split], list[str]]:
        names, is_described = yolo._names(file), "train" in yolo._keys(file)
        if is_described:
            groups = yolo.splits_of(file, tree)
        else:
            labelled = {picture.parent for picture in tree.pictures if yolo.label_of(picture)}
            groups = by_split({p: tree.split_of(p, own=False) for p in tree.pictures if p.parent in labelled})
        if is_described and "val" not in groups:
            groups["all"] = groups.pop("train")
        classes[:] = classes or names
        splits = {name: new() for name in groups}
        for name, split in splits.items():
            split.sources.append(file)
            yolo.read_yolo(groups[name], names, split)
        return splits, []

    def read_coco(files: list[Path]) -> tuple[dict[str, Split], list[str]]:
        groups = (
            by_split({file: tree.split_of(file, own=True) for file in files})
            if len(files) > 1
            else {"all": files}
        )
        splits = {name: new() for name in groups}
        for name, split in splits.items():
            for file in groups[name]:
                coco.read_coco(file, contents[file], tree, name, split)
        return splits, []

    def read_labelme(files: list[Path]) -> tuple[dict[str, Split], list[str]]:
        groups = by_split({file: tree.split_of(file, own=False) for file in files})
        splits = {name: new() for name in groups}
        for name, split in splits.items():
            labelme.read_labelme(groups[name], contents, tree, name, split)
        classes.sort()
        return splits, []

    def read_voc(files: list[Path]) -> tuple[dict[str, Split], list[str]]:
        groups, notes = voc.splits_of(files, tree)
        splits = {name: new() for name in groups}
        for name, split in splits.items():
            voc.read_voc(groups[name], tree, name, split, options.zero_based)
        classes.sort()
        return splits, notes

    files = [data] if data.is_file() else tree.files
    contents = {
        file: _json(file) for file in track([f for f in files if f.suffix.lower() == ".json"], "reading")
    }
    found: dict[str, tuple[Any, Read]] = {}
    chosen = data if data.suffix in (".yaml", ".yml", ".data") or data.name in yolo.CLASSES else None
    names = chosen or (None if data.is_file() else yolo.description(tree) or yolo.names_file(tree))
    if names:
        found["YOLO"] = names, lambda: read_yolo(names)
    if own := coco.files_of(contents):
        found["COCO"] = own[0], lambda: read_coco(own)
    if shapes := [file for file, content in contents.items() if labelme.is_labelme(content)]:
        found["LabelMe"] = shapes[0], lambda: read_labelme(shapes)
    if xml := [file for file in files if file.suffix.lower() == ".xml" and voc.is_voc(file)]:
        found["Pascal VOC"] = xml[0], lambda: read_voc(xml)
    if len(found) > 1:
        seen = ", ".join(f"{name} ({file})" for name, (file, _) in found.items())
        raise UserError(f"data: expected one format in {data}, found {seen}: name the file or folder of one")
    if not found:
        endings = Counter(file.suffix.lower() or "without ending" for file in files).most_common(5)
        seen = ", ".join(f"{number} {ending}" for ending, number in endings) or "nothing"
        raise UserError(f"data: expected {ACCEPTED}, got {data} with {seen}; most tools can export COCO")
    ((kind, (_, read)),) = found.items()
    return kind, read


def _json(file: Path) -> Any:
    try:
        return read_json(file)
    except InvalidAnnotation as error:
        raise UserError(f"{file}: {error}") from None


def _require_apart(splits: Mapping[str, Split]) -> None:
    """Raise UserError if a picture, or a copy with the same bytes, is in two splits."""
    sizes: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for name, split in splits.items():
        for file in split.sizes:
            sizes[file.stat().st_size].append((name, file))
    seen: dict[bytes, tuple[str, Path]] = {}
    shared = []
    for same in sizes.values():
        for name, file in same if len({name for name, _ in same}) > 1 else ():
            other, first = seen.setdefault(hashlib.sha256(file.read_bytes()).digest(), (name, file))
            if other != name:
                shared.append(f"{file} of {name} = {first} of {other}")
    if shared:
        raise UserError(
            f"data: expected no picture in two splits, got {counted(len(shared), 'pictures')}: {few(shared, 2)}"
        )


def divide(pool: Split, share: float, seed: int = 0) -> dict[str, Split]:
    """Divide pictures at random into train and val; those that Roboflow made of one picture stay together.

    A class with objects in one group only stays in train.
    """
    groups: dict[object, list[Path]] = defaultdict(list)
    for file in pool.sizes:
        groups[file.name.partition(".rf.")[0] if ".rf." in file.name else file].append(file)
    classes: dict[Path, set[str]] = defaultdict(set)
    files = [*pool.sizes]
    for number, name, _ in pool.objects:
        classes[files[number - 1]].add(name)
    own = {key: {name for file in group for name in classes[file]} for key, group in groups.items()}
    left = Counter(name for names in own.values() for name in names)
    number, val = max(1, round(share * len(groups))), list[Path]()
    taken = 0
    for key in random.Random(seed).sample([*groups], len(groups)):  # nosec B311
        if taken < number and all(left[name] > 1 for name in own[key]):
            left.subtract(own[key])
            val += groups[key]
            taken += 1
    chosen = {*val}
    if not any(classes[file] for file in val) or len(chosen) == len(files):
        raise UserError("data: expected objects for training and validation: annotate more pictures")
    return {
        "train": pool.select([f for f in files if f not in chosen]),
        "val": pool.select([f for f in files if f in chosen]),
    }


def _table_of_classes(splits: Mapping[str, Split]) -> list[str]:
    """Return lines with the number of objects of each class by split."""
    numbers = {split: each.per_class for split, each in splits.items()}
    names = [*next(iter(numbers.values()))]
    rows = [(cut(name), *(str(each[name]) for each in numbers.values())) for name in names[:_SHOWN]]
    lines = [f"          {line}" for line in columns([("class", *numbers), *rows], numbers=True)]
    return lines + [f"          and {len(names) - _SHOWN} more"] * (len(names) > _SHOWN)
