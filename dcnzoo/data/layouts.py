"""The layouts of annotated pictures that tools write: one table, and the choice among several in a folder."""

import contextlib
import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcnzoo.data.annotations import Annotations
from dcnzoo.data.coco import find_coco, is_coco, names_of
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.foreign import named_format, named_formats
from dcnzoo.data.labelme import find_labelme
from dcnzoo.data.splits import AS_THEY_ARE, PREDICTIONS, SPLITS, Part, ReadOptions, Tree, path_parts
from dcnzoo.data.via import find_via
from dcnzoo.data.voc import find_voc
from dcnzoo.data.yolo import find_yolo, has_boxes, is_names
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import require_exists
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.progress import waiting
from dcnzoo.utils.text import counted, few


@dataclass
class Choice:
    """What is used of a folder.

    Attributes:
        name: the format.
        parts: for training (train, or all), validation and test.
        others: all other parts that were found, with their formats.
        tree: the files of the folder.
        formats: with their numbers of pictures and objects, if there are several.
    """

    name: str
    parts: list[Part]
    others: list[tuple[str, Part]]
    tree: Tree
    formats: list[str]


def find_parts(data: str | os.PathLike, options: ReadOptions = AS_THEY_ARE) -> Choice:
    """Find the layouts of annotated pictures, and the parts for training, validation and test.

    Of several layouts, that with most objects is used; :mod:`dcnzoo.data.balance` requires that it has those
    of the others.

    Args:
        data: a folder, a COCO file, or a file like YOLO's ``data.yaml``.

    Raises:
        UserError: no layout fits; the message says what lies there.
    """
    data = Path(data)
    require_exists(data, "data")
    with waiting(f"listing {data}"):
        tree = (
            _tree_of_file(data)
            if data.is_file()
            else Tree(data, leave_out=options.leave_out, detections=options.drop_scores)
        )
    if options.layout and options.layout not in FINDERS:
        raise UserError(f"layout: expected one of {', '.join(FINDERS)}, got {options.layout}")
    found = [(name, part) for name, find in FINDERS.items() for part in find(tree)]
    groups: dict[tuple[str, Path | None], list[Part]] = defaultdict(list)
    for name, part in found:
        if not part.rest:
            groups[name, part.description].append(part)
    if data.is_file() and [*map(len, groups.values())] == [1]:
        found[0][1].split = ""  # the file was chosen, whatever its name
    allowed = [(name, parts) for (name, _), parts in groups.items() if options.layout in ("", name)]
    if not allowed:
        raise UserError(_nothing(data, tree, options))
    name, several = allowed[0] if len(groups) == 1 else max(allowed, key=lambda each: _size(each[1], options))
    parts = _by_split(several, options)
    tree.notes += [f"{len(p.members)} annotation files are used together" for p in parts if p.members]
    used = {*parts, *(member for part in parts for member in part.members)}
    others = [each for each in found if each[1] not in used]
    formats = [f"{name} ({_described(parts, options)})" for name, parts in allowed] if len(groups) > 1 else []
    return Choice(name, parts, others, tree, formats)


def convert(
    source: str | os.PathLike, layout: str, split: str = "", options: ReadOptions = AS_THEY_ARE
) -> Annotations:
    """Read all annotations in one format, or those of a split; :meth:`Annotations.save` writes them.

    Args:
        source: a folder, or a file like YOLO's ``data.yaml``.
        layout: a key of :data:`FINDERS`.
        split: as the data call it: a list in ``ImageSets``, a key of ``data.yaml``, or a word of folders. By
            default all; of YOLO's divided data, train.

    Raises:
        UserError: there are no annotations in this format, or none of this split.
    """
    source = Path(source)
    tree = _tree_of_file(source) if os.path.isfile(source) else Tree(source)
    undivided = not split
    split = split or ("train" if layout == "YOLO" else "")
    tree.asked = split
    parts = [part for part in FINDERS[layout](tree) if not part.rest]
    found = [f"{part.split or 'all'} of {part.description or tree.root}" for part in parts]
    splits = {split, SPLITS.get(split)} | ({""} if undivided else set())
    parts = [part for part in parts if not split or part.split in splits]
    if len(parts) != 1:
        expected = f"one set of annotations in the format of {layout}{split and f' for {split}'}"
        found += [f"{file}: {error}" for file, error in tree.damaged.items()]
        raise UserError(f"data: expected {expected}, found {few(found)} in {source}")
    classes = None if options.classes is None else tuple(options.classes)
    result = parts[0].read(dataclasses.replace(options, layout=layout, classes=classes))
    for file, error in tree.damaged.items():
        where = f"{file}:{error.line}" if error.line else str(file)
        result.problems.append(Finding(where, str(error), "file"))
    return result


def _nothing(data: Path, tree: Tree, options: ReadOptions) -> str:
    counts = Counter(file.suffix.lower() or "without ending" for file in tree.files)
    lies = few([f"{number} {suffix}" for suffix, number in counts.most_common()])
    formats = {str(row): file for file, row in reversed(named_formats(tree, binary=True).items())}
    texts = [f"{file.name}: {text}" for text, file in reversed(formats.items())]
    if predictions := tree.left_out[PREDICTIONS]:
        texts.append(f"{few(predictions, 2)} has predictions, which drop_scores=True uses as annotations")
    if alone := next(filter(has_boxes, tree.ending(".txt")), None):
        texts.append(f"{alone} has boxes of YOLO, whose pictures would be in the same folder, or in images")
    expected = options.layout or ", ".join(FINDERS)
    text = f"data: expected annotations in a layout of {expected}, got {data} with {lies}"
    return ": ".join([text, *filter(None, ["; ".join(texts)])])


def _read(parts: Sequence[Part], options: ReadOptions) -> list[Annotations]:
    return [part.read(options) for part in parts]


def _size(parts: Sequence[Part], options: ReadOptions) -> tuple[object, ...]:
    """Return values that are larger, the more parts have; the balance says what the others have."""
    try:
        read = _read(parts, options)
    except UserError:  # of which the balance makes an error
        return (False,)
    truths = [each for each in read if not each.predicted]
    numbers = [each.counts["annotations"] for each in truths]
    has_names = not any(each.is_nameless for each in read)
    masks = sum(int(each.columns.has_mask.sum()) for each in truths)
    images = sum(each.counts["images"] for each in truths)
    return (bool(sum(numbers)), has_names, sum(numbers), masks, images)


def _described(parts: Sequence[Part], options: ReadOptions) -> str:
    try:
        read = _read(parts, options)
    except UserError as error:
        return str(error)
    pictures = {picture for each in read for picture in each.pictures}
    objects = sum(each.counts["annotations"] for each in read)
    return f"{counted(len(pictures), 'pictures')}, {counted(objects, 'objects')}"


def _united(parts: Sequence[Part], options: ReadOptions) -> Part:
    """Return the largest part of a split, with those that have the same classes and none of its pictures."""
    first, *others = sorted(parts, key=lambda part: _size([part], options), reverse=True)
    members, pictures = [first], set[str]()
    for part in others:
        with contextlib.suppress(UserError):  # of which the balance makes an error
            used, read = _read([first, part], options)
            if read.predicted or read.problems or {*read.per_class} != {*used.per_class}:
                continue
            pictures = pictures or {*map(os.path.realpath, used.pictures)}
            own = {*map(os.path.realpath, read.pictures)}
            if own and own.isdisjoint(pictures):
                members.append(part)
                pictures |= own
    if len(members) == 1:
        return first
    files = tuple(file for part in members for file in part.files)
    return Part(first.split, files, lambda o: Annotations.of(_read(members, o)), members=tuple(members))


def _by_split(parts: Sequence[Part], options: ReadOptions) -> list[Part]:
    """Return the parts for training (train, or all), validation and test.

    Raises:
        UserError: there is none for training.
    """
    own: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        own[part.split].append(part)
    if own["all"] and not own["val"]:
        own["train"] = own["all"]
    own["train"] = own["train"] or own["all"] or own[""]
    if not own["train"]:
        splits = " and ".join(sorted(split for split in own if own[split]))
        raise UserError(f"data: expected annotations for training, found only those for {splits}")
    chosen = [
        _united(own[split], options) if len(own[split]) > 1 else own[split][0]
        for split in ("train", "val", "test")
        if own[split]
    ]
    chosen[0].split = "train" if own["val"] else "all"
    return chosen


def _tree_of_file(data: Path) -> Tree:
    """Return a file and the pictures that its annotations may name; not the annotations beside it."""
    tree = Tree(data.parent)
    if data.suffix.lower() in (".yaml", ".yml", ".data") or is_names(data):
        tree.description = data
    elif data.suffix.lower() == ".json":
        try:
            content = tree.json_of(data)
        except InvalidAnnotation as error:
            raise UserError(f"{data}: {error}") from None
        names = names_of(content) if is_coco(content) else []
        if names and not any(tree.by_name.get(last) for name in names for last in path_parts(name)[-1:]):
            # the pictures may be in a folder beside that of the file
            tree = Tree(data.absolute().parent.parent, depth=2)
        tree.json = {data: content}
    else:
        expected = "a folder, a JSON file, or a file like data.yaml, obj.data or classes.txt"
        raise UserError(f"data: expected {expected}, got {data}: {named_format(data) or ''}")
    tree.files = [data, *tree.pictures]
    tree.is_file = True
    return tree


# the parts of a folder in each format
FINDERS: dict[str, Callable[[Tree], list[Part]]] = {
    "YOLO": find_yolo,
    "Pascal VOC": find_voc,
    "COCO": find_coco,
    "LabelMe": find_labelme,
    "VIA": find_via,
}
