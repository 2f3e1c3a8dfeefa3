"""What a COCO file says: its entries, and the problems that MMDetection does not report.

Trainings, tests, ``detector.evaluate``, reports and ``dcnzoo data check --as-mmdetection`` read a file by
:func:`read_truth`.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from dcnzoo.data.builder import TOLERANCE
from dcnzoo.data.coco_file import FAR, Annotation, Category, CocoFile, Image, Mask, mask_in
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import counted, few, short

# kinds of findings that do not stop a training: what MMDetection does with such annotations
UNKNOWN = "are skipped: their images are not in the file"
EMPTY = "are skipped in training: they are no pixel wide or high in the image, or have no area"
UNMASKED = "are ignored: they have no segmentation"
OUTSIDE = "are used: their boxes reach out of the image"
UNLIKE = "are used: their boxes are not those of their polygons"

Size = tuple[float, float]


class CocoTruth:
    """The entries and the problems of a COCO file. Each entry is read once.

    Args:
        masks: whether the masks are used.

    Attributes:
        problems: a finding that ``stops`` makes a training or an evaluation impossible or wrong. In the
            others, ``kind`` says what MMDetection does with the annotation.
        images, categories: in the order of the file.
        numbers: image id → the indices of its annotations.
        images_of: category id → the ids of the images with its annotations.
        ignored: number of objects with ``ignore`` but without ``iscrowd``. pycocotools counts them in the AP;
            MMDetection does not train them.
    """

    def __init__(self, content: CocoFile, masks: bool = False) -> None:
        self.content, self.masks, self.problems = content, masks, list[Finding]()
        self.images, self.categories = list[Image](), list[Category]()
        self.numbers, self.images_of = defaultdict[Any, list[int]](list), defaultdict[Any, set](set)
        self.ignored = 0
        self._sizes = dict[Any, Size]()
        self._read("categories", self._add_category)
        self._ids = {category.id for category in self.categories}
        self._read("images", self._add_image)
        self._read("annotations", self._add_annotation)
        names = Counter(category.name for category in self.categories)
        if twice := [name for name, times in names.items() if times > 1 and isinstance(name, str)]:
            self._note("categories", f"name: expected each once, got {few(twice)} again")

    def _note(self, subject: str, text: str, kind: str = "", stops: bool = True) -> None:
        self.problems.append(Finding(subject, text, kind=kind, stops=stops))

    def _read(self, key: str, add: Callable[[int, Any], None]) -> None:
        """Add the entries of a key of the file that have an id; note ids that are missing or repeated."""
        ids = Counter[int]()
        for number, entry in self.content.entries(key, strict=True):
            if isinstance(entry, InvalidAnnotation) or type(entry.id) is not int:
                self._note(f"{key}[{number}]", f"expected an integer as id, got {short(entry)}")
            else:
                ids[entry.id] += 1
                add(number, entry)
        if not ids:
            self._note(key, "expected at least 1, got 0", stops=key != "annotations")
        if again := [number for number, times in ids.items() if times > 1]:
            self._note(key, f"id: expected each once, got {few(again, 3)} again")

    def _add_category(self, number: int, entry: Category) -> None:
        self.categories.append(entry)
        if not isinstance(entry.name, str):
            self._note(f"category {entry.id}", f"name: expected a text, got {short(entry.name)}")

    def _add_image(self, number: int, entry: Image) -> None:
        self.images.append(entry)
        size = self._sizes[entry.id] = entry.width or 0, entry.height or 0
        if not entry.file_name or min(size) < 1:
            self._note(f"image {entry.id}", f"expected file_name, width and height, got {short(entry)}")

    def _add_annotation(self, number: int, entry: Annotation) -> None:
        self.numbers[entry.image_id].append(number)
        self.images_of[entry.category_id].add(entry.image_id)
        self.ignored += bool(entry.ignore and not entry.iscrowd)
        try:
            require_category(entry, entry.category_id in self._ids)
            text, kind = judge(entry, self._sizes.get(entry.image_id), self.masks)
        except InvalidAnnotation as error:
            self._note(f"annotation {entry.id}", str(error))
        else:
            if kind:
                self._note(f"annotation {entry.id}", text, kind, stops=False)

    def require_usable(self, compared: bool = False) -> "CocoTruth":
        """Raise InvalidAnnotation if there is a problem that stops; return the truth itself.

        Args:
            compared: whether masks are compared; if so, every object must have one.
        """
        file = self.content.file
        if stops := [problem for problem in self.problems if problem.stops]:
            command = f"`dcnzoo data check {file} --as-mmdetection`"
            others = f" and {len(stops) - 1} more: {command} lists them" if stops[1:] else ""
            raise InvalidAnnotation(f"{stops[0]}{others}")
        if bare := [problem for problem in self.problems if compared and problem.kind == UNMASKED]:
            raise InvalidAnnotation(f"{bare[0]}: the mask AP compares masks")
        return self

    def notes(self) -> list[str]:
        """Return a line for each kind of annotations with a problem that does not stop, with their number."""
        subjects = defaultdict[str, list[str]](list)
        for problem in self.problems:
            if problem.kind:
                subjects[problem.kind].append(problem.subject.removeprefix("annotation "))
        number = len(self.content.annotations)
        lines = [
            f"{len(ids)} of {number} annotations {kind}: ids {few(ids)}" for kind, ids in subjects.items()
        ]
        return [*lines, self.ignore_note] if self.ignored else lines

    @property
    def ignore_note(self) -> str:
        return f"{counted(self.ignored, 'objects')} with ignore=1: counted in the AP, not trained"


_in_use: WeakValueDictionary[tuple, CocoTruth] = WeakValueDictionary()


def read_truth(file: str | os.PathLike, masks: bool = False) -> CocoTruth:
    """Read a COCO file. It is parsed and judged once as long as a caller keeps the result.

    Raises:
        FileNotFoundError: it does not exist.
        InvalidAnnotation: it is not JSON.
    """
    status = os.stat(file)
    key = os.path.realpath(file), status.st_mtime_ns, status.st_size
    if truth := _in_use.get((*key, masks)):
        return truth
    other = _in_use.get((*key, not masks))
    truth = _in_use[(*key, masks)] = CocoTruth(other.content if other else CocoFile(Path(file)), masks)
    return truth


def read_used(file: Path) -> CocoTruth:
    """:func:`read_truth` with the masks, unless no object of the file has one.

    Raises:
        UserError: it is not JSON.
    """
    try:
        truth = read_truth(file, masks=True)
    except InvalidAnnotation as error:
        raise UserError(f"{file}: {error}") from None
    without_mask = sum(problem.kind == UNMASKED for problem in truth.problems)
    return truth if without_mask < len(truth.content.annotations) else read_truth(file)


def judge(entry: Annotation, size: Size | None, masks: bool) -> tuple[str, str]:
    """Return the problem of an object as a training reads it, and the kind of the problem.

    Args:
        size: (width, height) of its image; None if the image is unknown.
        masks: whether the masks are used.

    Raises:
        InvalidAnnotation: the object makes a training or an evaluation impossible or wrong.
    """
    crowd, area = entry.iscrowd, entry.area
    if type(crowd) not in (int, bool, type(None)) or crowd not in (0, 1, None) or area is None:
        got = f"{short(crowd)} and {short(area)}"
        raise InvalidAnnotation(f"expected 0 or 1 as iscrowd and a number as area, got {got}")
    if size is None:
        return f"image_id: expected that of an image, got {short(entry.image_id)}", UNKNOWN
    mask, box = mask_in(entry.segmentation, size) if masks else None, box_of(entry)
    if masks and mask is None:
        return "segmentation: expected polygons or RLE, got none", UNMASKED
    if entry.ignore:  # MMDetection ignores it, too
        return "", ""
    x, y, width, height = box
    is_beside = min(x + width, size[0]) <= max(x, 0) or min(y + height, size[1]) <= max(y, 0)
    is_outside = max(-x, -y, x + width - size[0], y + height - size[1]) > TOLERANCE
    kind = EMPTY if is_beside or min(width, height) < 1 or area <= 0 else OUTSIDE if is_outside else ""
    if kind != EMPTY and (unlike := difference(box, mask)):
        return unlike, UNLIKE
    if not kind:
        return "", ""
    return f"expected a box and an area in {size[0]:g} × {size[1]:g} pixels, got {box} and {area}", kind


def require_category(entry: Annotation, is_known: bool) -> None:
    """Raise InvalidAnnotation unless an object's category is known."""
    if not is_known:
        got = short(entry.category_id)
        raise InvalidAnnotation(f"category_id: expected that of a category, got {got}")


def box_of(entry: Annotation) -> list[float]:
    """Return an object's box; raise InvalidAnnotation if it is none."""
    box = entry.bbox
    if box is None or len(box) != 4 or max(map(abs, box)) > FAR:
        raise InvalidAnnotation(f"bbox: expected [x, y, width, height] in pixels, got {short(box)}")
    if min(box[2:]) < 0:
        raise InvalidAnnotation(f"bbox: expected width and height > 0, got {box}: are these two corners?")
    return box


def difference(box: list[float], mask: Mask | None) -> str:
    """Describe how a box differs from that of a mask's polygons; return an empty text if it is similar."""
    if not isinstance(mask, list) or min(box[2:]) <= 0:
        return ""
    x1, y1, x2, y2 = extent(mask)
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    off = max(abs(left - x1), abs(top - y1), abs(right - x2), abs(bottom - y2))
    if off <= max(2.0, 0.1 * max(x2 - x1, y2 - y1)):
        return ""
    expected = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
    return f"bbox: expected the box of the polygons, {expected}, got {box}"


def extent(polygons: list[list[float]]) -> tuple[float, float, float, float]:
    """Return the box around polygons, (x1, y1, x2, y2)."""
    values = polygons[0] if len(polygons) == 1 else [*chain(*polygons)]
    xs, ys = values[::2], values[1::2]
    return min(xs), min(ys), max(xs), max(ys)
