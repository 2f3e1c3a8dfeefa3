"""Read COCO files as tools write them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcnzoo.data.dataset import Split, turned_box
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.tree import Tree
from dcnzoo.utils.text import short


def is_coco(content: Any) -> bool:
    """Whether this is the content of a COCO file with objects, or with none; captions are not objects."""
    if not isinstance(content, dict) or not all(
        isinstance(content.get(k), list) for k in ("images", "annotations")
    ):
        return False
    first = content["annotations"][:1]
    return not first or (isinstance(first[0], dict) and bool({"bbox", "segmentation"} & first[0].keys()))


def files_of(contents: Mapping[Path, Any]) -> list[Path]:
    """Return the COCO files; of COCO's own folder, those of instances, not of persons' keypoints."""
    files = [file for file, content in contents.items() if is_coco(content)]
    return [file for file in files if file.name.startswith("instances")] or files


def read_coco(file: Path, content: dict[str, Any], tree: Tree, name: str, split: Split) -> None:
    """Add the pictures and objects of a COCO file. All ids are new; names of classes are kept."""
    split.sources.append(file)
    with split.refusing(file):
        classes = _classes(content, split)
        pictures, objects = {}, {}
        for image in content["images"]:
            pictures[str(image["id"])] = image  # VIA writes texts in one place and numbers in the other
            objects[str(image["id"])] = []
        if len(pictures) < len(content["images"]):
            raise InvalidAnnotation("images: expected each id once")
        for number, entry in enumerate(content["annotations"]):
            with split.refusing(f"{file}: annotations[{number}]"):
                if str(entry.get("image_id")) not in objects:
                    raise InvalidAnnotation(
                        f"image_id: expected that of an image, got {short(entry.get('image_id'))}"
                    )
                objects[str(entry["image_id"])].append(entry)
        for number, image in pictures.items():
            with split.refusing(f"{file}: image {number}"):
                stated = image.get("file_name") or "/".join(
                    str(image.get("coco_url")).split("/")[-2:]
                )  # LVIS
                picture = tree.picture(stated, file.parent, name)
                split.add_picture(picture, (image.get("width"), image.get("height")))
                for entry in objects[number]:
                    with split.refusing(f"{file}: annotation {entry.get('id')}"):
                        _add(entry, classes, split)


def _classes(content: dict[str, Any], split: Split) -> dict[Any, str]:
    """Return the names by id; add them to the classes, but a group without objects that Roboflow writes."""
    categories = content.get("categories") or []
    used = {entry.get("category_id") for entry in content["annotations"]}
    groups = {each.get("supercategory") for each in categories}
    kept = [
        each
        for each in categories
        if each["id"] in used or each["name"] not in groups or len(categories) == 1
    ]
    if not split.fixed:
        split.classes += [
            n for n in dict.fromkeys(str(each["name"]) for each in kept) if n not in split.classes
        ]
    return {each["id"]: str(each["name"]) for each in categories}


def _add(entry: dict[str, Any], classes: Mapping[Any, str], split: Split) -> None:
    if "score" in entry:
        raise InvalidAnnotation("expected an annotation, got a prediction: it has a score")
    if (name := classes.get(entry.get("category_id"))) is None:
        raise InvalidAnnotation(
            f"category_id: expected that of a category, got {short(entry.get('category_id'))}"
        )
    try:
        crowd = int(entry.get("iscrowd") or entry.get("ignore") or 0)
        mask, box = entry.get("segmentation"), entry.get("bbox")
        if isinstance(mask, dict):
            return split.add_mask(name, mask, iscrowd=crowd)
        if mask and not isinstance(mask[0], list):
            mask = [mask]
        polygons = [_points(part) for part in mask or () if len(part) > 4]
        if polygons:
            return split.add_polygons(name, polygons, iscrowd=crowd)
        x, y, width, height = map(float, box)  # type: ignore[arg-type]
        corners = x, y, x + width, y + height
        if angle := float((entry.get("attributes") or {}).get("rotation") or 0) % 360:  # CVAT's
            corners = turned_box(corners, angle, split.size)
        split.add_box(name, corners, iscrowd=crowd)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidAnnotation(f"expected a box or polygons, got {short(entry)}: {error}") from None


def _points(values: list) -> list[tuple[float, float]]:
    numbers = [*map(float, values)]
    return [*zip(numbers[::2], numbers[1::2], strict=True)]
