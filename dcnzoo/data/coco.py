"""Read COCO's JSON files as tools write them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dcnzoo.data.coco_file import Annotation, Category, CocoFile, Image, mask_of
from dcnzoo.data.dataset import Dataset, turned_box
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.tree import ALL, Tree, by_split
from dcnzoo.utils.text import few, short

TRUE = (1, True, "1", "true", "True")


class Coco(NamedTuple):
    """The reader of COCO files."""

    tree: Tree
    files: Mapping[Path, CocoFile]
    notes: list[str]
    name = "COCO"

    @classmethod
    def find(cls, tree: Tree, json: Mapping[Path, CocoFile]) -> "Coco | None":
        """Return the reader, if there are COCO files. Of COCO's own folder, those of instances are read."""
        files = {file: content for file, content in json.items() if content.is_coco}
        results = [file for file, content in files.items() if content.is_result]
        notes: list[str] = []
        if results:
            notes.append(f"results with scores, not read: {len(results)} ({few(results, 2)})")
            files = {file: content for file, content in files.items() if file not in results}
        named = {file: content for file, content in files.items() if file.name.startswith("instances")}
        if others := [file for file in files if named and file not in named]:
            notes.append(f"COCO files beside those of instances, not read: {len(others)} ({few(others, 2)})")
        return cls(tree, named or files, notes) if files else None

    def groups(self) -> dict[str, list[Path]]:
        """Return the files of each split."""
        if len(self.files) == 1:
            return {ALL: [*self.files]}
        return by_split({file: self.tree.split_of(file, own=True) for file in self.files})

    def read(self, files: list[Path], dataset: Dataset) -> None:
        """Add the pictures and objects of files. All ids are new; names of classes are kept."""
        for file in files:
            dataset.sources.append(file)
            with dataset.refusing(file):
                self._read(file, dataset)

    def _read(self, file: Path, dataset: Dataset) -> None:
        content, split = self.files[file], self.tree.split_of(file, own=True)
        numbers, used = _by_image(file, content, dataset)
        names = _classes(content, used, dataset)
        for position, image in content.entries("images", strict=False):
            try:
                if not isinstance(image, Image):
                    raise image
                stated = image.file_name or "/".join((image.coco_url or "").split("/")[-2:])
                picture = self.tree.picture(stated, file.parent, split)
                dataset.add_picture(picture, _size(image))
            except InvalidAnnotation as error:
                dataset.refuse(f"{file}: images[{position}]", error)
                continue
            for number, entry in numbers[str(image.id)]:
                try:
                    _add(entry, names, dataset)
                except InvalidAnnotation as error:
                    dataset.refuse(f"{file}: annotations[{number}]", error)


def _by_image(
    file: Path, content: CocoFile, dataset: Dataset
) -> tuple[dict[str, list[tuple[int, Annotation]]], set[str]]:
    """Return the annotations of each image by its id, which VIA writes as a text, and the used categories."""
    ids = [image.id for _, image in content.entries("images", strict=False) if isinstance(image, Image)]
    entries: dict[str, list[tuple[int, Annotation]]] = {str(number): [] for number in ids}
    if len(entries) < len(ids):
        raise InvalidAnnotation("images: expected each id once")
    used = set()
    for number, entry in content.entries("annotations", strict=False):
        try:
            if not isinstance(entry, Annotation):
                raise entry
            if (own := entries.get(str(entry.image_id))) is None:
                raise InvalidAnnotation(f"image_id: expected that of an image, got {short(entry.image_id)}")
            own.append((number, entry))
            used.add(str(entry.category_id))
        except InvalidAnnotation as error:
            dataset.refuse(f"{file}: annotations[{number}]", error)
    return entries, used


def _size(image: Image) -> tuple[float | None, float | None]:
    return image.width, image.height


def _classes(content: CocoFile, used: set[str], dataset: Dataset) -> dict[str, str]:
    """Return the names by id; add them to the classes, but a group without objects that Roboflow writes."""
    categories: list[Category] = []
    for number, category in content.entries("categories", strict=False):
        if not isinstance(category, Category) or category.name in (None, ""):
            raise InvalidAnnotation(f"categories[{number}]: expected id and name, got {short(category)}")
        categories.append(category)
    groups = {each.supercategory for each in categories}
    for each in categories:
        is_class = str(each.id) in used or each.name not in groups or len(categories) == 1
        if is_class and not dataset.fixed:
            dataset.classes.setdefault(str(each.name))
    names = {str(each.id): str(each.name) for each in categories}
    if len(names) < len(categories):
        raise InvalidAnnotation("categories: expected each id once")
    return names


def _add(entry: Annotation, names: Mapping[str, str], dataset: Dataset) -> None:
    if entry.score is not None:
        raise InvalidAnnotation("expected an annotation, got a prediction: it has a score")
    if (name := names.get(str(entry.category_id))) is None:
        raise InvalidAnnotation(f"category_id: expected that of a category, got {short(entry.category_id)}")
    crowd = int(entry.iscrowd in TRUE or entry.ignore in TRUE)
    mask = mask_of(entry.segmentation)
    if isinstance(mask, dict):
        return dataset.add_rle(name, mask, crowd)
    polygons = [part for part in mask or () if len(part) > 4]  # of two points: a box, or nothing
    if polygons:
        return _add_polygons(name, polygons, entry, mask == polygons, crowd, dataset)
    if entry.bbox is None or len(entry.bbox) != 4:
        raise InvalidAnnotation(f"bbox: expected x, y, width, height, got {short(entry.bbox)}")
    x, y, width, height = entry.bbox
    corners = x, y, x + width, y + height
    if angle := _angle(entry):
        corners = turned_box(corners, angle, dataset.size)
    dataset.add_box(name, corners, crowd)


def _add_polygons(
    name: str, polygons: list[list[float]], entry: Annotation, all_parts: bool, crowd: int, dataset: Dataset
) -> None:
    """Add an object with the stated box and area and the text of its mask, if all are in the picture.

    Else the box and the area are those of the polygons.
    """
    if any(len(part) % 2 for part in polygons):
        raise InvalidAnnotation(f"segmentation: expected pairs of x and y, got {short(polygons)}")
    x1, y1 = (min(min(part[axis::2]) for part in polygons) for axis in (0, 1))
    x2, y2 = (max(max(part[axis::2]) for part in polygons) for axis in (0, 1))
    width, height = dataset.size
    is_inside = x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height
    if entry.bbox and len(entry.bbox) == 4 and min(entry.bbox[2:]) > 0:
        left, top, w, h = entry.bbox
        off = max(abs(left - x1), abs(top - y1), abs(left + w - x2), abs(top + h - y2))
        if off > max(2.0, 0.1 * max(x2 - x1, y2 - y1)):
            box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
            raise InvalidAnnotation(f"bbox: expected the box of the polygons, {box}, got {entry.bbox}")
        is_inside = is_inside and left >= 0 and top >= 0 and left + w <= width and top + h <= height
        if is_inside and all_parts and (entry.area or 0) > 0:
            return dataset.add(name, entry.bbox, entry.area or 0, crowd, entry.segmentation)
    points = [[*zip(part[::2], part[1::2], strict=True)] for part in polygons]
    dataset.add_polygons(name, points, crowd)


def _angle(entry: Annotation) -> float:
    """Return by how many degrees CVAT has turned a box."""
    attributes: Any = entry.attributes
    try:
        return float(attributes["rotation"]) % 360 if isinstance(attributes, dict) else 0.0
    except KeyError:
        return 0.0
    except (TypeError, ValueError):
        raise InvalidAnnotation(f"attributes: expected an angle, got {short(attributes)}") from None
