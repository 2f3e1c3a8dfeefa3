"""Folders as people have them: several layouts, predictions, names, poses, splits, copies, other formats."""

import io
import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcnzoo.data.foreign import FOREIGN, named_format
from dcnzoo.data.layouts import convert, find_parts
from dcnzoo.data.preparation import read_splits
from dcnzoo.data.split import split_coco
from dcnzoo.data.splits import ReadOptions
from dcnzoo.data.voc import is_voc
from dcnzoo.utils.errors import UserError

from .test_layouts import (
    CLASSES,
    GENERATORS,
    HEIGHT,
    WIDTH,
    coco,
    draw,
    edit_json,
    labelme,
    voc,
    write,
    yolo,
)

ONE = (0, 3, 4, 20, 20)


def prepared(folder, **options):
    """The number of pictures and of objects of each split, and the decisions as one text."""
    reading = ReadOptions(**options)
    splits, decisions = read_splits(folder, find_parts(folder, reading), reading)
    counts = {split: (each.counts["images"], each.counts["annotations"]) for split, each in splits.items()}
    return counts, "\n".join(decisions)


def total(folder, **options):
    counts, text = prepared(folder, **options)
    return tuple(map(sum, zip(*counts.values(), strict=True))), text


def refused(folder, **options):
    with pytest.raises(UserError) as error:
        prepared(folder, **options)
    return "\n".join(error.value.args)


def plain_yolo(root, number=8, names=True):
    """Pictures with one object each."""
    part = draw(root / "images", number, empty=())
    for name, boxes in part.items():
        yolo((root / "labels" / name).with_suffix(".txt"), boxes)
    if names:
        write(root / "classes.txt", "\n".join(CLASSES))
    return part


def noisy(folder, numbers, ending="png"):
    """Pictures of noise with one object each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        noise(number).save(folder / f"{number}.{ending}")
    return {f"{number}.{ending}": [ONE] for number in numbers}


# Several layouts


def test_the_layout_with_all_boxes_is_used(tmp_path):
    part = plain_yolo(tmp_path)
    write(tmp_path / "old/result.json", coco({name: part[name] for name in [*part][:3]}))
    numbers, text = total(tmp_path)
    assert numbers == (8, 8) and "old/result.json, whose 3 objects are in the used files" in text
    edit_json(
        tmp_path / "old/result.json", lambda content: content["annotations"][0].update(bbox=[0, 0, 9, 9])
    )
    error = refused(tmp_path)
    assert "YOLO (8 pictures, 8 objects), COCO (3 pictures, 3 objects)" in error
    assert total(tmp_path, layout="YOLO")[0] == (8, 8) and total(tmp_path, layout="COCO")[0] == (3, 3)
    assert "1 object of old/result.json: by --layout" in prepared(tmp_path, layout="YOLO")[1]
    assert total(tmp_path, leave_out=("old",))[0] == (8, 8)
    assert "expected patterns" in refused(tmp_path, leave_out=("odl/*",))
    numbers, text = total(tmp_path, leave_out=("old/*",))
    assert numbers == (8, 8) and "1 file (old/result.json): by --leave-out" in text
    assert "expected one of YOLO, Pascal VOC" in refused(tmp_path, layout="coco")


def test_of_layouts_with_equal_boxes_the_one_with_masks_or_more_pictures_is_used(tmp_path):
    content = coco(plain_yolo(tmp_path))
    x, y, w, h = content["annotations"][0]["bbox"]
    content["annotations"][0]["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    write(tmp_path / "instances.json", content)
    assert find_parts(tmp_path).name == "COCO"
    shutil.rmtree(tmp_path / "labels")
    for picture, boxes in plain_yolo(tmp_path).items():
        voc(tmp_path / "xml" / picture.replace("jpg", "xml"), picture, boxes)
    (tmp_path / "instances.json").unlink()
    draw(tmp_path / "more", ["empty.jpg"])
    voc(tmp_path / "more/empty.xml", "empty.jpg", [])
    assert find_parts(tmp_path).name == "Pascal VOC" and total(tmp_path)[0] == (9, 8)


def test_a_layout_that_cannot_be_read_says_why(tmp_path):
    part = draw(tmp_path / "left", 4, empty=())
    shutil.copytree(tmp_path / "left", tmp_path / "right")
    for name, boxes in part.items():
        yolo((tmp_path / "left" / name).with_suffix(".txt"), boxes)
    write(tmp_path / "classes.txt", "\n".join(CLASSES))
    write(tmp_path / "all.json", coco(part))
    assert "COCO (data: expected each of the 4 pictures in one folder" in refused(tmp_path)


def test_a_second_file_beside_a_picture_does_not_hide_the_first(tmp_path):
    """The annotations of pictures in two folders are in a third one."""
    for number, folder in enumerate(("cam1", "cam1", "cam1", "cam2", "cam2")):
        draw(tmp_path / folder, [f"{number}.jpg"])
        voc(tmp_path / "annotations" / f"{number}.xml", f"{number}.jpg", [ONE])
    assert total(tmp_path)[0] == (5, 5)
    voc(tmp_path / "cam2/4.xml", "4.jpg", [(1, 8, 9, 20, 20)])
    assert "each image once" in refused(tmp_path)


def test_a_description_below_does_not_hide_the_rest(tmp_path):
    plain_yolo(tmp_path)
    plain_yolo(tmp_path / "archive", 3, names=False)
    write(tmp_path / "archive/data.yaml", "train: images\nnames: [disc, box, star]\n")
    assert "8 objects of 8 pictures of YOLO" in refused(tmp_path)
    shutil.move(tmp_path / "archive/data.yaml", tmp_path / "data.yaml")
    numbers, text = total(tmp_path)
    assert (
        numbers == (8, 8)
        and "3 objects of YOLO (archive/labels/0000.txt and 2 more): data.yaml does not name them" in text
    )


def test_labels_without_names_beside_a_file_that_has_their_boxes(tmp_path):
    part = plain_yolo(tmp_path, names=False)
    assert "names of the classes" in refused(tmp_path)
    write(tmp_path / "instances.json", coco(part))
    assert total(tmp_path)[0] == (8, 8)


def test_several_files_of_one_split(tmp_path):
    part = draw(tmp_path / "images", 6, empty=())
    write(tmp_path / "instances.json", coco(part))
    write(tmp_path / "instances_2.json", coco({name: [(1, 5, 5, 9, 9)] for name in part}))
    assert "6 objects of 6 pictures of instances" in refused(tmp_path)
    edit_json(tmp_path / "instances_2.json", lambda content: content.update(annotations=[]))
    assert total(tmp_path)[0] == (6, 6)
    write(tmp_path / "cut.json", '{"images": [')
    numbers, text = total(tmp_path)
    assert numbers == (6, 6) and "1 file (cut.json) not read" in text
    draw(tmp_path / "more", 1)
    assert "cut.json" in refused(tmp_path), "may have annotations of the other picture"


@pytest.mark.parametrize("name", ["COCO", "YOLO, Roboflow", "Pascal VOC, Roboflow", "LabelMe"])
def test_a_folder_around_the_data(tmp_path, name):
    """Its name is no split, because no other is beside it."""
    GENERATORS[name](tmp_path / "train_2026", {"train": 5, "val": 4})
    counts, _ = prepared(tmp_path)
    assert {split: pictures for split, (pictures, _) in counts.items()} == {"train": 5, "val": 4}


# Predictions


def test_predictions_are_no_annotations(tmp_path):
    part = plain_yolo(tmp_path)
    for file in (tmp_path / "labels").iterdir():
        write(file, file.read_text().strip() + " 0.93\n")
    assert "predictions" in refused(tmp_path)
    counts, _ = prepared(tmp_path, drop_scores=True)
    assert sum(number for number, _ in counts.values()) == 8
    write(tmp_path / "instances.json", coco(part))
    assert "8 objects of YOLO (labels/0000.txt and 7 more): predictions" in prepared(tmp_path)[1]


@pytest.mark.parametrize("kind", ["marked", "scored", "folder"])
def test_output_of_a_detector(tmp_path, kind):
    """It becomes annotations if one asks for it; the pictures that the detector has drawn do not."""
    content = coco(draw(tmp_path / "images", 6, empty=()))
    if kind == "marked":
        content["info"] = {"description": "detections of x.pth", "contributor": "dcnzoo 1"}
    else:
        for entry in content["annotations"]:
            entry["score"] = 0.5
    write(tmp_path / "out/detections.json", content)
    if kind == "folder":
        write(tmp_path / "out/results.json", {"model": "a", "score_threshold": 0.3})
        draw(tmp_path / "out", 6)
    assert "predictions" in refused(tmp_path)
    assert total(tmp_path, drop_scores=True)[0] == (6, 6)
    options = ReadOptions(drop_scores=True)
    (part,) = find_parts(tmp_path, options).parts
    assert not any("score" in entry for entry in part.read(options).content["annotations"])


# Names


def test_names_in_another_unicode_form_or_with_capitals(tmp_path):
    for number, name in enumerate(("Grün 1", "IMG_2", "Ää 3", "b")):
        draw(tmp_path / "images", [f"{name}.JPG"])
        label = unicodedata.normalize("NFD", name) if number % 2 == 0 else name.lower()
        yolo(tmp_path / "labels" / f"{label}.txt", [ONE])
    write(tmp_path / "classes.txt", "\n".join(CLASSES))
    numbers, text = total(tmp_path)
    assert numbers == (4, 4) and "differ in capitals or Unicode form: 3" in text
    draw(tmp_path / "images", ["img_2.JPG"])  # has the exact name
    assert total(tmp_path)[0] == (5, 4)


def test_one_label_of_two_pictures(tmp_path):
    plain_yolo(tmp_path)
    Image.open(tmp_path / "images/0000.jpg").save(tmp_path / "images/0000.png")
    error = refused(tmp_path)
    assert "labels/0000.txt" in error and "0000.jpg" in error and "0000.png" in error


def test_pictures_that_were_deleted(tmp_path):
    part = draw(tmp_path / "images", 8, empty=())
    write(tmp_path / "instances.json", coco(part))
    (tmp_path / "images/0003.jpg").unlink()
    numbers, text = total(tmp_path)
    assert numbers == (7, 7) and "1 object of 1 missing picture (0003.jpg)" in text
    draw(tmp_path / "images", ["renamed.jpg"])
    assert "0003.jpg" in (error := refused(tmp_path)) and "renamed.jpg" in error
    (tmp_path / "images/renamed.jpg").unlink()
    for name in [*part][2:]:
        (tmp_path / "images" / name).unlink(missing_ok=True)
    assert "file_name: expected an image" in refused(tmp_path), "most of them: the copy is not complete"


def test_objects_of_pictures_that_were_deleted_are_counted_in_voc(tmp_path):
    part = {name: [ONE, (1, 30, 4, 12, 20)] for name in draw(tmp_path, 8)}
    for name, boxes in part.items():
        voc((tmp_path / name).with_suffix(".xml"), name, boxes)
    (tmp_path / "0003.jpg").unlink()
    numbers, text = total(tmp_path)
    assert numbers == (7, 14) and "2 objects of 1 missing picture" in text


def test_labels_of_a_picture_with_the_name_of_a_split(tmp_path):
    """They are no list of pictures."""
    for name, boxes in draw(tmp_path, ("test.jpg", "a.jpg", "b.jpg", "c.jpg"), empty=()).items():
        yolo((tmp_path / name).with_suffix(".txt"), boxes)
    write(tmp_path / "classes.txt", "\n".join(CLASSES))
    assert total(tmp_path)[0] == (4, 4)


@pytest.mark.parametrize(
    "stored",
    ["/data/local-files/?d=set/{}", "3f2a9c01-{}", "upload/3f2a9c01-{}", "C:\\me\\{}"],
)
def test_names_as_label_studio_stores_them(tmp_path, stored):
    part = draw(tmp_path / "images", ("a b.jpg", "ü.jpg", "c.jpg", "d.jpg"), empty=())
    names = {stored.format(name.replace(" ", "%20")): boxes for name, boxes in part.items()}
    write(tmp_path / "result.json", coco(names))
    assert total(tmp_path)[0] == (4, 4)


def test_bare_names_in_two_folders_and_addresses_in_place_of_names(tmp_path):
    part = draw(tmp_path / "cam1", 3, empty=()) | draw(tmp_path / "cam2", ("b1.jpg", "b2.jpg", "b3.jpg"), ())
    write(tmp_path / "result.json", coco(part))
    assert total(tmp_path)[0] == (6, 6)

    def as_lvis(content):
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/cam/{image.pop('file_name')}"

    edit_json(tmp_path / "result.json", as_lvis)
    assert total(tmp_path)[0] == (6, 6)


def test_equal_names_in_two_folders_that_the_file_names(tmp_path):
    part = {}
    for folder in ("cam1", "cam2"):
        part |= {f"{folder}/{name}": boxes for name, boxes in draw(tmp_path / "all" / folder, 3, ()).items()}
    write(tmp_path / "result.json", coco(part))
    assert total(tmp_path)[0] == (6, 6)


# Poses and angles


def pose(line, points):
    label, x, y, w, h = map(float, line.split())
    values = [value for a, b in points for value in (x + a * w, y + b * h)]
    return " ".join([f"{label:.0f}", *(f"{value:.5f}" for value in (x, y, w, h, *values))])


def test_poses_are_named(tmp_path):
    plain_yolo(tmp_path)
    points = [(-0.4, -0.3), (0.3, -0.2), (0.1, 0.4), (-0.2, 0.1)]
    for file in (tmp_path / "labels").iterdir():
        write(file, pose(file.read_text(), points))
    assert "keypoints (a pose)" in refused(tmp_path)


def test_polygons_of_equal_length_are_no_poses(tmp_path):
    """Hexagons, everywhere in the picture."""
    plain_yolo(tmp_path, 12)
    for number, file in enumerate(sorted((tmp_path / "labels").iterdir())):
        x, y = 0.1 + 0.07 * number, 0.9 - 0.07 * number
        angles = np.arange(6) * np.pi / 3
        outline = np.stack([x + 0.08 * np.cos(angles), y + 0.08 * np.sin(angles)], 1).clip(0, 1)
        write(file, f"1 {' '.join(map(str, outline.ravel().round(4)))}")
    assert total(tmp_path)[0] == (12, 12)


def test_turned_boxes(tmp_path):
    plain_yolo(tmp_path)
    for file in (tmp_path / "labels").iterdir():
        write(file, "0 0.5 0.2 0.7 0.5 0.5 0.8 0.3 0.5")
    _, text = prepared(tmp_path)
    assert "turned boxes, of four corners, that get an upright box: 8" in text
    (entry,) = find_parts(tmp_path).parts[0].read().content["annotations"][:1]
    assert entry["bbox"] == [0.3 * WIDTH, 0.2 * HEIGHT, 0.4 * WIDTH, 0.6 * HEIGHT]


def test_rotation_of_cvat(tmp_path):
    content = coco({name: [(1, 20, 10, 16, 8)] for name in draw(tmp_path, 4, empty=())})
    for entry in content["annotations"]:
        entry["attributes"] = {"rotation": 90.0, "occluded": False}
    write(tmp_path / "instances_default.json", content)
    assert "box without its rotation (turned): 4" in prepared(tmp_path)[1]
    first, *_ = find_parts(tmp_path).parts[0].read().content["annotations"]
    assert first["bbox"] == [24, 6, 8, 16], "the box of 16 × 8 around (28, 14), upright"


# Splits


def test_a_word_of_a_split_alone_is_a_name(tmp_path):
    for name in ("train", "car", "bus"):
        for file, boxes in draw(tmp_path / "vehicles" / name, 3, empty=()).items():
            voc((tmp_path / "vehicles" / name / file).with_suffix(".xml"), file, boxes)
    for name in ("hall 1", "hall 2", "test bench"):
        for file, boxes in draw(tmp_path / "halls" / name, 3, empty=()).items():
            labelme((tmp_path / "halls" / name / file).with_suffix(".json"), file, boxes)
    assert total(tmp_path / "vehicles")[0] == total(tmp_path / "halls")[0] == (9, 9)
    part = draw(tmp_path / "one/images", 5, empty=())
    write(tmp_path / "one/dev_2026.json", coco(part))
    assert total(tmp_path / "one")[0] == (5, 5)


def test_words_of_splits_beside_others(tmp_path):
    for split in ("train", "val"):
        part = draw(tmp_path / f"{split}_images", 4, empty=())
        write(tmp_path / f"instances_{split}2017.json", coco(part))
    assert prepared(tmp_path)[0] == {"train": (4, 4), "val": (4, 4)}
    write(tmp_path / "batch2/extra.json", coco(draw(tmp_path / "batch2", 2, empty=())))
    assert "batch2/extra.json in none" in refused(tmp_path)
    assert prepared(tmp_path, leave_out=("batch2/*",))[0] == {"train": (4, 4), "val": (4, 4)}


@pytest.mark.parametrize("text", ["val: valid/images\n", "val: labels\ntest: gone.txt\n", "names: {}\n", ""])
def test_descriptions_without_a_validation_set(tmp_path, text):
    """The folder is absent or empty; only names; keys that are texts."""
    plain_yolo(tmp_path, names=False)
    names = 'names: {"0": disc, "1": box, "2": star}\n'
    write(tmp_path / "data.yaml", names if text.startswith("names") else f"train: images\n{text}{names}")
    counts, lines = prepared(tmp_path)
    assert counts["train"][1] + counts["val"][1] == 8 and "at random" in lines
    assert ("data.yaml names no pictures for val" in lines) == text.startswith("val")


def test_a_folder_that_does_not_exist_chooses_nothing(tmp_path):
    plain_yolo(tmp_path, names=False)
    plain_yolo(tmp_path / "validation", 3, names=False)
    write(tmp_path / "data.yaml", "train: images\nval: valid/images\nnames: [disc, box, star]\n")
    assert "3 objects of 3 pictures of YOLO (validation/labels/0000.txt and 2 more) in none" in refused(
        tmp_path
    )


# The random division, and copies


def test_the_random_division_has_objects_in_both_parts(tmp_path):
    for number in (1, 2):
        part = noisy(tmp_path / f"{number}", range(10))
        part |= {name: [] for name in [*part][number:]}
        write(tmp_path / f"{number}/instances.json", coco(part))
    assert "1 picture with objects" in refused(tmp_path / "1")
    assert [number for _, number in prepared(tmp_path / "2")[0].values()] == [1, 1]
    part = noisy(tmp_path / "rare", range(9))
    for label, name in enumerate([*part][3:5], 1):  # classes with one object
        part[name].append((label, 30, 4, 12, 20))
    write(tmp_path / "rare/instances.json", coco(part))
    splits, _ = read_splits(tmp_path / "rare", find_parts(tmp_path / "rare"), ReadOptions())
    assert min(splits["train"].per_class.values()) > 0
    content = coco(noisy(tmp_path / "crowds", range(6)))
    for entry in content["annotations"][1:]:
        entry["iscrowd"] = 1
    write(tmp_path / "crowds/instances.json", content)
    assert "1 picture with objects" in refused(tmp_path / "crowds")


def noise(seed):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), np.uint8)
    ).resize((WIDTH, HEIGHT))


@pytest.mark.parametrize("form", ["png", "bmp", "comment"])
def test_pictures_with_equal_pixels_in_two_splits(tmp_path, form):
    train = noisy(tmp_path / "train", range(4), "jpg")
    name = f"a.{'jpg' if form == 'comment' else form}"
    val = noisy(tmp_path / "val", range(10, 13), "jpg") | {name: [ONE]}
    content = (tmp_path / "train/1.jpg").read_bytes()
    if form == "comment":
        (tmp_path / "val" / name).write_bytes(content[:2] + b"\xff\xfe\0\4ab" + content[2:])
    else:
        Image.open(tmp_path / "train/1.jpg").save(tmp_path / "val" / name)
    write(tmp_path / "train.json", coco(train))
    write(tmp_path / "val.json", coco(val))
    error = refused(tmp_path)
    assert "1 picture of val are copies of ones of train" in error and f"/val/{name}" in error


def test_near_and_mirrored_copies_in_two_splits_are_counted(tmp_path):
    for split, numbers in (("train", range(4)), ("val", range(10, 14))):
        write(tmp_path / f"{split}.json", coco(noisy(tmp_path / split, numbers)))
    noise(1).save(tmp_path / "val/10.png", format="jpeg", quality=70)
    noise(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "val/11.png")
    _, text = prepared(tmp_path)
    assert "2 pictures of val are nearly equal to ones of train, or mirrored" in text


def test_near_copies_stay_in_one_part(tmp_path):
    part = {}
    for number in range(12):
        picture = noise(number)
        for copy in range(2):
            name = f"x{number}_jpg.rf.{number}{copy}.jpg" if number < 6 else f"x{number}_{copy}.jpg"
            picture.save(tmp_path / name, quality=95 - 20 * copy)
            part[name] = [ONE]
            if number < 6:
                picture = noise(100 + number)  # of one origin, but mirrored or cropped
    write(tmp_path / "instances.json", coco(part))
    splits, lines = read_splits(tmp_path, find_parts(tmp_path), ReadOptions())
    origins = [{each["file_name"].partition("_")[0] for each in splits[s].content["images"]} for s in splits]
    assert not origins[0] & origins[1] and len(origins[0] | origins[1]) == 12
    assert any("nearly equal ones, or with ones of their origin: 12" in line for line in lines)


@pytest.mark.parametrize("splits", [["train", "val"], ["all"]])
def test_pictures_of_12_bits_in_16(tmp_path, splits):
    """They are no copies of each other, and they are named."""
    for number, split in enumerate(splits):
        (tmp_path / split).mkdir()
        values = np.random.default_rng(number).integers(0, 4096, (8, HEIGHT, WIDTH), np.uint16)
        for each in range(8):
            Image.fromarray(values[each]).save(tmp_path / split / f"{each}.png")
        part = {f"{each}.png": [ONE] for each in range(8)}
        write(tmp_path / f"{split}.json", coco(part))
    text = prepared(tmp_path)[1]
    assert f"{8 * len(splits)} pictures use at most 12 of 16 bits" in text and "equal" not in text


def test_copies_with_other_objects(tmp_path):
    first, second, *_ = sorted(plain_yolo(tmp_path))
    for name in (first, second):
        shutil.copyfile(tmp_path / "images" / name, tmp_path / "images" / f"copy of {name}")
    labels = [(tmp_path / "labels" / name).with_suffix(".txt") for name in (first, f"copy of {first}")]
    shutil.copyfile(*labels)
    numbers, text = total(tmp_path)
    assert numbers == (10, 9) and "1 picture have copies with other objects" in text and f"/{second}" in text


@pytest.mark.parametrize("beside", [True, False])
def test_split_keeps_copies_together(tmp_path, beside, capsys):
    part = noisy(tmp_path / "images", range(6))
    for name in [*part]:
        shutil.copyfile(tmp_path / "images" / name, tmp_path / "images" / f"{name} (1).png")
    write(tmp_path / "all.json", coco(part | {f"{name} (1).png": boxes for name, boxes in part.items()}))
    if not beside:
        shutil.rmtree(tmp_path / "images")
    parts = split_coco(tmp_path / "all.json", (tmp_path / "a.json", tmp_path / "b.json"), 0.3)
    first, second = ({each["file_name"][0] for each in content["images"]} for content in parts)
    assert first | second == {*"012345"} and (not beside or not first & second)
    assert ("not beside it" in capsys.readouterr().err) != beside


def test_a_camera_that_does_not_move(tmp_path):
    """All pictures are nearly equal: they are divided all the same."""
    background = np.asarray(noise(0)).copy()
    part = {}
    for number in range(10):
        background[:2, :2] = number
        Image.fromarray(background).save(tmp_path / f"{number}.png")
        part[f"{number}.png"] = [ONE]
    write(tmp_path / "instances.json", coco(part))
    counts, text = prepared(tmp_path)
    assert counts == {"train": (8, 8), "val": (2, 2)} and "10 pictures are nearly equal" in text


# Classes


def test_notes_about_classes(tmp_path):
    for split, names in (("train", ["disc", "box", "Disc"]), ("val", ["disc", "box", "star"])):
        part = {name: [(n % 3, 3, 4, 20, 20)] for n, name in enumerate(draw(tmp_path / split, 3))}
        content = coco(part)
        for category, name in zip(content["categories"], names, strict=True):
            category["name"] = name
        write(tmp_path / f"{split}.json", content)
    text = prepared(tmp_path)[1]
    assert (
        "differ only in capitals, spaces or Unicode form: 'disc', 'Disc'" in text
        and "in val and none in train: star" in text
    )
    assert [line.split() for line in text.splitlines() if line.split()[0] in ("disc", "star")] == [
        ["disc", "1", "1"],
        ["star", "0", "1"],
    ]


# Values in other forms


def test_flags_of_voc(tmp_path):
    flags = ("<difficult>Unspecified</difficult>", "<truncated>False</truncated>", "<difficult/>", "")
    for flag, (name, boxes) in zip(flags, draw(tmp_path, 4, empty=()).items(), strict=True):
        file = (tmp_path / name).with_suffix(".xml")
        voc(file, name, boxes)
        write(file, file.read_text().replace("<bndbox>", f"{flag}<bndbox>"))
    assert total(tmp_path)[0] == (4, 4)


@pytest.mark.parametrize(
    "values",
    [
        {"iscrowd": "0", "bbox": ["3", "4", "20.0", "20"], "area": "400"},
        {"segmentation": ""},
        {"segmentation": [3, 4, 23, 4, 23, 24, 3, 24]},
        {"segmentation": [3, 4, 20, 20]},
        {"segmentation": [[3, 4, 20, 20]]},
        {"segmentation": [[]]},
        {"segmentation": {}},
    ],
)
def test_values_of_coco(tmp_path, values):
    content = coco({name: [ONE] for name in draw(tmp_path, 5)})
    for entry in content["annotations"]:
        entry |= values
    write(tmp_path / "result.json", content)
    numbers, text = total(tmp_path)
    assert numbers == (5, 5) and "values in another form" in text
    boxes = [each["bbox"] for each in find_parts(tmp_path).parts[0].read().content["annotations"]]
    assert boxes == [[3, 4, 20, 20]] * 5


def test_an_unused_category_with_the_name_of_a_used_one(tmp_path):
    content = coco({name: [ONE] for name in draw(tmp_path, 5)})
    content["categories"] = [{"id": 0, "name": "disc"}, {"id": 1, "name": "disc", "supercategory": "disc"}]
    write(tmp_path / "result.json", content)
    assert total(tmp_path)[0] == (5, 5)
    content["annotations"][0]["category_id"] = 0
    write(tmp_path / "result.json", content)
    assert "unique" in refused(tmp_path)


def test_a_list_of_voc_with_an_exact_path(tmp_path):
    for folder in ("cam1", "backup/cam1"):
        for name, boxes in draw(tmp_path / folder, 4, empty=()).items():
            voc((tmp_path / folder / name).with_suffix(".xml"), name, boxes)
    write(tmp_path / "ImageSets/Main/train.txt", "cam1/0000\ncam1/0001\n")
    write(tmp_path / "ImageSets/Main/val.txt", "cam1/0002\ncam1/0003\n")
    counts, text = prepared(tmp_path)
    assert counts == {"train": (2, 2), "val": (2, 2)} and "): no list" in text


# Formats that are not read

BOX = {"label": "disc", "coordinates": {"x": 9, "y": 9, "width": 4, "height": 4}}
SAMPLES = {  # the beginning of a file as the tool documents it
    "Label Studio's JSON": [
        {"annotations": [{"result": [{"from_name": "label", "type": "rectanglelabels"}]}]}
    ],
    "CVAT for images": '<?xml version="1.0"?>\n<annotations>\n<image id="0" name="a.jpg">',
    "LabelMe 3.0 (XML)": "<annotation><filename>a.jpg</filename><object><polygon><pt><x>1</x></pt></polygon>",
    "Supervisely": {"size": {"height": 9}, "objects": [{"classTitle": "disc", "points": {"exterior": []}}]},
    "Labelbox": [{"data_row": {"id": "x"}, "projects": {}}],
    "Darwin (V7)": {
        "version": "2.0",
        "item": {"slots": []},
        "annotations": [{"bounding_box": {}, "slot_names": ["0"]}],
    },
    "CreateML": [{"image": "a.jpg", "annotations": [BOX]}],
    "Datumaro": {"info": {}, "categories": {"label": {"labels": []}}, "items": []},
    "BDD100K": [{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]}],
    "SuperAnnotate": {"metadata": {}, "instances": [{"className": "disc", "type": "bbox"}]},
    "Kili": [{"labels": [{"jsonResponse": {}}], "externalId": "a"}],
    "Hasty": {"project_name": "x", "export_format_version": "1.1", "images": [{"image_name": "a.jpg"}]},
    "FiftyOne": {"samples": [{"ground_truth": {"_cls": "Detections"}}]},
    "MMDetection's data_list": {"metainfo": {}, "data_list": []},
    "Detectron2's dicts": [{"file_name": "a.jpg", "annotations": [{"bbox_mode": 0}]}],
    "Cityscapes": {"imgHeight": 9, "objects": [{"label": "car", "polygon": [[1, 2]]}]},
    "COCO's results": [{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.9}],
    "xView and other GeoJSON": {"type": "FeatureCollection", "features": []},
    "Hugging Face's metadata.jsonl": {"file_name": "a.jpg", "objects": {"bbox": []}},
    "JSON lines": {"path": "a.jpg", "boxes": []},
    "odgt (CrowdHuman)": {"ID": "1", "gtboxes": [{"tag": "person"}]},
    "OpenImages' csv": "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n",
    "VIA's csv": "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes\n",
    "csv of Roboflow, TensorFlow or Kaggle": "filename,width,height,class,xmin,ymin,xmax,ymax\n",
    "csv of RetinaNet": "images/a.jpg,1,2,30,40,disc\nimages/b.jpg,,,,,\n",
    "MOT": "1,1,794.2,47.5,71.2,174.8,1,1,0.8\n",
    "VisDrone": "684,8,273,116,0,0,0,0\n406,119,265,70,0,0,0,0\n",
    "KITTI": "Car 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n",
    "DOTA": "imagesource:GoogleEarth\ngsd:0.14\n2753 2408 2861 2385 2888 2468 2805 2502 plane 0\n",
    "WIDER FACE": "0--Parade/a.jpg\n1\n449 330 122 149 0 0 0 0 0 0\n",
}


@pytest.mark.parametrize("row", FOREIGN, ids=lambda row: row.name)
def test_formats_that_are_not_read_are_named(tmp_path, row):
    file = tmp_path / f"x{row.endings.split()[0]}"
    write(file, SAMPLES.get(row.name, "x"))
    assert named_format(file) is row
    assert not (file.suffix == ".xml" and is_voc(file))
    draw(tmp_path, 2)
    assert row.name in refused(tmp_path)


def test_other_files_are_no_annotations(tmp_path):
    """Of formats that are read, and of programs."""
    part = plain_yolo(tmp_path)
    write(tmp_path / "coco.json", coco(part))
    labelme(tmp_path / "labelme.json", "0000.jpg", [])
    voc(tmp_path / "voc.xml", "0000.jpg", [(0, 1, 2, 30, 20)])
    write(tmp_path / "results.csv", "epoch,time,train/box_loss,metrics/mAP50(B)\n1,2.0,1.5,0.2\n")
    write(tmp_path / "requirements.txt", "torch==2.10\n")
    write(tmp_path / "package.json", {"name": "x", "version": "1.0.0", "scripts": {}})
    write(tmp_path / "train.txt", "images/0000.jpg\nimages/0001.jpg\n")
    buffer = io.BytesIO()
    np.savez(buffer, np.zeros(3))
    (tmp_path / "x.npz").write_bytes(buffer.getvalue())
    assert [file.name for file in tmp_path.rglob("*") if file.is_file() and named_format(file)] == []


def test_archives_beside_their_contents_are_ignored(tmp_path):
    part = draw(tmp_path / "images", 4, empty=())
    write(tmp_path / "instances.json", coco(part))
    draw(tmp_path / "test_images", 2)
    (tmp_path / "annotations.zip").write_bytes(b"PK\3\4")
    assert total(tmp_path)[0] == (4, 4)


# Several annotation files, each with its own folder


def tasks(root, numbers):
    """Tasks as CVAT exports them: equal names of frames, a file and a folder of pictures each."""
    for name, number in numbers.items():
        part = draw(root / name / "images/default", number, empty=())
        write(root / name / "annotations/instances_default.json", coco(part))


def test_tasks_side_by_side(tmp_path):
    tasks(tmp_path, {"task_1": 4, "task_2": 3, "task_3": 6})
    (tmp_path / "task_1/images/default/0001.jpg").unlink()
    numbers, text = total(tmp_path)
    assert numbers == (12, 12) and "3 annotation files are used together" in text
    splits, _ = read_splits(tmp_path, find_parts(tmp_path), ReadOptions())
    for part in splits.values():
        names = {each["id"]: each["file_name"] for each in part.images}
        for entry in part.content["annotations"]:
            task, name = (Path(names[entry["image_id"]]).parts[n] for n in (0, -1))
            content = json.loads((tmp_path / task / "annotations/instances_default.json").read_text())
            numbers = {each["file_name"]: each["id"] for each in content["images"]}
            boxes = [each["bbox"] for each in content["annotations"] if each["image_id"] == numbers[name]]
            assert entry["bbox"] in boxes, "of its own task"


def test_tasks_with_other_classes_are_refused(tmp_path):
    """Their pictures may have objects of the others' classes, without boxes."""
    tasks(tmp_path, {"task_1": 4, "task_2": 3})
    file = tmp_path / "task_2/annotations/instances_default.json"
    edit_json(file, lambda content: content["categories"][0].update(name="other"))
    assert "3 objects of 3 pictures of task_2" in refused(tmp_path)


# What the lines say


@pytest.mark.parametrize("file", ["classes.txt", "data_old.yaml", "notes.json"])
@pytest.mark.parametrize("names", [CLASSES[::-1], [*CLASSES, "other"]])
def test_two_lists_of_classes(tmp_path, names, file):
    plain_yolo(tmp_path)
    write(tmp_path / "data.yaml", f"train: images\nnames: {json.dumps([*CLASSES])}\n")
    assert "classes.txt" not in total(tmp_path)[1]
    ids = [{"id": number, "name": name} for number, name in enumerate(names)]
    texts = {"classes.txt": "\n".join(names), "notes.json": json.dumps({"categories": ids})}
    write(tmp_path / file, texts.get(file, f"names: {json.dumps([*names])}"))
    numbers, text = total(tmp_path)
    (line,) = (line for line in text.splitlines() if f"{file} names" in line)
    assert numbers == (8, 8) and names[0] in line and ", ".join(CLASSES) in line


def test_a_picture_in_a_format_that_is_not_read(tmp_path):
    plain_yolo(tmp_path)
    picture = next((tmp_path / "images").iterdir())
    picture.rename(picture.with_suffix(".heic"))
    assert f"{picture.stem}.heic" in refused(tmp_path)


def test_labels_that_are_left_out(tmp_path):
    """Their picture is not one without objects."""
    plain_yolo(tmp_path)
    file = sorted((tmp_path / "labels").iterdir())[0]
    counts, text = prepared(tmp_path, leave_out=(f"labels/{file.name}",))
    assert sum(number for number, _ in counts.values()) == 7 and "that no annotation of a split names" in text


def test_a_folder_named_like_a_split_beside_others(tmp_path):
    """``eval`` is no word of a split: both folders are divided at random."""
    plain_yolo(tmp_path / "train")
    plain_yolo(tmp_path / "eval", names=False)
    numbers, text = total(tmp_path)
    assert numbers == (16, 16) and "train is no split" in text


def test_an_empty_line_among_the_names_of_classes(tmp_path):
    plain_yolo(tmp_path)
    write(tmp_path / "classes.txt", "\n\n".join(CLASSES))
    assert "classes.txt: expected a name in each line" in refused(tmp_path)
    write(tmp_path / "classes.txt", "\n".join(CLASSES) + "\n\n")
    assert total(tmp_path)[0] == (8, 8)


def test_labelme_with_the_name_of_another_picture(tmp_path):
    for name, boxes in draw(tmp_path, 4, empty=()).items():
        labelme((tmp_path / name).with_suffix(".json"), name, boxes)
    assert total(tmp_path)[0][0] == 4
    first, second = (tmp_path / f"{number:04}.json" for number in (0, 1))
    content = first.read_text(), second.read_text()
    first.write_text(content[1])
    second.write_text(content[0])
    assert "imagePath: expected 0000" in refused(tmp_path)


def test_an_annotation_that_is_no_xml(tmp_path):
    for name, boxes in draw(tmp_path, 4, empty=()).items():
        voc((tmp_path / name).with_suffix(".xml"), name, boxes)
    write(tmp_path / "0001.xml", "")
    assert "0001.xml: it cannot be read: expected XML" in refused(tmp_path)


def test_a_picture_that_cannot_be_decoded(tmp_path):
    for split in ("train", "val"):
        part = draw(tmp_path / split, 3, empty=())
        write(tmp_path / f"annotations/instances_{split}.json", coco(part))
    for split in ("train", "val"):
        picture = sorted((tmp_path / split).iterdir())[0]
        Image.effect_noise((WIDTH, HEIGHT), 90).save(picture, quality=95)
        content = picture.read_bytes()
        picture.write_bytes(content[: len(content) * 2 // 3])
        text = total(tmp_path)[1] if split == "train" else refused(tmp_path)
        assert f"{split}: 1 picture cannot be decoded" in text


def test_pictures_in_a_folder_of_a_training(tmp_path):
    plain_yolo(tmp_path)
    plain_yolo(tmp_path / "old", 3, names=False)
    write(tmp_path / "old/last_checkpoint", "epoch_1.pth")
    numbers, text = total(tmp_path)
    assert numbers == (8, 8) and "3 pictures of 1 folder (old): written by trainings" in text


@pytest.mark.parametrize("name", ["YOLO", "COCO"])
def test_pictures_that_lose_all_objects_are_counted(tmp_path, name):
    part = plain_yolo(tmp_path) if name == "YOLO" else draw(tmp_path, 8, empty=())
    if name == "YOLO":
        write(tmp_path / "labels/0003.txt", "7 0.5 0.5 0.2 0.2\n")
    else:
        write(tmp_path / "all.json", coco({**part, "0003.jpg": [(0, 3, 4, 0, 20)]}))
    assert "skip_invalid" in refused(tmp_path)
    numbers, text = total(tmp_path, skip_invalid=True)
    assert numbers == (8, 7) and "used without objects, because all theirs are invalid: 1" in text


def test_equal_objects_and_pictures_with_several_frames_are_counted(tmp_path):
    part = plain_yolo(tmp_path)
    first, second = ((tmp_path / "labels" / name).with_suffix(".txt") for name in [*part][:2])
    write(first, first.read_text() * 2)
    write(second, "\n")
    frames = [noise(number) for number in range(3)]
    frames[0].save(tmp_path / "images/a.gif", save_all=True, append_images=frames[1:])
    text = total(tmp_path)[1]
    assert "with the class and the box of another one: 1" in text and "several frames or pages" in text


def test_results_with_scores_are_predictions(tmp_path):
    """Ultralytics writes them beside its plots."""
    plain_yolo(tmp_path)
    write(tmp_path / "data.yaml", f"train: images\nnames: {json.dumps([*CLASSES])}\n")
    write(tmp_path / "runs/detect/val/predictions.json", SAMPLES["COCO's results"])
    draw(tmp_path / "runs/detect/val", 2)
    numbers, text = total(tmp_path)
    assert numbers == (8, 8) and "predictions.json): predictions" in text


def test_lines_count_objects(tmp_path):
    """Of predictions, of labels without a picture; hidden files are counted."""
    part = plain_yolo(tmp_path)
    row = "1 0.5 0.5 0.2 0.2"
    write(tmp_path / "labels/gone.txt", f"{row}\n" * 3)
    write(tmp_path / "predicted/0001.txt", f"{row} 0.9\n" * 4)
    write(tmp_path / "out/results.json", {"model": "a", "score_threshold": 0.3})
    write(
        tmp_path / "out/detections.json",
        coco({name: [*boxes, (1, 1, 1, 9, 9)] for name, boxes in part.items()}),
    )
    write(tmp_path / ".hidden/notes.txt", "a")
    write(tmp_path / "images/.DS_Store", "a")
    numbers, text = total(tmp_path)
    assert numbers == (8, 8)
    for line in (
        "3 objects of 1 file of YOLO: their pictures do not exist (",
        "20 objects of 2 files (out, predicted/0001.txt): predictions",
        "2 files (.hidden, images/.DS_Store): hidden",
    ):
        assert f"left out  {line}" in text


def test_the_group_of_roboflow_is_named(tmp_path):
    part = draw(tmp_path, 6, empty=())
    content = coco(part, root_category=True)
    write(tmp_path / "_annotations.coco.json", content)
    numbers, text = total(tmp_path)
    assert numbers == (6, 6) and "the class shapes has no objects" in text


# What was read wrongly without a word


def test_labels_without_pictures_in_a_relative_folder(tmp_path, monkeypatch):
    plain_yolo(tmp_path / "data")
    for label in sorted(tmp_path.glob("data/labels/*"))[:3]:
        label.rename(label.with_name(f"copy_{label.name}"))
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "../" + tmp_path.name + "/data", tmp_path / "data"):
        assert "3 pictures beside it have no labels" in refused(Path(folder))


def test_yolo_without_splits_is_converted(tmp_path):
    plain_yolo(tmp_path)
    assert len(convert(tmp_path, "YOLO").images) == 8
    with pytest.raises(UserError, match="for train, found all of"):
        convert(tmp_path, "YOLO", "train")
    draw(tmp_path / "images/train", 1)
    yolo(tmp_path / "labels/train/0000.txt", [ONE])
    draw(tmp_path / "images/val", 1)
    with pytest.raises(UserError, match="for train, found all of"):
        convert(tmp_path, "YOLO")


def test_pictures_of_the_current_folder_are_no_part_of_another_one(tmp_path, monkeypatch):
    plain_yolo(tmp_path / "fruits")
    draw(tmp_path / "images/val", 3)
    monkeypatch.chdir(tmp_path)
    for path in ("", "path: .\n", "path: ./\n"):
        write(
            tmp_path / "fruits/data.yaml", f"{path}train: images\nval: images/val\nnames: [disc, box, star]\n"
        )
        assert total(Path("fruits"))[0] == (8, 8)


def test_other_labels_of_pictures_that_a_description_names(tmp_path):
    part = plain_yolo(tmp_path)
    write(tmp_path / "data.yaml", "train: images\nnames: [disc, box, star]\n")
    yolo(tmp_path / "labels_v2/0000.txt", part["0000.jpg"])
    assert "YOLO (labels_v2/0000.txt), whose 1 object are in the used files, too" in prepared(tmp_path)[1]
    yolo(tmp_path / "labels_v2/0000.txt", [(0, 9, 9, 9, 9)])
    error = refused(tmp_path)
    assert "1 object of 1 picture of YOLO (labels_v2/0000.txt)" in error and "beside " in error
    assert total(tmp_path, leave_out=("labels_v2",))[0] == (8, 8)


def test_pictures_without_a_file_of_labels_are_counted(tmp_path):
    plain_yolo(tmp_path)
    write(tmp_path / "labels/0000.txt", "")
    (tmp_path / "labels/0001.txt").unlink()
    assert "1 picture without labels are used as empty" in prepared(tmp_path)[1]


def test_objects_of_voc_inside_of_another_element(tmp_path):
    for name, boxes in noisy(tmp_path / "images", range(6)).items():
        file = tmp_path / "xml" / name.replace("png", "xml")
        voc(file, name, boxes)
        write(
            file,
            file.read_text()
            .replace("<object>", "<objects><object>")
            .replace("</object>", "</object></objects>"),
        )
    assert total(tmp_path)[0] == (6, 6)


@pytest.mark.parametrize(("angle", "expected"), [("90.0", [5, 2, 16, 22]), ("0.0", [2, 5, 22, 16])])
def test_boxes_of_voc_that_cvat_has_turned(tmp_path, angle, expected):
    rotation = f"<attributes><attribute><name>rotation</name><value>{angle}</value></attribute></attributes>"
    for name in noisy(tmp_path / "images", range(6)):
        file = tmp_path / "xml" / name.replace("png", "xml")
        voc(file, name, [(0, 2, 5, 22, 16)])
        write(file, file.read_text().replace("</object>", f"{rotation}</object>"))
    splits, decisions = read_splits(tmp_path, find_parts(tmp_path), ReadOptions())
    assert {tuple(e["bbox"]) for each in splits.values() for e in each.content["annotations"]} == {
        tuple(expected)
    }
    assert any("box without its rotation (turned): 6" in line for line in decisions) == (angle == "90.0")


def test_ignored_objects_of_coco_are_counted(tmp_path):
    content = coco(noisy(tmp_path, range(6)))
    for entry in content["annotations"][:2]:
        entry["ignore"] = 1
    write(tmp_path / "instances.json", content)
    assert " that training ignores" in prepared(tmp_path)[1]


def test_shapes_that_a_group_joins_are_counted(tmp_path):
    for name in noisy(tmp_path, range(6)):
        file = tmp_path / name.replace("png", "json")
        labelme(file, name, [(0, 2, 3, 9, 9), (0, 20, 20, 9, 9)])
        edit_json(file, lambda content: [shape.update(group_id=0) for shape in content["shapes"]])
    numbers, text = total(tmp_path)
    assert numbers == (6, 6) and "shapes joined to others with their label and group_id: 6" in text


def test_pictures_that_exif_turns_are_counted(tmp_path):
    plain_yolo(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "images/0000.jpg").save(tmp_path / "images/0000.jpg", exif=exif)
    assert "1 picture are turned by their EXIF orientation" in prepared(tmp_path)[1]


def test_pictures_of_another_split_in_a_file_are_not_called_missing_only(tmp_path):
    parts = {
        split: noisy(tmp_path / split, numbers)
        for split, numbers in (("train", range(5)), ("val", range(5, 8)))
    }
    write(tmp_path / "train.json", coco(parts["train"] | parts["val"]))
    write(tmp_path / "val.json", coco(parts["val"]))
    counts, text = prepared(tmp_path)
    assert counts == {"train": (5, 5), "val": (3, 3)}
    assert "3 with the name of a picture of another split or file" in text


def test_a_settings_file_with_the_keys_of_coco(tmp_path):
    write(tmp_path / "instances.json", coco(noisy(tmp_path / "images", range(6))))
    write(tmp_path / "config.json", {"images": "images", "annotations": "instances.json"})
    assert total(tmp_path)[0] == (6, 6)
    (tmp_path / "instances.json").write_text("{")
    assert "instances.json: it cannot be read" in refused(tmp_path)
