"""Annotated pictures in any layout: a checked COCO file for each split, and no picture in two."""

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dcnzoo.data.annotations import Annotations
from dcnzoo.data.balance import Boxes, balance
from dcnzoo.data.copies import (
    Pictures,
    copies_between,
    copies_within,
    groups_of_copies,
    read_pictures,
    stem_of_origin,
)
from dcnzoo.data.layouts import Choice
from dcnzoo.data.split import split_content
from dcnzoo.data.splits import ReadOptions, Tree, normal, split_of
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.findings import Finding, shown
from dcnzoo.utils.text import columns, counted, cut, few

VALIDATION = 0.2  # share of the pictures, if the data has no validation set
_SHOWN = 20  # classes
_ODD = {  # pictures that are loaded otherwise than one may expect
    "dark": "use at most 12 of 16 bits and are loaded nearly black; multiply their values by 16",
    "turned": "are turned by their EXIF orientation, which must be that of their annotations",
    "several": "have several frames or pages, of which the first one is used",
}
_HINTS = {  # what was done about a problem → how to ask for it
    "clipped": "clip=True cuts objects off at the border",
    "dropped": "skip_invalid=True leaves out what is invalid",
    "recomputed": "dcnzoo data check --fix computes boxes from masks",
}


def read_splits(
    data: Path,
    choice: Choice,
    options: ReadOptions,
) -> tuple[dict[str, Annotations], list[str]]:
    """Read the annotations of all splits, and check what must hold between them.

    A test part without pictures or objects, such as one whose annotations are secret, is left out. Without a
    validation set, pictures are chosen at random. Pictures inside LabelMe's files are written.

    Returns:
        The annotations of train, val and perhaps test, with the same categories; a line for each decision.

    Raises:
        UserError: the annotations have problems, one line each, a picture is in two splits, or pictures or
            boxes are left out without a reason.
    """
    splits = {part.split: part.read(options) for part in choice.parts}
    if "test" in splits and not splits["test"].counts["annotations"]:
        del splits["test"]
    if problems := [problem for each in splits.values() for problem in each.problems]:
        *lines, last = shown(problems)
        remedies = {problem.remedy for problem in problems} | ({"dropped"} if not problems[0].kind else set())
        raise UserError(*lines, "; ".join([last, *(_HINTS[key] for key in _HINTS if key in remedies)]))
    for split, each in splits.items():
        if each.predicted and not options.drop_scores:
            got = "predictions, with scores or the mark of a detector"
            raise UserError(
                f"data: {split}: expected annotations, got {got}, of {few(each.predicted, 3)}; "
                "drop_scores=True uses them as annotations"
            )
        if not each.images:
            raise UserError(
                f"data: {few(each.sources, 1)}: expected its pictures below the folder, found none of them"
            )
        if split != "test" and len(each.unlabelled) == len(each.images):
            raise UserError(
                f"data: expected labels of the {counted(len(each.images), 'pictures')} of {split}, such as "
                f"{each.unlabelled[0]}, found no text file beside them or in a folder labels"
            )
    account = balance(choice, [*splits.values()], options)
    if account.errors:
        raise UserError(*account.errors)
    for each in splits.values():
        each.extract()
    group = _unify([*splits.values()])
    pictures = {split: read_pictures(part) for split, part in splits.items()}
    findings = check_parts(splits, pictures)
    if errors := [f"data: {finding}" for finding in findings if finding.stops]:
        raise UserError(*errors)
    repaired = [text for each in splits.values() for text in each.repaired]
    if options.skip_invalid and (emptied := sum(each.emptied for each in splits.values())):
        repaired.append(f"pictures that are used without objects, because all theirs are invalid: {emptied}")
    if inexact := choice.tree.inexact:
        repaired.append(f"names that differ in capitals or Unicode form: {len(inexact)}")
    chosen, notes = "", [*choice.tree.notes, *map(str, findings)]
    if group:
        notes.append(f"the class {group} has no objects and names the group of the others: it is left out")
    for kind, what in _ODD.items():
        if files := [file for each in pictures.values() for file in getattr(each, kind)]:
            notes.append(f"{counted(len(files), 'pictures')} {what} ({few(files, 2)})")
    if pool := splits.pop("all", None):
        groups, divided = groups_of_copies(pictures["all"])
        contents = split_content(pool.edit(), VALIDATION, groups=groups)
        parts = (Annotations(Path(), content, folder=pool.folder) for content in contents)
        splits = {**dict(zip(("train", "val"), parts, strict=True)), **splits}
        chosen = f", {VALIDATION:.0%} of the pictures at random (seed 0) for validation"
        notes += [*divided, *_words_of_no_split(choice.tree, pool)]
    decisions = [f"data      {data}, {choice.name}"]
    for split, each in splits.items():
        decisions.append(f"{split:8}  {_described(each)}{chosen if split == 'val' else ''}")
    decisions += _table_of_classes(splits)
    if any(part.split == "test" for part in choice.parts) and "test" not in splits:
        decisions.append("test      not used: no objects or no pictures of the test set were found")
    texts = {"left out": account.lines, "repaired": repaired, "note": notes + _notes(splits)}
    decisions += [f"{name:8}  {text}" for name, lines in texts.items() for text in lines]
    return splits, decisions


def _words_of_no_split(tree: Tree, pool: Annotations) -> Iterator[str]:
    """Yield a text if folders of pictures that are divided at random are named like a split."""
    folders = {picture.parent for picture in pool.pictures} if tree.asked is None else ()
    names = {name for folder in folders for name in tree.parents(folder / "x")}
    if named := [name for name in sorted(names) if split_of(name) in ("train", "val")]:
        yield f"{few(named)} is no split, because no folder beside it names another one"


def _described(report: Annotations) -> str:
    crowds = f" and {report.crowds} that training ignores" if report.crowds else ""
    counts = [
        counted(report.counts["images"], "pictures"),
        f"{counted(report.counts['annotations'] - report.crowds, 'objects')}{crowds}",
        f"{report.empty_images} without objects",
    ]
    return f"{', '.join(counts)}: {report.folder}"


def _table_of_classes(splits: Mapping[str, Annotations]) -> list[str]:
    """Return lines with the number of objects of each class by split."""
    numbers = {split: each.per_class for split, each in splits.items()}
    names = [*next(iter(numbers.values()))]
    rows = [(cut(name), *(str(each.get(name, 0)) for each in numbers.values())) for name in names[:_SHOWN]]
    lines = [f"          {line}" for line in columns([("class", *numbers), *rows], numbers=True)]
    return lines + (
        [f"          and {counted(len(names) - _SHOWN, 'classes')} more"] if len(names) > _SHOWN else []
    )


def _notes(splits: Mapping[str, Annotations]) -> list[str]:
    """Return what may be a mistake in the names of the classes, or between the splits."""
    train, notes = splits["train"].per_class, []
    similar = Counter(normal(name.strip()) for name in train)
    if same := [ascii(name) for name in train if similar[normal(name.strip())] > 1]:
        notes.append(f"classes whose names differ only in capitals, spaces or Unicode form: {few(same)}")
    for split, each in splits.items():
        objects = np.column_stack([each.columns.rows, each.columns.labels, each.columns.boxes])
        if again := len(objects) - len(np.unique(objects, axis=0)):
            notes.append(f"objects of {split} with the class and the box of another one: {again}")
        if only := [name for name, number in each.per_class.items() if number and not train.get(name)]:
            notes.append(f"classes with objects in {split} and none in train: {few(only)}")
    (_, first), *others = splits.items()
    origins = {*map(stem_of_origin, first.pictures)} - {""}
    for split, each in others:
        if shared := sum(stem_of_origin(picture) in origins for picture in each.pictures):
            notes.append(
                f"{counted(shared, 'pictures')} of {split} are of the origin of ones of train (.rf.)"
            )
    return notes


def _unify(parts: Sequence[Annotations]) -> str:
    """Give parts that differ in their categories those of the first one, in its order, with ids from 1.

    Categories that only other parts have follow. A category without objects that contains all others, which
    Roboflow writes, is left out.

    Returns:
        The name of that category, or an empty text.
    """
    categories = {each["name"]: each for report in parts for each in report.categories}
    groups = {each.get("supercategory") for each in categories.values()} - {"none", ""}
    group = str(groups.pop()) if len(groups) == 1 and len(categories) > 1 else ""
    if group in categories and not any(report.per_class.get(str(group)) for report in parts):
        del categories[group]
    else:
        group = ""
    if all(report.categories == [*categories.values()] for report in parts):
        return group
    ids = {name: number for number, name in enumerate(categories, 1)}
    for part in parts:
        names = {each["id"]: each["name"] for each in part.categories}
        content = part.edit()
        content["categories"] = [{**each, "id": ids[name]} for name, each in categories.items()]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[names[annotation["category_id"]]]
    return group


def check_parts(
    splits: Mapping[str, Annotations], pictures: Mapping[str, Pictures] | None = None
) -> list[Finding]:
    """Check what must hold in every layout: there are objects to learn, and no picture is in two splits.

    Pictures that are nearly equal do not stop a training.

    Args:
        pictures: of the splits, if they have been read.
    """
    findings = []
    if pictures is None:
        pictures = {split: read_pictures(part) for split, part in splits.items()}
    for split, report in splits.items():
        objects = report.counts["annotations"]
        # pictures without any objects can be validated on
        if objects == report.crowds and (objects or split in ("train", "all")):
            crowds = f"{counted(objects, 'crowds')} or difficult ones, which training ignores"
            got = crowds if objects else "none"
            findings.append(Finding(split, f"expected objects, got {got}", "objects"))
        if files := report.unlabelled:
            text = f"{counted(len(files), 'pictures')} without labels are used as empty ones: {few(files, 3)}"
            findings.append(Finding(split, text, "unlabelled", stops=False))
    for split, each in pictures.items():
        if each.unreadable:  # a training leaves out a few
            text = f"{counted(len(each.unreadable), 'pictures')} cannot be decoded: {few(each.unreadable, 3)}"
            findings.append(Finding(split, text, "unreadable", stops=split != "train"))
        if named := _with_other_objects(splits[split], each):
            text = f"{counted(len(named), 'pictures')} have copies with other objects: {few(named, 3)}"
            findings.append(Finding(split, text, "contradictory", stops=False))
    for (split, first), (other, second) in itertools.combinations(pictures.items(), 2):
        real = {*map(os.path.realpath, first.paths)}
        equal, similar = copies_between(second, first)
        text, shared = "also in", [path for path in second.paths if os.path.realpath(path) in real]
        if not shared:
            text, shared = "copies of ones of", equal
        if shared:
            text = f"{counted(len(shared), 'pictures')} of {other} are {text} {split}: {few(shared, 3)}"
            findings.append(Finding("", f"{text}; remove them from one of the two", "shared"))
        elif similar:
            text = f"{counted(len(similar), 'pictures')} of {other} are nearly equal to ones of {split}"
            findings.append(Finding("", f"{text}, or mirrored: {few(similar, 2)}", "similar", stops=False))
    return findings


def _with_other_objects(report: Annotations, pictures: Pictures) -> list[Path]:
    """Return the pictures with objects that their copies do not have."""
    real = [os.path.realpath(path) for path in pictures.paths]
    copies = {real[number]: real[first] for number, first in copies_within(pictures)}
    if not copies:
        return []
    boxes, originals = Boxes([report]), {first: copy for copy, first in copies.items()}
    same = boxes.contain(report, copies) & boxes.contain(report, originals)
    return [pictures.paths[row] for row in np.unique(report.columns.rows[~same]).tolist()]
