"""What stops or spoils a training in a COCO file, of which MMDetection says nothing."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcnzoo.data.files import InvalidAnnotation, is_number, read_json
from dcnzoo.data.pictures import image_size
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import few, short

FAR = 1_000_000  # pixels; pycocotools crashes at much larger coordinates


def read_coco(file: str | Path) -> dict[str, Any]:
    """Read a COCO file.

    Raises:
        InvalidAnnotation: it is no JSON, or lacks a list of objects.
    """
    content = read_json(Path(file))
    for key in ("images", "annotations", "categories"):
        entries = content.get(key, []) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise InvalidAnnotation(
                f"expected COCO's {key}, a list of objects, got {short(entries or content)}"
            )
    return content


def problems_of(
    content: Mapping[str, Any], masks: bool = False, images: Path | None = None
) -> Iterator[Finding]:
    """Yield the problems of a COCO file. One that ``stops`` makes a training impossible or wrong; of the
    others, MMDetection skips the annotations.

    Args:
        masks: whether the masks are used.
        images: folder of the pictures, whose sizes are compared.
    """
    ids: dict[str, set[int]] = {}
    for key in ("images", "categories", "annotations"):
        numbers = [entry.get("id") for entry in content.get(key, ())]
        ids[key] = {number for number in numbers if type(number) is int}
        if not numbers and key != "annotations":
            yield Finding(key, "expected at least 1, got 0")
        if len(ids[key]) < len(numbers):
            wrong = [
                number
                for number, times in Counter(map(repr, numbers)).items()
                if times > 1 or not number.isdecimal()
            ]
            yield Finding(key, f"id: expected an integer, each once, got {few(wrong, 3)}")
    names = [str(each.get("name")) for each in content.get("categories", ())]
    if twice := {name for name in names if names.count(name) > 1}:
        yield Finding("categories", f"name: expected each once, got {few(sorted(twice))} again")
    sizes = {}
    for image in content.get("images", ()):
        size = sizes[image.get("id")] = image.get("width"), image.get("height")
        where = f"image {short(image.get('id'))}"
        if not isinstance(image.get("file_name"), str) or not all(
            is_number(side) and side >= 1 for side in size
        ):
            yield Finding(where, f"expected file_name, width and height, got {short(image)}")
        elif images is not None:
            try:
                if (real := image_size(images / image["file_name"])) != size:
                    yield Finding(
                        where, f"expected {real}, the width and height of its file, got {size}", stops=False
                    )
            except InvalidAnnotation as error:
                yield Finding(where, str(error), stops=False)
    for entry in content.get("annotations", ()):
        if problem := _problem(entry, sizes, ids["categories"], masks):
            text, stops = problem
            yield Finding(f"annotation {short(entry.get('id'))}", text, stops=stops)


def _problem(
    entry: Mapping[str, Any], sizes: Mapping, categories: set[int], masks: bool
) -> tuple[str, bool] | None:
    """Return the first problem of an annotation, and whether it stops a training."""
    box, mask, crowd = entry.get("bbox"), entry.get("segmentation"), entry.get("iscrowd", 0)
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)) or max(map(abs, box)) > FAR:
        return f"bbox: expected [x, y, width, height] in pixels, got {short(box)}", True
    if crowd not in (0, 1) or not is_number(entry.get("area")):
        return f"expected a number as area, and 0 or 1 as iscrowd, got {short(entry)}", True
    if entry.get("category_id") not in categories:
        return f"category_id: expected that of a category, got {short(entry.get('category_id'))}", True
    if masks and not _is_mask(mask):
        return f"segmentation: expected polygons of at least 3 points, or RLE, got {short(mask)}", bool(mask)
    if (size := sizes.get(entry.get("image_id"))) is None:
        return f"image_id: expected that of an image, got {short(entry.get('image_id'))}", False
    x, y, width, height = box
    if min(width, height) < 0:
        return f"bbox: expected width and height > 0, got {box}: are these two corners?", True
    if min(width, height) < 1 or entry["area"] <= 0:
        return f"expected a box of at least 1 pixel and an area, got {box} and {entry['area']}", False
    if (
        is_number(size[0])
        and is_number(size[1])
        and not (x < size[0] and y < size[1] and x + width > 0 < y + height)
    ):
        return f"bbox: expected it in {size[0]} × {size[1]} pixels, got {box}", False
    return None


def _is_mask(mask: object) -> bool:
    if isinstance(mask, dict):
        return {"size", "counts"} <= mask.keys()
    if not isinstance(mask, list) or not mask or not all(isinstance(part, list) for part in mask):
        return False
    try:
        return all(len(part) >= 6 and len(part) % 2 == 0 and math.isfinite(sum(part)) for part in mask)
    except TypeError:
        return False


def wrong_with_classes(names: Sequence[str], classes: Sequence[str]) -> str | None:
    """Explain why a file's categories do not fit a config's classes; None if they do. The order matters."""
    missing = [name for name in classes if name not in names]
    common = [name for name in names if name in classes]
    if missing:
        return f"expected the classes {few(classes)}, missing {few(missing)}, got {few(names)}"
    if common != list(classes):
        return f"expected the classes in the order {few(classes)}, got {few(common)}"
    return None
