"""Find all problems in a COCO file, and write a file without them."""

import copy
import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from dcnzoo.data.annotations import (
    KEYS,
    Annotations,
    Columns,
    Place,
    Unusual,
    are_numbers,
    box_of,
    examine,
    is_id,
    just_written,
    read_coco,
)
from dcnzoo.data.conversion import (
    FAR,
    TOLERANCE,
    Corners,
    box_and_area,
    clip_box,
    clip_polygons,
    corners_of,
    image_size,
    is_inside,
    polygon_area,
    turned_box,
    wrong_size,
)
from dcnzoo.data.files import Entries, InvalidAnnotation, is_number, write_json
from dcnzoo.detect.metrics import replace_id_0
from dcnzoo.detect.pictures import read
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.memory import collector_paused
from dcnzoo.utils.progress import track
from dcnzoo.utils.text import counted, few, short


class Kind(NamedTuple):
    """A kind of problem."""

    text: str
    remedy: str = ""  # of `fix`; empty: cannot be fixed
    stops: bool = False  # prevents any training
    of_masks: bool = False  # only matters to detectors with masks


KINDS = {
    "file": Kind("not a COCO file", stops=True),
    "empty": Kind("no entries", stops=True),
    "image-entry": Kind("image without id, name or size", "dropped", stops=True),
    "category-entry": Kind("category without id or name", stops=True),
    "text-id": Kind("id that is a text or has a decimal point", "converted", stops=True),
    "no-size": Kind("image without a size", "computed", stops=True),
    "annotation-entry": Kind("annotation without image or category", "dropped", stops=True),
    "duplicate-image-id": Kind("duplicate image id", stops=True),
    "duplicate-category-id": Kind("duplicate category id", stops=True),
    "duplicate-annotation-id": Kind("annotation id twice, or no integer", "renumbered", stops=True),
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
    "rotated": Kind("box without its rotation", "turned"),
    "corners": Kind("boxes of two corners in place of width and height", stops=True),
    "normalised": Kind("boxes between 0 and 1, perhaps normalised"),
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

_Mask = tuple[list[float], Corners | None]  # the area of each part; the box of polygons


def check_coco(
    file: str | Path,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
    decode: bool = False,
) -> Annotations:
    """Check a COCO file for training a detector.

    Tolerates coordinates up to one pixel outside the image, and areas that differ by a tenth plus the pixels
    of the outline.

    Args:
        file: with ``images``, ``annotations`` and ``categories``.
        images: folder of the images, whose sizes are compared; None: do not check image files.
        classes: the classes in a config's ``metainfo``, in that order; the file may have more.
        decode: decode the images, to find damaged files. It takes milliseconds for each.
    """
    file = Path(file)
    if images is classes is None and (known := just_written(file)):
        return known
    try:
        return check_content(file, read_coco(file), images, classes, decode)
    except InvalidAnnotation as error:
        return _not_coco(file, error)


def _not_coco(file: Path, error: InvalidAnnotation) -> Annotations:
    where = "file" if error.line is None else f"line {error.line}"
    return Annotations(file, {}, [None], problems=[Finding(where, str(error), "file")])


@collector_paused()
def check_content(
    file: Path,
    content: Any,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
    decode: bool = False,
) -> Annotations:
    """Check the content of a COCO file, by :func:`dcnzoo.data.annotations.read_coco`; see :func:`check_coco`.

    Of many annotations, tests of arrays find those that may have a problem.
    """
    columns: Columns | None = None
    try:
        if not isinstance(content, dict):
            raise InvalidAnnotation(f"expected an object with images and annotations, got {short(content)}")
        for key in KEYS:
            if not isinstance(content.get(key, []), list | Entries):
                raise InvalidAnnotation(f"{key}: expected a list, got {short(content[key])}")
        if isinstance(content.get("annotations"), Entries):
            try:
                columns, doubtful = examine(content)
            except Unusual:
                content = {**content, "annotations": content["annotations"].checked()}
    except InvalidAnnotation as error:
        return _not_coco(file, error)
    checker = Checker(content if columns is None else {key: content.get(key, []) for key in PLURALS.values()})
    for key in KEYS:
        if not content.get(key):
            # a file without annotations can be used for testing
            checker.at(key).add_text("empty", "expected at least 1, got 0", stops=key != "annotations")
    checker.check_categories(classes)
    checker.check_images(images, decode)
    result = Annotations(
        file, content, checker.places, is_file=columns is not None, problems=checker.problems
    )
    if columns is None:
        checker.check_annotations()
        checker.check_boxes(result)
        return result
    for number, again in doubtful.items():
        (entry,) = content["annotations"][number : number + 1]
        earlier = {entry["id"]} if again else set[object]()
        checker.at(f"annotation {number}", ("annotations", number)).check_entry(entry, earlier)
    result.columns = columns
    checker.check_boxes(result)
    return result


def checked_coco(
    file: str | Path, images: str | Path | None = None, classes: Sequence[str] | None = None
) -> Annotations:
    """Check a COCO file by :func:`check_coco` and require that it has no problems. An id 0 is replaced.

    Raises:
        UserError: it has problems; the message gives the first and the command that lists all.
    """
    report = check_coco(file, images, classes)
    if problems := [problem for problem in report.problems if problem.kind != "annotation-id-0"]:
        raise as_error(report, problems, images)
    if 0 in report.columns.ids:
        replace_id_0(report.edit()["annotations"])
    return report


def as_error(report: Annotations, problems: Sequence[Finding], images: str | Path | None = None) -> UserError:
    """Return an error with the first of these problems and the command that lists all."""
    number = len(report.problems)
    command = f"dcnzoo data check {report.file}" + (f" --images {images}" if images is not None else "")
    more = f"; `{command}` lists all {counted(number, 'problems')}" if number > 1 else ""
    return UserError(f"{report.file}: {problems[0]}{more}")


def wrong_with_classes(names: Sequence[str], classes: Sequence[str]) -> str | None:
    """Explain why a file's categories do not fit a config's classes; None if they do. The order matters."""
    missing = [name for name in classes if name not in names]
    common = [name for name in names if name in classes]
    if missing:
        return f"expected the classes {few(classes)}, missing {few(missing)}, got {few(names)}"
    if common != list(classes):
        return f"expected the classes in the order {few(classes)}, got {few(common)}"
    return None


def fix(report: Annotations, out: str | Path) -> dict[str, Counter]:
    """Write a copy of the file without its problems; see :data:`KINDS`. A dropped image's annotations go too.

    Returns:
        For ``images`` and ``annotations``, the number of entries by remedy.

    Raises:
        UserError: a problem cannot be fixed, or nothing is left. Nothing is written.
    """
    for problem in report.problems:
        if not problem.remedy:
            kind = KINDS[problem.kind].text
            raise UserError(f"{report.file}: {problem}; this kind of problem cannot be fixed: {kind}")
    fixed = Annotations(report.file, copy.deepcopy(report.edit()), report.places, problems=report.problems)
    done = repair(fixed)
    write_json(fixed.content, out)
    return done


def repair(report: Annotations) -> dict[str, Counter]:
    """Apply the remedies of all problems to the content of a report; see :func:`fix`."""
    remedies: dict[Place, set[str]] = defaultdict(set)
    for problem, place in zip(report.problems, report.places, strict=True):
        remedies[place].add(problem.remedy)
    content = report.edit()
    done: dict[str, Counter] = {"images": Counter(), "annotations": Counter()}
    sizes: dict[int, tuple[int, int]] = {}  # of the images that are kept
    for key in done:
        kept = []
        for index, entry in enumerate(content[key]):
            remedy = remedies[key, index]
            if "dropped" in remedy or (key == "annotations" and not _repair(entry, remedy, sizes)):
                done[key]["dropped"] += 1
                continue
            done[key].update(remedy)
            kept.append(entry)
            if key == "images":
                sizes[entry["id"]] = (entry["width"], entry["height"])
        if content[key] and not kept:
            raise UserError(f"{report.file}: {key}: expected at least 1 valid entry; nothing is written")
        content[key] = kept
    if done["annotations"]["renumbered"]:
        for number, annotation in enumerate(content["annotations"], 1):
            annotation["id"] = number
    return done


def _repair(annotation: dict, remedy: set[str], sizes: Mapping[int, tuple[int, int]]) -> bool:
    """Clip an annotation and compute its box and area again; return False if nothing is left of it."""
    size = sizes.get(annotation["image_id"])
    if size is None or not remedy & {"clipped", "computed", "recomputed", "turned"}:
        return size is not None
    if "turned" in remedy:
        x1, y1, x2, y2 = turned_box(_corners(annotation["bbox"]), angle_of(annotation), size)
        annotation["bbox"] = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
        annotation["attributes"] = {**annotation["attributes"], "rotation": 0.0}
    mask = annotation.get("segmentation")
    if "clipped" in remedy and mask and isinstance(mask, list):
        outlines = [np.reshape(polygon, (-1, 2)) for polygon in mask]
        mask = annotation["segmentation"] = clip_polygons(outlines, size)
        if not mask:
            return False
    box, area = box_and_area(mask) if mask else (annotation["bbox"], None)
    if "recomputed" in remedy:
        annotation["bbox"] = box
    if "clipped" in remedy:
        x1, y1, x2, y2 = clip_box(_corners(annotation["bbox"]), size)
        annotation["bbox"] = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
    width, height = annotation["bbox"][2:]
    annotation["area"] = round(float(width * height if area is None else area), 2)
    return min(width, height, annotation["area"]) > 0


def _convert_texts(content: dict) -> Iterator[tuple[tuple[str, int], str]]:
    """Replace the ids "7" and 7.0 by 7, and other texts by unused integers; yield position and message."""
    for singular, plural in PLURALS.items():
        ids = [_plain(entry.get("id")) for entry in content.get(plural, ()) if isinstance(entry, dict)]
        numbers = {str(each): int(str(each)) for each in ids if re.fullmatch("[0-9]{1,18}", str(each))}
        free = itertools.count(1 + max(numbers.values(), default=0))
        for key, field in ((plural, "id"), ("annotations", f"{singular}_id")):
            for index, entry in enumerate(content.get(key, ())):
                value = entry.get(field) if isinstance(entry, dict) else None
                text = _plain(value)
                if isinstance(text, str) and text:
                    if text not in numbers:
                        numbers[text] = next(free)
                    entry[field] = numbers[text]
                    yield (key, index), f"{field}: expected an integer, got {short(value)}"


def _plain(number: object) -> object:
    """Return "7" for 7.0, an id that pandas has converted; other values unchanged."""
    return f"{number:.0f}" if isinstance(number, float) and number.is_integer() else number


class Checker:
    """Collects the problems of one file. As in pycocotools, ids of different types differ: 1 is not "1"."""

    def __init__(self, content: dict) -> None:
        self.content = content
        self.problems: list[Finding] = []
        self.places: list[Place] = []
        self.sizes: dict[object, tuple[int, int] | None] = {}  # of each image that has an id
        self.categories: set[object] = set()
        for place, text in _convert_texts(content):
            self.at(f"{place[0]}[{place[1]}]", place).add_text("text-id", text)
        self.at("file")

    def at(self, where: str, place: Place = None) -> "Checker":
        """Set the position for the problems that follow."""
        self.where, self.place = where, place
        return self

    def add_text(self, kind: str, text: str, stops: bool | None = None) -> None:
        stops = KINDS[kind].stops if stops is None else stops
        self.problems.append(Finding(self.where, text, kind, KINDS[kind].remedy, stops=stops))
        self.places.append(self.place)

    def add(self, kind: str, field: str, expected: str, got: object, stops: bool | None = None) -> None:
        self.add_text(kind, f"{field}: expected {expected}, got {short(got)}", stops)

    def require_unique(self, kind: str, field: str, value: Any, earlier: set) -> None:
        if value in earlier:
            self.add(kind, field, "a unique value", value)
        earlier.add(value)

    def entries(self, key: str, singular: str) -> Iterator[dict]:
        """Yield the entries of a list that are objects, and set their position."""
        for index, entry in enumerate(track(self.content.get(key, []), f"checking {key}")):
            self.at(f"{key}[{index}]", None if key == "categories" else (key, index))
            if isinstance(entry, dict):
                yield entry
            else:
                self.add_text(f"{singular}-entry", f"expected an object, got {short(entry)}")

    def check_categories(self, classes: Sequence[str] | None) -> None:
        names: list[Any] = []  # strings, unless the file has a problem
        for entry in self.entries("categories", "category"):
            number, name = entry.get("id"), entry.get("name")
            if not is_id(number):
                self.add("category-entry", "id", "an integer", number)
                continue
            if not isinstance(name, str) or not name:
                self.add("category-entry", "name", "a string", name)
            self.require_unique("duplicate-category-id", "id", number, self.categories)
            if name in names:
                self.add("duplicate-category", "name", "a unique value", name)
            names.append(name)
        if classes is not None and (problem := wrong_with_classes(names, classes)):
            self.at("categories").add_text("classes", problem)

    def check_images(self, folder: str | Path | None, decode: bool) -> None:
        file_names: set[str] = set()
        for entry in self.entries("images", "image"):
            number, name, width, height = (entry.get(key) for key in ("id", "file_name", "width", "height"))
            if not is_id(number):
                self.add("image-entry", "id", "an integer", number)
                continue
            self.where = f"image {number}"
            if number in self.sizes:
                self.add("duplicate-image-id", "id", "a unique value", number)
            if folder is not None and isinstance(name, str) and (width, height) in ((None, None), (0, 0)):
                with suppress(InvalidAnnotation, ValueError):  # _check_file explains it
                    real = image_size(Path(folder, name))
                    self.add("no-size", "width, height", "the image's size", [width, height])
                    entry["width"], entry["height"] = width, height = real
            size: Any = (width, height)
            for key, side in (("width", width), ("height", height)):
                if not _is_side(side):
                    self.add("image-entry", key, f"an integer from 1 to {FAR:,}", side)
                    size = None
            self.sizes[number] = size
            if not isinstance(name, str) or not name or "\0" in name:
                self.add("image-entry", "file_name", "a string", name)
                continue
            self.require_unique("duplicate-file-name", "file_name", name, file_names)
            if folder is not None:
                self._check_file(Path(folder, name), size, decode)

    def _check_file(self, file: Path, size: tuple[int, int] | None, decode: bool) -> None:
        if not os.path.isfile(file):  # Path.is_file raises if the name is too long
            self.add_text("missing-image", f"file_name: expected an image, found none at {file}")
            return
        try:
            real = image_size(file, decode=decode)
            if decode:
                read(file)  # OpenCV, as in a training: it refuses and accepts other files than Pillow
                if _ends_with_zeros(file.read_bytes()):
                    raise InvalidAnnotation(f"expected an image at {file}, got one that ends with zeros")
        except (InvalidAnnotation, ValueError) as error:
            self.add_text("unreadable-image", f"file_name: {error}")
            return
        if size is not None and size != real:
            self.add_text("image-size", f"width, height: {wrong_size(size, real, file)}")

    def check_annotations(self) -> None:
        ids: set[object] = set()
        for entry in self.entries("annotations", "annotation"):
            self.check_entry(entry, ids)

    def check_boxes(self, report: Annotations) -> None:
        """Check that the boxes of the whole file are not normalised, and not two corners each."""
        columns = report.columns
        number, longest = np.isfinite(columns.boxes).all(1).sum(), columns.boxes[:, 2:].max(1)
        small = ((longest > 0) & (longest < 2) & (columns.boxes[:, :2].max(1) <= 1)).sum()
        if small > 0.9 * number:
            got = f"{small} of {number} boxes between 0 and 1"
            remedy = "multiply normalised values by the width and height"
            self.at("annotations").add_text("normalised", f"bbox: expected pixels, got {got}: {remedy}")
        # areas may be those of masks in the boxes; if all are those between two corners, these are the boxes
        with np.errstate(all="ignore"):
            low, high = columns.boxes[~columns.has_mask].reshape(-1, 2, 2).swapaxes(0, 1)
            areas, sides = columns.areas[~columns.has_mask], high - low
            between = np.abs(areas - sides.prod(1)) <= 0.01 * areas + sides.sum(1) + 1
            evidence = np.abs(areas - high.prod(1)) > 0.1 * areas + high.sum(1)
        if ((sides > 0).all(1) & between).all() and evidence.sum() >= 3:
            got = f"[x1, y1, x2, y2] in {len(areas)} boxes, whose areas are those between these corners"
            self.at("annotations").add_text("corners", f"bbox: expected [x, y, width, height], got {got}")

    def check_entry(self, entry: dict, earlier: set[object]) -> None:
        """Check an annotation at the current position; ``earlier`` are the ids before it."""
        number = entry.get("id")
        if not is_id(number):
            # new ids fix this; dropping the annotation is not necessary
            self.add("duplicate-annotation-id", "id", "an integer", number)
        else:
            self.where = f"annotation {number}"
            self.require_unique("duplicate-annotation-id", "id", number, earlier)
            if number == 0:
                # COCO's evaluation treats it as no match
                self.add("annotation-id-0", "id", "an integer ≥ 1", number)
        known = True
        for key, ids in (("image", self.sizes), ("category", self.categories)):
            number = entry.get(f"{key}_id")
            if not is_id(number):
                self.add("annotation-entry", f"{key}_id", "an integer", number)
                known = False
            elif number not in ids:
                self.add(
                    f"unknown-{key}", f"{key}_id", f"the id of one of the {len(ids)} {PLURALS[key]}", number
                )
        if entry.get("iscrowd", 0) not in (0, 1):
            self.add("iscrowd", "iscrowd", "0 or 1", entry["iscrowd"])
        size = self.sizes.get(entry["image_id"]) if known else None
        mask = self._check_segmentation(entry, size)
        if angle_of(entry):
            self.add("rotated", "bbox", "the box around the rotated object", entry["bbox"])
            return
        box_is_whole = self._check_box(entry, size, "box-with-mask" if mask and mask[0] else "box")
        area = entry.get("area")
        if not is_number(area) or not area > 0:
            self.add("area", "area", "a number > 0", area, stops=not is_number(area))
            area = None
        if box_is_whole and mask is not None:
            self._check_agreement(entry, *mask, area)

    def _check_box(self, entry: dict, size: tuple[int, int] | None, kind: str) -> bool:
        box = box_of(entry)
        if box is None:
            expected = "[x, y, width, height], four finite numbers"
            self.add(kind, "bbox", expected, entry.get("bbox"), stops=True)
            return False
        x, y, width, height = box
        if not (width > 0 and height > 0):
            self.add(kind, "bbox", "a width and a height > 0", box, stops=min(width, height) < 0)
            return False
        inside = size is None or is_inside(_corners(box), size, TOLERANCE)
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
            return [], None  # valid: a detector may need only the box
        if isinstance(mask, dict):
            try:
                area = _rle_area(mask, size)
            except InvalidAnnotation as error:
                self.add_text("rle", f"segmentation: {error}")
                return None
            if not area:
                self.add_text("rle", "segmentation: expected RLE of at least 1 pixel, got 0", stops=False)
                return None
            return [area], None
        if not isinstance(mask, list):
            self.add("segmentation", "segmentation", "polygons or RLE", mask)
            return None
        areas, outlines = [], []
        for polygon in mask:
            if not isinstance(polygon, list) or not are_numbers(polygon, FAR):
                self.add("segmentation", "segmentation", f"polygons of numbers of at most {FAR:,}", polygon)
                return None
        for polygon in mask:
            if len(polygon) % 2 or len(polygon) < 6:
                self.add("polygon", "segmentation", "polygons of at least 3 points [x, y, …]", polygon)
                return None
            outlines.append(np.reshape(polygon, (-1, 2)))
            areas.append(polygon_area(outlines[-1]))
            if not areas[-1] > 0:
                self.add("polygon", "segmentation", "polygons with an area", polygon)
                return None
        corners = corners_of(np.concatenate(outlines))
        if size is not None and not is_inside(corners, size, TOLERANCE):
            text = f"expected polygons inside of {size[0]} × {size[1]} pixels, got points outside"
            self.add_text("polygon-outside", f"segmentation: {text}")
        return areas, corners

    def _check_agreement(
        self, entry: dict, areas: list[float], corners: Corners | None, area: float | None
    ) -> None:
        """Check that box, mask and area agree."""
        box = entry["bbox"]
        if corners and entry.get("iscrowd", 0) == 0:
            x1, y1, x2, y2 = corners
            off = max(abs(a - b) for a, b in zip(corners, _corners(box), strict=True))
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


def _ends_with_zeros(content: bytes) -> bool:
    """Whether a JPEG file has no end, but zeros, as a lost connection leaves them: libjpeg decodes it."""
    picture = content.rstrip(b"\0")
    padding = len(content) - len(picture)
    return content.startswith(b"\xff\xd8") and not picture.endswith(b"\xff\xd9") and padding > 64


def decode_counts(text: str) -> list[int]:
    """Decode the run lengths of a compressed RLE.

    Each character has six bits: five of a number, and one that marks a continuation. From the third number
    on, a number is the difference to the second last.

    Raises:
        InvalidAnnotation: the text ends within a number, has invalid characters, or a number is too long.
    """
    if not text:
        return []
    if not re.fullmatch("(?:[P-o]{0,6}[0-O])*", text):  # P to o: the number continues
        raise InvalidAnnotation(f"expected RLE's compressed counts, got {short(text)}")
    bits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(bits < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    shifts = 5 * (np.arange(bits.size) - np.repeat(starts, lengths))
    counts = np.add.reduceat((bits & 31) << shifts, starts) - ((bits[ends] >> 4 & 1) << 5 * lengths)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts.tolist()


def _rle_area(mask: dict, size: tuple[int, int] | None) -> float:
    """Return the area of an RLE; raise InvalidAnnotation if it is not one of a mask of this size."""
    extent, counts = mask.get("size"), mask.get("counts")
    if not isinstance(extent, list) or len(extent) != 2 or not all(map(_is_side, extent)):
        raise InvalidAnnotation(f"expected RLE with size [height, width], got {short(extent)}")
    if size is not None and extent != [size[1], size[0]]:
        raise InvalidAnnotation(f"expected RLE of the image's size, {list(size[::-1])}, got {short(extent)}")
    pixels = extent[0] * extent[1]
    if pixels >= 2**31:
        raise InvalidAnnotation(f"expected RLE of fewer than 2³¹ pixels, got size {short(extent)}")
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int} or min(counts, default=0) < 0:
        raise InvalidAnnotation(f"expected RLE with counts, integers ≥ 0, got {short(counts)}")
    if sum(counts) != pixels:
        raise InvalidAnnotation(f"expected RLE with counts of {pixels} pixels, got {short(sum(counts))}")
    return float(sum(counts[1::2]))


def angle_of(entry: dict) -> float:
    """Return the rotation in degrees by which CVAT's box differs from that of the object; 0 with a mask."""
    attributes = entry.get("attributes")
    angle = attributes.get("rotation") if isinstance(attributes, dict) else None
    return angle % 360 if is_number(angle) and box_of(entry) and not entry.get("segmentation") else 0.0


def _corners(box: Sequence[float]) -> Corners:
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def _is_side(value: object) -> TypeGuard[int]:
    return is_number(value) and 1 <= value <= FAR and float(value).is_integer()
