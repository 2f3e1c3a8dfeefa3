"""What is refused, and how objects are read."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dcnzoo.data.dataset import ReadOptions
from dcnzoo.data.preparation import read_data, read_splits
from dcnzoo.utils.errors import UserError

from .folders import coco, draw, labelme, voc, write, yolo


def objects(data, **options):
    (pool,) = read_splits(data, ReadOptions(**options))[1].values()
    return [(each.name, each.bbox, each) for each in pool.objects]


def coco_of(root, change, number=2):
    part = draw(root / "images", number, empty=())
    content = coco(part)
    change(content)
    write(root / "all.json", content)
    return root


def refused(data, *words, **options):
    with pytest.raises(UserError) as error:
        read_data(data, ReadOptions(**options))
    for word in words:
        assert word in str(error.value)


def test_two_formats_are_refused(tmp_path):
    part = draw(tmp_path, 3)
    write(tmp_path / "all.json", coco(part))
    for name, boxes in part.items():
        labelme((tmp_path / name).with_suffix(".json"), name, boxes)
    refused(tmp_path, "one format", "COCO", "LabelMe")
    assert read_splits(tmp_path / "all.json", ReadOptions())[0] == "COCO"


def test_nothing_is_refused(tmp_path):
    draw(tmp_path, 3)
    refused(tmp_path, "data.yaml", "3 .jpg")


def test_files_beside_splits_are_refused(tmp_path):
    for folder in ("train", "val", "batch2"):
        for name, boxes in draw(tmp_path / folder, 2).items():
            voc((tmp_path / folder / name).with_suffix(".xml"), name, boxes)
    refused(tmp_path, "batch2")


def test_a_picture_in_two_splits_is_refused(tmp_path):
    part = draw(tmp_path / "images", 4)
    write(tmp_path / "train.json", coco(part))
    write(tmp_path / "val.json", coco(dict([*part.items()][:1])))
    refused(tmp_path, "two splits", "1 picture")


def test_class_lists_of_vott_are_refused(tmp_path):
    for name, boxes in draw(tmp_path / "JPEGImages", 2).items():
        voc((tmp_path / "Annotations" / name).with_suffix(".xml"), name, boxes)
    write(tmp_path / "ImageSets/Main/cat_train.txt", "0000 1\n0001 -1\n")
    refused(tmp_path, "cat_train")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2 0.2 0.9", "prediction"),
        ("7 0.5 0.5 0.2 0.2", "class"),
        ("0 0.5 0.5 0.2", "values"),
        ("0 0.5 0.5 0 0.2", "area"),
        ("0 30 20 10 10", "0 to 1"),
        ("0 0.95 0.5 0.3 0.2", "coordinates in"),
        ("0 nan 0.5 0.2 0.2", "finite"),
    ],
)
def test_lines_of_yolo(tmp_path, line, words):
    draw(tmp_path / "images", 1)
    write(tmp_path / "labels/0000.txt", f"0 0.5 0.5 0.2 0.2\n{line}\n")
    write(tmp_path / "classes.txt", "disc\nbox\n")
    refused(tmp_path, "0000.txt:2", words)
    assert len(objects(tmp_path, skip_invalid=True)) == 1


def test_strays_of_yolo(tmp_path):
    for name, boxes in draw(tmp_path / "images", 4, empty=()).items():
        yolo((tmp_path / "labels" / name).with_suffix(".txt"), boxes)
    write(tmp_path / "classes.txt", "disc\nbox\nstar\n")
    write(tmp_path / "labels/deleted.txt", "0 0.5 0.5 0.2 0.2")
    assert any("deleted" in line for line in read_data(tmp_path, ReadOptions())[1])
    (tmp_path / "labels/0000.txt").rename(tmp_path / "labels/copy_0000.txt")
    refused(tmp_path, "copy_0000", "0000.jpg")


def test_keypoints_are_refused(tmp_path):
    draw(tmp_path / "images", 1)
    write(tmp_path / "data.yaml", "train: images\nkpt_shape: [2, 3]\nnames: [disc]\n")
    refused(tmp_path, "kpt_shape")


def test_voc_counts_from_1(tmp_path):
    draw(tmp_path, 1)
    box = "<bndbox><xmin>{}</xmin><ymin>3</ymin><xmax>12</xmax><ymax>8</ymax></bndbox>"
    text = "<annotation><object><name>a</name><difficult>{}</difficult>{}</object></annotation>"
    write(tmp_path / "0000.xml", text.format(0, box.format(3)))
    assert objects(tmp_path)[0][1] == [2, 2, 10, 6]
    assert objects(tmp_path, zero_based=True)[0][1] == [3, 3, 9, 5]
    write(tmp_path / "0000.xml", text.format(0, box.format(0)))
    refused(tmp_path, "zero_based", "0000.xml")
    write(tmp_path / "0000.xml", text.format(1, box.format(3)))
    refused(tmp_path, "difficult")


def test_entities_are_no_danger(tmp_path):
    draw(tmp_path, 1)
    levels = "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    write(
        tmp_path / "0000.xml",
        f'<!DOCTYPE x [<!ENTITY a "{"x" * 1000}">{levels}]><annotation>&j;</annotation>',
    )
    refused(tmp_path, "0000.xml")


def test_shapes_of_labelme(tmp_path):
    draw(tmp_path, 1)
    mask = io.BytesIO()
    Image.fromarray(np.full((3, 4), 255, np.uint8)).save(mask, "PNG")
    shapes = [
        {"label": "a", "shape_type": "polygon", "points": [[2, 2], [12, 2], [12, 8]]},
        {"label": "b", "shape_type": "circle", "points": [[20, 20], [25, 20]]},
        {"label": "c", "shape_type": "rectangle", "points": [[9, 9], [4, 4]], "group_id": 1},
        {"label": "c", "shape_type": "rectangle", "points": [[20, 4], [29, 9]], "group_id": 1},
        {
            "label": "d",
            "shape_type": "mask",
            "points": [[5, 6], [8, 8]],
            "mask": base64.b64encode(mask.getvalue()).decode(),
        },
    ]
    write(tmp_path / "0000.json", {"imagePath": "0000.jpg", "shapes": shapes})
    boxes = {name: [round(value) for value in box] for name, box, _ in objects(tmp_path)}
    assert boxes == {"a": [2, 2, 10, 6], "b": [15, 15, 10, 10], "c": [4, 4, 25, 5], "d": [5, 6, 4, 3]}
    shapes[0] |= {"shape_type": "line"}
    write(tmp_path / "0000.json", {"imagePath": "0000.jpg", "shapes": shapes})
    refused(tmp_path, "0000.json: 'a'", "line")
    write(tmp_path / "0000.json", {"imagePath": "else.jpg", "shapes": shapes})
    refused(tmp_path, "else.jpg")


def test_masks_of_coco(tmp_path):
    mask = np.zeros((40, 60), np.uint8, order="F")
    mask[5:9, 10:30] = 1
    rle = coco_mask.encode(mask)
    counts = [*np.diff(np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=0)), prepend=0)]
    counts.append(mask.size - sum(counts))

    def change(content):
        content["annotations"][0]["segmentation"] = {"size": [40, 60], "counts": rle["counts"].decode()}
        content["annotations"][1]["segmentation"] = {"size": [40, 60], "counts": [int(n) for n in counts]}

    for _, box, fields in objects(coco_of(tmp_path, change)):
        assert box == [10, 5, 20, 4] and fields.area == 80
        assert np.array_equal(coco_mask.decode(fields.segmentation), mask)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"bbox": [50, 30, 20, 20]}, "coordinates in 60 × 40"),
        ({"bbox": None}, "x, y, width, height"),
        ({"category_id": 9}, "category_id"),
        ({"image_id": 9}, "image_id"),
        ({"score": 0.5}, "prediction"),
        ({"segmentation": {"size": [4, 4], "counts": "52"}}, "RLE"),
    ],
)
def test_entries_of_coco(tmp_path, entry, words):
    coco_of(tmp_path, lambda content: content["annotations"][0].update(entry))
    refused(tmp_path, words)
    assert len(objects(tmp_path, skip_invalid=True)) == 1


def test_clip(tmp_path):
    coco_of(tmp_path, lambda content: content["annotations"][0].update(bbox=[50, 30, 20, 20]))
    assert objects(tmp_path, clip=True)[0][1] == [50, 30, 10, 10]


def test_a_group_of_roboflow_is_no_class(tmp_path):
    part = draw(tmp_path, 4, empty=())
    write(tmp_path / "_annotations.coco.json", coco(part, root_category=True))
    assert "shapes" not in {
        name for split in read_data(tmp_path, ReadOptions())[0].values() for name in split.classes
    }


def test_division(tmp_path):
    part = draw(tmp_path, [f"{n}_jpg.rf.{m}.jpg" for n in range(10) for m in range(3)], empty=())
    write(tmp_path / "all.json", coco(part))
    splits, _ = read_data(tmp_path, ReadOptions())
    names = {name: {file.name[0] for file in split.sizes} for name, split in splits.items()}
    assert names["train"].isdisjoint(names["val"]) and len(names["val"]) == 2
    assert splits["train"].classes == splits["val"].classes
