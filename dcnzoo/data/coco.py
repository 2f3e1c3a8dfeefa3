"""Read COCO's JSON files as tools write them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from msgspec import Raw
from pycocotools import mask as coco_mask

from dcnzoo.data.check import UNLIKE, extent, judge
from dcnzoo.data.coco_file import Annotation, Category, CocoFile, Image
from dcnzoo.data.dataset import Dataset, Object
from dcnzoo.data.files import InvalidAnnotation, decode_json, finite
from dcnzoo.data.geometry import turned_box
from dcnzoo.data.tree import Reader, Tree, by_split
from dcnzoo.utils.text import counted, few, short

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

    def groups(self) -> dict[str, list[Path]]:
        """Return the files of each split, which their names and folders determine."""
        return by_split([(file, self.tree.split_of(file, own=True)) for file in self.files])

    def add(self, file: Path, split: str, dataset: Dataset) -> None:
        """Add the pictures and objects of a file."""
        content, stated = self.tree.json[file], self.tree.split_of(file, own=True)
        numbers, used, ignored = _by_image(file, content, dataset)
        if ignored:
            number = counted(ignored, "objects")
            self.notes.append(
                f"{file}: {number} with ignore=1: crowds, neither trained nor counted in the AP"
            )
        read = partial(_object, _classes(content, used, dataset))
        for position, image in content.entries("images", strict=False):
            with dataset.refusing(f"{file}: images[{position}]"):
                if isinstance(image, InvalidAnnotation):
                    raise image
                path = self.tree.picture(image.file_name or "", file.parent, stated)
                entries = [(number, content.annotations[number]) for number in numbers[str(image.id)]]
                dataset.add(split, path, entries, read, file, (image.width, image.height))


def _by_image(file: Path, content: CocoFile, dataset: Dataset) -> tuple[dict[str, list[int]], set[str], int]:
    """Return the indices of each image's annotations, by the image's id; the ids of the used categories; and
    the number of objects with ``ignore`` but without ``iscrowd``.

    VIA writes the same id as a text in one place and as a number in another, so all ids become texts.
    """
    images = [image for _, image in content.entries("images", strict=False) if isinstance(image, Image)]
    numbers: dict[str, list[int]] = {str(image.id): [] for image in images}
    if len(numbers) < len(images):
        raise InvalidAnnotation("images: expected each id once")
    used, ignored = set(), 0
    for number, entry in content.entries("annotations", strict=False):
        if isinstance(entry, Annotation) and str(entry.image_id) not in numbers:
            entry = InvalidAnnotation(f"image_id: expected that of an image, got {short(entry.image_id)}")
        if isinstance(entry, InvalidAnnotation):
            dataset.refuse(f"{file}: annotations[{number}]", entry)
            continue
        numbers[str(entry.image_id)].append(number)
        used.add(str(entry.category_id))
        ignored += entry.ignore in TRUE and entry.iscrowd not in TRUE
    return numbers, used, ignored


def _classes(content: CocoFile, used: set[str], dataset: Dataset) -> dict[str, str]:
    """Return the category names by id; add them to the classes, except Roboflow's group without objects."""
    categories: list[Category] = []
    for number, category in content.entries("categories", strict=False):
        if isinstance(category, InvalidAnnotation) or category.name in (None, ""):
            raise InvalidAnnotation(f"categories[{number}]: expected id and name, got {short(category)}")
        categories.append(category)
    supercategories, names = {each.supercategory for each in categories}, dict[str, str]()
    for each in categories:
        names[str(each.id)] = str(each.name)
        is_class = str(each.id) in used or each.name not in supercategories or len(categories) == 1
        if is_class and not dataset.options.classes:
            dataset.classes.setdefault(str(each.name))
    if len(names) < len(categories):
        raise InvalidAnnotation("categories: expected each id once")
    return names


def _object(names: Mapping[str, str], raw: Raw, size: tuple[int, int], dataset: Dataset) -> Object:
    entry = decode_json(raw, Annotation)
    if entry.score is not None:
        raise InvalidAnnotation("expected an annotation, got a prediction: it has a score")
    is_class = str(entry.category_id) in names
    mask, problem, kind = judge(entry, size, is_class, masks=True, stated=False)
    if kind == UNLIKE:
        raise InvalidAnnotation(problem)
    name, crowd = names[str(entry.category_id)], int(entry.iscrowd in TRUE or entry.ignore in TRUE)
    if isinstance(mask, dict):
        box, area = coco_mask.toBbox(mask).tolist(), float(coco_mask.area(mask))
        return dataset.new_object(name, box, area, crowd, mask)
    if mask:
        return _polygons(name, mask, entry, size, crowd, dataset)
    x, y, width, height = entry.bbox or [0.0] * 4  # judge requires it
    corners, attributes = (x, y, x + width, y + height), entry.attributes
    angle = attributes.get("rotation", 0) if isinstance(attributes, dict) else 0  # CVAT's
    if angle := finite(str(angle), "rotation") % 360:
        corners = turned_box(corners, angle, size)
    return dataset.new_box(name, corners, size, crowd)


def _polygons(
    name: str, polygons: list[list[float]], entry: Annotation, size: tuple[int, int], crowd: int,
    dataset: Dataset,
) -> Object:  # fmt: skip
    """Return an object with its stated box, area and mask, if box and polygons are inside the picture.

    Otherwise, compute the box and the area from the polygons.
    """
    box, (x1, y1, x2, y2) = entry.bbox or [], extent(polygons)
    if len(box) == 4 and min(box[2:]) > 0 and entry.area and entry.area > 0:
        right, bottom = max(x2, box[0] + box[2]), max(y2, box[1] + box[3])
        if min(x1, y1, *box[:2]) >= 0 and right <= size[0] and bottom <= size[1]:
            return dataset.new_object(name, box, entry.area, crowd, entry.segmentation)
    points = [[*zip(part[::2], part[1::2], strict=True)] for part in polygons]
    return dataset.new_polygons(name, points, size, crowd)
