"""COCO files as tools write them: names of pictures, values in other forms, objects without a box."""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dcnzoo.data.annotations import Annotations, positions
from dcnzoo.data.check import KINDS, check_content, repair
from dcnzoo.data.conversion import MISSING, relative
from dcnzoo.data.files import Entries
from dcnzoo.data.splits import Part, ReadOptions, Tree, parts_by_file
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import few


def find_coco(tree: Tree) -> list[Part]:
    """Return the parts of a folder with COCO files: one for each file of boxes or masks."""

    def parse(file: Path, pictures: dict[str, Path], options: ReadOptions) -> Annotations:
        return _read(file, tree.json[file], pictures, options)

    files = {file: content for file, content in tree.json.items() if is_coco(content)}
    return parts_by_file(tree, {file: names_of(content) for file, content in files.items()}, parse)


def is_coco(content: Any) -> bool:
    """Whether this is the content of a COCO file with objects, or with none; captions are not objects."""
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        return False
    lists = [content[key] for key in ("images", "annotations")]
    if (number := sum(isinstance(each, list | Entries) for each in lists)) < 2:
        return number == 1  # the check explains it
    first = [each for each in lists[1][:1000] if isinstance(each, dict)]
    return not lists[1] or not first or any({"bbox", "segmentation"} & each.keys() for each in first)


def names_of(content: dict) -> list[str]:
    """Return the names of a COCO file's images."""
    return [_name(image) for image in _images(content)]


def _entries(content: dict, key: str) -> Iterator[dict]:
    """Yield the objects of a list; a value that is no list or object is a problem of the check."""
    entries = content.get(key)
    for entry in entries if isinstance(entries, list | Entries) else []:
        if isinstance(entry, dict):
            yield entry


def _images(content: dict) -> Iterator[dict]:
    return filter(_name, _entries(content, "images"))


def _name(image: dict) -> str:
    """Return the name of an image; LVIS only has its address."""
    name = image.get("file_name", "/".join(str(image.get("coco_url", "")).split("/")[-2:]))
    return name if isinstance(name, str) else ""


def _read(file: Path, content: dict, pictures: Mapping[str, Path], options: ReadOptions) -> Annotations:
    """Check a COCO file; repair what can be repaired without a loss, and what the options allow."""
    names = names_of(content)
    if names and not pictures:
        missing = [Finding(name, "expected its picture, found none", MISSING) for name in names]
        empty = {**content, "images": [], "annotations": []}
        return Annotations(file, empty, sources=[file], missing=missing, lost=len(content["annotations"]))
    folder, new = _relative(pictures)

    for image in _images(content):
        image["file_name"] = new.get(_name(image), _name(image))
    repeated = _drop_repeated_categories(content)
    result, other_forms = check_content(file, content, folder), 0
    kinds = _repairable(options, missing=len(pictures), names=len(names))
    if any(problem.kind not in kinds for problem in result.problems):
        other_forms = sum(_in_usual_form(each) for each in result.edit()["annotations"])
        if other_forms:
            result = check_content(file, result.content, folder)
    left = [
        dataclasses.replace(problem, subject=f"{file}: {problem.subject}")
        for problem in result.problems
        if problem.kind not in kinds and (problem.kind != "empty" or problem.stops)
    ]
    images = result.content.get("images", [])
    places = zip(result.problems, result.places, strict=True)
    gone = [images[place[1]] for problem, place in places if problem.kind == MISSING and place]
    missing = [
        Finding(str(image["file_name"]), "expected its picture, found none", MISSING) for image in gone
    ]
    rows = positions(images)
    lost = int(np.isin(result.columns.rows, [rows[image["id"]] for image in gone]).sum()) if gone else 0
    counts: Counter[str] = Counter()
    if not left:
        counts.update(problem.kind for problem in result.problems if problem.remedy)
    before = result.empty_images
    if counts:
        repair(result)
    result.repaired = [
        f"{KINDS[kind].text} ({KINDS[kind].remedy}): {number}"
        for kind, number in counts.items()
        if kind != MISSING
    ]
    result.emptied = max(result.empty_images - before, 0)
    if repeated:
        result.repaired.append(f"unused categories with the name of another, left out: {few(repeated)}")
    if other_forms:
        result.repaired.append(f"values in another form, such as texts for numbers: {other_forms}")
    if options.drop_scores and result.columns.scored.any():
        for entry in result.edit()["annotations"]:
            entry.pop("score", None)
    result.is_file &= all(name == old for old, name in new.items())
    result.folder, result.problems, result.sources = folder, left, [file]
    result.missing, result.lost = missing, lost
    return result


def _relative(pictures: Mapping[str, Path]) -> tuple[Path, dict[str, str]]:
    """Return a folder that contains all pictures, and their names in it: the old ones, if possible."""
    roots = {picture.as_posix().removesuffix(f"/{name}") for name, picture in pictures.items()}
    if len(roots) == 1 and (root := roots.pop()) not in {each.as_posix() for each in pictures.values()}:
        return Path(root), {name: name for name in pictures}
    folder = Path(os.path.commonpath({picture.parent for picture in pictures.values()} or {Path()}))
    find = functools.partial(relative, folder=folder)
    return folder, {name: find(picture) for name, picture in pictures.items()}


def _repairable(options: ReadOptions, missing: int, names: int) -> set[str]:
    """Return the kinds of problems that are repaired."""
    allowed = {"renumbered", "converted", "computed", "turned"}  # keep all that the annotations state
    if options.clip:
        allowed.add("clipped")
    if options.skip_invalid:
        allowed.add("dropped")
    # a missing box is computed from the mask; pictures may have been deleted, but not most of them
    own = {"box-with-mask"}
    if 2 * missing >= names:
        own.add(MISSING)
    return own | {kind for kind in KINDS if KINDS[kind].remedy in allowed}


def _drop_repeated_categories(content: dict) -> list[str]:
    """Leave out unused categories with the name of another, such as a group that Roboflow writes."""
    left: list[str] = []
    categories = [*_entries(content, "categories")]
    numbers = Counter(str(each.get("name")) for each in categories)
    if max(numbers.values(), default=1) > 1:
        used = {repr(each.get("category_id")) for each in _entries(content, "annotations")}
        content["categories"] = [
            each for each in categories if numbers[str(each.get("name"))] == 1 or repr(each.get("id")) in used
        ]
        left = [str(each.get("name")) for each in categories if each not in content["categories"]]
    return left


def _in_usual_form(entry: Any) -> bool:
    """Change the values of an annotation that are numbers as texts, or masks in another form."""
    if not isinstance(entry, dict):
        return False
    before = {key: entry.get(key) for key in ("area", "bbox", "iscrowd", "segmentation")}
    for key in ("area", "iscrowd"):
        if key in entry:
            entry[key] = _number(entry[key])
    for key in ("bbox", "segmentation"):
        if isinstance(entry.get(key), list):
            entry[key] = [*map(_number, entry[key])]
    mask = entry.get("segmentation")
    if isinstance(mask, list) and mask and all(isinstance(value, int | float) for value in mask):
        mask = [mask]  # a flat polygon
    if isinstance(mask, list):
        mask = [polygon for polygon in mask if polygon != []]
        boxes = [polygon for polygon in mask if isinstance(polygon, list) and len(polygon) == 4]
        mask = [] if boxes == mask else mask  # the box again
    if "segmentation" in entry:
        entry["segmentation"] = mask or []
    return before != {key: entry.get(key) for key in before}


def _number(value: Any) -> Any:
    """Return the number in a text; other values are unchanged."""
    if isinstance(value, str):
        try:
            return int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
        except ValueError:
            return value
    return value
