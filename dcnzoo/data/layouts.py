"""The layouts of annotated pictures that tools write: one table, one check of what holds in all of them."""

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcnzoo.data.annotations import Annotations
from dcnzoo.data.check import KINDS, check_content, repair
from dcnzoo.data.files import Entries
from dcnzoo.data.labelme import find_labelme
from dcnzoo.data.splits import (
    Part,
    ReadOptions,
    Tree,
    choose,
    parts_by_file,
    path_parts,
    shortened,
)
from dcnzoo.data.via import find_via
from dcnzoo.data.voc import find_voc
from dcnzoo.data.yolo import find_plain_yolo, find_yolo, is_names
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.progress import waiting
from dcnzoo.utils.text import few


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way to lay out annotated pictures.

    Attributes:
        name: the format, and the tool.
        example: the files.
        find: returns the parts of a folder; none if it has another layout. Layouts of one format share it.
    """

    name: str
    example: str
    find: Callable[[Tree], list[Part]]


def find_parts(data: str | os.PathLike) -> tuple[Layout, list[Part]]:
    """Find the layout of annotated pictures, and the parts for training, validation and test.

    Args:
        data: a folder, a COCO file, or a file like YOLO's ``data.yaml``.

    Raises:
        UserError: no layout fits; the message says what lies there. Or a split is ambiguous.
    """
    data = Path(data)
    if not os.path.exists(data):
        raise UserError(f"data: expected a folder or file, found none at {data}")
    with waiting(f"listing {data}"):
        tree = _tree_of_file(data) if data.is_file() else Tree(data)
    for find, layouts in itertools.groupby(LAYOUTS, lambda layout: layout.find):
        if parts := find(tree):
            if data.is_file() and len(parts) == 1:
                parts[0].split = ""  # the file was chosen, whatever its name
            return next(layouts), choose(parts)
    counts = Counter(file.suffix.lower() or "without ending" for file in tree.files)
    lies = few([f"{number} {suffix}" for suffix, number in counts.most_common()])
    formats = ", ".join(dict.fromkeys(layout.name.partition(",")[0] for layout in LAYOUTS))
    raise UserError(f"data: expected annotations in a layout of {formats}, got {data} with {lies}")


def _tree_of_file(data: Path) -> Tree:
    """Return a file and the pictures that its annotations may name; not the annotations beside it."""
    tree = Tree(data.parent, descend=False)
    if data.suffix.lower() in (".yaml", ".yml", ".data") or is_names(data):
        tree.description = data
    elif data.suffix.lower() == ".json":
        content = tree.json_of(data)
        names = [image["file_name"] for image in _images(content)] if _is_coco(content) else []
        if names and not any(tree.named(last) for name in names for last in path_parts(name)[-1:]):
            # the pictures may be in a folder beside that of the file
            tree = Tree(data.absolute().parent.parent, depth=2, descend=False)
        tree.json = {data: content}
    else:
        expected = "a folder, a JSON file, or a file like data.yaml, obj.data or classes.txt"
        raise UserError(f"data: expected {expected}, got {data}")
    tree.files = [data, *tree.pictures]
    return tree


def find_coco(tree: Tree) -> list[Part]:
    """Return the parts of a folder with COCO files: one for each file of boxes or masks."""

    def parse(file: Path, folder: Path, cut: int, options: ReadOptions) -> Annotations:
        return _read_coco(file, tree.json[file], folder, cut, options)

    names = {
        file: [image["file_name"] for image in _images(content)]
        for file, content in tree.json.items()
        if _is_coco(content)
    }
    return parts_by_file(tree, names, parse)


def _is_coco(content: Any) -> bool:
    """Whether this is the content of a COCO file with objects, or with none; captions are not objects."""
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        return False
    lists = [content[key] for key in ("images", "annotations")]
    if not all(isinstance(each, list | Entries) for each in lists):
        return True  # the check explains it
    first = next(iter(lists[1][:1]), None)
    return not lists[1] or not isinstance(first, dict) or bool({"bbox", "segmentation"} & first.keys())


def _images(content: dict) -> list[dict]:
    """Return the images of a COCO file that have a name."""
    images = content["images"] if isinstance(content["images"], list) else []
    return [each for each in images if isinstance(each, dict) and isinstance(each.get("file_name"), str)]


def _read_coco(file: Path, content: dict, folder: Path, cut: int, options: ReadOptions) -> Annotations:
    """Check a COCO file; repair what can be repaired without a loss, and what the options allow."""
    names = {}
    for image in _images(content):
        name = image["file_name"]
        names[name] = "/".join(shortened(path_parts(name), cut)) or name

    def amend(content: dict) -> None:
        for image in _images(content):
            image["file_name"] = names.get(image["file_name"], image["file_name"])

    result = check_content(file, content, folder, amend=amend)
    allowed = {"renumbered", "converted", "computed"}  # keep all that the annotations state
    if options.clip:
        allowed.add("clipped")
    if options.skip_invalid:
        allowed.add("dropped")
    # a missing box is computed from the mask
    kinds = {kind for kind in KINDS if KINDS[kind].remedy in allowed or kind == "box-with-mask"}
    left = [
        dataclasses.replace(problem, subject=f"{file}: {problem.subject}")
        for problem in result.problems
        if problem.kind not in kinds and (problem.kind != "empty" or problem.stops)
    ]
    counts: Counter[str] = Counter()
    if not left:
        counts.update(problem.kind for problem in result.problems if problem.remedy)
    if counts:
        repair(result)
    result.repaired = [f"{KINDS[kind].text} ({KINDS[kind].remedy}): {n}" for kind, n in counts.items()]
    result.is_file &= all(name == old for old, name in names.items())
    result.folder, result.problems, result.sources = folder, left, [file]
    return result


# The rows of a format are read by one function; formats are tried in this order.
_ROWS = (
    (find_yolo, "YOLO, Ultralytics", "data.yaml (any name), images/train/a.jpg, labels/train/a.txt"),
    (find_yolo, "YOLO, Roboflow", "data.yaml, train/images/a.jpg, train/labels/a.txt, valid/…"),
    (find_yolo, "YOLO, CVAT", "data.yaml, train.txt, images/train/a.jpg, labels/train/a.txt"),
    (
        find_yolo,
        "YOLO, FiftyOne",
        "dataset.yaml (validation:), images/validation/a.jpg, labels/validation/a.txt",
    ),
    (find_yolo, "YOLO, darknet and CVAT 1.1", "obj.data, obj.names, train.txt, obj_train_data/a.jpg, a.txt"),
    (
        find_yolo,
        "YOLO, lists and names",
        "obj.names or classes.txt, train.txt, test.txt, img/a.jpg, img/a.txt",
    ),
    (find_voc, "Pascal VOC", "Annotations/a.xml, JPEGImages/a.jpg, ImageSets/Main/train.txt, val.txt"),
    (find_voc, "Pascal VOC, devkit", "VOC2007/Annotations/…, VOC2012/Annotations/…"),
    (find_voc, "Pascal VOC, CVAT", "Annotations/a.xml, JPEGImages/a.jpg, ImageSets/Main/default.txt"),
    (find_voc, "Pascal VOC, VoTT", "Annotations/a.xml, JPEGImages/a.jpg, ImageSets/Main/cat_train.txt, …"),
    (find_voc, "Pascal VOC, Roboflow", "train/a.xml, train/a.jpg, valid/…"),
    (find_voc, "Pascal VOC, without lists", "annotations/cam 1/a.xml, images/cam 1/a.jpg"),
    (find_coco, "COCO", "annotations/instances_train2017.json, train2017/a.jpg, …val2017"),
    (find_coco, "COCO, CVAT", "annotations/instances_Train.json, images/Train/a.jpg"),
    (find_coco, "COCO, Roboflow", "train/_annotations.coco.json, train/a.jpg, valid/…"),
    (find_coco, "COCO, Label Studio", "result.json, images/a.jpg; also paths of another machine"),
    (find_coco, "COCO, FiftyOne", "labels.json, data/a.jpg; also in train/ and val/"),
    (find_coco, "COCO, two files", "train.json, val.json, images/a.jpg"),
    (find_labelme, "LabelMe", "a.json, a.jpg; also in train/ and val/"),
    (find_labelme, "LabelMe, pictures elsewhere", "annotations/a.json, images/a.jpg"),
    (find_labelme, "LabelMe, X-AnyLabeling", "a.json, a.jpg, with rectangles of four points"),
    (find_via, "VIA", "via_region_data.json (any name), images/a.jpg; also in train/ and val/"),
    (find_plain_yolo, "YOLO, Label Studio", "classes.txt, images/a.jpg, labels/a.txt"),
    (find_plain_yolo, "YOLO, Roboflow's Darknet", "train/_darknet.labels, train/a.jpg, train/a.txt, valid/…"),
    (find_plain_yolo, "YOLO, LabelImg", "classes.txt, a.jpg, a.txt"),
)
LAYOUTS = tuple(Layout(name, example, find) for find, name, example in _ROWS)
