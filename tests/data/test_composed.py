"""Folders that are composed at random: each picture and each box is used or counted.

The composer knows each box that it has written. What is trained on is read from the written COCO files, so
that no reader is its own oracle.
"""

import json
import random
import re
import shutil

import pytest
from PIL import Image

from dcnzoo.data.reading import describe, read
from dcnzoo.utils.errors import UserError
from tests.helpers.folders import GENERATORS, SIZES
from tests.helpers.formats import CLASSES, coco, draw, labelme, voc, write, yolo

LISTS = ("YOLO, CVAT", "YOLO, darknet and CVAT 1.1", "YOLO, lists and names", "YOLO, lists of one folder")


class Folder:
    """A data set on the disk, with the truth about it.

    Attributes:
        splits: picture → the split that the folder states.
        boxes: picture → boxes (class, x, y, width, height) of its annotation, if the picture exists.
        strange: pictures without an annotation in the format of the folder.
        plain: whether docs/train_your_data.md says that the folder is accepted.
    """

    def __init__(self, root, name, splits, choose):
        self.root, self.name, self.choose, self.plain = root, name, choose, True
        truth = GENERATORS[name](root, {split: SIZES[split] + 2 for split in splits})
        self.boxes, self.splits, self.strange = {}, {}, set()
        for split, (folder, part) in truth.items():
            self.boxes |= {folder / file: boxes for file, boxes in part.items()}
            self.splits |= dict.fromkeys((folder / file for file in part), split)

    def some(self, number=2):
        annotated = sorted(picture for picture, boxes in self.boxes.items() if boxes)
        return self.choose.sample(annotated, min(number, len(annotated)))

    def relative(self, picture):
        return picture.relative_to(self.root).as_posix()


# Changes of a folder. The first ones leave it plain.


def notes(folder):
    write(folder.root / "README.md", "# Fruits")
    write(folder.root / "settings.json", {"version": 2, "labels": [*CLASSES]})


def thumbnails(folder):
    for picture in folder.some():
        hidden = folder.choose.choice(["@eaDir", "#recycle", "$RECYCLE.BIN", ".thumbnails"])
        target = picture.parent / hidden / picture.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8)).save(target)


def capitals(folder):
    """Rename pictures to .JPG, as cameras name them; the annotations keep the old names."""
    for picture in folder.some() if folder.name not in LISTS else ():
        new = picture.with_suffix(".JPG")
        picture.rename(new)
        folder.boxes[new], folder.splits[new] = folder.boxes.pop(picture), folder.splits.pop(picture)


def predictions(folder):
    part = {folder.relative(picture): [(0, 1, 2, 30, 20)] for picture in folder.some(4)}
    content = coco(part)
    for entry in content["annotations"]:
        entry["score"] = 0.4
    write(folder.root / folder.choose.choice(["predicted.json", "work_dirs/infer/detections.json"]), content)


def predictions_of_ultralytics(folder):
    for picture in folder.some(3):
        row = f"1 0.5 0.5 0.{folder.choose.randrange(10, 99)} 0.2 0.87\n"
        write(folder.root / "runs/detect/predict/labels" / picture.with_suffix(".txt").name, row)
        shutil.copyfile(picture, folder.root / "runs/detect/predict" / picture.name)


def work_directory(folder):
    part = {folder.relative(picture): [(0, 1, 2, 30, 20)] for picture in folder.some(3)}
    write(folder.root / "mine/data/train.json", coco(part))
    write(folder.root / "mine/last_checkpoint", "epoch_1.pth")


def more_pictures(folder):
    """Add pictures without annotations, in a folder of their own."""
    name = folder.choose.choice(["photos", "left over"])
    draw(folder.root / name, [f"photo {number}.jpg" for number in range(3)])
    folder.strange |= {*(folder.root / name).iterdir()}


# After the following changes, a folder may be refused.


def second_coco(folder):
    part = {folder.relative(p): [(2, 3, 5, 21, 19)] for p in folder.some()}
    write(folder.root / "older/instances.json", coco(part))
    folder.plain = False


def stray_voc(folder):
    for picture in folder.some():
        voc(picture.with_suffix(".xml"), picture.name, [(1, 5, 6, 20, 17)])
        if folder.name == "Pascal VOC, Roboflow":  # there, it replaces the file of the picture's annotations
            folder.boxes[picture] = [(1, 5, 6, 20, 17)]
    folder.plain = False


def another_folder(folder):
    """Add annotated pictures in the format of the others, in a folder that is not named after a split."""
    writers = {"YOLO": lambda file, name, boxes: yolo(file.with_suffix(".txt"), boxes)}
    writers["LabelMe"] = lambda file, name, boxes: labelme(file.with_suffix(".json"), name, boxes)
    writers["Pascal VOC"] = lambda file, name, boxes: voc(file.with_suffix(".xml"), name, boxes)
    if writer := writers.get(folder.name.partition(",")[0]):
        for name, boxes in draw(
            folder.root / "batch2", [f"more {number}.jpg" for number in range(3)]
        ).items():
            writer(folder.root / "batch2" / name, name, boxes)
            folder.boxes[folder.root / "batch2" / name] = boxes
            folder.strange.add(folder.root / "batch2" / name)  # if a list or data.yaml leaves it out
    folder.plain = False


def renamed_labels(folder):
    for picture in folder.some():
        for file in folder.root.rglob(f"{picture.stem}.*"):
            if file.suffix in (".txt", ".xml", ".json") and file.parent != folder.root:
                file.rename(file.with_stem(f"renamed_{file.stem}"))
    folder.plain = False


def deleted_pictures(folder):
    for picture in folder.some(1):
        picture.unlink()
        del folder.boxes[picture]
    folder.plain = False


def copied_picture(folder):
    first, second = folder.some()
    shutil.copyfile(first, second)
    folder.plain = folder.splits[first] == folder.splits[second]


HARMLESS = (
    *(notes, thumbnails, capitals, predictions, predictions_of_ultralytics),
    *(work_directory, more_pictures),
)
HARMFUL = (second_coco, stray_voc, another_folder, renamed_labels, deleted_pictures, copied_picture)


def composed(root, seed):
    choose = random.Random(seed)
    random.seed(seed)  # for the pictures and objects
    name = choose.choice([*GENERATORS])
    splits = choose.choice(["train val test", "train val", "train test", "train"])
    folder = Folder(root, name, splits.split(), choose)
    changes = choose.sample(HARMLESS, choose.randint(0, 3))
    if choose.random() < 0.5:
        changes += choose.sample(HARMFUL, 1)
    choose.shuffle(changes)
    for change in changes:
        change(folder)
    return folder, f"{seed}: {name}, {splits}: {', '.join(change.__name__ for change in changes)}"


def written(splits, out):
    """Write the COCO files. Return picture → its boxes, and picture → its split, as read from the files."""
    boxes, owner = {}, {}
    for split, dataset in splits.items():
        dataset.write(out / f"{split}.json")
        content = json.loads((out / f"{split}.json").read_text())
        names = {each["id"]: each["name"] for each in content["categories"]}
        files = {each["id"]: dataset.folder / each["file_name"] for each in content["images"]}
        for file in files.values():
            assert file not in owner
            boxes[file], owner[file] = [], split
        for each in content["annotations"]:
            boxes[files[each["image_id"]]].append((CLASSES.index(names[each["category_id"]]), *each["bbox"]))
    return boxes, owner


def counted_in(lines, what):
    return sum(int(match[1]) for line in lines for match in re.finditer(rf"{what}: (\d+) ", line))


def check(folder, out, about):
    """Return whether the folder is accepted. If so, check that each box is used, or its file is counted."""
    try:
        data = read(folder.root)
        splits = data.split()
    except UserError as error:
        assert not folder.plain, (about, error.args)
        return False
    lines, (boxes, owner) = describe(data, splits), written(splits, out)
    has_val = "val" in folder.splits.values()
    for picture, split in owner.items():
        stated = folder.splits.get(picture)
        assert stated is None or split == stated or not has_val, (about, picture, split)
        assert (split == "test") == (stated == "test"), (about, picture, split)
    for picture, own in boxes.items():
        truth = folder.boxes[picture]
        is_emptied = not own and any("without a file of labels" in line for line in lines)
        assert is_emptied or len(own) == len(truth), (about, picture)
        for one, other in zip(sorted(own), sorted(truth), strict=not is_emptied):
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 1, (about, picture, one, other)
    left_out = {picture for picture in folder.boxes if picture not in boxes}
    assert not folder.plain or left_out <= folder.strange, (about, left_out)
    unused = {picture for picture in left_out | folder.strange if picture.exists() and picture not in boxes}
    assert counted_in(lines, "pictures without annotations, not used") == len(unused), (about, lines)
    return True


def compose_and_check(tmp_path, seeds):
    accepted = 0
    for seed in seeds:
        folder, about = composed(tmp_path / "data", seed)
        accepted += check(folder, tmp_path, about) and folder.plain
        shutil.rmtree(tmp_path / "data")
    return accepted


def test_each_picture_and_box_is_used_or_counted(tmp_path):
    assert compose_and_check(tmp_path, range(40)) >= 15


@pytest.mark.slow
def test_many_folders(tmp_path):
    assert compose_and_check(tmp_path, range(500)) >= 200
