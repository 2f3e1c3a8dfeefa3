"""Read YOLO's text files, with boxes or polygons."""

import contextlib
import functools
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dcnzoo.data.conversion import MISSING, CocoBuilder, image_size
from dcnzoo.data.files import InvalidAnnotation, finite, read_json, read_lines, read_text
from dcnzoo.data.splits import (
    BY_OPTION,
    PREDICTIONS,
    SPLITS,
    Names,
    Part,
    ReadOptions,
    Tree,
    normal,
    parts_by_split,
    path_parts,
)
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.formats import UNREAD_PICTURES
from dcnzoo.utils.progress import track
from dcnzoo.utils.text import counted, few, short

MOST_CLASSES = 1000  # of labels without the names of their classes
UNMATCHED = "unmatched"  # kind of problem: labels without a picture beside pictures without labels
NAMELESS = "nameless"  # kind of problem: the classes have no names
CLASSES = ("classes.txt", "obj.names", "_darknet.labels")  # files with a name per line
NOTES = "notes.json"  # of Label Studio, with the ids of the classes
YOLO = ("data.yaml", "data.yml", "obj.data")  # the file that describes a data set, in its folder


def find_yolo(tree: Tree) -> list[Part]:
    """Return the parts of each description of a data set, or else of labels beside the names of classes.

    The labels of ``images/a.jpg`` are in ``labels/a.txt`` or ``images/a.txt``, one line per object: ``class x
    y width height`` with the centre of the box, or ``class x1 y1 x2 y2 x3 y3 …`` with an outline. Coordinates
    are normalised to 0–1 by the image's width and height. An image without a label file has no objects.
    """
    described = _descriptions(tree)
    return [part for each in described.items() for part in _described_parts(tree, *each)] or _plain_parts(
        tree
    )


def _descriptions(tree: Tree) -> dict[Path, dict | InvalidAnnotation]:
    """Read the files that describe a data set and are nearest to the root.

    They have the keys of ``data.yaml``, or the names of the classes, with lists of splits beside them.
    """
    if tree.description:
        return {tree.description: _read(tree.description)}
    described = {}
    for file in tree.ending(".yaml", ".yml", ".data"):
        is_usual, content = file == tree.root / file.name and file.name in YOLO, _read(file)
        keys = {str(key).lower() for key in content} if isinstance(content, dict) else {"train"}
        if keys & {*SPLITS} and (is_usual or "names" in keys):
            described[file] = content
    described = described or {file: _read(file) for file in tree.files if is_names(file) and _lists(file)}
    nearest = min((len(file.parts) for file in described), default=0)
    files = [file for file in described if len(file.parts) == nearest]
    return {file: described[file] for file in [file for file in files if file.name in YOLO][:1] or files}


def _described_parts(tree: Tree, file: Path, described: dict | InvalidAnnotation) -> list[Part]:
    def parse(split: str, options: ReadOptions) -> CocoBuilder:
        try:
            if isinstance(described, InvalidAnnotation):
                raise described
            classes = options.classes
            names = _names(described) if classes is None or "names" in described else classes
            if unknown := [name for name in classes or () if name not in names]:
                raise InvalidAnnotation(f"classes: expected names among {few(names)}, got {few(unknown)}")
            roots = _roots(file, described)
            builder = CocoBuilder(classes or names, options.clip, next(filter(os.path.isdir, roots)))
            images = list(dict.fromkeys(_images(described, split, roots, builder)))
            if not images and not builder.problems:
                raise InvalidAnnotation(f"{split}: expected images, found none")
        except InvalidAnnotation as error:
            raise UserError(f"{file}: {error}") from None
        builder.sources.append(file)
        return _convert(images, names, builder, tree, options.drop_scores)

    splits, absent, names = [tree.asked or "train"], list[str](), list[str]()
    if isinstance(described, dict):
        with contextlib.suppress(InvalidAnnotation):  # reading it explains the problem
            names = _names(described)
            for other, own in _class_lists(tree).items():
                if own != names and other.is_relative_to(file.parent):
                    text = f"{other} names the classes {few(own)}, {file.name} {few(names)}"
                    tree.notes.append(f"{text}: the latter are used")
            if not tree.asked:
                keys = {SPLITS.get(str(key).lower(), "") for key, value in described.items() if value}
                splits = sorted(keys - {""})
            absent = [each for each in splits if each != "train" and not _has_pictures(file, described, each)]
        tree.notes += [f"{file.name} names no pictures for {e}: {_places(described, e)[0]}" for e in absent]
    parts = [
        Part(each, (file,), functools.partial(parse, each), file) for each in splits if each not in absent
    ]
    if tree.description or not names:
        return parts
    # a folder that is named and does not exist chooses nothing
    reason = "" if absent else f"{file.name} does not name them"
    inside, outside = (
        functools.partial(_others, tree, parts, names, file.parent, each) for each in (True, False)
    )
    return [
        *parts,
        Part("", (file,), inside, file, rest=True, reason=reason),
        Part("", (file,), outside, file, rest=True),
    ]


def _class_lists(tree: Tree) -> dict[Path, list[str]]:
    """Return the names of the classes in each file that has them."""
    lists = {}
    for file in tree.ending(".yaml", ".yml", ".data", ".txt", ".names", ".labels", ".json"):
        if is_names(file) or file.name == NOTES or file.suffix.lower() in (".yaml", ".yml", ".data"):
            with contextlib.suppress(InvalidAnnotation):  # of another program
                lists[file] = _names(_read(file))
    return lists


def _has_pictures(file: Path, described: dict, split: str) -> bool:
    roots = _roots(file, described)
    paths = [path for place in _places(described, split) if (path := _located(place, roots))]
    return any(Tree(path).pictures if path.is_dir() else path.stat().st_size for path in paths)


def _plain_parts(tree: Tree) -> list[Part]:
    """Return the parts of labels and the names of the classes in a text file."""
    labels = track(_all_labels(tree).items(), "listing")
    # of a folder with labels, all pictures are used
    folders = {picture.parent for picture, own in labels if has_boxes(own)}
    names = _class_lists(tree)  # LabelImg writes them to each folder
    known = {tuple(each) for each in names.values()}

    def parse(images: tuple[Path, ...], split: str, options: ReadOptions) -> CocoBuilder:
        numbers = tuple(map(str, range(MOST_CLASSES)))
        classes = next(iter(known)) if len(known) == 1 else options.classes or numbers
        builder = CocoBuilder(options.classes or classes, options.clip, tree.root)
        builder.sources += names
        for file in filter(is_names, tree.files):
            with builder.refusing(file):
                _lines_of_names(file)
        if len(known) != 1 and not options.classes and not builder.problems:
            expected = f"the names of the classes in one of {', '.join(CLASSES)} or in a file like data.yaml"
            builder.problems.append(Finding("data", f"expected {expected}, found {few([*names])}", NAMELESS))
        return _convert(images, classes, builder, tree, options.drop_scores)

    parts = parts_by_split({p: tree.part_of(p) for p in tree.pictures if p.parent in folders}, parse)
    for part in parts:
        part.files = (*names,)[:1]  # not the pictures: they are many
    return [*parts, Part("", (), functools.partial(_others, tree, parts, ["object"], None, True), rest=True)]


def _others(
    tree: Tree,
    parts: Sequence[Part],
    names: Sequence[str],
    folder: Path | None,
    inside: bool,
    options: ReadOptions,
) -> CocoBuilder:
    """Read the pictures with labels that no part has, and the labels without a picture.

    Args:
        folder, inside: only those inside, or only those outside, of this folder.
    """

    def belongs(file: Path) -> bool:
        return folder is None or file.is_relative_to(folder) == inside

    read = [part.read(options) for part in parts]
    names = [str(each["name"]) for part in read[:1] for each in part.categories] or names
    labels, used = _all_labels(tree), {os.path.abspath(picture) for each in read for picture in each.pictures}
    builder = CocoBuilder(names, options.clip, tree.root)
    others = [
        p for p, own in labels.items() if os.path.abspath(p) not in used and belongs(p) and has_boxes(own)
    ]
    _convert(others, names, builder, tree, options.drop_scores)
    # pictures without labels by their stem, and by the folders where their labels would be
    known, alone = {*labels.values()}, defaultdict[str, list[Path]](list)
    for path in (picture for each in read for picture in each.unlabelled):
        for key in (normal(path.stem), *(os.path.abspath(own.parent) for own in _candidates(path))):
            alone[key].append(path)
    for file in tree.ending(*UNREAD_PICTURES):
        alone[normal(file.stem)].append(file)
    folders, pairs = {own.parent for own in known}, dict[Path, Path]()
    for file in tree.ending(".txt"):
        if file in known or not belongs(file) or is_names(file) or not has_boxes(file):
            continue
        _, line = next(read_lines(file))
        kind, text = "", "expected its picture, found none"
        if len(line.split()) == 6 and not options.drop_scores:
            tree.left_out[PREDICTIONS].append(file)
            continue
        # in a folder of which no file belongs to a picture beside it: other labels of pictures elsewhere
        named = tree.by_stem.get(file.stem) if file.parent not in folders else []
        likely = tree.best(named, file, tree.split_of(file))
        if len(likely) == 1 and likely[0] not in pairs:
            pairs[likely[0]] = file
            continue
        if pictures := alone.get(normal(file.stem)) or alone.get(os.path.abspath(file.parent)):
            kind = UNMATCHED
            text += f"; {counted(len(pictures), 'pictures')} beside it have no labels: {few(pictures, 2)}"
        (builder.problems if kind else builder.missing).append(Finding(str(file), text, kind or MISSING))
        builder.lost += sum(1 for _ in read_lines(file))
    if pairs:
        _convert([*pairs], names, builder, tree, options.drop_scores, pairs)
    return builder


def _lines_of_names(file: Path) -> list[str]:
    """Return the name in each line: the number of a line is that of its class."""
    rows = [*read_lines(file)]
    if rows and rows[-1][0] != len(rows):
        raise InvalidAnnotation("expected a name in each line, got an empty line")
    return [line for _, line in rows]


def is_names(file: Path) -> bool:
    """Whether a file has the name of a class in each line."""
    return file.name in CLASSES or file.suffix == ".names"


def _lists(names: Path) -> dict[str, str]:
    """Return the lists of pictures beside a file of names, by their splits."""
    files = [file for file in names.parent.glob("*.txt") if file.stem.lower() in SPLITS]
    return {file.stem: file.name for file in sorted(files) if file.stat().st_size and not has_boxes(file)}


def has_boxes(labels: Path) -> bool:
    """Whether the first line of a text file has a class and four or more numbers."""
    try:
        _, line = next(read_lines(labels), (0, ""))
        return len([float(word) for word in line.split()]) >= 5
    except (InvalidAnnotation, ValueError):
        return False


def _convert(
    images: Sequence[Path],
    names: Sequence[str],
    builder: CocoBuilder,
    tree: Tree,
    drop_scores: bool = False,
    labels: Mapping[Path, Path] | None = None,
) -> CocoBuilder:
    """Add images and the objects in their labels, whose numbers are those of the names.

    Args:
        labels: of the images; by default those beside them. An image whose labels are left out is, too.
    """
    inexact, lengths = set[str](), Counter[int]()
    kinds = dict(_OTHER_LINES)  # of which all lines are, as far as they are read
    labels = labels_of(images, inexact) if labels is None else labels
    if out := {*map(os.path.realpath, tree.left_out[BY_OPTION])}:
        images = [image for image in images if os.path.realpath(labels.get(image, "")) not in out]

    owners: dict[Path, Path] = {}

    def convert(image: Path) -> None:
        builder.add_image(image, image_size(image))
        own = labels.get(image)
        if own is not None and owners.setdefault(own, image) != image:
            raise InvalidAnnotation(
                f"expected one picture of {own}, found {owners[own].name} and {image.name}"
            )
        if own is None:
            builder.unlabelled.append(image)
            return
        builder.sources.append(own)
        with builder.refusing(own):
            for at, line in read_lines(own):
                words = line.split()
                lengths[len(words)] += 1
                for kind in [kind for kind, is_of in kinds.items() if not is_of(words)]:
                    del kinds[kind]
                if drop_scores and len(words) == 6:
                    words = words[:5]
                with builder.refusing(own, at):
                    _convert_line(words, names, builder)

    builder.convert(images, convert)
    if len(lengths) == 1:
        for kind in kinds:
            expected = "lines of class x y width height, or of polygons"
            folder = labels[next(iter(labels))].parent
            raise UserError(f"{folder}: expected {expected}, got only lines of {kind}")
        if 9 in lengths:
            builder.repaired.append(f"turned boxes, of four corners, that get an upright box: {lengths[9]}")
    if inexact:
        builder.repaired.append(f"names of labels that differ in capitals or Unicode form: {len(inexact)}")
    return builder


def _is_pose(words: Sequence[str]) -> bool:
    """Whether a line of more than nine values has a box, and points that lie in it."""
    if len(words) < 10:
        return False
    try:
        _, x, y, width, height, *rest = map(float, words)
    except ValueError:
        return False
    step = 3 if len(rest) % 3 == 0 and {*rest[2::3]} <= {0, 1, 2} else 2
    points = [*zip(rest[::step], rest[1::step], strict=False)]
    marked = [point for point in points if point != (0, 0)]
    inside = all(abs(px - x) <= width / 2 + 0.01 and abs(py - y) <= height / 2 + 0.01 for px, py in marked)
    is_box = min(x - width / 2, y - height / 2) >= -0.01 and max(x + width / 2, y + height / 2) <= 1.01
    # the second corner of a polygon would be a size, in which the other corners take little room
    spread = max((max(values) - min(values) for values in zip(*marked, strict=True)), default=1)
    return len(rest) % step == 0 and inside and is_box and spread >= 0.2 * min(width, height)


_OTHER_LINES: dict[str, Callable[[Sequence[str]], bool]] = {
    "a class, a box, a confidence and the number of a track": lambda words: (
        len(words) == 7 and words[-1].isdigit()
    ),
    "a class, a box and keypoints (a pose)": _is_pose,
}


def _read(file: Path) -> dict | InvalidAnnotation:
    """Return the content of a file that describes a data set, or why it cannot be read."""
    try:
        text = read_text(file)
        if file.suffix == ".data":
            return _read_darknet(file, text)
        if is_names(file):
            return {**_lists(file), "names": _lines_of_names(file)}
        if file.name == NOTES:
            entries = read_json(file)["categories"]
            return {"names": {each["id"]: each["name"] for each in entries}}
        described = yaml.safe_load(text)
    except InvalidAnnotation as error:
        return error
    except (LookupError, TypeError):
        return InvalidAnnotation("expected categories with id and name")
    # ValueError: an impossible date, or an integer of thousands of digits
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        return InvalidAnnotation(f"expected YAML: {' '.join(str(error).split())}")
    if not isinstance(described, dict):
        return InvalidAnnotation(f"expected keys such as names and train, got {short(described)}")
    if "kpt_shape" in described:
        return InvalidAnnotation("expected boxes or polygons, got keypoints (kpt_shape)")
    return described


def _read_darknet(file: Path, text: str) -> dict:
    """Return darknet's ``obj.data``, lines of ``key = value``, as the keys of ``data.yaml``."""
    pairs = (line.partition("=") for line in text.splitlines())
    values: dict[str, Any] = {key.strip(): value.strip() for key, _, value in pairs}
    root, name = file.resolve().parent, values.get("names") or "obj.names"
    names = _located(name, [root])
    if names is None:  # paths are relative to darknet's folder: data/obj.data's parent
        root = root.parent
        names = root / name
        if not names.is_file():
            raise InvalidAnnotation(f"names: expected a file, found none at {names}")
    return {**values, "path": str(root), "names": _lines_of_names(names)}


def _names(described: dict | InvalidAnnotation) -> list[str]:
    if isinstance(described, InvalidAnnotation):
        raise described
    names = described.get("names")
    if isinstance(names, dict):
        names = {int(key) if str(key).isdecimal() else key: name for key, name in names.items()}
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise InvalidAnnotation(f"names: expected 0 to {len(names) - 1}, got {short(list(names))}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InvalidAnnotation(f"names: expected a list of names, got {short(names)}")
    number = described.get("nc", len(names))
    if number != len(names):
        raise InvalidAnnotation(f"nc: expected {len(names)}, the number of names, got {short(number)}")
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):  # YAML reads no as False and ~ as None
            raise InvalidAnnotation(f"names: expected strings, got {short(name)}: put it in quotes")
    return [str(name) for name in names]


def _roots(file: Path, described: dict) -> list[Path]:
    """Return the folders to which the paths may be relative, the usual one first.

    ``path`` is relative to the file, to the current folder or, as Ultralytics reads it, to a folder of data
    sets; or it is that of another machine. Then its last folders, or none, are those beside the file.
    """
    path = str(described.get("path") or ".")
    parts = path_parts(path)
    beside = (file.parent.joinpath(*parts[cut:]) for cut in range(len(parts) + 1))
    roots = [file.parent / path, *beside]
    if parts:  # else the current folder, which has pictures of anything
        roots.insert(1, Path(path))
    return roots


def _places(described: dict, split: str) -> list:
    """Return the folders and lists of a split, whose key may be ``validation`` or ``Train``."""
    keys = [key for key in described if key == split or SPLITS.get(str(key).lower()) == split]
    places = [described[key] for key in keys if described[key]]
    flat = [place for each in places for place in (each if isinstance(each, list) else [each])]
    if not flat or not all(isinstance(place, str) for place in flat):
        known = ", ".join(key for key in described if str(key).lower() in SPLITS and described[key]) or "none"
        raise InvalidAnnotation(f"expected a split {split!r}, found {known}")
    return flat


def _located(place: str, roots: Sequence[Path], base: Path | None = None) -> Path | None:
    """Find a file or folder that a description or list names, perhaps as it was on another machine.

    Args:
        roots: folders to which it may be relative.
        base: folder of the list, to which ``./`` refers.
    """
    slashes, parts = place.replace("\\", "/"), path_parts(place)
    is_absolute = slashes.startswith("/") or slashes[1:2] == ":"
    # Roboflow writes ../train for a folder next to the file; darknet's and CVAT's paths start with data/
    names = [slashes, slashes.removeprefix("../"), slashes.removeprefix("data/")]
    beside = [] if base is None else [base / slashes]
    # without the first folders, of another machine
    cuts = range(len(parts) - (0 if is_absolute else 1))
    candidates = itertools.chain(
        beside * slashes.startswith("./"),
        (root / name for root in roots for name in names),
        beside,
        (root.joinpath(*parts[cut:]) for root in roots for cut in cuts),
    )
    return next(filter(os.path.exists, candidates), None)  # Path.exists raises if the name is too long


def _images(described: dict, split: str, roots: Sequence[Path], builder: CocoBuilder) -> Iterator[Path]:
    for place in _places(described, split):
        path = _located(place, roots)
        if path is None:
            where = roots[0] / place
            raise InvalidAnnotation(f"{split}: expected a folder or a list, found none at {where}")
        if path.is_dir():
            yield from Tree(path).pictures
            continue
        builder.sources.append(path)

        def of_line(line: str, base: Path = path.parent) -> Path:
            return _located(line, roots, base) or roots[0] / line

        yield from builder.listed(path, of_line)


def _candidates(image: Path) -> list[Path]:
    """Return ``…/labels/….txt`` for ``…/images/….jpg``, and the file next to it; capitals may differ."""
    files = [image.with_suffix(".txt")]
    for index in range(len(image.parts) - 2, -1, -1):
        if image.parts[index].lower() in ("images", "jpegimages"):
            above, below = image.parts[:index], files[0].parts[index + 1 :]
            return [Path(*above, name, *below) for name in ("labels", "Labels")] + files
    return files


def _all_labels(tree: Tree) -> dict[Path, Path]:
    if tree.labels is None:
        tree.labels = labels_of(tree.pictures, set())
    return tree.labels


def labels_of(images: Sequence[Path], inexact: set[str]) -> dict[Path, Path]:
    """Return the file with the labels of each image that has one.

    A name that differs only in its Unicode form or in capitals is used if no other image has it; it is added
    to ``inexact``.
    """
    labels, others = {}, []
    for image in images:
        candidates = _candidates(image)
        files = [*candidates, *(file.with_suffix(".TXT") for file in candidates)]
        if file := next(filter(os.path.isfile, files), None):
            labels[image] = file
        else:
            others.append((image, candidates))
    taken, folders = {*labels.values()}, dict[Path, Names]()
    claims: dict[Path, list[Path]] = defaultdict(list)
    for image, candidates in others:
        for file in candidates:
            if file.parent not in folders:
                texts = {each for each in file.parent.glob("*") if each.suffix.lower() == ".txt"} - taken
                folders[file.parent] = Names(sorted(texts), lambda each: each.stem)
            for own in folders[file.parent].get(file.stem)[:1]:
                claims[own].append(image)
    for file, claimants in claims.items():
        if len(claimants) == 1:
            labels[claimants[0]] = file
            inexact.add(file.name)
    return labels


def _convert_line(words: list[str], names: Sequence[str], conversion: CocoBuilder) -> None:
    is_box = len(words) in (5, 6)
    scores: dict[str, Any] = {"score": finite(words.pop(), "score")} if len(words) == 6 else {}
    if not is_box and (len(words) < 7 or len(words) % 2 == 0):
        got = counted(len(words), "values")
        raise InvalidAnnotation(f"expected class x y width height, or class and 3 or more points, got {got}")
    try:
        label, *values = map(float, words)
        usual = label in range(len(names)) and min(values) >= 0 and max(values) <= 1 and sum(values) >= 0
    except ValueError:
        usual = False
    if not usual:
        label, *values = _checked(words, is_box, len(names), conversion.clip)
    name, (width, height) = names[int(label)], conversion.size
    if is_box:
        x, y, w, h = values
        box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        conversion.add_box(name, box, **scores)
    else:
        points = zip(values[::2], values[1::2], strict=True)
        conversion.add_polygons(name, [[(x * width, y * height) for x, y in points]])


def _checked(words: list[str], is_box: bool, classes: int, clip: bool) -> list[float]:
    """Return the numbers of a line, or name the first one that is wrong."""
    corners = [f"{axis}{number}" for number in range(1, len(words) // 2 + 1) for axis in "xy"]
    fields = ["x", "y", "width", "height"] if is_box else corners
    label, *values = map(finite, words, ["class", *fields])
    if label not in range(classes):
        raise InvalidAnnotation(f"class: expected a number from 0 to {classes - 1}, got {short(words[0])}")
    for field, value in zip(fields, values, strict=True):
        # Ultralytics allows a hundredth; the builder allows a pixel
        if not -0.01 <= value <= 1.01 and not clip:
            raise InvalidAnnotation(f"{field}: expected a number from 0 to 1, got {value:g}")
    return [label, *values]
