"""What is wrong with a COCO file, all of it, and a file without it."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dcnzoo.datasets.conversion import (
    TOLERANCE,
    Refused,
    Step,
    clip_box,
    clip_polygon,
    image_size,
    polygon_area,
    read_text,
)
from dcnzoo.engine.checkpoint import AtomicLocalBackend
from dcnzoo.errors import UserError

# what each kind of problem is called in the report, and what `fix` does about it
KINDS = {
    "file": ("no COCO file", None),
    "empty": ("nothing in it", None),
    "image-entry": ("image without id, name or size", "dropped"),
    "category-entry": ("category without id or name", None),
    "annotation-entry": ("annotation without image or category", "dropped"),
    "duplicate-image-id": ("id of several images", None),
    "duplicate-category-id": ("id of several categories", None),
    "duplicate-annotation-id": ("id of several annotations", "numbered anew"),
    "annotation-id-0": ("annotation with id 0", "numbered anew"),
    "duplicate-file-name": ("file of several images", None),
    "duplicate-category": ("name of several categories", None),
    "classes": ("categories are not the classes", None),
    "missing-image": ("image file missing", "dropped"),
    "unreadable-image": ("image file unreadable", "dropped"),
    "image-size": ("size is not the file's", "dropped"),
    "unknown-image": ("annotation of an unknown image", "dropped"),
    "unknown-category": ("annotation of an unknown category", "dropped"),
    "box": ("no box, or without an area", "dropped"),
    "box-outside": ("box reaches out of the image", "clipped"),
    "polygon": ("no polygon", "dropped"),
    "polygon-outside": ("polygon reaches out of the image", "clipped"),
    "rle": ("no run-length encoding", "dropped"),
    "box-of-mask": ("box does not enclose the mask", "dropped"),
    "area": ("area is not the object's", "computed"),
    "iscrowd": ("iscrowd is neither 0 nor 1", "dropped"),
}


PLURALS = {"image": "images", "category": "categories"}


class Problem(NamedTuple):
    """Attributes:
    kind: a key of :data:`KINDS`.
    where: which image, annotation or category, by its id.
    text: what was expected, and what is there.
    place: ``("images", index)`` or ``("annotations", index)`` in the file; None for the rest.
    """

    kind: str
    where: str
    text: str
    place: tuple[str, int] | None = None


class Report:
    """What :func:`check_coco` has found.

    Attributes:
        file: that was read.
        problems: in the order of the file.
        counts: of ``images``, ``annotations``, ``categories``.
        per_class: annotations of each category's name.
        empty_images: that no annotation is of.
    """

    def __init__(self, file: Path, content: dict, problems: list[Problem]) -> None:
        self.file, self.content, self.problems = file, content, problems
        self.counts = {key: len(content.get(key, ())) for key in ("images", "annotations", "categories")}
        entries = {key: [e for e in content.get(key, ()) if isinstance(e, dict)] for key in self.counts}
        numbers = Counter(_key(entry.get("category_id")) for entry in entries["annotations"])
        self.per_class = {
            str(entry.get("name")): numbers[_key(entry.get("id"))] for entry in entries["categories"]
        }
        annotated = {_key(entry.get("image_id")) for entry in entries["annotations"]}
        self.empty_images = sum(_key(entry.get("id")) not in annotated for entry in entries["images"])

    def by_kind(self) -> dict[str, list[Problem]]:
        found: dict[str, list[Problem]] = {}
        for problem in self.problems:
            found.setdefault(problem.kind, []).append(problem)
        return found

    def as_dict(self) -> dict:
        """For ``--json``."""
        return {
            "file": str(self.file),
            **self.counts,
            "per_class": self.per_class,
            "images_without_annotation": self.empty_images,
            "problems": [{"kind": p.kind, "where": p.where, "text": p.text} for p in self.problems],
        }


def check_coco(
    file: str | Path,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
    step: Step = lambda done, total: None,
) -> Report:
    """Look at everything in a COCO file for training a detector.

    Coordinates may be a pixel beyond the image, areas a tenth or the pixels of the outline off.

    Args:
        file: with ``images``, ``annotations`` and ``categories``.
        images: the folder of the images, whose sizes are compared; None: files are not looked at.
        classes: what a config's ``metainfo`` has, in that order; a file may have more.
        step: called after each image file.

    Raises:
        UserError: a file or a folder is not there.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"file: expected a COCO file, found none at {file}")
    if images is not None and not Path(images).is_dir():
        raise UserError(f"images: expected a folder, found none at {images}")
    try:
        content = json.loads(read_text(file))
    except (Refused, ValueError, RecursionError) as error:
        return Report(file, {}, [Problem("file", "file", f"expected JSON: {error}")])
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key, []), list) for key in keys):
        text = f"expected an object with the lists {', '.join(keys)}, got {_type(content)}"
        return Report(file, {}, [Problem("file", "file", text)])
    checker = _Checker(content)
    for key in keys:
        if not content.get(key):
            checker.add("empty", key, "expected at least 1, got 0")
    checker.check_categories(classes)
    checker.check_images(None if images is None else Path(images), step)
    checker.check_annotations()
    return Report(file, content, checker.problems)


def checked_coco(
    file: str | Path, images: str | Path | None = None, classes: Sequence[str] | None = None
) -> Report:
    """:func:`check_coco` of a file that has to be without problems.

    Raises:
        UserError: it has some; the first, and the command that lists all.
    """
    report = check_coco(file, images, classes)
    if report.problems:
        first, number = report.problems[0], len(report.problems)
        command = f"dcnzoo data check {file}" + (f" --images {images}" if images is not None else "")
        raise UserError(f"{file}: {first.where}: {first.text}; `{command}` lists all {number} problems")
    return report


def fix(report: Report, out: str | Path) -> dict[str, Counter]:
    """Write the file without what is wrong: see :data:`KINDS`. With an image go its annotations.

    Returns:
        What was done, to how many ``images`` and ``annotations``.

    Raises:
        UserError: something is wrong that cannot be mended, or nothing is left. Nothing is written.
    """
    for problem in report.problems:
        if KINDS[problem.kind][1] is None:
            raise UserError(
                f"{report.file}: {problem.where}: {problem.text}; expected only what --fix can mend, "
                f"got {KINDS[problem.kind][0]}"
            )
    content = copy.deepcopy(report.content)
    done = {"images": Counter(), "annotations": Counter()}
    remedies: dict[tuple[str, int], set[str]] = {}
    for problem in report.problems:
        remedies.setdefault(problem.place, set()).add(KINDS[problem.kind][1])
    kept_images = []
    for index, image in enumerate(content["images"]):
        if "dropped" in remedies.get(("images", index), ()):
            done["images"]["dropped"] += 1
        else:
            kept_images.append(image)
    sizes = {image["id"]: (image["width"], image["height"]) for image in kept_images}
    kept = []
    for index, annotation in enumerate(content["annotations"]):
        wanted = remedies.get(("annotations", index), set())
        gone = "dropped" in wanted or annotation["image_id"] not in sizes
        if not gone and "clipped" in wanted:
            gone = not _clip(annotation, sizes[annotation["image_id"]])
        if gone:
            done["annotations"]["dropped"] += 1
            continue
        if wanted & {"clipped", "computed"}:
            annotation["area"] = round(_area(annotation), 2)
        done["annotations"].update(wanted)
        kept.append(annotation)
    if any("numbered anew" in wanted for wanted in remedies.values()):
        for number, annotation in enumerate(kept, 1):
            annotation["id"] = number
    content.update(images=kept_images, annotations=kept)
    for key in ("images", "annotations"):
        if not content[key]:
            raise UserError(
                f"{report.file}: {key}: expected at least 1 without a problem, got 0; nothing is written"
            )
    AtomicLocalBackend().put_text(json.dumps(content, ensure_ascii=False) + "\n", out)
    return done


class _Checker:
    """The problems of one file. Ids are compared by value and type: 1 and "1" are two, as in COCO's code."""

    def __init__(self, content: dict) -> None:
        self.content = content
        self.problems: list[Problem] = []
        self.sizes: dict[object, tuple[int, int] | None] = {}  # of each image that has an id
        self.categories: set[object] = set()

    def add(self, kind: str, where: str, text: str, place: tuple[str, int] | None = None) -> None:
        self.problems.append(Problem(kind, where, text, place))

    def check_categories(self, classes: Sequence[str] | None) -> None:
        names: list[str] = []
        for index, entry in enumerate(self.content.get("categories", ())):
            where = f"categories[{index}]"
            if not isinstance(entry, dict) or not _is_id(entry.get("id")):
                self.add("category-entry", where, f"expected an id, an integer, got {_short(entry)}")
                continue
            name = entry.get("name")
            if not isinstance(name, str) or not name:
                self.add("category-entry", where, f"expected a name, got {_short(name)}")
            if entry["id"] in self.categories:
                self.add(
                    "duplicate-category-id", where, f"expected an id of its own, got {entry['id']} again"
                )
            if name in names:
                self.add("duplicate-category", where, f"expected a name of its own, got {name!r} again")
            self.categories.add(entry["id"])
            names.append(name)
        if classes is None:
            return
        missing = [name for name in classes if name not in names]
        there = [name for name in names if name in classes]
        if missing:
            text = f"expected {_names(classes)}, missing {_names(missing)}, got {_names(names)}"
            self.add("classes", "categories", text)
        elif there != list(classes):
            text = f"expected the order of the classes, {_names(classes)}, got {_names(there)}"
            self.add("classes", "categories", text)

    def check_images(self, folder: Path | None, step: Step) -> None:
        file_names: set[str] = set()
        entries = self.content.get("images", ())
        for index, entry in enumerate(entries):
            place, where = ("images", index), f"images[{index}]"
            if not isinstance(entry, dict) or not _is_id(entry.get("id")):
                self.add("image-entry", where, f"expected an id, an integer, got {_short(entry)}", place)
                continue
            number, where = entry["id"], f"image {entry['id']}"
            if number in self.sizes:
                self.add("duplicate-image-id", where, f"expected an id of its own, got {number} again", place)
            size, name = (entry.get("width"), entry.get("height")), entry.get("file_name")
            whole = all(_is_id(side) and side > 0 for side in size)
            self.sizes[number] = size if whole else None
            if not whole:
                text = f"expected width and height, integers ≥ 1, got {_short(size[0])} and {_short(size[1])}"
                self.add("image-entry", where, text, place)
            if not isinstance(name, str) or not name:
                self.add("image-entry", where, f"expected a file_name, got {_short(name)}", place)
                continue
            if name in file_names:
                self.add("duplicate-file-name", where, f"expected a file of its own, got {name} again", place)
            file_names.add(name)
            if folder is not None:
                self._check_file(folder / name, size if whole else None, where, place)
            step(index + 1, len(entries))

    def _check_file(
        self, file: Path, size: tuple[int, int] | None, where: str, place: tuple[str, int]
    ) -> None:
        if not file.is_file():
            self.add("missing-image", where, f"expected a file, found none at {file}", place)
            return
        try:
            real = image_size(file)
        except Refused as error:
            self.add("unreadable-image", where, str(error), place)
            return
        if size is not None and size != real:
            turned = "; the image is turned by its EXIF orientation" if size == real[::-1] else ""
            text = f"expected {real[0]} × {real[1]}, as {file} is, got {size[0]} × {size[1]}{turned}"
            self.add("image-size", where, text, place)

    def check_annotations(self) -> None:
        ids: set[object] = set()
        for index, entry in enumerate(self.content.get("annotations", ())):
            place, where = ("annotations", index), f"annotations[{index}]"
            if not isinstance(entry, dict):
                self.add("annotation-entry", where, f"expected an object, got {_short(entry)}", place)
                continue
            number = entry.get("id")
            if not _is_id(number):
                # dropping it would be more than is needed
                self.add("duplicate-annotation-id", where, f"expected an id, got {_short(number)}", place)
            else:
                where = f"annotation {number}"
                if number in ids:
                    text = f"expected an id of its own, got {number} again"
                    self.add("duplicate-annotation-id", where, text, place)
                if number == 0:
                    text = "expected an id ≥ 1: COCO's evaluation takes 0 for no match"
                    self.add("annotation-id-0", where, text, place)
                ids.add(number)
            self._check_annotation(entry, where, place)

    def _check_annotation(self, entry: dict, where: str, place: tuple[str, int]) -> None:
        known = True
        for key, ids in (("image", self.sizes), ("category", self.categories)):
            number = entry.get(f"{key}_id")
            if not _is_id(number):
                self.add("annotation-entry", where, f"expected {key}_id, got {_short(number)}", place)
                known = False
            elif number not in ids:
                text = f"expected the id of one of the {len(ids)} {PLURALS[key]}, got {key}_id {number}"
                self.add(f"unknown-{key}", where, text, place)
                known = False
        if entry.get("iscrowd", 0) not in (0, 1):
            self.add("iscrowd", where, f"expected 0 or 1, got {_short(entry['iscrowd'])}", place)
        size = self.sizes.get(entry.get("image_id")) if known else None
        box_is_whole = self._check_box(entry, size, where, place)
        mask_is_whole = self._check_segmentation(entry, size, where, place)
        if box_is_whole and mask_is_whole:
            self._check_agreement(entry, where, place)

    def _check_box(
        self, entry: dict, size: tuple[int, int] | None, where: str, place: tuple[str, int]
    ) -> bool:
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            text = f"expected bbox [x, y, width, height], four finite numbers, got {_short(box)}"
            self.add("box", where, text, place)
            return False
        if not min(box[2:]) > 0:
            self.add("box", where, f"expected bbox with width and height > 0, got {_short(box)}", place)
            return False
        if size is not None and not _within(_corners(box), size):
            text = f"expected bbox inside of {size[0]} × {size[1]} pixels, got {_short(box)}"
            if not _overlaps(_corners(box), size):
                self.add("box", where, text, place)  # nothing would be left
                return False
            self.add("box-outside", where, text, place)
        return True

    def _check_segmentation(
        self, entry: dict, size: tuple[int, int] | None, where: str, place: tuple[str, int]
    ) -> bool:
        mask = entry.get("segmentation")
        if mask is None or mask == []:
            return True  # a box is enough for a detector
        if isinstance(mask, dict):
            problem = _wrong_with_rle(mask, size)
            if problem:
                self.add("rle", where, problem, place)
            return not problem
        if not isinstance(mask, list):
            self.add("polygon", where, f"expected polygons or RLE, got {_short(mask)}", place)
            return False
        for polygon in mask:
            if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
                text = f"expected a polygon [x, y, x, y, …] of finite numbers, got {_short(polygon)}"
            elif len(polygon) % 2 or len(polygon) < 6:
                text = f"expected a polygon of at least 3 points [x, y, …], got {len(polygon)} coordinates"
            elif not polygon_area(_points(polygon)) > 0:
                text = f"expected a polygon with an area, got {_short(polygon)}"
            else:
                continue
            self.add("polygon", where, text, place)
            return False
        if size is not None and not all(_within(polygon, size) for polygon in mask):
            text = f"expected polygons inside of {size[0]} × {size[1]} pixels, got points outside"
            self.add("polygon-outside", where, text, place)
        return True

    def _check_agreement(self, entry: dict, where: str, place: tuple[str, int]) -> None:
        """Box, mask and area: of one another."""
        box, mask = entry["bbox"], entry.get("segmentation")
        area, extent = entry.get("area"), box[2] * box[3]
        if not _is_number(area) or not area > 0:
            self.add("area", where, f"expected an area > 0, got {_short(area)}", place)
            area = None
        if isinstance(mask, list) and mask and entry.get("iscrowd", 0) == 0:
            x, y = ([value for polygon in mask for value in polygon[axis::2]] for axis in (0, 1))
            around = (min(x), min(y), max(x), max(y))
            off = max(abs(a - b) for a, b in zip(around, _corners(box), strict=True))
            if off > max(2 * TOLERANCE, 0.1 * max(box[2:])):
                box_of_mask = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
                text = f"expected bbox around the mask, {box_of_mask}, got {_short(box)}"
                self.add("box-of-mask", where, text, place)
        if area is None:
            return
        real = _area(entry)
        if mask:
            # what counts pixels and what measures outlines differ by pixels of the outline
            slack = 0.1 * real + box[2] + box[3]
            low, high = (real - slack, real + slack)
            if isinstance(mask, list) and len(mask) > 1:
                low = max(polygon_area(_points(p)) for p in mask) - slack  # they may overlap
        else:
            low, high = 0, 1.1 * extent + box[2] + box[3]  # perhaps that of a mask which is not here
        if not low <= area <= high:
            self.add("area", where, f"expected an area of about {real:.6g} pixels², got {area:g}", place)


def decode_counts(text: str) -> list[int]:
    """The run lengths of a compressed RLE: six bits of a character are five of a number and a sign to go on;
    from the third on a number is the difference to the one before the last.

    Raises:
        ValueError: it ends in the middle of a number, or has other characters.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("it ends within a number")
    return counts


def _wrong_with_rle(mask: dict, size: tuple[int, int] | None) -> str | None:
    extent, counts = mask.get("size"), mask.get("counts")
    if not isinstance(extent, list) or len(extent) != 2 or not all(_is_id(n) and n > 0 for n in extent):
        return f"expected RLE with size [height, width], got {_short(extent)}"
    if size is not None and extent != [size[1], size[0]]:
        return f"expected RLE of the image's size [{size[1]}, {size[0]}], got {_short(extent)}"
    if isinstance(counts, str):
        try:
            counts = decode_counts(counts)
        except ValueError as error:
            return f"expected RLE's compressed counts, got text that is none: {error}"
    if not isinstance(counts, list) or not all(_is_id(n) and n >= 0 for n in counts):
        return f"expected RLE with counts, integers ≥ 0, got {_short(counts)}"
    if sum(counts) != extent[0] * extent[1]:
        return f"expected RLE with counts of {extent[0] * extent[1]} pixels in all, got {sum(counts)}"
    if not sum(counts[1::2]):
        return "expected RLE that covers at least 1 pixel, got 0"
    return None


def _area(annotation: dict) -> float:
    """Of an annotation without other problems; of overlapping polygons the sum."""
    mask = annotation.get("segmentation")
    if isinstance(mask, dict):
        counts = mask["counts"]
        return float(sum((decode_counts(counts) if isinstance(counts, str) else counts)[1::2]))
    if mask:
        return sum(polygon_area(_points(polygon)) for polygon in mask)
    return float(annotation["bbox"][2] * annotation["bbox"][3])


def _clip(annotation: dict, size: tuple[int, int]) -> bool:
    """Cut off what is beyond the image; False if nothing is left."""
    x1, y1, x2, y2 = clip_box(_corners(annotation["bbox"]), size)
    mask = annotation.get("segmentation")
    if isinstance(mask, list) and mask:
        kept = [clip_polygon(_points(polygon), size) for polygon in mask]
        kept = [polygon for polygon in kept if len(polygon) > 2 and polygon_area(polygon) > 0]
        if not kept:
            return False
        annotation["segmentation"] = [[round(v, 2) for point in polygon for v in point] for polygon in kept]
    annotation["bbox"] = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
    return min(annotation["bbox"][2:]) > 0


def _points(polygon: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(polygon[::2], polygon[1::2], strict=True))


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def _within(flat: Sequence[float], size: tuple[int, int]) -> bool:
    return all(
        -TOLERANCE <= value <= extent + TOLERANCE
        for axis, extent in enumerate(size)
        for value in flat[axis::2]
    )


def _overlaps(corners: tuple[float, float, float, float], size: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = clip_box(corners, size)
    return x1 < x2 and y1 < y2


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    # of an integer math.isfinite makes a float, for which JSON's may be too large
    return (_is_id(value) and abs(value) < 2**63) or (isinstance(value, float) and math.isfinite(value))


def _key(value: object) -> object:
    """What can be counted; lists and dicts are no ids."""
    return value if _is_id(value) else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _names(names: Sequence[str], shown: int = 5) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + rest or "none"


def _type(value: object) -> str:
    return (
        f"{type(value).__name__} with {', '.join(list(value)[:5])}"
        if isinstance(value, dict)
        else type(value).__name__
    )
