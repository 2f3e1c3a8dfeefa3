"""Data sets in the formats of docs/train_your_data.md, made from COCO content whose images have a path."""

import json
import re
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageDraw

PAGE = Path(__file__).resolve().parents[1] / "docs/train_your_data.md"
CLASSES = ("date", "fig")
WIDTH, HEIGHT = 128, 96
NAMES = [f"{letter}.jpg" for letter in "abcdef"]  # the last two for validation


def fruits(folder, names=NAMES, classes=CLASSES):
    """Draw a fruit of each kind on each image, with edges at whole pixels."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    parts = {
        split: {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
        }
        for split in ("train", "val")
    }
    for number, name in enumerate(names):
        content = parts["train" if number < 4 else "val"]
        size = {"width": WIDTH, "height": HEIGHT}
        content["images"].append({"id": number, "file_name": name, "path": folder / name, **size})
        picture = Image.fromarray(generator.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        for label, color in enumerate(((200, 30, 30), (90, 40, 160))):
            x, y = generator.integers((60 * label, 0), (60 * label + 40, 60)).tolist()
            ImageDraw.Draw(picture).rectangle((x, y, x + 23, y + 31), color)
            entry = {"id": 2 * number + label, "image_id": number, "category_id": label + 1}
            content["annotations"].append({**entry, "bbox": [x, y, 24, 32]})
        picture.save(folder / name)
    return parts


def objects(*files):
    """{(image name, class, x, y, width, height)} of COCO files."""
    return set().union(*(objects_of(json.loads(Path(file).read_text())) for file in files))


def objects_of(content):
    images = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
    classes = {category["id"]: category["name"] for category in content["categories"]}
    return {(images[a["image_id"]], classes[a["category_id"]], *a["bbox"]) for a in content["annotations"]}


def page_commands(heading):
    section = re.search(rf"^##+ {heading}\n(.*?)(?=^##+ |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    blocks = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def link(image, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / Path(image["path"]).name).symlink_to(image["path"])


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def per_image(content):
    """[(image, [(class index, class name, x1, y1, x2, y2)])]"""
    names = {c["id"]: (i, c["name"]) for i, c in enumerate(content["categories"])}
    boxes = {image["id"]: [] for image in content["images"]}
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        boxes[a["image_id"]].append((*names[a["category_id"]], x, y, x + w, y + h))
    return [(image, boxes[image["id"]]) for image in content["images"]]


def write_voc(folder, parts):
    """VOC counts pixels from 1 and includes both edges in the box."""
    for split, content in parts.items():
        for image, boxes in per_image(content):
            link(image, folder / "JPEGImages")
            text = "".join(
                f"<object><name>{escape(name)}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
                f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for _, name, x1, y1, x2, y2 in boxes
            )
            file = image["file_name"]
            write(
                (folder / "Annotations" / file).with_suffix(".xml"),
                f"<annotation><filename>{file}</filename>{text}</annotation>",
            )
        names = "\n".join(Path(image["file_name"]).stem for image in content["images"])
        write(folder / f"ImageSets/Main/{split}.txt", names)


def write_yolo(folder, parts):
    for split, content in parts.items():
        for image, boxes in per_image(content):
            link(image, folder / "images" / split)
            w, h = image["width"], image["height"]
            lines = [
                f"{label} {(x1 + x2) / 2 / w} {(y1 + y2) / 2 / h} {(x2 - x1) / w} {(y2 - y1) / h}"
                for label, _, x1, y1, x2, y2 in boxes
            ]
            write((folder / "labels" / split / image["file_name"]).with_suffix(".txt"), "\n".join(lines))
    names = [category["name"] for category in content["categories"]]
    write(folder / "data.yaml", f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n")


def write_labelme(folder, parts):
    """Boxes become rectangles and masks polygons; the polygons of one object share a ``group_id``."""
    for content in parts.values():
        names = {category["id"]: category["name"] for category in content["categories"]}
        shapes = {image["id"]: [] for image in content["images"]}
        for a in content["annotations"]:
            x, y, w, h = a["bbox"]
            polygons = [list(zip(p[::2], p[1::2], strict=True)) for p in a.get("segmentation", [])]
            for points in polygons or [[(x + w, y + h), (x, y)]]:
                kind = {"shape_type": "polygon" if polygons else "rectangle", "group_id": a["id"]}
                shapes[a["image_id"]].append({"label": names[a["category_id"]], "points": points, **kind})
        for image in content["images"]:
            link(image, folder)
            size = {"imageHeight": image["height"], "imageWidth": image["width"]}
            about = {"imagePath": image["file_name"], "imageData": None, **size}
            text = json.dumps({**about, "shapes": shapes[image["id"]]})
            write((folder / image["file_name"]).with_suffix(".json"), text)


FORMATS = {  # heading of the page: (writer, image folder)
    "Pascal VOC": (write_voc, "fruits/JPEGImages"),
    "YOLO": (write_yolo, "fruits"),
    "LabelMe": (write_labelme, "fruits"),
}
