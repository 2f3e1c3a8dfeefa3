"""The balance: each picture and each box below a folder is used, or left out with a reason and a number."""

import functools
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dcnzoo.data.annotations import Annotations, read_coco
from dcnzoo.data.copies import copies_of
from dcnzoo.data.files import InvalidAnnotation, read_lines
from dcnzoo.data.foreign import RESULTS, named_formats
from dcnzoo.data.splits import PREDICTIONS, TRAININGS, ReadOptions, Tree, path_parts
from dcnzoo.data.yolo import has_boxes, is_names
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.formats import PICTURES, UNREAD_PICTURES
from dcnzoo.utils.text import counted, few

if TYPE_CHECKING:
    from dcnzoo.data.layouts import Choice

_SAME = 1.01  # pixels by which the edges of one box differ in two files


class Boxes:
    """The boxes of annotations, by their pictures."""

    def __init__(self, parts: Collection[Annotations]) -> None:
        self.parts = parts

    @functools.cached_property
    def _boxes(self) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
        """The classes and corners by picture."""
        boxes = defaultdict(list)
        for part in self.parts:
            classes, corners = _classes(part), _corners(part)
            for picture, numbers in _by_picture(part):
                boxes[picture].append((classes[numbers], corners[numbers]))
        return boxes

    @property
    def pictures(self) -> Collection[str]:
        return self._boxes.keys()

    def contain(self, part: Annotations, copies: Mapping[str, str] | None = None) -> np.ndarray:  # [N], bool
        """Return which annotations of a part are contained: same picture, class and place.

        Args:
            copies: pictures, and those with the same content.
        """
        result, classes, corners = np.zeros(len(part.columns.boxes), bool), _classes(part), _corners(part)
        for picture, numbers in _by_picture(part):
            for own_classes, own_corners in self._boxes.get((copies or {}).get(picture, picture), ()):
                same = np.abs(corners[numbers, None] - own_corners).max(2) <= _SAME
                if not part.is_nameless:
                    same &= classes[numbers, None] == own_classes
                result[numbers] |= same.any(1)
        return result


def _by_picture(part: Annotations) -> Iterable[tuple[str, np.ndarray]]:
    """Yield the path of each picture that has annotations, and their numbers."""
    rows, pictures = part.columns.rows, part.pictures
    order = np.argsort(rows, kind="stable")
    order = order[rows[order] >= 0]
    values, starts = np.unique(rows[order], return_index=True)
    for row, numbers in zip(values.tolist(), np.split(order, starts[1:]), strict=False):
        yield os.path.realpath(pictures[row]), numbers


def _classes(part: Annotations) -> np.ndarray:
    return np.array([*(str(each.get("name")) for each in part.categories), ""], object)[part.columns.labels]


def _corners(part: Annotations) -> np.ndarray:
    boxes = part.columns.boxes
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


@dataclass
class Balance:
    """What is left out.

    Attributes:
        lines: a text for each reason, with numbers.
        errors: pictures and boxes that are left out without a reason.
    """

    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def balance(choice: "Choice", used: Collection[Annotations], options: ReadOptions) -> Balance:
    """Account for each picture and each box below the folder."""
    result, boxes, accounted = Balance(), Boxes(used), {file for each in used for file in each.sources}
    tree, known = choice.tree, {os.path.realpath(path) for each in used for path in each.pictures}
    for name, part in choice.others:
        reason = part.reason or ("by --layout" if options.layout and name != choice.name else "")
        try:
            read = part.read(options)
            accounted |= {*read.sources, *(Path(each.subject) for each in read.missing)}
            what = name
            if len(part.files) == 1 and not part.rest and name != "YOLO":
                what = os.path.relpath(part.files[0], tree.root)
            elif files := _annotation_files([read]):
                what += f" ({few([os.path.relpath(file, tree.root) for file in files], 1)})"
            # a description that names a picture does not say which of its annotations are used
            names_them = part.reason and {*map(os.path.realpath, read.pictures)} & known
            _add_part(
                result, what, read, boxes, "" if names_them else reason, "files" if part.rest else "pictures"
            )
        except UserError as error:
            (result.lines if reason else result.errors).append(f"{error}: {reason}" if reason else str(error))
    if result.errors and choice.formats:
        result.errors.append(f"data: layout=NAME chooses one of {', '.join(choice.formats)}")
    unused = [picture for picture in tree.pictures if os.path.realpath(picture) not in known]
    missing = {Path(problem.subject).stem for each in used for problem in each.missing}
    unread = [file for file in tree.ending(*UNREAD_PICTURES) if file.stem in missing]
    _add_missing(result, used, [*unused, *unread], tree)
    foreign = {} if tree.is_file else named_formats(tree)
    tree.left_out[PREDICTIONS] += [file for file, row in foreign.items() if row is RESULTS]
    for reason, files in tree.left_out.items():
        if files:
            kind = "folders" if all(map(Path.is_dir, files)) else "files"
            result.lines.append(f"{_content(reason, files)}{_files(tree, files, kind)}: {reason}")
    if unused:
        result.lines.append(f"{_files(tree, unused, 'pictures')} that no annotation of a split names")
    foreign = {file: row for file, row in foreign.items() if row is not RESULTS}
    if without := len(unused) + sum(len(each.unlabelled) for each in used):
        hint = f"{counted(without, 'pictures')} have no annotations that are read"
        for file, row in foreign.items():
            result.errors.append(f"{file}: {row}; {hint}; leave_out={file.name} leaves it out")
    if foreign:
        result.lines.append(f"{_files(tree, [*foreign], 'files')} not read")
    if not tree.is_file:
        accounted |= {*tree.pictures, *foreign, *tree.left_out[PREDICTIONS]}
        others = {*map(os.path.abspath, tree.files)} - {*map(os.path.abspath, accounted)}
        unread = [Path(file) for file in sorted(others) if file.lower().endswith(UNREAD_PICTURES)]
        if unread:
            result.lines.append(f"{_files(tree, unread, 'pictures')} in formats that are not read")
        if len(others) > len(unread):
            result.lines.append(counted(len(others) - len(unread), "other files"))
    return result


def _annotation_files(parts: Iterable[Annotations]) -> list[Path]:
    """Return the files that have the annotations, without the pictures and the names of the classes."""
    files = dict.fromkeys(file for part in parts for file in part.sources)
    return [file for file in files if file.suffix.lower() not in PICTURES and not is_names(file)]


def _add_part(result: Balance, what: str, read: Annotations, boxes: Boxes, reason: str, plural: str) -> None:
    """Account for the boxes of a part that is not used, perhaps for a reason."""
    number = len(read.columns.boxes)
    if read.predicted:
        result.lines.append(f"{counted(number, 'objects')} of {what}: predictions, with scores")
        return
    contained = boxes.contain(read)
    if not contained.all():
        rows = np.unique(read.columns.rows[~contained])
        others = [read.pictures[row].resolve() for row in rows.tolist() if row >= 0]
        copies = copies_of(others, map(Path, boxes.pictures))
        contained = boxes.contain(
            read, {str(copy): os.path.realpath(other) for copy, other in copies.items()}
        )
    if contained.any():
        text = counted(int(contained.sum()), "objects")
        result.lines.append(f"{what}, whose {text} are in the used files, too")
    if read.missing:
        result.lines.append(_missing(read, plural, f" of {what}: their pictures do not exist"))
    left = int((~contained).sum())
    problems = [problem for problem in read.problems if problem.kind not in ("nameless", "unmatched")]
    result.errors += [str(problem) for problem in read.problems if problem.kind == "unmatched"]
    if reason and (left or problems):
        result.lines.append(f"{counted(left + len(problems), 'objects')} of {what}: {reason}")
    elif left:
        rows = read.columns.rows[~contained]
        pictures = [read.pictures[row] for row in np.unique(rows).tolist() if row >= 0]
        result.errors.append(
            f"data: expected each object in a split, found {counted(left, 'objects')} of "
            f"{counted(len(pictures), 'pictures')} of {what} in none, such as {few(pictures, 1)}, beside "
            f"{few(_annotation_files(boxes.parts), 2)}: leave_out=PATTERN leaves files out"
        )
    elif problems:
        result.errors += [str(problem) for problem in problems]


def _content(reason: str, files: list[Path]) -> str:
    """Say what is in files that are left out: the predictions, or the pictures in folders of trainings."""
    if reason == TRAININGS:
        number, what = sum(len(Tree(file).pictures) for file in files), "pictures"
    else:
        number, what = sum(map(objects_in, files)) if reason == PREDICTIONS else 0, "objects"
    return f"{counted(number, what)} of " if number else ""


def objects_in(path: Path) -> int:
    """Return the number of predictions in a file, or in those of ``dcnzoo infer`` in a folder."""
    if path.is_dir():
        file = path / "detections.json"
        return objects_in(file) if file.is_file() else sum(map(objects_in, path.rglob("*.txt")))
    try:
        if path.suffix == ".json":
            return len(read_coco(path)["annotations"])
        return sum(1 for _ in read_lines(path)) if has_boxes(path) else 0
    except (InvalidAnnotation, LookupError, TypeError):
        return 0


def _add_missing(result: Balance, used: Collection[Annotations], unused: list[Path], tree: Tree) -> None:
    """Account for annotations whose pictures do not exist: an error if pictures beside them have none."""
    folders = {picture.parent for each in used for picture in each.pictures}
    lonely = [picture for picture in unused if picture.parent in folders]
    for each in used:
        if not each.missing:
            continue
        text = _missing(each, "missing pictures")
        names = [path_parts(problem.subject)[-1:] for problem in each.missing]
        if elsewhere := sum(any(map(tree.by_name.get, name)) for name in names):
            text += f", {elsewhere} with the name of a picture of another split or file"
        if lonely:
            others = f"{counted(len(lonely), 'pictures')} beside them have no annotations ({few(lonely, 2)})"
            result.errors.append(f"data: expected the picture of each annotation, found {text}; {others}")
        else:
            result.lines.append(text)


def _missing(read: Annotations, plural: str, more: str = "") -> str:
    """Count the objects whose pictures do not exist."""
    what, subjects = counted(len(read.missing), plural), [each.subject for each in read.missing]
    return f"{counted(read.lost, 'objects')} of {what}{more} ({few(subjects, 2)})"


def _files(tree: Tree, files: list[Path], plural: str) -> str:
    root = tree.root
    names = [file.relative_to(root) if file.is_relative_to(root) else file for file in files]
    return f"{counted(len(files), plural)} ({few(names, 2)})"
