"""Annotations in the formats of docs/train_your_data.md, and data sets of drawn fruits in each of them."""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("disc", "box", "star")
SIZE = (60, 40)
FRUITS = ("date", "fig")


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def draw(root, names, empty=(1,)):
    """Draw pictures, by default numbered from 0; return name → its objects, (class, x, y, width, height)."""
    part = {}
    for index, name in enumerate([f"{n:04}.jpg" for n in range(names)] if isinstance(names, int) else names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, tuple(random.randrange(256) for _ in range(3))).save(file)
        boxes = [(random.randrange(3), random.randrange(20), 4, random.randrange(9, 30), 20)]
        part[file.name] = [] if index in empty else boxes
    return part


# Each writes the objects of a picture, (class, x, y, width, height).


def coco(part, prefix="", root_category=False):
    names = ("shapes", *CLASSES) if root_category else CLASSES
    ids = {name: number for number, name in enumerate(names, 0 if root_category else 1)}
    group = {"supercategory": "shapes" if root_category else "shape"}
    images, annotations = [], []
    for number, (name, boxes) in enumerate(part.items(), 1):
        images.append({"id": number, "file_name": f"{prefix}{name}", "width": SIZE[0], "height": SIZE[1]})
        for label, *box in boxes:
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[CLASSES[label]]}
            annotations.append(
                {**entry, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "segmentation": []}
            )
    categories = [{"id": ids[name], "name": name, **group} for name in names]
    return {"images": images, "annotations": annotations, "categories": categories}


def voc(file, name, boxes, classes=CLASSES):
    """VOC counts pixels from 1 and includes both edges in the box."""
    objects = "".join(
        f"<object><name>{classes[label]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for label, x, y, w, h in boxes
    )
    write(file, f"<annotation><filename>{name}</filename>{objects}</annotation>")


def yolo(file, boxes, size=SIZE):
    width, height = size
    rows = [(k, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height) for k, x, y, w, h in boxes]
    write(file, "".join(f"{' '.join(map(str, row))}\n" for row in rows))


def labelme(file, path, boxes, kind="rectangle", corners=False, classes=CLASSES, size=SIZE):
    shapes = []
    for label, x, y, w, h in boxes:
        points = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
        points = points if corners else points[::2]
        shapes.append({"label": classes[label], "shape_type": kind, "points": points})
    write(file, {"imagePath": path, "imageHeight": size[1], "imageWidth": size[0], "shapes": shapes})


def fruits(folder, letters="abcdef", seed=0):
    """Draw a fruit of each kind on an image for each letter, with edges at whole pixels.

    A third of the images is for validation.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    categories = [{"id": i, "name": name} for i, name in enumerate(FRUITS, 1)]
    parts = {split: {"images": [], "annotations": [], "categories": categories} for split in ("train", "val")}
    for number, letter in enumerate(letters):
        content, name = parts["train" if number < len(letters) * 2 / 3 else "val"], f"{letter}.jpg"
        size = {"width": 128, "height": 96}
        content["images"].append({"id": number, "file_name": name, "path": folder / name, **size})
        picture = Image.fromarray(generator.integers(0, 60, (96, 128, 3), dtype=np.uint8))
        for label, color in enumerate(((200, 30, 30), (90, 40, 160))):
            x, y = generator.integers((60 * label, 0), (60 * label + 40, 60)).tolist()
            ImageDraw.Draw(picture).rectangle((x, y, x + 23, y + 31), color)
            entry = {"id": 2 * number + label, "image_id": number, "category_id": label + 1}
            content["annotations"].append({**entry, "bbox": [x, y, 24, 32]})
        picture.save(folder / name)
    return parts


def objects(*files):
    """Return {(image name, class, x, y, width, height)} of COCO files."""
    return set().union(*(objects_of(json.loads(Path(file).read_text())) for file in files))


def objects_of(content):
    images = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
    classes = {category["id"]: category["name"] for category in content["categories"]}
    return {(images[a["image_id"]], classes[a["category_id"]], *a["bbox"]) for a in content["annotations"]}


def images_of(content, folder):
    """Link each image into a folder; yield its file, its size and its objects."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        (folder / image["file_name"]).symlink_to(image["path"])
        own = [each for each in content["annotations"] if each["image_id"] == image["id"]]
        boxes = [(each["category_id"] - 1, *each["bbox"]) for each in own]
        yield Path(image["file_name"]), (image["width"], image["height"]), boxes


def write_coco(folder, parts):
    """Two files beside a folder of images."""
    for split, content in parts.items():
        assert [*images_of(content, folder / "pictures")]
        images = [{key: image[key] for key in image if key != "path"} for image in content["images"]]
        annotations = [
            {**each, "id": each["id"] + 1, "area": 24 * 32, "iscrowd": 0} for each in content["annotations"]
        ]
        write(folder / f"instances_{split}.json", {**content, "images": images, "annotations": annotations})


def write_voc(folder, parts):
    for split, content in parts.items():
        names = []
        for file, _, boxes in images_of(content, folder / "JPEGImages"):
            names.append(file.stem)
            voc(folder / f"Annotations/{file.stem}.xml", file.name, boxes, FRUITS)
        write(folder / f"ImageSets/Main/{split}.txt", "\n".join(names))


def write_yolo(folder, parts):
    for split, content in parts.items():
        for file, size, boxes in images_of(content, folder / "images" / split):
            yolo(folder / f"labels/{split}/{file.stem}.txt", boxes, size)
    names = [category["name"] for category in content["categories"]]
    write(folder / "data.yaml", f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n")


def write_labelme(folder, parts):
    """Write polygons of four corners, which are masks."""
    for content in parts.values():
        for file, size, boxes in images_of(content, folder):
            labelme(folder / f"{file.stem}.json", file.name, boxes, "polygon", True, FRUITS, size)


# by the page's headings
FORMATS = {"COCO": write_coco, "Pascal VOC": write_voc, "YOLO": write_yolo, "LabelMe": write_labelme}
