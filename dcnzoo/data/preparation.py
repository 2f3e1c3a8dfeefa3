"""Annotated pictures in any layout: a checked COCO file for each split, and no picture in two."""

import contextlib
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dcnzoo.data.annotations import Annotations
from dcnzoo.data.layouts import Layout
from dcnzoo.data.split import split_content
from dcnzoo.data.splits import Part, ReadOptions, Tree
from dcnzoo.data.yolo import has_boxes
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import PICTURES, file_digest, write_bytes
from dcnzoo.utils.findings import Finding, shown
from dcnzoo.utils.progress import track
from dcnzoo.utils.text import counted, few

VALIDATION = 0.2  # share of the pictures, if the data has no validation set
_HINTS = {  # what was done about a problem → how to ask for it
    "clipped": "clip=True cuts objects off at the border",
    "dropped": "skip_invalid=True leaves out what is invalid",
    "recomputed": "dcnzoo data check --fix computes boxes from masks",
}


def read_splits(
    data: Path,
    layout: Layout,
    parts: Sequence[Part],
    options: ReadOptions,
    claim: Callable[[Path], object],
) -> tuple[dict[str, Annotations], list[str]]:
    """Read the annotations of all splits, and check what must hold between them.

    A test part without pictures or objects, such as one whose annotations are secret, is left out. Without a
    validation set, pictures are chosen at random. Pictures inside LabelMe's files are written.

    Args:
        claim: is called with each file before it is written.

    Returns:
        The annotations of train, val and perhaps test, with the same categories; a line for each decision.

    Raises:
        UserError: the annotations have problems, one line each, or a picture is in two splits.
    """
    splits = {}
    for part in parts:
        with contextlib.suppress(UserError) if part.split == "test" else contextlib.nullcontext():
            annotations = part.read(options)
            if part.split != "test" or annotations.counts["annotations"]:
                splits[part.split] = annotations
    if problems := [problem for each in splits.values() for problem in each.problems]:
        *lines, last = shown(problems)
        remedies = {problem.remedy for problem in problems} | ({"dropped"} if not problems[0].kind else set())
        raise UserError(*lines, "; ".join([last, *(_HINTS[key] for key in _HINTS if key in remedies)]))
    extracted = [each for annotations in splits.values() for each in annotations.extracted]
    for file, _ in extracted:
        claim(file)
    for file, content in extracted:
        write_bytes(file, content())
    _unify([*splits.values()])
    if findings := check_parts(splits):
        raise UserError(*(f"data: {finding}" for finding in findings))
    left, chosen = unused(data, splits.values()), ""
    repaired = [text for each in splits.values() for text in each.repaired]
    if pool := splits.pop("all", None):
        splits = {**_divided(pool), **splits}
        chosen = f", {VALIDATION:.0%} of the pictures at random (seed 0) for validation"
    decisions = [f"data      {data}, {layout.name.partition(',')[0]}"]
    for split, each in splits.items():
        decisions.append(f"{split:8}  {_described(each)}{chosen if split == 'val' else ''}")
    if parts[-1].split == "test" and "test" not in splits:
        decisions.append("test      not used: no objects or no pictures of the test set were found")
    if left:
        decisions.append(f"not used  {left}: no annotation names them, or they are of another split")
    if repaired:
        decisions.append(f"repaired  {'; '.join(repaired)}")
    return splits, decisions


def _divided(pool: Annotations) -> dict[str, Annotations]:
    """Divide pictures at random; those with equal content stay together."""
    pictures = dict(zip(pool.pictures, (image["id"] for image in pool.images), strict=True))
    copies = {pictures[a]: pictures[b] for a, b in copies_of(pictures, pictures).items()}
    contents = split_content(pool.edit(), VALIDATION, copies=copies)
    train, val = (Annotations(Path(), content, folder=pool.folder) for content in contents)
    return {"train": train, "val": val}


def _described(report: Annotations) -> str:
    crowds = f" and {counted(report.crowds, 'crowds')}" if report.crowds else ""
    counts = [
        counted(report.counts["images"], "pictures"),
        f"{counted(report.counts['annotations'] - report.crowds, 'objects')}{crowds}",
        f"{report.empty_images} without objects",
    ]
    return f"{', '.join(counts)}: {report.folder}"


def _unify(parts: Sequence[Annotations]) -> None:
    """Give parts that differ in their categories those of the first one, in its order, with ids from 1.

    Categories that only other parts have follow. A category without objects that contains all others, which
    Roboflow writes, is left out.
    """
    categories = {each["name"]: each for report in parts for each in report.categories}
    groups = {each.get("supercategory") for each in categories.values()} - {"none", ""}
    group = groups.pop() if len(groups) == 1 and len(categories) > 1 else None
    if group in categories and not any(report.per_class.get(str(group)) for report in parts):
        del categories[group]
    if all(report.categories == [*categories.values()] for report in parts):
        return
    ids = {name: number for number, name in enumerate(categories, 1)}
    for part in parts:
        names = {each["id"]: each["name"] for each in part.categories}
        content = part.edit()
        content["categories"] = [{**each, "id": ids[name]} for name, each in categories.items()]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[names[annotation["category_id"]]]


def check_parts(splits: Mapping[str, Annotations]) -> list[Finding]:
    """Check what must hold in every layout: there are objects to learn, and no picture is in two splits."""
    findings = []
    for split, report in splits.items():
        objects = report.counts["annotations"]
        # pictures without any objects can be validated on
        if objects == report.crowds and (objects or split in ("train", "all")):
            crowds = f"{counted(objects, 'crowds')} or difficult ones, which training ignores"
            got = crowds if objects else "none"
            findings.append(Finding(split, f"expected objects, got {got}", "objects"))
    real = {split: [*map(os.path.realpath, each.pictures)] for split, each in splits.items()}
    for (split, annotations), (other, others) in itertools.combinations(splits.items(), 2):
        own, pairs = {*real[split]}, zip(others.pictures, real[other], strict=True)
        text, shared = "also in", [picture for picture, path in pairs if path in own]
        if not shared:
            text, shared = "copies of ones of", [*copies_of(others.pictures, annotations.pictures)]
        if shared:
            text = f"{counted(len(shared), 'pictures')} of {other} are {text} {split}: {few(shared, 3)}"
            findings.append(Finding("", f"{text}; remove them from one of the two", "shared"))
    return findings


def copies_of(pictures: Iterable[Path], others: Iterable[Path]) -> dict[Path, Path]:
    """Return the pictures that are copies of others, each with the picture that it copies."""
    sizes: dict[int, list[Path]] = defaultdict(list)
    for other in track(others, "comparing pictures"):
        sizes[other.stat().st_size].append(other)
    hashes: dict[int, dict[bytes, Path]] = {}
    copies = {}
    for picture in track(pictures, "comparing pictures"):
        size = picture.stat().st_size
        if sizes.get(size, [picture]) != [picture]:
            if size not in hashes:
                hashes[size] = {file_digest(other).digest(): other for other in reversed(sizes[size])}
            original = hashes[size].get(file_digest(picture).digest(), picture)
            if original != picture:
                copies[picture] = original
    return copies


def unused(data: Path, splits: Iterable[Annotations]) -> str:
    """Describe the pictures and annotations below a folder that are in no split; empty if there are none."""
    if not data.is_dir():
        return ""
    tree = Tree(data)
    used = {os.path.abspath(file) for each in splits for file in (*each.pictures, *each.sources)}
    left = [file for file in tree.files if os.path.abspath(file) not in used]
    texts = [counted(len(tree.work_dirs), "work directories")] if tree.work_dirs else []
    for what, endings in (("pictures", PICTURES), ("files", (".json", ".xml"))):
        files = [file for file in left if file.suffix.lower() in endings]
        if what == "files":
            files += [file for file in left if file.suffix.lower() == ".txt" and has_boxes(file)]
        if files:
            names = few([file.relative_to(tree.root) for file in files], 2)
            texts.append(f"{counted(len(files), what)} ({names})")
    return ", ".join(texts)
