"""The layouts of annotated pictures that tools write: one table, and the choice among several in a folder."""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dcnzoo.data.annotations import Annotations
from dcnzoo.data.balance import Boxes
from dcnzoo.data.coco import find_coco, is_coco, names_of
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.foreign import named_format, named_formats
from dcnzoo.data.labelme import find_labelme
from dcnzoo.data.splits import AS_THEY_ARE, SPLITS, Part, ReadOptions, Tree, path_parts
from dcnzoo.data.via import find_via
from dcnzoo.data.voc import find_voc
from dcnzoo.data.yolo import find_yolo, is_names
from dcnzoo.utils.errors import UserError
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
    """

    name: str
    parts: list[Part]
    others: list[tuple[str, Part]]
    tree: Tree


def find_parts(data: str | os.PathLike, options: ReadOptions = AS_THEY_ARE) -> Choice:
    """Find the layouts of annotated pictures, and the parts for training, validation and test.

    Of several layouts, that is used whose files contain all boxes of the others.

    Args:
        data: a folder, a COCO file, or a file like YOLO's ``data.yaml``.

    Raises:
        UserError: no layout fits; the message says what lies there. Or no layout has all boxes.
    """
    data = Path(data)
    if not os.path.exists(data):
        raise UserError(f"data: expected a folder or file, found none at {data}")
    with waiting(f"listing {data}"):
        tree = _tree_of_file(data) if data.is_file() else Tree(data, leave_out=options.leave_out)
    if options.layout and options.layout not in FINDERS:
        raise UserError(f"layout: expected one of {', '.join(FINDERS)}, got {options.layout}")
    groups: dict[tuple[str, Path | None], list[Part]] = defaultdict(list)
    for name, find in FINDERS.items():
        for part in find(tree):
            groups[name, part.description].append(part)
    everything = [_Candidate(name, parts) for (name, _), parts in groups.items()]
    candidates = [each for each in everything if not all(part.rest for part in each.parts)]
    if data.is_file() and len(candidates) == 1 and len(candidates[0].parts) == 1:
        candidates[0].parts[0].split = ""  # the file was chosen, whatever its name
    several = [each for each in candidates if options.layout in ("", each.name)]
    if not several:
        raise UserError(_nothing(data, tree, options))
    best = several[0] if len(candidates) == 1 else _best(several, options)
    parts = best.choose(options)
    others = [(each.name, part) for each in everything for part in each.parts if part not in parts]
    return Choice(best.name, parts, others, tree)


def convert(
    source: str | os.PathLike, layout: str, split: str = "", options: ReadOptions = AS_THEY_ARE
) -> Annotations:
    """Read all annotations in one format, or those of a split; :meth:`Annotations.save` writes them.

    Args:
        source: a folder, or a file like YOLO's ``data.yaml``.
        layout: a key of :data:`FINDERS`.
        split: as the data call it: a list in ``ImageSets``, a key of ``data.yaml``, or a word of folders.

    Raises:
        UserError: there are no annotations in this format, or none of this split.
    """
    source = Path(source)
    tree = _tree_of_file(source) if os.path.isfile(source) else Tree(source)
    tree.asked = split
    parts = [part for part in FINDERS[layout](tree) if not part.rest]
    found = sorted({part.split for part in parts})
    parts = [part for part in parts if not split or part.split in (split, SPLITS.get(split))]
    if len(parts) != 1:
        expected = f"annotations in the format of {layout}{split and f' for {split}'}, in one data set"
        damaged = [f"{file}: {text}" for file, text in tree.damaged.items()]
        raise UserError(f"data: expected {expected}, found {few(damaged or found)} in {source}")
    classes = None if options.classes is None else tuple(options.classes)
    result = parts[0].read(dataclasses.replace(options, layout=layout, classes=classes))
    damaged = [
        Finding(f"{f}:{e.line}" if e.line else str(f), str(e), "file") for f, e in tree.damaged.items()
    ]
    result.problems = damaged + result.problems
    return result


def _nothing(data: Path, tree: Tree, options: ReadOptions) -> str:
    counts = Counter(file.suffix.lower() or "without ending" for file in tree.files)
    lies = few([f"{number} {suffix}" for suffix, number in counts.most_common()])
    foreign = "; ".join(dict.fromkeys(named_formats(tree, binary=True).values()))
    expected = options.layout or ", ".join(FINDERS)
    return f"data: expected annotations in a layout of {expected}, got {data} with {lies}" + (
        f": {foreign}" if foreign else ""
    )


@dataclass
class _Candidate:
    """The parts of a folder in one format."""

    name: str
    parts: list[Part]
    errors: list[str] = field(default_factory=list)

    def read(self, options: ReadOptions, parts: Sequence[Part] | None = None) -> list[Annotations]:
        """Read the parts; what prevents it is an error."""
        results = []
        for part in self.parts if parts is None else parts:
            try:
                results.append(part.read(options))
            except UserError as error:
                self.errors.append(str(error))
        return results

    def choose(self, options: ReadOptions) -> list[Part]:
        """Return the parts for training (train, or all), validation and test.

        Of several for a split, that with all boxes of the others is used, or the one with most.

        Raises:
            UserError: there is none for training.
        """
        by_split: dict[str, list[Part]] = defaultdict(list)
        for part in self.parts:
            if not part.rest:
                by_split[part.split].append(part)
        if by_split["all"] and not by_split["val"]:
            by_split["train"] = by_split["all"]
        by_split["train"] = by_split["train"] or by_split["all"] or by_split[""]
        if not by_split["train"]:
            splits = " and ".join(sorted({part.split for part in self.parts if part.split}))
            raise UserError(f"data: expected annotations for training, found only those for {splits}")
        chosen = [_largest(by_split[split], options) for split in ("train", "val", "test") if by_split[split]]
        chosen[0].split = "train" if by_split["val"] else "all"
        return chosen

    def described(self, options: ReadOptions) -> str:
        """Return the format, and the numbers of pictures and objects; or why it cannot be read."""
        read = self.read(options)
        if not read and self.errors:
            return f"{self.name} ({self.errors[0]})"
        pictures = {picture for each in read for picture in each.pictures}
        objects = sum(each.counts["annotations"] for each in read)
        return f"{self.name} ({counted(len(pictures), 'pictures')}, {counted(objects, 'objects')})"


def _largest(parts: Sequence[Part], options: ReadOptions) -> Part:
    if len(parts) == 1:
        return parts[0]

    def size(part: Part) -> tuple[object, ...]:
        try:
            read = part.read(options)
        except UserError:
            return (False, 0, 0)
        return (not read.predicted, read.counts["annotations"], read.counts["images"])

    return max(parts, key=size)


def _best(candidates: Sequence[_Candidate], options: ReadOptions) -> _Candidate:
    """Return the candidate that has all boxes of the others; predictions do not count.

    Raises:
        UserError: there is none.
    """
    truths = []
    for candidate in candidates:
        read = candidate.read(options)
        if candidate.errors or any(len(each.columns.boxes) and not each.predicted for each in read):
            truths.append(candidate)
    truths = truths or [*candidates]
    if len(truths) == 1:
        return truths[0]
    sizes: dict[int, tuple[int, int, int]] = {}
    for number, candidate in enumerate(truths):
        if candidate.errors:
            continue
        used = candidate.read(options, candidate.choose(options))
        boxes = Boxes(used)
        others = [part for each in truths if each is not candidate for part in each.read(options)]
        if not any(each is not candidate and each.errors for each in truths) and all(
            boxes.contain(other).all() for other in others if not other.predicted
        ):
            masks = sum(int(each.columns.has_mask.sum()) for each in used)
            sizes[number] = (len(used), masks, sum(each.counts["images"] for each in used))
    if not sizes:
        raise UserError(
            f"data: expected one layout that has all boxes of the others, found "
            f"{', '.join(each.described(options) for each in truths)}: layout=NAME chooses one, "
            "leave_out=PATTERN leaves files out"
        )
    return truths[max(sizes, key=lambda number: sizes[number])]


def _tree_of_file(data: Path) -> Tree:
    """Return a file and the pictures that its annotations may name; not the annotations beside it."""
    tree = Tree(data.parent, descend=False)
    if data.suffix.lower() in (".yaml", ".yml", ".data") or is_names(data):
        tree.description = data
    elif data.suffix.lower() == ".json":
        try:
            content = tree.json_of(data)
        except InvalidAnnotation as error:
            raise UserError(f"{data}: {error}") from None
        names = names_of(content) if is_coco(content) else []
        if names and not any(tree.named(last) for name in names for last in path_parts(name)[-1:]):
            # the pictures may be in a folder beside that of the file
            tree = Tree(data.absolute().parent.parent, depth=2, descend=False)
        tree.json = {data: content}
    else:
        expected = "a folder, a JSON file, or a file like data.yaml, obj.data or classes.txt"
        raise UserError(f"data: expected {expected}, got {data}: {named_format(data)}")
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
