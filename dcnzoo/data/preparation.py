"""Read the annotated pictures of other tools: a folder with one format becomes a data set for each split.

docs/train_your_data.md lists the accepted data; everything else is refused. Each picture and object of the
annotation files is either used or a problem. Problems stop the command, or are skipped and counted.
"""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from dcnzoo.data.coco import Coco
from dcnzoo.data.dataset import Dataset, ReadOptions, without_mask
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.labelme import LabelMe
from dcnzoo.data.tree import ALL, Tree, is_of_training
from dcnzoo.data.voc import Voc
from dcnzoo.data.yolo import Yolo
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import require_exists
from dcnzoo.utils.findings import shown
from dcnzoo.utils.formats import PICTURES
from dcnzoo.utils.progress import track, waiting
from dcnzoo.utils.text import columns, counted, cut, few

FORMATS: tuple[type[Yolo | Coco | LabelMe | Voc], ...] = (Yolo, Coco, LabelMe, Voc)
VALIDATION = 0.2  # share of the pictures, if the data has no validation set


def read_splits(data: Path, options: ReadOptions) -> tuple[str, dict[str, Dataset], list[str]]:
    """Return the format of a folder or file, its splits (train and val, or all; optionally test), and notes.

    Raises:
        UserError: no format or several are found, or the annotations have problems, one line each.
    """
    require_exists(data, "data")
    with waiting(f"listing {data}"):
        tree = Tree(data)
    try:
        reader = _reader(data, tree, options)
        groups = reader.groups()
        classes = dict.fromkeys(options.classes or reader.classes)
        splits = {name: Dataset(classes, options, reader.position) for name in groups}
        for name, split in splits.items():
            reader.read([*track(groups[name], f"reading {name}")], split)
    except InvalidAnnotation as error:
        raise UserError(f"{data}: {error}") from None
    if isinstance(reader, LabelMe | Voc) and not options.classes:  # these formats have no list of classes
        names = sorted(classes)
        classes.clear()
        classes.update(dict.fromkeys(names))
    notes = [*reader.notes]
    if problems := [problem for each in splits.values() for problem in each.problems]:
        if not options.skip_invalid:
            hint = "skip_invalid=True leaves out what is invalid, clip=True clips objects"
            raise UserError(f"{counted(len(problems), 'problems')}; {hint}", *shown(problems))
        notes.append(f"{counted(len(problems), 'problems')} skipped, such as {problems[0]}")
    if clipped := sum(each.clipped for each in splits.values()):
        notes.append(f"clipped to their pictures: {counted(clipped, 'boxes or polygons')}")
    if "test" in splits and not splits["test"].objects:
        del splits["test"]
        notes.append("test is not used: it has no objects")
    for name, split in splits.items():
        _require_objects(name, split)
        if split.unlabelled:
            pictures = counted(len(split.unlabelled), "pictures")
            notes.append(f"{name}: {pictures} without a file of labels, used as empty ones")
    return reader.name, splits, notes + _unused(tree, splits)


def read_data(data: Path, options: ReadOptions) -> tuple[dict[str, Dataset], list[str]]:
    """Return the splits of :func:`read_splits`, always with train and val, and lines that describe them.

    Raises:
        UserError: see :func:`read_splits`; or a picture is in two splits.
    """
    kind, splits, notes = read_splits(data, options)
    _require_apart(splits)
    notes += _notes_of_masks(splits)
    if pool := splits.pop(ALL, None):
        splits = {**_divide(pool), **splits}
        notes.append(f"{VALIDATION:.0%} of the pictures, chosen at random (seed 0), are for validation")
    lines = [f"data      {data}, {kind}", *map(line_of, splits, splits.values())]
    return splits, [*lines, *_table_of_classes(splits), *(f"note      {note}" for note in notes)]


def line_of(name: str, split: Dataset) -> str:
    """Return a line with the numbers of a split."""
    numbers = f"{counted(len(split.pictures), 'pictures')}, {counted(len(split.objects), 'objects')}"
    ignored = f", of which training ignores {split.crowds}" if split.crowds else ""
    empty = sum(not picture.objects for picture in split.pictures.values())
    return f"{name:8}  {numbers}{ignored}, {empty} without objects: {split.folder}"


def _reader(data: Path, tree: Tree, options: ReadOptions) -> Yolo | Coco | LabelMe | Voc:
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
    if readers and options.zero_based and not isinstance(readers[0], Voc):
        raise UserError(f"zero_based: expected data in the format of Pascal VOC, got {readers[0].name}")
    if readers:
        return readers[0]
    if scored := [file for file, content in tree.json.items() if content.is_coco]:
        raise UserError(f"data: expected annotations, got predictions with a score in {few(scored, 2)}")
    expected = "YOLO's data.yaml, COCO's or LabelMe's JSON files or Pascal VOC's XML files"
    files = tree.candidates
    telling = [file for file in files if file.suffix.lower() not in PICTURES] or files
    got = f"{data} with {counted(len(files), 'files')}, such as {few(telling, 1)}"
    raise UserError(f"data: expected {expected}, got {got}; most tools can export COCO")


def _require_objects(name: str, split: Dataset) -> None:
    """Raise UserError unless a split has objects to learn from, or to compare with."""
    if split.crowds < len(split.objects):
        return
    got = f"{counted(split.crowds, 'crowds')} or difficult ones" if split.objects else "none"
    if split.unlabelled:
        got += f"; no labels of {split.unlabelled[0]} are beside it or in a folder labels"
    raise UserError(f"data: {name}: expected objects, got {got}")


def _notes_of_masks(splits: Mapping[str, Dataset]) -> Iterator[str]:
    """Yield a line if only some objects have masks, or if all masks may be oriented boxes."""
    number, total, first = without_mask(splits.values())
    if 0 < number < total:
        verb = "has" if number == 1 else "have"
        yield f"masks: no, {number:,} of {total:,} objects {verb} none: {first}"
    outlined = [each for split in splits.values() for each in split.objects if each.segmentation is not None]
    has_corners = bool(outlined) and all(each.corners == 4 for each in outlined)
    if has_corners and any(each.area < 0.99 * each.bbox[2] * each.bbox[3] for each in outlined):
        yield "every polygon has four corners: oriented boxes? upright boxes and masks are learnt"


def _unused(tree: Tree, splits: Mapping[str, Dataset]) -> list[str]:
    """Return a line each for the pictures and files that are not used."""
    used = {file.absolute() for split in splits.values() for file in (*split.pictures, *split.sources)}
    pictures = [file for file in tree.pictures if file.absolute() not in used]
    others = sorted(file for file in {*tree.files} - {*tree.pictures} if file.absolute() not in used)
    kinds = {"pictures without annotations": pictures, "other files": others}
    return [f"{kind}, not used: {len(files)} ({few(files, 2)})" for kind, files in kinds.items() if files]


def _require_apart(splits: Mapping[str, Dataset]) -> None:
    """Raise UserError if a picture, or a copy with the same bytes, is in two splits."""
    alike: dict[tuple, list[tuple[str, Path]]] = defaultdict(list)
    for name, split in splits.items():
        for file, picture in split.pictures.items():
            alike[(*picture.size, file.stat().st_size)].append((name, file))
    first: dict[bytes, tuple[str, Path]] = {}
    shared = []
    candidates = [each for files in alike.values() if len({name for name, _ in files}) > 1 for each in files]
    for name, file in candidates:
        other, copy = first.setdefault(hashlib.sha256(file.read_bytes()).digest(), (name, file))
        if other != name:
            shared.append(f"{file} of {name} = {copy} of {other}")
    if shared:
        got = f"{counted(len(shared), 'pictures')}: {', '.join(shared[:2])}"
        raise UserError(f"data: expected no picture in two splits, got {got}")


def _divide(pool: Dataset) -> dict[str, Dataset]:
    """Divide pictures at random (seed 0) into train and val.

    Pictures that Roboflow made from one original stay together. Val has at least one picture with objects;
    the last picture of a class stays in train.

    Raises:
        UserError: a part would have no object.
    """
    keys = {f: f.name.partition(".rf.")[0] if ".rf." in f.name else f for f in pool.pictures}
    classes: dict[object, set[str]] = {key: set() for key in keys.values()}  # of the pictures with this key
    for file, picture in pool.pictures.items():
        classes[keys[file]].update(each.name for each in picture.objects.values() if not each.iscrowd)
    left = Counter(name for own in classes.values() for name in own)
    number, chosen = max(1, round(VALIDATION * len(classes))), set[object]()
    order = random.Random(0).sample([*classes], len(classes))  # nosec B311

    def is_spare(key: object) -> bool:  # whether train keeps all its classes without it
        return all(left[name] > 1 for name in classes[key])

    first = next((key for key in order if classes[key] and is_spare(key)), None)
    for key in sorted(order, key=lambda key: key != first):
        if number > 0 and is_spare(key):
            left.subtract(classes[key])
            chosen.add(key)
            number -= 1
    if first is None or not any(left.values()):
        raise UserError("data: expected objects for training and validation: annotate more pictures")
    validation = {file for file, key in keys.items() if key in chosen}
    return {"train": pool.select(pool.pictures.keys() - validation), "val": pool.select(validation)}


def _table_of_classes(splits: Mapping[str, Dataset]) -> list[str]:
    """Return lines with the number of objects of each class by split."""
    numbers = {name: split.per_class for name, split in splits.items()}
    names = [*next(iter(numbers.values()))]
    rows = [(cut(name), *(str(each[name]) for each in numbers.values())) for name in names]
    return [f"          {line}" for line in columns([("class", *numbers), *rows], numbers=True)]
