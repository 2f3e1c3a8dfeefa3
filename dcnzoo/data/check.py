"""Problems of a COCO file that stop or spoil a training and that MMDetection does not report."""

from collections import Counter
from collections.abc import Iterator

from dcnzoo.data.coco_file import FAR, KEYS, Annotation, CocoFile, Image, mask_of
from dcnzoo.data.dataset import TOLERANCE, checked_rle
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import few, short

# kinds of findings that do not stop a training: what MMDetection does with such annotations
UNKNOWN = "are skipped: their images are not in the file"
EMPTY = "are skipped: they are no pixel wide or high in the image, or have no area"
UNMASKED = "are ignored: they have no segmentation"
OUTSIDE = "are used: their boxes reach out of the image"

Size = tuple[float, float]


def problems_of(content: CocoFile, masks: bool = False) -> Iterator[Finding]:
    """Yield the problems of a COCO file.

    A finding that ``stops`` makes a training impossible or wrong. In the others, ``kind`` says what
    MMDetection does with the annotation.

    Args:
        masks: whether the masks are used.
    """
    ids: dict[str, Counter] = {key: Counter() for key in KEYS}
    names, sizes = Counter[str](), dict[int, Size]()
    for key in ("categories", "images", "annotations"):
        for number, entry in content.entries(key, strict=True):
            if isinstance(entry, InvalidAnnotation) or type(entry.id) is not int:
                yield Finding(f"{key}[{number}]", f"expected an integer as id, got {short(entry)}")
                continue
            ids[key][entry.id] += 1
            if isinstance(entry, Annotation):
                if problem := _problem(entry, sizes, ids["categories"], masks):
                    text, kind = problem
                    yield Finding(f"annotation {entry.id}", text, kind=kind, stops=not kind)
            elif isinstance(entry, Image):
                size = sizes[entry.id] = entry.width or 0, entry.height or 0
                if not entry.file_name or min(size) < 1:
                    text = f"expected file_name, width and height, got {short(entry)}"
                    yield Finding(f"image {entry.id}", text)
            elif isinstance(entry.name, str):
                names[entry.name] += 1
            else:
                yield Finding(f"category {entry.id}", f"name: expected a text, got {short(entry.name)}")
        if not ids[key]:
            yield Finding(key, "expected at least 1, got 0", stops=key != "annotations")
        if again := [number for number, times in ids[key].items() if times > 1]:
            yield Finding(key, f"id: expected each once, got {few(again, 3)} again")
    if twice := [name for name, times in names.items() if times > 1]:
        yield Finding("categories", f"name: expected each once, got {few(twice)} again")


def _problem(entry: Annotation, sizes: dict[int, Size], categories: Counter, masks: bool) -> tuple | None:
    """Return the first problem of an annotation and its kind; a problem without a kind stops a training."""
    box, crowd, area = entry.bbox, entry.iscrowd, entry.area
    if box is None or len(box) != 4 or max(map(abs, box)) > FAR:
        return f"bbox: expected [x, y, width, height] in pixels, got {short(box)}", ""
    if type(crowd) not in (int, type(None)) or crowd not in (0, 1, None) or area is None:
        return f"expected 0 or 1 as iscrowd and a number as area, got {short(crowd)} and {short(area)}", ""
    if entry.category_id not in categories:
        return f"category_id: expected that of a category, got {short(entry.category_id)}", ""
    if (size := sizes.get(entry.image_id)) is None:  # type: ignore[arg-type]
        return f"image_id: expected that of an image, got {short(entry.image_id)}", UNKNOWN
    x, y, width, height = box
    if min(width, height) < 0:
        return f"bbox: expected width and height > 0, got {box}: are these two corners?", ""
    if masks and (problem := _problem_of_mask(entry, size)):
        return problem
    if entry.ignore:  # MMDetection ignores it, too
        return None
    text = f"expected a box and an area in {size[0]:g} × {size[1]:g} pixels, got {box} and {area}"
    is_beside = min(x + width, size[0]) <= max(x, 0) or min(y + height, size[1]) <= max(y, 0)
    if is_beside or min(width, height) < 1 or area <= 0:
        return text, EMPTY
    is_outside = max(-x, -y, x + width - size[0], y + height - size[1]) > TOLERANCE
    return (text, OUTSIDE) if is_outside else None


def _problem_of_mask(entry: Annotation, size: Size) -> tuple[str, str] | None:
    try:
        mask = mask_of(entry.segmentation)
        if isinstance(mask, dict):
            checked_rle(mask, int(size[1]), int(size[0]))
    except InvalidAnnotation as error:
        return str(error), ""
    return None if mask else ("segmentation: expected polygons or RLE, got none", UNMASKED)
