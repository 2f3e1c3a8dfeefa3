"""Find all problems in a COCO file, and write a file without them."""

from __future__ import annotations

import copy
import itertools
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from pycocotools import mask as coco_mask

from dcnzoo.data.conversion import (
    FAR,
    TOLERANCE,
    InvalidAnnotation,
    Step,
    clip_box,
    clip_polygon,
    few,
    flattened,
    image_size,
    is_number,
    polygon_area,
    read_json,
    short,
    write_json,
    wrong_size,
)
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.garbage import collector_paused


class Kind(NamedTuple):
    """A kind of problem."""

    text: str
    remedy: str | None = None  # of `fix`; None: cannot be fixed
    stops: bool = False  # prevents any training
    of_masks: bool = False  # only matters to detectors with masks


KINDS = {
    "file": Kind("not a COCO file", stops=True),
    "empty": Kind("no entries", stops=True),
    "image-entry": Kind("image without id, name or size", "dropped", stops=True),
    "category-entry": Kind("category without id or name", stops=True),
    "text-id": Kind("id that is a text", "converted", stops=True),
    "annotation-entry": Kind("annotation without image or category", "dropped", stops=True),
    "duplicate-image-id": Kind("duplicate image id", stops=True),
    "duplicate-category-id": Kind("duplicate category id", stops=True),
    "duplicate-annotation-id": Kind("duplicate annotation id", "renumbered", stops=True),
    "annotation-id-0": Kind("annotation with id 0", "renumbered"),
    "duplicate-file-name": Kind("duplicate file name"),
    "duplicate-category": Kind("duplicate category name", stops=True),
    "classes": Kind("categories differ from the classes", stops=True),
    "missing-image": Kind("image file missing", "dropped"),
    "unreadable-image": Kind("image file unreadable", "dropped"),
    "image-size": Kind("size differs from the file's", "dropped"),
    "unknown-image": Kind("annotation of an unknown image", "dropped"),
    "unknown-category": Kind("annotation of an unknown category", "dropped", stops=True),
    "box": Kind("missing box, or box without area", "dropped"),
    "box-with-mask": Kind("object with a mask, without a valid box", "recomputed"),
    "box-outside": Kind("box extends beyond the image", "clipped"),
    "segmentation": Kind("invalid segmentation", "dropped", stops=True, of_masks=True),
    "polygon": Kind("polygon without an area", "dropped", of_masks=True),
    "polygon-outside": Kind("polygon extends beyond the image", "clipped", of_masks=True),
    "rle": Kind("invalid run-length encoding", "dropped", stops=True, of_masks=True),
    "box-of-mask": Kind("box does not enclose the mask", "recomputed", of_masks=True),
    "area": Kind("area differs from the object's", "computed"),
    "iscrowd": Kind("iscrowd is neither 0 nor 1", "dropped", stops=True),
}
PLURALS = {"image": "images", "category": "categories"}

_Corners = tuple[float, float, float, float]  # x1, y1, x2, y2
_Mask = tuple[list[float], list[_Corners]]  # area and corners of each part


class Problem(NamedTuple):
    """A problem in a COCO file.

    Attributes:
        kind: a key of :data:`KINDS`.
        where: the image, annotation or category, by its id.
        text: the field, the expected and the actual value.
        place: ``("images", index)`` or ``("annotations", index)`` in the file; otherwise None.
        stops: the problem prevents training. Problems of masks do not matter to a detector without masks.
    """

    kind: str
    where: str
    text: str
    place: tuple[str, int] | None = None
    stops: bool = False


class Report:
    """The result of :func:`check_coco`.

    Attributes:
        file: the checked file.
        problems: in the order of the file.
        counts: numbers of ``images``, ``annotations``, ``categories``.
        per_class: number of annotations by category name.
        empty_images: number of images without an annotation.
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

    def as_dict(self) -> dict:
        """Return the report for ``--json``."""
        return {
            "file": str(self.file),
            **self.counts,
            "per_class": self.per_class,
            "images_without_annotation": self.empty_images,
            "problems": [{"kind": p.kind, "where": p.where, "text": p.text} for p in self.problems],
        }


@collector_paused()
def check_coco(
    file: str | Path,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
    step: Step = lambda done, total: None,
) -> Report:
    """Check a COCO file for training a detector.

    Tolerates coordinates up to one pixel outside the image, and areas that differ by a tenth plus the pixels
    of the outline.

    Args:
        file: with ``images``, ``annotations`` and ``categories``.
        images: folder of the images, whose sizes are compared; None: do not check image files.
        classes: the classes in a config's ``metainfo``, in that order; the file may have more.
        step: called after each image and after each annotation.

    Raises:
        UserError: the file or the folder does not exist.
    """
    file = Path(file)
    if not os.path.isfile(file):
        raise UserError(f"file: expected a COCO file, found none at {file}")
    if images is not None and not os.path.isdir(images):
        raise UserError(f"images: expected a folder, found none at {images}")
    keys = ("images", "annotations", "categories")
    try:
        content = read_json(file)
        if not isinstance(content, dict):
            raise InvalidAnnotation(
                f"expected an object with the lists {', '.join(keys)}, got {short(content)}"
            )
        for key in keys:
            if not isinstance(content.get(key, []), list):
                raise InvalidAnnotation(f"{key}: expected a list, got {short(content[key])}")
    except InvalidAnnotation as error:
        where = "file" if error.line is None else f"line {error.line}"
        return Report(file, {}, [Problem("file", where, str(error), stops=True)])
    checker = _Checker(content, step)
    for key in keys:
        if not content.get(key):
            # a file without annotations can be used for testing
            checker.at(key).add_text("empty", "expected at least 1, got 0", stops=key != "annotations")
    checker.check_categories(classes)
    checker.check_images(None if images is None else Path(images))
    checker.check_annotations()
    return Report(file, content, checker.problems)


def checked_coco(
    file: str | Path, images: str | Path | None = None, classes: Sequence[str] | None = None
) -> Report:
    """Check a COCO file by :func:`check_coco` and require that it has no problems.

    Raises:
        UserError: it has problems; the message gives the first and the command that lists all.
    """
    report = check_coco(file, images, classes)
    if report.problems:
        raise as_error(report, report.problems, images)
    return report


def as_error(report: Report, problems: Sequence[Problem], images: str | Path | None = None) -> UserError:
    """Return an error with the first of these problems and the command that lists all."""
    number = len(report.problems)
    command = f"dcnzoo data check {report.file}" + (f" --images {images}" if images is not None else "")
    more = f"; `{command}` lists all {number} problems" if number > 1 else ""
    return UserError(f"{report.file}: {problems[0].where}: {problems[0].text}{more}")


def wrong_with_classes(names: Sequence[str], classes: Sequence[str]) -> str | None:
    """Explain why a file's categories do not fit a config's classes; None if they do. The order matters."""
    missing = [name for name in classes if name not in names]
    there = [name for name in names if name in classes]
    if missing:
        return f"expected the classes {few(classes)}, missing {few(missing)}, got {few(names)}"
    if there != list(classes):
        return f"expected the classes in the order {few(classes)}, got {few(there)}"
    return None


def fix(report: Report, out: str | Path) -> dict[str, Counter]:
    """Write a copy of the file without its problems; see :data:`KINDS`. A dropped image's annotations go too.

    Returns:
        For ``images`` and ``annotations``, the number of entries by remedy.

    Raises:
        UserError: a problem cannot be fixed, or nothing is left. Nothing is written.
    """
    remedies: dict[tuple[str, int] | None, set[str]] = defaultdict(set)
    for problem in report.problems:
        kind = KINDS[problem.kind]
        if kind.remedy is None:
            raise UserError(
                f"{report.file}: {problem.where}: {problem.text}; --fix cannot fix this kind of "
                f"problem: {kind.text}"
            )
        remedies[problem.place].add(kind.remedy)
    content = copy.deepcopy(report.content)
    done: dict[str, Counter] = {"images": Counter(), "annotations": Counter()}
    kept_images = []
    for index, image in enumerate(content["images"]):
        if "dropped" in remedies["images", index]:
            done["images"]["dropped"] += 1
        else:
            done["images"].update(remedies["images", index])
            kept_images.append(image)
    sizes = {image["id"]: (image["width"], image["height"]) for image in kept_images}
    kept = []
    for index, annotation in enumerate(content["annotations"]):
        wanted = remedies["annotations", index]
        gone = "dropped" in wanted or annotation["image_id"] not in sizes
        if not gone and "recomputed" in wanted:
            annotation["bbox"] = _box_of_mask(annotation["segmentation"])
        if not gone and "clipped" in wanted:
            gone = not _clip(annotation, sizes[annotation["image_id"]])
        if gone:
            done["annotations"]["dropped"] += 1
            continue
        if wanted & {"clipped", "computed", "recomputed"}:
            annotation["area"] = round(_area(annotation), 2)
        done["annotations"].update(wanted)
        kept.append(annotation)
    if any("renumbered" in wanted for wanted in remedies.values()):
        for number, annotation in enumerate(kept, 1):
            annotation["id"] = number
    content.update(images=kept_images, annotations=kept)
    for key in ("images", "annotations"):
        if not content[key]:
            raise UserError(
                f"{report.file}: {key}: expected at least 1 valid entry, got 0; nothing is written"
            )
    write_json(content, out)
    return done


def _convert_texts(content: dict) -> Iterator[Problem]:
    """Replace ids that are texts by integers, "7" by 7 and others by free ones; yield a problem for each."""
    for singular, plural in PLURALS.items():
        ids = [entry.get("id") for entry in content.get(plural, ()) if isinstance(entry, dict)]
        numbers = {str(each): int(str(each)) for each in ids if re.fullmatch("[0-9]{1,18}", str(each))}
        free = itertools.count(1 + max(numbers.values(), default=0))
        for key, field in ((plural, "id"), ("annotations", f"{singular}_id")):
            for index, entry in enumerate(content.get(key, ())):
                text = entry.get(field) if isinstance(entry, dict) else None
                if isinstance(text, str) and text:
                    entry[field] = numbers[text] if text in numbers else numbers.setdefault(text, next(free))
                    problem = f"{field}: expected an integer, got {short(text)}"
                    yield Problem("text-id", f"{key}[{index}]", problem, (key, index), stops=True)


class _Checker:
    """Collects the problems of one file. As in pycocotools, ids of different types differ: 1 is not "1"."""

    def __init__(self, content: dict, step: Step = lambda done, total: None) -> None:
        self.content = content
        self.step = step
        self.total = sum(len(content.get(key, ())) for key in ("images", "annotations"))
        self.problems = list(_convert_texts(content))
        self.sizes: dict[object, tuple[int, int] | None] = {}  # of each image that has an id
        self.categories: set[object] = set()
        self.at("file")

    def at(self, where: str, place: tuple[str, int] | None = None) -> _Checker:
        """Set the position for the problems that follow."""
        self.where, self.place = where, place
        return self

    def add_text(self, kind: str, text: str, stops: bool | None = None) -> None:
        stops = KINDS[kind].stops if stops is None else stops
        self.problems.append(Problem(kind, self.where, text, self.place, stops))

    def add(self, kind: str, field: str, expected: str, got: object, stops: bool | None = None) -> None:
        self.add_text(kind, f"{field}: expected {expected}, got {short(got)}", stops)

    def check_categories(self, classes: Sequence[str] | None) -> None:
        names: list[Any] = []  # strings, unless the file has a problem
        for index, entry in enumerate(self.content.get("categories", ())):
            self.at(f"categories[{index}]")
            if not isinstance(entry, dict) or not _is_id(entry.get("id")):
                self.add("category-entry", "id", "an integer", _id_of(entry))
                continue
            name = entry.get("name")
            if not isinstance(name, str) or not name:
                self.add("category-entry", "name", "a string", name)
            if entry["id"] in self.categories:
                self.add("duplicate-category-id", "id", "a unique value", entry["id"])
            if name in names:
                self.add("duplicate-category", "name", "a unique value", name)
            self.categories.add(entry["id"])
            names.append(name)
        if classes is not None and (problem := wrong_with_classes(names, classes)):
            self.at("categories").add_text("classes", problem)

    def check_images(self, folder: Path | None) -> None:
        file_names: set[str] = set()
        for index, entry in enumerate(self.content.get("images", ())):
            self.step(index + 1, self.total)
            place = ("images", index)
            self.at(f"images[{index}]", place)
            if not isinstance(entry, dict) or not _is_id(entry.get("id")):
                self.add("image-entry", "id", "an integer", _id_of(entry))
                continue
            number = entry["id"]
            self.at(f"image {number}", place)
            if number in self.sizes:
                self.add("duplicate-image-id", "id", "a unique value", number)
            name, width, height = (entry.get(key) for key in ("file_name", "width", "height"))
            size = (width, height) if _is_side(width) and _is_side(height) else None
            self.sizes[number] = size
            for key, side in (("width", width), ("height", height)):
                if not _is_side(side):
                    self.add("image-entry", key, f"an integer from 1 to {FAR:,}", side)
            if not isinstance(name, str) or not name or "\0" in name:
                self.add("image-entry", "file_name", "a string", name)
                continue
            if name in file_names:
                self.add("duplicate-file-name", "file_name", "a unique value", name)
            file_names.add(name)
            if folder is not None:
                self._check_file(folder / name, size)

    def _check_file(self, file: Path, size: tuple[int, int] | None) -> None:
        if not os.path.isfile(file):  # Path.is_file raises if the name is too long
            self.add_text("missing-image", f"file_name: expected an image, found none at {file}")
            return
        try:
            real = image_size(file)
        except InvalidAnnotation as error:
            self.add_text("unreadable-image", f"file_name: {error}")
            return
        if size is not None and size != real:
            self.add_text("image-size", f"width, height: {wrong_size(size, real, file)}")

    def check_annotations(self) -> None:
        ids: set[object] = set()
        images = len(self.content.get("images", ()))
        for index, entry in enumerate(self.content.get("annotations", ())):
            self.step(images + index + 1, self.total)
            place = ("annotations", index)
            self.at(f"annotations[{index}]", place)
            if not isinstance(entry, dict):
                self.add_text("annotation-entry", f"expected an object, got {short(entry)}")
                continue
            number = entry.get("id")
            if not _is_id(number):
                # new ids fix this; dropping the annotation is not necessary
                self.add("duplicate-annotation-id", "id", "an integer", number)
            else:
                self.at(f"annotation {number}", place)
                if number in ids:
                    self.add("duplicate-annotation-id", "id", "a unique value", number)
                if number == 0:
                    # COCO's evaluation treats it as no match
                    self.add("annotation-id-0", "id", "an integer ≥ 1", number)
                ids.add(number)
            self._check_annotation(entry)

    def _check_annotation(self, entry: dict) -> None:
        known = True
        for key, ids in (("image", self.sizes), ("category", self.categories)):
            number = entry.get(f"{key}_id")
            if not _is_id(number):
                self.add("annotation-entry", f"{key}_id", "an integer", number)
                known = False
            elif number not in ids:
                self.add(
                    f"unknown-{key}", f"{key}_id", f"the id of one of the {len(ids)} {PLURALS[key]}", number
                )
                known = False
        if entry.get("iscrowd", 0) not in (0, 1):
            self.add("iscrowd", "iscrowd", "0 or 1", entry["iscrowd"])
        size = self.sizes.get(entry["image_id"]) if known else None
        mask = self._check_segmentation(entry, size)
        box_is_whole = self._check_box(entry, size, "box-with-mask" if mask and mask[0] else "box")
        area = entry.get("area")
        if not is_number(area) or not area > 0:
            self.add("area", "area", "a number > 0", area, stops=not is_number(area))
            area = None
        if box_is_whole and mask is not None:
            self._check_agreement(entry, *mask, area)

    def _check_box(self, entry: dict, size: tuple[int, int] | None, kind: str) -> bool:
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not _are_numbers(box):
            self.add(kind, "bbox", "[x, y, width, height], four finite numbers", box, stops=True)
            return False
        x, y, width, height = box
        if not (width > 0 and height > 0):
            self.add(kind, "bbox", "a width and a height > 0", box, stops=min(width, height) < 0)
            return False
        inside = size is None or _within(_corners(box), size)
        far = max(abs(x), abs(y), width, height) > FAR
        if far or not inside:
            expected = "a box inside of {} × {} pixels".format(*size or (FAR, FAR))
            x1, y1, x2, y2 = clip_box(_corners(box), size or (0, 0))
            if far or not (x1 < x2 and y1 < y2):
                # nothing would be left, or the coordinates are not plausible
                self.add(kind, "bbox", expected, box, stops=far)
                return False
            self.add("box-outside", "bbox", expected, box)
        return True

    def _check_segmentation(self, entry: dict, size: tuple[int, int] | None) -> _Mask | None:
        """Return the areas and corners of the parts, empty without a mask; None if there is a problem."""
        mask = entry.get("segmentation")
        if mask is None or mask == []:
            return [], []  # valid: a detector may need only the box
        if isinstance(mask, dict):
            problem, area = _read_rle(mask, size)
            if problem or area is None:
                self.add_text("rle", f"segmentation: {problem}", stops=area is None)
                return None
            return [area], []
        if not isinstance(mask, list):
            self.add("segmentation", "segmentation", "polygons or RLE", mask)
            return None
        areas, corners = [], []
        for polygon in mask:
            if not isinstance(polygon, list) or not _are_numbers(polygon, FAR):
                self.add("segmentation", "segmentation", f"polygons of numbers of at most {FAR:,}", polygon)
                return None
        for polygon in mask:
            if len(polygon) % 2 or len(polygon) < 6:
                self.add("polygon", "segmentation", "polygons of at least 3 points [x, y, …]", polygon)
                return None
            if not (area := polygon_area(np.reshape(polygon, (-1, 2)))) > 0:
                self.add("polygon", "segmentation", "polygons with an area", polygon)
                return None
            areas.append(area)
            x, y = polygon[::2], polygon[1::2]
            corners.append((min(x), min(y), max(x), max(y)))
        if size is not None and not all(_within(box, size) for box in corners):
            text = f"expected polygons inside of {size[0]} × {size[1]} pixels, got points outside"
            self.add_text("polygon-outside", f"segmentation: {text}")
        return areas, corners

    def _check_agreement(
        self, entry: dict, areas: list[float], corners: list[_Corners], area: float | None
    ) -> None:
        """Check that box, mask and area agree."""
        box = entry["bbox"]
        if corners and entry.get("iscrowd", 0) == 0:
            left, top, right, bottom = zip(*corners, strict=True)
            x1, y1, x2, y2 = min(left), min(top), max(right), max(bottom)
            off = max(abs(a - b) for a, b in zip((x1, y1, x2, y2), _corners(box), strict=True))
            if off > max(2 * TOLERANCE, 0.1 * max(box[2:])):
                self.add("box-of-mask", "bbox", f"the mask's box, {[x1, y1, x2 - x1, y2 - y1]}", box)
        if area is None:
            return
        real = sum(areas) if areas else box[2] * box[3]
        if areas:
            # counted pixels and measured polygons differ by the pixels of the outline
            slack = 0.1 * real + box[2] + box[3]
            low, high = max(areas) - slack, real + slack  # parts may overlap
        else:
            # may be the area of a mask that the file does not have
            low, high = 0, 1.1 * real + box[2] + box[3]
        if not low <= area <= high:
            self.add("area", "area", f"about {real:.6g} pixels²", area)


def decode_counts(text: str) -> list[int]:
    """Decode the run lengths of a compressed RLE.

    Each character has six bits: five of a number, and one that marks a continuation. From the third number
    on, a number is the difference to the second last.

    Raises:
        ValueError: the text ends within a number, has invalid characters, or a number is too long.
    """
    if not text:
        return []
    if not re.fullmatch("(?:[P-o]{0,6}[0-O])*", text):  # P to o: the number continues
        raise ValueError("invalid characters, or a number that ends too early or too late")
    bits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(bits < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    shifts = 5 * (np.arange(bits.size) - np.repeat(starts, lengths))
    counts = np.add.reduceat((bits & 31) << shifts, starts) - ((bits[ends] >> 4 & 1) << 5 * lengths)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts.tolist()


def _read_rle(mask: dict, size: tuple[int, int] | None) -> tuple[str | None, float | None]:
    """Return the problem with an RLE, and its area; the area is None if it cannot be decoded to a mask."""
    extent, counts = mask.get("size"), mask.get("counts")
    if not isinstance(extent, list) or len(extent) != 2 or not all(map(_is_side, extent)):
        return f"expected RLE with size [height, width], got {short(extent)}", None
    if size is not None and extent != [size[1], size[0]]:
        return f"expected RLE of the image's size [{size[1]}, {size[0]}], got {short(extent)}", None
    pixels = extent[0] * extent[1]
    if pixels >= 2**31:
        return f"expected RLE of fewer than 2³¹ pixels, got size {short(extent)}", None
    if isinstance(counts, str):
        try:
            counts = decode_counts(counts)
        except ValueError as error:
            return f"expected RLE's compressed counts, got invalid text: {error}", None
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int} or min(counts, default=0) < 0:
        return f"expected RLE with counts, integers ≥ 0, got {short(counts)}", None
    if sum(counts) != pixels:
        return f"expected RLE with counts of {pixels} pixels in all, got {short(sum(counts))}", None
    area = float(sum(counts[1::2]))
    return (None if area else "expected RLE that covers at least 1 pixel, got 0"), area


def _area(annotation: dict) -> float:
    """Return the area of a valid annotation; overlapping polygons are added up."""
    mask = annotation.get("segmentation")
    if isinstance(mask, dict):
        return float(coco_mask.area(_encoded(mask)))
    if mask:
        return sum(polygon_area(np.reshape(polygon, (-1, 2))) for polygon in mask)
    return float(annotation["bbox"][2] * annotation["bbox"][3])


def _box_of_mask(mask: list | dict) -> list[float]:
    if isinstance(mask, dict):
        return coco_mask.toBbox(_encoded(mask)).tolist()
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in mask])
    return [*points.min(0).tolist(), *np.ptp(points, 0).tolist()]


def _encoded(mask: dict) -> dict:
    """Return an RLE in pycocotools' form."""
    size = [int(side) for side in mask["size"]]
    mask = {**mask, "size": size}
    return mask if isinstance(mask["counts"], str) else coco_mask.frPyObjects(mask, *size)


def _clip(annotation: dict, size: tuple[int, int]) -> bool:
    """Clip an annotation to the image; return False if nothing is left."""
    x1, y1, x2, y2 = clip_box(_corners(annotation["bbox"]), size)
    mask = annotation.get("segmentation")
    if isinstance(mask, list) and mask:
        parts = [part for polygon in mask for part in clip_polygon(np.reshape(polygon, (-1, 2)), size)]
        kept = [flat for part in parts if (flat := flattened(part))]
        if not kept:
            return False
        annotation["segmentation"] = kept
    annotation["bbox"] = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
    return min(annotation["bbox"][2:]) > 0


def _corners(box: Sequence[float]) -> _Corners:
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def _within(corners: _Corners, size: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = corners  # not a loop: a file can have a million boxes
    return min(x1, y1) >= -TOLERANCE and x2 <= size[0] + TOLERANCE and y2 <= size[1] + TOLERANCE


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_side(value: object) -> TypeGuard[int]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 1 <= value <= FAR and float(value).is_integer()


def _are_numbers(values: list, most: float = math.inf) -> bool:
    """Whether all values are numbers from ``-most`` to ``most``; fast for lists of a million values."""
    if not set(map(type, values)) <= {int, float}:
        return False
    try:
        return math.isfinite(sum(values)) and (not values or -most <= min(values) <= max(values) <= most)
    except OverflowError:  # an integer that is too large for a float
        return False


def _key(value: object) -> object:
    """Return a value that can be counted: an id, or None for invalid ids such as lists and dicts."""
    return value if _is_id(value) else None


def _id_of(entry: object) -> object:
    return entry.get("id") if isinstance(entry, dict) else entry
