"""Read COCO's JSON files as tools write them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from msgspec import Raw
from pycocotools import mask as coco_mask

from dcnzoo.data.builder import Builder
from dcnzoo.data.check import box_of, difference, extent, require_category
from dcnzoo.data.coco_file import Annotation, Category, CocoFile, Image, mask_in
from dcnzoo.data.dataset import Object
from dcnzoo.data.files import InvalidAnnotation, decode_json, finite
from dcnzoo.data.geometry import turned_box
from dcnzoo.data.tree import Reader, Tree, by_split, split_of
from dcnzoo.utils.text import few, short

TRUE = (1, True, "1", "true", "True")


class Coco(Reader):
    """The reader of COCO files."""

    name, position = "COCO", "{}: annotations[{}]"

    @classmethod
    def find(cls, tree: Tree) -> "Coco | None":
        """Return the reader, if there are COCO files; other ones beside ``instances_…`` are not read."""
        files = [file for file, content in tree.json.items() if content.is_coco]
        scored = [file for file in files if tree.json[file].is_result]
        folders = {file.parent for file in files if file.name.startswith("instances")}
        others = [f for f in files if f.parent in folders and not f.name.startswith("instances")]
        kinds = {"results with scores": scored, "COCO files beside instances…": others}
        reader = cls(tree, [file for file in files if file not in (*scored, *others)])
        reader.notes = [f"{kind}, not read: {len(own)} ({few(own, 2)})" for kind, own in kinds.items() if own]
        return reader if reader.files else None

    def _split_of(self, file: Path) -> str:
        """Return the split that a file's name states, else that of its folders."""
        return split_of([file.stem]) or self.tree.split_of(file)

    def groups(self) -> dict[str, list[Path]]:
        """Return the files of each split, which their names and folders determine."""
        return by_split([(file, self._split_of(file)) for file in self.files])

    def add(self, file: Path, split: str, builder: Builder) -> None:
        """Add the pictures and objects of a file, and its classes."""
        content, stated = self.tree.json[file], self._split_of(file)
        images = [*content.entries("images", strict=False)]
        ids = [str(image.id) for _, image in images if isinstance(image, Image)]
        numbers, used = _by_image(file, content, ids, builder)
        categories = _categories(content)
        if not builder.options.classes:
            builder.data.classes |= dict.fromkeys(_classes(categories, used))
        read = partial(_object, {id: str(each.name) for id, each in categories.items()})
        for position, image in images:
            with builder.refusing(f"{file}: images[{position}]"):
                if isinstance(image, InvalidAnnotation):
                    raise image
                path = self.tree.picture(image.file_name or "", file.parent, stated)
                entries = [(number, content.annotations[number]) for number in numbers[str(image.id)]]
                builder.add(split, path, entries, read, file, (image.width, image.height))


def _by_image(
    file: Path, content: CocoFile, images: list[str], builder: Builder
) -> tuple[dict[str, list[int]], set[str]]:
    """Return the indices of each image's annotations, by the image's id, and the ids of the used categories.

    VIA writes the same id as a text in one place and as a number in another, so all ids become texts.
    """
    numbers: dict[str, list[int]] = {image: [] for image in images}
    if len(numbers) < len(images):
        raise InvalidAnnotation("images: expected each id once")
    used = set()
    for number, entry in content.entries("annotations", strict=False):
        if isinstance(entry, Annotation) and str(entry.image_id) not in numbers:
            entry = InvalidAnnotation(f"image_id: expected that of an image, got {short(entry.image_id)}")
        if isinstance(entry, InvalidAnnotation):
            builder.refuse(f"{file}: annotations[{number}]", entry)
            continue
        numbers[str(entry.image_id)].append(number)
        used.add(str(entry.category_id))
    return numbers, used


def _categories(content: CocoFile) -> dict[str, Category]:
    """Return the categories by their ids, which are texts here; raise InvalidAnnotation if one is invalid."""
    categories: dict[str, Category] = {}
    for number, category in content.entries("categories", strict=False):
        if isinstance(category, InvalidAnnotation) or category.name in (None, ""):
            raise InvalidAnnotation(f"categories[{number}]: expected id and name, got {short(category)}")
        if categories.setdefault(str(category.id), category) is not category:
            raise InvalidAnnotation("categories: expected each id once")
    return categories


def _classes(categories: Mapping[str, Category], used: set[str]) -> list[str]:
    """Return the names of the categories, except Roboflow's group without objects."""
    groups = {each.supercategory for each in categories.values()}
    return [
        str(each.name)
        for id, each in categories.items()
        if id in used or each.name not in groups or len(categories) == 1
    ]


def _object(names: Mapping[str, str], raw: Raw, size: tuple[int, int], builder: Builder) -> Object:
    """Return an object; its box and area are those of the file, if box and polygons are in the picture."""
    entry = decode_json(raw, Annotation)
    if entry.score is not None:
        raise InvalidAnnotation("expected an annotation, got a prediction: it has a score")
    require_category(entry, str(entry.category_id) in names)
    name, crowd = names[str(entry.category_id)], int(entry.iscrowd in TRUE or entry.ignore in TRUE)
    mask = mask_in(entry.segmentation, size)
    box = box_of(entry) if entry.bbox or mask is None else [0.0, 0.0, 0.0, 0.0]  # a mask needs none
    if unlike := difference(box, mask):
        raise InvalidAnnotation(unlike)
    x, y, width, height = box
    if isinstance(mask, dict):
        area = float(coco_mask.area(mask))
        return builder.new_object(name, coco_mask.toBbox(mask).tolist(), area, crowd, mask)
    if mask:
        x1, y1, x2, y2 = extent(mask)
        right, bottom = max(x2, x + width), max(y2, y + height)
        is_inside = min(x1, y1, x, y) >= 0 and right <= size[0] and bottom <= size[1]
        if is_inside and min(width, height) > 0 and entry.area and entry.area > 0:
            return builder.new_object(name, box, entry.area, crowd, entry.segmentation)
        points = [[*zip(part[::2], part[1::2], strict=True)] for part in mask]
        return builder.new_polygons(name, points, size, crowd)
    corners, attributes = (x, y, x + width, y + height), entry.attributes
    angle = attributes.get("rotation", 0) if isinstance(attributes, dict) else 0  # CVAT's
    if angle := finite(str(angle), "rotation") % 360:
        corners = turned_box(corners, angle, size)
    return builder.new_box(name, corners, size, crowd)
