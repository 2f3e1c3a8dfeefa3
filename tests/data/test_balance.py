"""The balance of pictures and boxes, over folders that are composed at random.

The composer knows each box that it has written, and why it may be left out. What is trained on is read from
the written COCO files, so that no reader is its own oracle.
"""

import csv
import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dcnzoo.data.layouts import find_parts
from dcnzoo.data.preparation import read_splits
from dcnzoo.data.splits import ReadOptions
from dcnzoo.utils.errors import UserError

from . import test_layouts as layouts
from .test_layouts import CLASSES, GENERATORS, HEIGHT, SIZES, WIDTH, coco, draw, voc, write, yolo


class Folder:
    """A data set on the disk, with the truth about it.

    Attributes:
        written: (picture, class, x, y, width, height) of each box of each annotation file, but predictions.
        excused: of these, boxes that the data's own description leaves out.
        plain: whether a person would expect that it is accepted.
    """

    def __init__(self, root, name, splits, choose):
        self.root, self.name, self.choose, self.plain = root, name, choose, True
        self.truth = GENERATORS[name](root, {split: SIZES[split] + 2 for split in splits})
        self.parts = {
            folder / file: boxes for folder, part in self.truth.values() for file, boxes in part.items()
        }
        self.written = {(picture, *box) for picture, boxes in self.parts.items() for box in boxes}
        self.excused = set()
        self.described = name.startswith("Pascal VOC") and (root / "ImageSets").exists()
        self.described |= (
            any(root.glob("*.yaml")) or any(root.glob("*.data")) or name == "YOLO, lists and names"
        )

    def some(self, number=2):
        annotated = [picture for picture, boxes in self.parts.items() if boxes and picture.exists()]
        return self.choose.sample(annotated, min(number, len(annotated)))

    def relative(self, picture):
        return picture.relative_to(self.root).as_posix()


# Changes of a folder. Those of the first kind leave it plain.


def notes(folder):
    write(folder.root / "README.md", "# Fruits")
    write(folder.root / "notes/changes.txt", "2026-11-28 box of 0001 corrected\n")
    write(folder.root / "settings.json", {"version": 2, "labels": [*CLASSES]})


def thumbnails(folder):
    for picture in folder.some():
        hidden = folder.choose.choice(["@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN"])
        target = picture.parent / hidden / picture.name / "SYNOPHOTO_THUMB_M.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8)).save(target)


def capitals(folder):
    """Endings in capital letters, as a camera writes them, which the annotations do not have."""
    if folder.name in ("YOLO, CVAT", "YOLO, darknet and CVAT 1.1", "YOLO, lists and names"):
        return  # lists of files; a system with capitals would not find them either
    for picture in folder.some():
        new = picture.with_suffix(".JPG")
        if picture in folder.parts and not new.exists():
            picture.rename(new)
            folder.parts[new] = folder.parts.pop(picture)
            old = {row for row in folder.written if row[0] == picture}
            folder.written = folder.written - old | {(new, *row[1:]) for row in old}


def older_state(folder):
    """A COCO file with some of the boxes."""
    part = {folder.relative(picture): folder.parts[picture][:1] for picture in folder.some(3)}
    write(folder.root / "older/instances.json", coco(part))


def predictions(folder):
    part = {folder.relative(p): [(0, 1, 2, 30, 20), (2, 7, 3, 20, 21)] for p in folder.some(4)}
    content = coco(part)
    for number, entry in enumerate(content["annotations"]):
        entry["score"] = 0.4 + 0.001 * number
    write(folder.root / "predicted.json", content)


def output_of_infer(folder):
    part = {folder.relative(p): [(1, 2, 2, 30, 20)] for p in folder.some(4)}
    info = {"description": "detections of model", "contributor": "dcnzoo"}
    write(folder.root / "work_dirs/infer/detections.json", {"info": info, **coco(part)})
    write(folder.root / "work_dirs/infer/results.json", {"model": "model", "score_threshold": 0.3})
    Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9)).save(folder.root / "work_dirs/infer/0000.jpg")


def predictions_of_ultralytics(folder):
    for picture in folder.some(3):
        row = f"1 0.5 0.5 0.{folder.choose.randrange(10, 99)} 0.2 0.87\n"
        write(folder.root / "runs/detect/predict/labels" / picture.with_suffix(".txt").name, row)


def deleted_pictures(folder):
    if folder.name in ("YOLO, CVAT", "YOLO, darknet and CVAT 1.1", "YOLO, lists and names"):
        folder.plain = False  # the lists name them
    for picture in folder.some(1):
        picture.unlink()
        folder.written -= {row for row in folder.written if row[0] == picture}
        boxes = [box for other, boxes in folder.parts.items() for box in boxes if other.exists()]
        folder.plain &= len({box[0] for box in boxes}) > 0
    folder.gone = True


# Those of the second kind may be refused.


def other_boxes(folder):
    part = {folder.relative(p): [(2, 3, 5, 21, 19)] for p in folder.some(2)}
    write(folder.root / "others.json", coco(part))
    folder.written |= {(folder.root / name, *box) for name, boxes in part.items() for box in boxes}
    folder.plain = False


def stray_voc(folder):
    for picture in folder.some(2):
        box = (1, 5, 6, 20, 17)
        voc(picture.with_suffix(".xml"), picture.name, [box])
        replaced = {row for row in folder.written if row[0] == picture}
        if folder.name == "Pascal VOC, Roboflow":
            folder.written -= replaced  # the file of its annotations
        folder.written.add((picture, *box))
    folder.plain = False


def another_folder(folder):
    """Annotated pictures in the format of the others, in a folder without the word of a split."""
    if "train" not in folder.truth or not folder.name.startswith(("LabelMe", "YOLO, L", "Pascal VOC, R")):
        return
    part = draw(folder.root / "batch2", 3)
    for name, boxes in part.items():
        file = folder.root / "batch2" / name
        if folder.name.startswith("YOLO"):
            yolo(file.with_suffix(".txt"), boxes)
        elif folder.name.startswith("LabelMe"):
            layouts.labelme(file.with_suffix(".json"), name, boxes)
        else:
            voc(file.with_suffix(".xml"), name, boxes)
        folder.written |= {(file, *box) for box in boxes}
    folder.plain = False


def table(folder):
    part = draw(folder.root / "more", 2, empty=())
    with open(folder.root / "more/_annotations.csv", "w") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        for name, boxes in part.items():
            rows.writerows([name, WIDTH, HEIGHT, CLASSES[k], x, y, x + w, y + h] for k, x, y, w, h in boxes)
            folder.written |= {(folder.root / "more" / name, *box) for box in boxes}
    folder.plain = False


def renamed_labels(folder):
    for picture in folder.some(2):
        for file in folder.root.rglob(f"{picture.stem}.*"):
            if file.suffix in (".txt", ".xml", ".json"):
                file.rename(file.with_stem(f"renamed_{file.stem}"))
    folder.plain = False


HARMLESS = (
    notes,
    thumbnails,
    capitals,
    older_state,
    predictions,
    output_of_infer,
    predictions_of_ultralytics,
    deleted_pictures,
)
HARMFUL = (other_boxes, stray_voc, another_folder, table, renamed_labels)


def composed(root, seed):
    choose = random.Random(seed)
    random.seed(seed)  # of the pictures and objects
    name, splits = (
        choose.choice([*GENERATORS]),
        choose.choice(["train val test", "train val", "train test", "train"]),
    )
    folder = Folder(root, name, splits.split(), choose)
    changes = choose.sample(HARMLESS, choose.randint(0, 2))
    if choose.random() < 0.5:
        changes += choose.sample(HARMFUL, 1)
    choose.shuffle(changes)
    for change in changes:
        change(folder)
    return folder, f"{seed}: {name}, {splits}: {', '.join(change.__name__ for change in changes)}"


def trained_on(splits):
    """(picture, class, x, y, width, height) of a training, and the pictures of each split."""
    rows, pictures = [], {}
    for split, annotations in splits.items():
        content = json.loads(
            json.dumps({**annotations.content, "annotations": [*annotations.content["annotations"]]})
        )
        names = {each["id"]: each["name"] for each in content["categories"]}
        files = {
            each["id"]: os.path.realpath(annotations.folder / each["file_name"]) for each in content["images"]
        }
        pictures[split] = {*files.values()}
        rows += [
            (files[a["image_id"]], CLASSES.index(names[a["category_id"]]), *a["bbox"])
            for a in content["annotations"]
        ]
    return rows, pictures


def has(rows, row):
    return any(
        row[:2] == each[:2] and max(abs(a - b) for a, b in zip(row[2:], each[2:], strict=True)) <= 1
        for each in rows
    )


def check(folder, about):
    """Return whether the folder is accepted; then each box is used or excused, and nothing else is."""
    try:
        root = Path(os.path.relpath(folder.root))  # as people write it; other tests have absolute paths
        splits, decisions = read_splits(root, find_parts(root), ReadOptions())
    except UserError as error:
        assert not folder.plain, (about, error.args)
        return False
    rows, pictures = trained_on(splits)
    written = {(os.path.realpath(picture), *box) for picture, *box in folder.written}
    by_picture, used = {}, {}
    for row in written:
        by_picture.setdefault(row[0], []).append(row)
    for row in rows:
        used.setdefault(row[0], []).append(row)
        assert has(by_picture.get(row[0], ()), row), (about, "nobody wrote", row)
    for row in written:
        assert has(used.get(row[0], ()), row), (about, "left out", row, decisions)
    sets = [*pictures.values()]
    assert sum(map(len, sets)) == len(set().union(*sets)), (about, "in two splits")
    own = {os.path.realpath(file) for file in folder.root.rglob("*") if file.suffix.lower() == ".jpg"}
    own -= {file for file in own if re.search(r"/[@#$]|work_dirs", file)}
    named = [re.match(r"left out  (\d+) pictures? .* no annotation", line) for line in decisions]
    number = sum(int(match[1]) for match in named if match)
    assert len(own - set().union(*sets)) == number, (about, "pictures", decisions)
    return True


def compose_and_check(tmp_path, seeds):
    accepted = 0
    for seed in seeds:
        folder, about = composed(tmp_path / "data", seed)
        accepted += check(folder, about) and folder.plain
        shutil.rmtree(tmp_path / "data")
    return accepted


def test_each_picture_and_box_is_used_or_left_out_with_a_reason(tmp_path):
    assert compose_and_check(tmp_path, range(60)) >= 18


@pytest.mark.slow
def test_the_balance_of_many_folders(tmp_path):
    assert compose_and_check(tmp_path, range(2000)) >= 600
