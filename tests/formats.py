"""Data sets in the formats of docs/train_your_data.md, made from COCO content whose images have a path."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("date", "fig")
WIDTH, HEIGHT = 128, 96


def fruits(folder, letters="abcdef"):
    """Draw a fruit of each kind on an image for each letter, with edges at whole pixels.

    A third of the images is for validation.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    parts = {split: {"images": [], "annotations": [], "categories": categories} for split in ("train", "val")}
    for number, letter in enumerate(letters):
        content, name = parts["train" if number < len(letters) * 2 / 3 else "val"], f"{letter}.jpg"
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
    """Return {(image name, class, x, y, width, height)} of COCO files."""
    return set().union(*(objects_of(json.loads(Path(file).read_text())) for file in files))


def objects_of(content):
    images = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
    classes = {category["id"]: category["name"] for category in content["categories"]}
    return {(images[a["image_id"]], classes[a["category_id"]], *a["bbox"]) for a in content["annotations"]}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def images_of(content, folder):
    """Link each image into a folder; yield its entry and its objects, (class, x1, y1, x2, y2)."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        (folder / image["file_name"]).symlink_to(image["path"])
        boxes = [
            (a["category_id"] - 1, *a["bbox"]) for a in content["annotations"] if a["image_id"] == image["id"]
        ]
        yield image, [(label, x, y, x + w, y + h) for label, x, y, w, h in boxes]


def write_voc(folder, parts):
    """VOC counts pixels from 1 and includes both edges in the box."""
    for split, content in parts.items():
        names = []
        for image, boxes in images_of(content, folder / "JPEGImages"):
            text = "".join(
                f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
                f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for label, x1, y1, x2, y2 in boxes
            )
            file = image["file_name"]
            names.append(Path(file).stem)
            text = f"<annotation><filename>{file}</filename>{text}</annotation>"
            write(folder / f"Annotations/{names[-1]}.xml", text)
        write(folder / f"ImageSets/Main/{split}.txt", "\n".join(names))


def write_yolo(folder, parts):
    for split, content in parts.items():
        for image, boxes in images_of(content, folder / "images" / split):
            boxes, size = np.array(boxes).reshape(-1, 5), (image["width"], image["height"])
            low, high = boxes[:, 1:3] / size, boxes[:, 3:] / size
            rows = np.column_stack([boxes[:, 0], (low + high) / 2, high - low]).tolist()
            text = "\n".join(f"{label:.0f} {x} {y} {w} {h}" for label, x, y, w, h in rows)
            write((folder / "labels" / split / image["file_name"]).with_suffix(".txt"), text)
    names = [category["name"] for category in content["categories"]]
    write(folder / "data.yaml", f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n")


def write_labelme(folder, parts):
    """Write polygons of four corners, which are masks."""
    for content in parts.values():
        for image, boxes in images_of(content, folder):
            shapes = [
                {"label": CLASSES[label], "points": [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]}
                for label, x1, y1, x2, y2 in boxes
            ]
            size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
            text = json.dumps({"imagePath": image["file_name"], "imageData": None, **size, "shapes": shapes})
            write((folder / image["file_name"]).with_suffix(".json"), text)


FORMATS = {"Pascal VOC": write_voc, "YOLO": write_yolo, "LabelMe": write_labelme}  # by the page's headings
