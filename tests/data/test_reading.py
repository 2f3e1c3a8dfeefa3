"""Reading data sets: which ones are refused, and how objects are read."""

import json
import os
import re
import shutil
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dcnzoo.data.builder import Builder
from dcnzoo.data.dataset import Dataset, ReadOptions
from dcnzoo.data.files import InvalidAnnotation, image_size
from dcnzoo.data.reading import describe
from dcnzoo.data.reading import read as read_data
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.formats import PICTURES
from tests.helpers.commands import run
from tests.helpers.folders import read
from tests.helpers.formats import CLASSES, FORMATS, SIZE, coco, draw, fruits, labelme, voc, write, yolo


def test_check_lists_each_problem(tmp_path):
    draw(tmp_path / "images", 1)
    write(tmp_path / "labels/0000.txt", "".join(f"9 0.5 0.5 0.2 0.2{number}\n" for number in range(30)))
    write(tmp_path / "classes.txt", "disc\nbox\n")
    output = run("data", "check", tmp_path, status=1)
    assert all(f"0000.txt:{number + 1}: class" in output for number in range(30))
    assert "30 problems; --skip-invalid leaves out" in output


def test_check_reads_json_as_a_training_does(tmp_path):
    part = draw(tmp_path / "coco", 4, empty=())
    write(tmp_path / "coco/all.json", coco(part))
    assert "no problems" in run("data", "check", tmp_path / "coco/all.json")
    content = coco(part)
    content["images"].append({**content["images"][0], "id": 99})
    write(tmp_path / "coco/all.json", content)
    output = run("data", "check", tmp_path / "coco/all.json", status=1)
    assert "images[4]: expected each picture once" in output
    labelme(tmp_path / "labelme/0000.json", "0000.jpg", draw(tmp_path / "labelme", 1, empty=())["0000.jpg"])
    assert re.search(
        "LabelMe(.|\n)*1 object(.|\n)*no problems", run("data", "check", tmp_path / "labelme/0000.json")
    )


def objects(data, **options):
    return [(each.name, each.bbox, each) for each in read_data(data, **options).objects]


def lines_of(data):
    pictures = read_data(data)
    return describe(pictures, pictures.split())


def coco_of(root, change, number=2):
    part = draw(root / "images", number, empty=())
    content = coco(part)
    change(content)
    write(root / "all.json", content)
    return root


def refused(data, *words, **options):
    with pytest.raises(UserError) as error:
        read_data(data, **options).split()
    for word in words:
        assert word in str(error.value)


def test_labels_of_yolo_without_names_are_refused(tmp_path):
    for name in draw(tmp_path / "images", 3, empty=()):
        write((tmp_path / "labels" / name).with_suffix(".txt"), BOX)
    with pytest.raises(UserError, match=r"data.yaml or classes.txt.* 6 files, such as \S+0000.txt; most"):
        read_data(tmp_path)


def test_two_formats_are_refused(tmp_path):
    part = draw(tmp_path, 3)
    write(tmp_path / "all.json", coco(part))
    for name, boxes in part.items():
        labelme((tmp_path / name).with_suffix(".json"), name, boxes)
    refused(tmp_path, "one format", "COCO", "LabelMe")
    assert read_data(tmp_path / "all.json").format == "COCO"


def test_nothing_is_refused(tmp_path):
    draw(tmp_path, 3)
    refused(tmp_path, "data.yaml", "3 files")


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
        ("0 30 20 10 10", "coordinates in"),
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
    assert any("deleted" in line for line in lines_of(tmp_path))
    (tmp_path / "labels/0000.txt").rename(tmp_path / "labels/copy_0000.txt")
    refused(tmp_path, "copy_0000", "0000.jpg")


def test_a_stray_label_beside_background_can_be_skipped(tmp_path):
    for name, boxes in draw(tmp_path / "images", 4, empty=()).items():
        yolo((tmp_path / "labels" / name).with_suffix(".txt"), boxes)
    write(tmp_path / "classes.txt", "\n".join(CLASSES))
    draw(tmp_path / "images", ["background.jpg"])
    write(tmp_path / "labels/deleted.txt", BOX)
    refused(tmp_path, "deleted.txt", "background.jpg", "skip_invalid=True")
    data = read_data(tmp_path, skip_invalid=True)
    assert len(data.pictures) == 5 and any("1 problem skipped" in note for note in data.notes)


def test_pictures_of_neighbours_are_not_used(tmp_path):
    """Only a file that names pictures may name those beside its folder, and a line says so."""
    part = draw(tmp_path / "images", 4, empty=())
    for name, boxes in part.items():
        yolo((tmp_path / "labels" / name).with_suffix(".txt"), boxes)
    write(tmp_path / "empty/classes.txt", "disc\nbox\nstar\n")
    write(tmp_path / "annotations/a.json", coco(part))
    refused(tmp_path / "empty", "expected YOLO's data.yaml or classes.txt")
    data = read_data(tmp_path / "annotations")
    assert len(data.pictures) == 4
    assert f"no pictures in {tmp_path / 'annotations'}: looked for in {tmp_path}, too" in data.notes


def test_names_of_darknet_are_in_any_file(tmp_path):
    for name, boxes in draw(tmp_path / "images", 4, empty=()).items():
        yolo((tmp_path / "images" / name).with_suffix(".txt"), boxes)
    write(tmp_path / "fruits.data", "classes = 3\ntrain = images\nnames = data/fruits.names\n")
    refused(tmp_path, "names: expected a file, found none at", "fruits.names")
    write(tmp_path / "fruits.names", "disc\n\nbox\nstar\n")  # the number of a class is that of its line
    refused(tmp_path, "names: expected a name for each class")
    write(tmp_path / "fruits.names", "disc\nbox\nstar\n\n")
    assert [*read_data(tmp_path).classes] == ["disc", "box", "star"]


def test_json_of_other_programs_is_not_used(tmp_path):
    """In a data set of JSON files, it may be a damaged annotation."""
    part = draw(tmp_path / "yolo/images", 4, empty=())
    for name, boxes in part.items():
        yolo((tmp_path / "yolo/labels" / name).with_suffix(".txt"), boxes)
    write(tmp_path / "yolo/settings.json", "{} // of an editor")
    refused(tmp_path / "yolo", "settings.json: JSON")
    write(tmp_path / "yolo/classes.txt", "disc\nbox\nstar\n")
    assert "other files, not used: 1 (" in " ".join(read_data(tmp_path / "yolo").notes)
    write(tmp_path / "a.json", coco(part))
    for file in (tmp_path / "yolo/labels", tmp_path / "yolo/classes.txt"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    refused(tmp_path, "settings.json: JSON")
    assert len(read_data(tmp_path, skip_invalid=True).pictures) == 4


def test_a_description_below_the_pictures(tmp_path):
    """Its ``..`` does not make other pictures of those that are read."""
    for name, boxes in draw(tmp_path / "images", 4, empty=()).items():
        yolo((tmp_path / "labels" / name).with_suffix(".txt"), boxes)
    write(tmp_path / "cfg/data.yaml", "path: ..\ntrain: images\nnames: [disc, box, star]\n")
    for data in (tmp_path, tmp_path / "cfg/data.yaml"):
        assert len(read_data(data).pictures) == 4
        assert [line for line in lines_of(data) if "not used" in line] == []


def test_a_description_in_a_linked_folder(tmp_path):
    """``..`` leads out of the folder that the link points to."""
    yolo(tmp_path / "here/labels/0000.txt", draw(tmp_path / "here/images", 1, empty=())["0000.jpg"])
    write(tmp_path / "here/cfg/data.yaml", "path: ..\ntrain: images\nnames: [disc, box, star]\n")
    (tmp_path / "link").symlink_to(tmp_path / "here/cfg")
    assert len(read_data(tmp_path / "link/data.yaml").pictures) == 1


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


def test_attributes_of_voc_files(tmp_path):
    """LabelImg writes them after Verify, VoTT always."""
    attributes = {"0000.jpg": "", "0001.jpg": ' verified="yes"', "0002.jpg": "\n  a='b'"}
    for name, boxes in draw(tmp_path, 3, empty=()).items():
        file = (tmp_path / name).with_suffix(".xml")
        voc(file, name, boxes)
        write(file, file.read_text().replace("<annotation>", f"<annotation{attributes[name]}>"))
    assert len(objects(tmp_path)) == 3


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
    shapes = [
        {"label": "a", "shape_type": "polygon", "points": [[2, 2], [12, 2], [12, 8]]},
        {"label": "c", "shape_type": "rectangle", "points": [[9, 9], [4, 4]], "group_id": 1},
        {"label": "c", "shape_type": "rectangle", "points": [[20, 4], [29, 9]], "group_id": 1},
        {"label": "d", "shape_type": "rectangle", "points": [[9, 9], [4, 9], [4, 4], [9, 4]]},
    ]
    write(tmp_path / "0000.json", {"imagePath": "0000.jpg", "shapes": shapes})
    boxes = {name: (box, each.segmentation) for name, box, each in objects(tmp_path)}
    expected = {"a": ([2, 2, 10, 6], [[2, 2, 12, 2, 12, 8]])}
    assert boxes == {**expected, "c": ([4, 4, 25, 5], None), "d": ([4, 4, 5, 5], None)}
    for kind in ("line", "mask", "circle"):
        shapes[0] |= {"shape_type": kind}
        write(tmp_path / "0000.json", {"imagePath": "0000.jpg", "shapes": shapes})
        refused(tmp_path, "0000.json: shapes[0]: ", kind)
    shapes[0] |= {"shape_type": "polygon", "points": [[2, 2]]}
    write(tmp_path / "0000.json", {"imagePath": "0000.jpg", "shapes": shapes})
    refused(tmp_path, "expected a polygon of 3 points or more", "got 'polygon' of 1 point")
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
        ({"segmentation": [3, 4, 23, 4, 23, 24, 3, 24]}, "segmentation"),
        ({"segmentation": [[3, 4, 20, 20]]}, "3 points"),
    ],
)
def test_entries_of_coco(tmp_path, entry, words):
    coco_of(tmp_path, lambda content: content["annotations"][0].update(entry))
    refused(tmp_path, words)
    assert len(objects(tmp_path, skip_invalid=True)) == 1


def test_objects_below_a_pixel_are_refused(tmp_path):
    """Such as boxes in parts of the picture's size: a training skips them, and they cannot be shown."""

    def relative(content):
        for entry in content["annotations"]:
            x, y, width, height = entry["bbox"]
            entry["bbox"] = [x / SIZE[0], y / SIZE[1], width / SIZE[0], height / SIZE[1]]

    coco_of(tmp_path, relative)
    refused(tmp_path, "annotations[0]: ", "at least 1 × 1 pixels")


def test_numbers_in_an_error_are_complete(tmp_path):
    """Each coordinate in the message is one of the file's."""
    values = np.random.default_rng(0).uniform(-900, 900, 40).tolist()
    for entry in ({"segmentation": [values], "bbox": None}, {"bbox": values[:4]}, {"bbox": values[:7]}):
        coco_of(tmp_path, lambda content, entry=entry: content["annotations"][0].update(entry))
        with pytest.raises(UserError) as error:
            read_data(tmp_path)
        text = re.sub(r" and \d+ more", "", str(error.value).rpartition("got")[2])
        numbers = re.findall(r"-?\d+(?:\.\d+)?", text)
        assert numbers and all(min(abs(float(n) - value) for value in values) < 0.01 for n in numbers)


@pytest.mark.parametrize("key", ["images", "categories"])
def test_ids_of_coco_are_there_once(tmp_path, key):
    coco_of(tmp_path, lambda content: content[key][1].update(id=content[key][0]["id"]))
    refused(tmp_path, f"{key}: expected each id once")


def test_clip(tmp_path):
    coco_of(tmp_path, lambda content: content["annotations"][0].update(bbox=[50, 30, 20, 20]))
    assert objects(tmp_path, clip=True)[0][1] == [50, 30, 10, 10]
    assert "clipped to their pictures: 1 box or polygon" in read_data(tmp_path, clip=True).notes


def test_an_object_that_is_refused_is_not_clipped(tmp_path):
    coco_of(tmp_path, lambda content: content["annotations"][0].update(bbox=[80, 30, 20, 20]))
    notes = read_data(tmp_path, clip=True, skip_invalid=True).notes
    assert any("1 problem skipped" in note for note in notes) and "clipped" not in " ".join(notes)


def test_a_group_of_roboflow_is_no_class(tmp_path):
    part = draw(tmp_path, 4, empty=())
    write(tmp_path / "_annotations.coco.json", coco(part, root_category=True))
    assert "shapes" not in {name for split in read_data(tmp_path).split().values() for name in split.classes}


def test_division(tmp_path):
    part = draw(tmp_path, [f"{n}_jpg.rf.{m}.jpg" for n in range(10) for m in range(3)], empty=())
    write(tmp_path / "all.json", coco(part))
    splits = read_data(tmp_path).split()
    names = {name: {picture.file.name[0] for picture in split} for name, split in splits.items()}
    assert names["train"].isdisjoint(names["val"]) and len(names["val"]) == 2
    assert splits["train"].classes == splits["val"].classes


# Boxes by hand


def test_four_corners_of_yolo_become_an_upright_box(tmp_path):
    for name in draw(tmp_path / "images", 2):
        write((tmp_path / "labels" / name).with_suffix(".txt"), "0 0.5 0.2 0.7 0.5 0.5 0.8 0.3 0.5")
    write(tmp_path / "classes.txt", "\n".join(CLASSES))
    expected = [18, 8, 24, 24]
    assert [box for _, box, _ in objects(tmp_path)] == [expected] * 2


def test_a_box_of_coco_that_cvat_has_turned(tmp_path):
    def turn(content):
        for entry in content["annotations"]:
            entry |= {"bbox": [20, 10, 16, 8], "attributes": {"rotation": 90.0, "occluded": False}}

    ((_, box, _), _) = objects(coco_of(tmp_path, turn))
    assert box == [24, 6, 8, 16], "the box of 16 × 8 around (28, 14), upright"


@pytest.mark.parametrize(("angle", "expected"), [("90.0", [5, 2, 16, 22]), ("0.0", [2, 5, 22, 16])])
def test_a_box_of_voc_that_cvat_has_turned(tmp_path, angle, expected):
    rotation = f"<attributes><attribute><name>rotation</name><value>{angle}</value></attribute></attributes>"
    draw(tmp_path, 1)
    voc(tmp_path / "0000.xml", "0000.jpg", [(0, 2, 5, 22, 16)])
    text = (tmp_path / "0000.xml").read_text().replace("</object>", f"{rotation}</object>")
    write(tmp_path / "0000.xml", text)
    assert objects(tmp_path)[0][1] == expected


@pytest.mark.parametrize(
    "values",
    [
        {"iscrowd": "0", "bbox": ["3", "4", "20.0", "20"], "area": "400"},
        {"segmentation": ""},
        {"segmentation": [[]]},
        {"segmentation": {}},
        {"segmentation": [[3, 4, 23, 4, 23, 24, 3, 24]], "bbox": [0, 0, 0, 0], "area": 0},
    ],
)
def test_values_of_coco(tmp_path, values):
    def change(content):
        for entry in content["annotations"]:
            entry |= {"bbox": [3, 4, 20, 20], "area": 400, **values}

    for _, box, fields in objects(coco_of(tmp_path, change)):
        assert (box, fields.area) == ([3, 4, 20, 20], 400)
        assert fields.segmentation in (None, [[3, 4, 23, 4, 23, 24, 3, 24]])


def test_a_box_that_contradicts_its_polygons_is_refused(tmp_path):
    """As of two corners."""
    polygon = [[13, 14, 23, 14, 23, 24, 13, 24]]
    coco_of(tmp_path, lambda c: c["annotations"][0].update(bbox=[13, 14, 23, 24], segmentation=polygon))
    refused(tmp_path, "annotations[0]: bbox: expected the box of the polygons, [13.0, 14.0, 10.0, 10.0]")


def test_masks_in_the_picture_stay_as_they_are(tmp_path):
    polygon = [[13.12345, 14, 23, 14, 23, 24.5, 13, 24]]
    box = [13, 14, 10, 10.5]
    coco_of(tmp_path, lambda c: c["annotations"][0].update(bbox=box, area=77.125, segmentation=polygon))
    read_data(tmp_path).write(tmp_path / "out/x.json")
    entry = json.loads((tmp_path / "out/x.json").read_text())["annotations"][0]
    assert (entry["segmentation"], entry["bbox"], entry["area"]) == (polygon, box, 77.12)


# Around a picture of 60 × 40 pixels: a box, and the part of it inside the picture.
CLIPPED = [
    ((-2, 3, 20, 15), (0, 3, 20, 15)),
    ((3, -2, 20, 15), (3, 0, 20, 15)),
    ((3, 4, 65, 15), (3, 4, 60, 15)),
    ((3, 4, 20, 43), (3, 4, 20, 40)),
    ((-9, 4, 1.25, 15), (0, 4, 1.25, 15)),
    ((58.75, 4, 65, 15), (58.75, 4, 60, 15)),
    ((-9, 4, 0.25, 15), None),  # less than a pixel is inside
    ((59.75, 4, 65, 15), None),
    ((-9, 4, -3, 15), None),
    ((3, 41, 20, 43), None),
]


@pytest.mark.parametrize(("corners", "expected"), CLIPPED, ids=str)
def test_each_side_clips(corners, expected):
    builder, size = Builder(Dataset({}), ReadOptions(clip=True)), SIZE
    if expected is None:
        with pytest.raises(InvalidAnnotation, match="an area"):
            builder.new_box("fig", corners, size)
        return
    x1, y1, x2, y2 = expected
    assert builder.new_box("fig", corners, size).bbox == [x1, y1, x2 - x1, y2 - y1] and builder.clipped == 1
    builder.options = ReadOptions()
    if max(abs(a - b) for a, b in zip(corners, expected, strict=True)) > 1:
        with pytest.raises(InvalidAnnotation, match="coordinates in 60 × 40"):
            builder.new_box("fig", corners, size)


def drawn_by_pycocotools(polygons, margin):
    """The mask of polygons in a picture of 300 × 200, drawn with a margin around it."""
    shifted = [(np.array(polygon).reshape(-1, 2) + margin).ravel().tolist() for polygon in polygons]
    size = 200 + 2 * margin, 300 + 2 * margin
    mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(shifted, *size)))
    return mask[margin : margin + 200, margin : margin + 300].astype(bool)


def bent(seed):
    """The outline of a bow around a random point: its parts inside the picture may be several."""
    rng = np.random.default_rng(seed)
    first, radius, width = rng.uniform(0, 6.3), rng.uniform(60, 200), rng.uniform(15, 40)
    angles = np.linspace(first, first + rng.uniform(1, 5.5), rng.integers(4, 30))
    rays = np.stack([np.cos(angles), np.sin(angles)], 1)
    centre = rng.uniform((-60, -60), (360, 260))
    return np.concatenate([rays * (radius + width), rays[::-1] * radius]) + centre


@pytest.mark.parametrize("seed", range(60))
def test_a_clipped_polygon_is_the_part_in_the_picture(seed):
    outline, builder = bent(seed), Builder(Dataset({}), ReadOptions(clip=True))
    expected = drawn_by_pycocotools([outline], 700)
    if not expected.any():
        with pytest.raises(InvalidAnnotation, match="an area"):
            builder.new_polygons("fig", [outline.tolist()], (300, 200))
        return
    result = builder.new_polygons("fig", [outline.tolist()], (300, 200))
    mask = drawn_by_pycocotools(result.segmentation, 0)
    assert (mask ^ expected).sum() <= 0.03 * expected.sum() + 5
    assert result.area == pytest.approx(expected.sum(), rel=0.03, abs=5)
    ys, xs = np.nonzero(expected)
    x, y, width, height = result.bbox
    box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert [x, y, x + width, y + height] == pytest.approx(box, abs=3)  # of thin tips, no pixel is drawn


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    files = {
        "YOLO": {"data.yaml": "train: .\nnames: [date, Feige ü]\n", "a.txt": "1 0.5 0.5 0.25 0.4\n"},
        "Pascal VOC": {
            "a.xml": "<annotation>\n<object><name>Feige ü</name><bndbox><xmin>23.5</xmin><ymin>13</ymin>"
            "<xmax>37.5</xmax><ymax>28</ymax></bndbox></object></annotation>"
        },
        "LabelMe": {
            "a.json": '{"imagePath": "a.jpg", "shapes": [{"label": "Feige ü", "shape_type": "rectangle", '
            '"points": [[22.5, 12], [37.5, 28]]}]}'
        },
        "COCO": {
            "a.json": '{"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": '
            '"Feige ü"}], "annotations": [{"image_id": 1, "category_id": 1, "bbox": [22.5, 12, 15, 16]}]}'
        },
    }
    for kind, texts in files.items():
        draw(tmp_path / kind, ["a.jpg"])
        for name, text in texts.items():
            (tmp_path / kind / name).write_bytes(text.replace("\n", "\r\n").encode(encoding))
        if encoding == "utf-16" and kind != "Pascal VOC":  # XML states its encoding
            refused(tmp_path / kind, kind)
            continue
        assert [(name, box) for name, box, _ in objects(tmp_path / kind)] == [("Feige ü", [22.5, 12, 15, 16])]


@pytest.mark.parametrize(
    ("kind", "annotation"),
    [("YOLO", b"\xff\xfe0\0"), ("Pascal VOC", b"<annotation><object>"), ("LabelMe", b'{"shapes": [3]}')],
)
def test_a_picture_whose_annotation_cannot_be_read_is_not_used(tmp_path, kind, annotation):
    """As a picture without objects, it would teach that its objects are background."""
    FORMATS[kind](tmp_path / "data", fruits(tmp_path / "drawn"))
    pictures = read_data(tmp_path / "data").pictures
    expected, source = {picture.file.name for picture in pictures}, pictures[0].source
    source.write_bytes(annotation.replace(b"}", b', "imagePath": "%b.jpg"}' % source.stem.encode()))
    refused(tmp_path / "data", str(source if kind != "YOLO" else source.stem))
    used = {picture.file.name for picture in read_data(tmp_path / "data", skip_invalid=True)}
    assert used == expected - {f"{source.stem}.jpg"}


TRIANGLE, TURNED = "0 .2 .2 .7 .2 .7 .8", "0 .5 .2 .7 .5 .5 .8 .3 .5"
UPRIGHT, BOX = "0 .2 .2 .7 .2 .7 .8 .2 .8", "0 .5 .5 .2 .2"


@pytest.mark.parametrize(
    ("lines", "words", "first"),
    [
        ([TRIANGLE] * 3, "", None),
        ([BOX] * 3, "", None),
        ([UPRIGHT] * 3, "", None),
        ([TRIANGLE, TURNED], "", None),
        ([TRIANGLE, TRIANGLE, BOX], "2 of 6 objects", 2),
        ([BOX, TRIANGLE, BOX], "4 of 6 objects", 0),
    ],
)
def test_what_the_data_decide_is_printed(tmp_path, lines, words, first):
    """Which masks are learnt, with the position of the first object that has none."""
    for name in draw(tmp_path / "yolo/images", 2):
        write((tmp_path / "yolo/labels" / name).with_suffix(".txt"), "\n".join(lines))
    write(tmp_path / "yolo/classes.txt", "disc\n")
    read_data(tmp_path / "yolo").write(tmp_path / "all.json")
    for data in ("yolo", "all.json"):
        printed = [line for line in lines_of(tmp_path / data) if "masks" in line]
        assert len(printed) == bool(words) and words in "".join(printed)
        if first is not None:
            assert printed[0].endswith(f"0000.txt:{first + 1}" if data == "yolo" else f"annotations[{first}]")


# Names of pictures


def test_a_picture_of_more_than_179_megapixels(tmp_path):
    file, limit = tmp_path / "a.pgm", Image.MAX_IMAGE_PIXELS
    file.write_bytes(b"P5 14000 13000 255\n")
    os.truncate(file, file.stat().st_size + 14000 * 13000)
    assert image_size(file)[::-1] == cv2.imread(str(file), cv2.IMREAD_GRAYSCALE).shape
    assert limit == Image.MAX_IMAGE_PIXELS, "the user's programs keep Pillow's limit"


def test_sizes_in_threads_keep_the_limit_of_pillow(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    draw(tmp_path, 1)
    with ThreadPoolExecutor(8) as threads:
        assert {*threads.map(image_size, [tmp_path / "0000.jpg"] * 800)} == {SIZE}
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("suffix", PICTURES)
@pytest.mark.parametrize("orientation", [None, 3, 6])
def test_sizes_are_those_of_pictures_as_they_are_loaded(tmp_path, suffix, orientation):
    file, exif = tmp_path / f"image{suffix}", Image.Exif()
    if orientation and suffix not in (".bmp", ".ppm"):
        exif[0x0112] = orientation
    Image.new("RGB", SIZE, (200, 30, 60)).save(file, exif=exif)
    width, height = image_size(file)
    assert mmcv.imread(str(file)).shape == (height, width, 3)
    file.write_bytes(b"")
    with pytest.raises(InvalidAnnotation, match=file.name):
        image_size(file)


@pytest.mark.parametrize("stored", ["/data/local-files/?d=set/{}", "C:\\me\\{}", "..\\images\\{}", "x/y/{}"])
def test_names_as_tools_store_them(tmp_path, stored):
    part = draw(tmp_path / "images", ("a b.jpg", "ü.jpg", "c.jpg"), empty=())
    names = {stored.format(name.replace(" ", "%20")): boxes for name, boxes in part.items()}
    write(tmp_path / "result.json", coco(names))
    assert len(objects(tmp_path)) == 3


def test_names_of_xml_files(tmp_path):
    for name, boxes in draw(tmp_path / "images", ["a%20b.jpg", "c.d.JPG", "e f.png"], empty=()).items():
        voc((tmp_path / "xml" / name).with_suffix(".xml"), name, boxes)
    draw(tmp_path / "masks", ["c.d.png"])
    assert len(objects(tmp_path)) == 3


def test_names_in_another_unicode_form_or_with_capitals(tmp_path):
    for number, name in enumerate(("Grün 1", "IMG_2", "Ää 3", "b")):
        draw(tmp_path / "images", [f"{name}.JPG"])
        label = unicodedata.normalize("NFD", name) if number % 2 == 0 else name.lower()
        yolo(tmp_path / "labels" / f"{label}.txt", [(0, 3, 4, 20, 20)])
    write(tmp_path / "classes.txt", "\n".join(CLASSES))
    assert len(objects(tmp_path)) == 4
    draw(tmp_path / "images", ["img_2.JPG"])
    refused(tmp_path, "img_2.txt", "IMG_2.JPG")


def test_tasks_side_by_side(tmp_path):
    """CVAT exports a file and a folder of pictures for each task, and the names of frames are equal."""
    for name, number in {"task_1": 4, "task_2": 3}.items():
        part = draw(tmp_path / name / "images/default", number, empty=())
        write(tmp_path / name / "annotations/instances_default.json", coco(part))
    (pool,) = read(tmp_path).values()
    for name in ("task_1", "task_2"):
        content = json.loads((tmp_path / name / "annotations/instances_default.json").read_text())
        for image, entry in zip(content["images"], content["annotations"], strict=True):
            ((_, *box),) = pool[str(tmp_path / name / "images/default" / image["file_name"])]
            assert box == entry["bbox"]
    (tmp_path / "task_1/images/default/0001.jpg").unlink()
    refused(tmp_path, "images[1]: expected each picture once", "0001.jpg")


@pytest.mark.parametrize("place", ["fruits", "sets/fruits"])
@pytest.mark.parametrize("path", ["/content/sets/fruits", "C:\\sets\\fruits", "../sets/fruits", "."])
def test_paths_of_another_machine(tmp_path, place, path):
    root = tmp_path / "new" / ("" if path == "." else place)
    yolo(root / "labels/train/0000.txt", draw(root / "images/train", 1, empty=())["0000.jpg"])
    write(tmp_path / "new/any.yaml", f"path: {path}\ntrain: images/train\nnames: [disc, box, star]\n")
    assert len(objects(tmp_path / "new/any.yaml")) == 1


def test_a_split_that_is_absent_is_printed(tmp_path):
    for name, boxes in draw(tmp_path / "images", 6, empty=()).items():
        yolo((tmp_path / "labels" / name).with_suffix(".txt"), boxes)
    write(tmp_path / "data.yaml", "train: images\nval: valid/images\nnames: [disc, box, star]\n")
    lines = lines_of(tmp_path)
    assert any("valid/images" in line for line in lines)


def test_results_and_work_directories_are_no_annotations(tmp_path):
    part = draw(tmp_path / "images", 6, empty=())
    write(tmp_path / "all.json", coco(part))
    scored = coco(part)
    for entry in scored["annotations"]:
        entry["score"] = 0.5
    write(tmp_path / "shown/detections.json", scored)
    write(tmp_path / "mine/data/train.json", coco(part))
    write(tmp_path / "mine/20260101_000000/vis_data/config.py", "")
    assert len(objects(tmp_path)) == 6
    assert any("results with scores, not read: 1" in line for line in lines_of(tmp_path))
    refused(tmp_path / "mine", "work directory")
    refused(tmp_path / "shown", "score")
    write(tmp_path / "new/data/train.json", coco(part))  # of a dry run
    write(tmp_path / "new/data/val.json", coco(part))
    write(tmp_path / "new/data/new.py", "")
    assert len(objects(tmp_path)) == 6


def test_the_random_division_has_objects_in_both_parts(tmp_path):
    for number, folder in ((1, "one"), (2, "two")):
        part = draw(tmp_path / folder, 10, empty=range(number, 10))
        one_class = {name: [(0, *box[1:]) for box in boxes] for name, boxes in part.items()}
        write(tmp_path / folder / "all.json", coco(one_class))
    refused(tmp_path / "one", "training and validation")
    splits = read_data(tmp_path / "two").split()
    assert [len(split.objects) for split in splits.values()] == [1, 1]
    part = draw(tmp_path / "rare", 9, empty=())
    labels = [0, 0, 0, 1, 2, 0, 0, 0, 0]  # classes with one object stay in train
    part = {name: [(k, *boxes[0][1:])] for k, (name, boxes) in zip(labels, part.items(), strict=True)}
    write(tmp_path / "rare/all.json", coco(part))
    splits = read_data(tmp_path / "rare").split()
    assert min(splits["train"].per_class.values()) > 0 and len(splits["val"].pictures) == 2
