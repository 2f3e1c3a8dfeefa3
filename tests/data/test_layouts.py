"""Layouts of annotated pictures: for each row of the table, a generator of a folder as the tool writes it."""

import json
import math
import os
import random
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dcnzoo.data.balance import balance
from dcnzoo.data.layouts import find_parts
from dcnzoo.data.preparation import check_parts
from dcnzoo.data.splits import AS_THEY_ARE, split_of
from dcnzoo.data.yolo import CLASSES as CLASS_FILES
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.marks import config_of

from ..products import in_turn

CLASSES = ("disc", "box", "star")
WIDTH, HEIGHT = 60, 40
SIZES = {"train": 6, "val": 3, "test": 2}


def draw(root, names, empty=(1,)):
    """Pictures, by default numbered alike in each split: name → objects, (class, x, y, width, height)."""
    part = {}
    for index, name in enumerate([f"{n:04}.jpg" for n in range(names)] if isinstance(names, int) else names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), tuple(random.randrange(256) for _ in range(3))).save(file)
        boxes = [(random.randrange(3), random.randrange(20), 4, random.randrange(9, 30), 20)]
        part[file.name] = [] if index in empty else boxes
    return part


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def edit_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    write(file, content)


def coco(part, prefix="", root_category=False):
    names = ("shapes", *CLASSES) if root_category else CLASSES
    ids = {name: number for number, name in enumerate(names, 0 if root_category else 1)}
    group = {"supercategory": "shapes" if root_category else "shape"}
    images, annotations = [], []
    for number, (name, boxes) in enumerate(part.items(), 1):
        images.append({"id": number, "file_name": f"{prefix}{name}", "width": WIDTH, "height": HEIGHT})
        for label, *box in boxes:
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[CLASSES[label]]}
            annotations.append(
                {**entry, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "segmentation": []}
            )
    categories = [{"id": ids[name], "name": name, **group} for name in names]
    return {"images": images, "annotations": annotations, "categories": categories}


def voc(file, name, boxes):
    objects = "".join(
        f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for label, x, y, w, h in boxes
    )
    write(file, f"<annotation><filename>{name}</filename>{objects}</annotation>")


def yolo(file, boxes):
    rows = [((x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT) for _, x, y, w, h in boxes]
    lines = [f"{box[0]} {' '.join(map(str, row))}\n" for box, row in zip(boxes, rows, strict=True)]
    write(file, "".join(lines))


def labelme(file, path, boxes, corners=False):
    shapes = []
    for label, x, y, w, h in boxes:
        points = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
        points = points if corners else points[::2]
        shapes.append({"label": CLASSES[label], "shape_type": "rectangle", "points": points})
    write(file, {"imagePath": path, "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes})


# Generators get a folder and the number of pictures of each split, and return split → (folder, objects).


def by_folder(writer, images="{}", names=("train", "val", "test")):
    """A generator of splits in folders; ``writer(root, split, folder of the pictures, name, boxes)``."""

    def generate(root, splits):
        truth = {}
        for split, number in splits.items():
            name = dict(zip(SIZES, names, strict=True))[split]
            folder = root / images.format(name)
            part = draw(folder, number)
            truth[split] = (folder, part)
            for file, boxes in part.items():
                writer(root, name, folder, Path(file), boxes)
        return truth

    return generate


def labels_beside(root, name, folder, file, boxes):
    labels = str(folder).replace(f"{root}/images", f"{root}/labels").replace("/images", "/labels")
    yolo(Path(labels) / file.with_suffix(".txt"), boxes)


def described(generate, text, file="data.yaml"):
    def write_all(root, splits):
        truth = generate(root, splits)
        lines = [line for line in text.splitlines() if any(key in line for key in (*splits, "path"))]
        write(root / file, "\n".join([*lines, f"names: [{', '.join(CLASSES)}]\n"]))
        return truth

    return write_all


def yolo_lists(root, splits):
    truth = by_folder(labels_beside, "images/{}")(root, splits)
    for split, (folder, part) in truth.items():
        write(root / f"{split}.txt", "".join(f"data/images/{split}/{name}\n" for name in part))
        assert folder.name == split
    write(
        root / "data.yaml",
        "path: ./\n" + "".join(f"{s}: {s}.txt\n" for s in splits) + "names: {0: disc, 1: box, 2: star}",
    )
    return truth


def darknet(root, splits):
    def writer(root, name, folder, file, boxes):
        yolo(folder / file.with_suffix(".txt"), boxes)

    truth = by_folder(writer, "obj_{}_data", ("train", "valid", "test"))(root, splits)
    names = {"train": "train", "val": "valid", "test": "test"}
    for split, (folder, part) in truth.items():
        write(root / f"{names[split]}.txt", "".join(f"data/{folder.name}/{name}\n" for name in part))
    write(root / "obj.names", "\n".join(CLASSES))
    rows = "".join(f"{names[split]} = data/{names[split]}.txt\n" for split in splits)
    write(root / "obj.data", f"classes = 3\n{rows}names = data/obj.names\nbackup = backup/\n")
    return truth


def lists_and_names(root, splits):
    truth = darknet(root, splits)
    (root / "obj.data").unlink()
    return truth


def classes_file(generate, file="classes.txt"):
    """Write the names of the classes; with a star, to each split's folder."""

    def write_all(root, splits):
        truth = generate(root, splits)
        for folder, _ in truth.values():
            write(root / file.replace("*", folder.name), "\n".join(CLASSES))
        return truth

    return write_all


def voc_lists(annotations="Annotations", images="JPEGImages", names=("train", "val", "test"), quoted=False):
    """One folder of pictures, whose names do not repeat, and lists."""

    def generate(root, splits):
        truth = {}
        for split, number in splits.items():
            part = draw(root / images, [f"{split} {n:04}.jpg" for n in range(number)])
            for name, boxes in part.items():
                voc(root / annotations / Path(name).with_suffix(".xml"), name, boxes)
            stems = [f'"{Path(name).stem}"' if quoted else Path(name).stem for name in part]
            listed = dict(zip(SIZES, names, strict=True))[split]
            write(root / f"ImageSets/Main/{listed}.txt", "\n".join(stems))
            truth[split] = (root / images, part)
        return truth

    return generate


def class_lists(root, splits):
    truth = voc_lists()(root, splits)
    for split, (_, part) in truth.items():
        (root / f"ImageSets/Main/{split}.txt").unlink()
        for label, name in enumerate(CLASSES):
            flags = {file: 1 if any(box[0] == label for box in part[file]) else -1 for file in part}
            lines = "".join(f"{file} {flag}\n" for file, flag in flags.items())
            name = "train" if label else name  # a class may be called so
            write(root / f"ImageSets/Main/{name}_{label}_{split}.txt", lines)
    return truth


def devkit(root, splits):
    truth = {split: (root, {}) for split in splits}
    for year in ("VOC2007", "VOC2012"):
        for split, (folder, part) in voc_lists()(root / year, splits).items():
            truth[split][1].update({f"{folder.relative_to(root)}/{name}": part[name] for name in part})
    return truth


def voc_folders(images="{}", annotations="{}", names=("train", "val", "test")):
    def writer(root, name, folder, file, boxes):
        voc(root / annotations.format(name) / file.with_suffix(".xml"), file.name, boxes)

    return by_folder(writer, images, names)


def coco_folders(images, annotations, names=("train", "val", "test"), prefix="", root_category=False):
    def generate(root, splits):
        truth = {}
        for split, number in splits.items():
            name = dict(zip(SIZES, names, strict=True))[split]
            part = draw(root / images.format(name), number)
            write(root / annotations.format(name), coco(part, prefix, root_category))
            truth[split] = (root / images.format(name), part)
        return truth

    return generate


def coco_official(root, splits):
    truth = coco_folders("{}2017", "annotations/instances_{}2017.json")(root, splits)
    for split, (_, part) in truth.items():
        content = coco(part)
        captions = [{"id": 1, "image_id": 1, "caption": "a disc"}]
        write(root / f"annotations/captions_{split}2017.json", {**content, "annotations": captions})
        write(root / f"annotations/person_keypoints_{split}2017.json", content)
    return truth


def labelme_folders(images, annotations, path="{}", corners=False):
    def writer(root, name, folder, file, boxes):
        stated = path.format(file.name)
        labelme(root / annotations.format(name) / file.with_suffix(".json"), stated, boxes, corners)

    return by_folder(writer, images)


def via(file, part, attribute="class", project=False, numbered=False):
    images = {}
    for name, boxes in part.items():
        regions = []
        for label, x, y, w, h in boxes:
            shape = {"name": "rect", "x": x, "y": y, "width": w, "height": h}
            if label == 1:
                xs, ys = [x, x + w, x + w, x], [y, y, y + h, y + h]
                shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
            regions.append({"shape_attributes": shape, "region_attributes": {attribute: CLASSES[label]}})
        entries = {str(index): region for index, region in enumerate(regions)} if numbered else regions
        images[f"{name}-1"] = {"filename": name, "size": -1, "regions": entries, "file_attributes": {}}
    write(file, {"_via_settings": {}, "_via_img_metadata": images} if project else images)


def via_files(annotations, images, **options):
    def generate(root, splits):
        truth = {}
        for split, number in splits.items():
            part = draw(root / images.format(split), number)
            via(root / annotations.format(split), part, **options)
            truth[split] = (root / images.format(split), part)
        return truth

    return generate


KEYS = "train: {0}\nval: {1}\ntest: {2}\n"
GENERATORS = {
    "YOLO, Ultralytics": described(
        by_folder(labels_beside, "images/{}"),
        "path: ../datasets/shapes\n" + KEYS.format("images/train", "images/val", "images/test"),
        "shapes.yaml",
    ),
    "YOLO, Roboflow": described(
        by_folder(labels_beside, "{}/images", ("train", "valid", "test")),
        KEYS.format("../train/images", "../valid/images", "../test/images"),
    ),
    "YOLO, CVAT": yolo_lists,
    "YOLO, FiftyOne": described(
        by_folder(labels_beside, "images/{}", ("train", "validation", "test")),
        "path: .\ntrain: ./images/train/\nvalidation: ./images/validation/  # val\ntest: ./images/test/\n",
        "dataset.yaml",
    ),
    "YOLO, darknet and CVAT 1.1": darknet,
    "YOLO, lists and names": lists_and_names,
    "Pascal VOC": voc_lists(),
    "Pascal VOC, devkit": devkit,
    "Pascal VOC, CVAT": voc_lists(names=("Train", "Validation", "Test"), quoted=True),
    "Pascal VOC, VoTT": class_lists,
    "Pascal VOC, Roboflow": voc_folders(names=("train", "valid", "test")),
    "Pascal VOC, without lists": voc_folders("images/{}/cam 1", "annotations/{}/cam 1"),
    "COCO": coco_official,
    "COCO, CVAT": coco_folders("images/{}", "annotations/instances_{}.json", ("Train", "Validation", "Test")),
    "COCO, Roboflow": coco_folders(
        "{}", "{}/_annotations.coco.json", ("train", "valid", "test"), root_category=True
    ),
    "COCO, Label Studio": coco_folders("{}/images", "{}/result.json", prefix="..\\..\\media\\upload\\3\\"),
    "COCO, FiftyOne": coco_folders("{}/data", "{}/labels.json"),
    "COCO, two files": coco_folders("images/{}", "{}.json"),
    "LabelMe": labelme_folders("{}", "{}"),
    "LabelMe, pictures elsewhere": labelme_folders("images/{}", "annotations/{}", "C:\\me\\{}"),
    "LabelMe, X-AnyLabeling": labelme_folders("{}", "{}", corners=True),
    "VIA": via_files("{}/via_region_data.json", "{}/images"),
    "YOLO, Label Studio": classes_file(by_folder(labels_beside, "images/{}")),
    "YOLO, Roboflow's Darknet": classes_file(
        by_folder(lambda root, name, folder, file, boxes: yolo(folder / file.with_suffix(".txt"), boxes)),
        "*/_darknet.labels",
    ),
    "YOLO, LabelImg": classes_file(
        by_folder(lambda root, name, folder, file, boxes: yolo(folder / file.with_suffix(".txt"), boxes))
    ),
}


def read(data):
    """The annotations of each split, and split → {path of the picture: [(class, box)]}."""
    splits = {part.split: part.read() for part in find_parts(data).parts}
    result = {}
    for split, annotations in splits.items():
        assert not annotations.problems
        content = annotations.content
        names = {category["id"]: category["name"] for category in content["categories"]}
        pictures = {
            image["id"]: os.path.realpath(annotations.folder / image["file_name"])
            for image in content["images"]
        }
        result[split] = {path: [] for path in pictures.values()}
        assert len(result[split]) == len(pictures)
        for a in content["annotations"]:
            label = CLASSES.index(names[a["category_id"]])
            result[split][pictures[a["image_id"]]].append((label, *map(round, a["bbox"])))
    return result, splits


def test_every_row_of_the_page_has_a_generator():
    page = (Path(__file__).parents[2] / "docs/train_your_data.md").read_text(encoding="utf-8")
    _, table = page.split("| written by | files |\n|---|---|\n")
    assert re.findall(r"^\| ([^|]+) \|", table.partition("\n\n")[0], re.MULTILINE) == [*GENERATORS]


@in_turn("name, splits", list(GENERATORS), ["train val test", "train val", "train test", "train"])
def test_splits_pictures_and_objects(tmp_path, name, splits):
    root = tmp_path / "data"
    truth = GENERATORS[name](root, {split: SIZES[split] for split in splits.split()})
    result, read_splits = read(root)
    expected = {
        "all" if split == "train" and "val" not in splits else split: {
            os.path.realpath(folder / file): boxes for file, boxes in part.items()
        }
        for split, (folder, part) in truth.items()
    }
    assert {split: set(objects) for split, objects in result.items()} == {
        s: set(o) for s, o in expected.items()
    }
    assert result == expected
    assert not any(finding.stops for finding in check_parts(read_splits))
    account = balance(find_parts(root), read_splits.values(), AS_THEY_ARE)
    assert account.errors == []
    assert not any("picture" in line for line in account.lines), "each is used"


@pytest.mark.parametrize("name", GENERATORS)
def test_pictures_in_two_splits_are_refused(tmp_path, name):
    truth = GENERATORS[name](tmp_path, {"train": 6, "val": 3})
    (train, files), (val, others) = truth["train"], truth["val"]
    others = [*others][:3]
    for source, target in zip(files, others, strict=False):
        shutil.copyfile(train / source, val / target)
    (finding,) = (each for each in check_parts(read(tmp_path)[1]) if each.stops)
    assert "3 pictures of val" in finding.text and all(Path(name).name in finding.text for name in others)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[("train", "train"), ("instances_train2017", "train"), ("Train", "train"), ("trainImages", "train")],
        *[("val2017", "val"), ("instances_Validation", "val"), ("valid", "val"), ("my-dev", "val")],
        *[("TEST", "test"), ("image_info_test-dev2017", "test"), ("trainval", "all"), ("train_val", "all")],
        *[
            ("naval", ""),
            ("oval", ""),
            ("trains", ""),
            ("contest", ""),
            ("interval_3", ""),
            ("developer", ""),
        ],
        ("oval_train", "train"),
    ],
)
def test_a_split_is_a_word(name, split):
    assert split_of(name) == split


def test_what_lies_there_is_named(tmp_path):
    draw(tmp_path, 4)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"4 \.jpg, 1 \.txt"):
        find_parts(tmp_path)
    for split in ("test", "val"):
        write(tmp_path / f"{split}.json", coco(draw(tmp_path, 4)))
    with pytest.raises(UserError, match=r"training.* test and val$"):
        find_parts(tmp_path)


@pytest.mark.parametrize("name", GENERATORS)
def test_files_beside_the_chosen_one_are_not_read(tmp_path, name):
    GENERATORS[name](tmp_path, {"train": 4, "val": 3})
    for chosen in (tmp_path / "annotations.zip", next(tmp_path.rglob("*.jpg"))):
        chosen.touch()
        with pytest.raises(UserError, match=rf"got .*{chosen.name}"):
            find_parts(chosen)
    descriptions = [file for file in tmp_path.rglob("*") if file.suffix in (".json", ".yaml", ".data")]
    descriptions += [file for name in CLASS_FILES for file in tmp_path.rglob(name)]
    assert descriptions or name.startswith("Pascal VOC")
    for chosen in descriptions:
        # another format, which is tried first, lies beside it
        write(
            chosen.with_name("data.yaml" if chosen.name != "data.yaml" else "a.yaml"),
            "names: [a]\ntrain: .\n",
        )
        if "captions" in chosen.name:
            with pytest.raises(UserError, match=r"1 \.json"):
                find_parts(chosen)
        else:
            assert {file for part in find_parts(chosen).parts for file in part.files} == {chosen}


def test_lists_of_voc_above_main(tmp_path):
    voc_lists()(tmp_path, SIZES)
    for file in (tmp_path / "ImageSets/Main").iterdir():
        file.rename(tmp_path / "ImageSets" / file.name)
    assert {part.split: len(part.read().images) for part in find_parts(tmp_path).parts} == SIZES


def test_pictures_are_never_taken_from_another_split(tmp_path):
    for split in ("train", "val"):
        part = draw(tmp_path / split, 3)
        write(tmp_path / f"{split}.json", coco(part))
    shutil.rmtree(tmp_path / "train")
    splits = {part.split: part.read() for part in find_parts(tmp_path).parts}
    assert splits["train"].images == [] and [each.subject for each in splits["train"].missing] == [
        "0000.jpg",
        "0001.jpg",
        "0002.jpg",
    ]
    assert len(splits["val"].images) == 3


def test_two_folders_with_the_same_names_are_ambiguous_unless_one_has_masks(tmp_path):
    write(tmp_path / "all.json", coco(draw(tmp_path / "left", 3)))
    draw(tmp_path / "right", 3)
    with pytest.raises(UserError, match=r"left.*right"):
        read(tmp_path)
    (tmp_path / "right").rename(tmp_path / "SegmentationClass")
    result, _ = read(tmp_path)
    assert {Path(picture).parent.name for picture in result["all"]} == {"left"}


@pytest.mark.parametrize("options", [{"project": True}, {"numbered": True}, {"attribute": "object_name"}])
def test_versions_of_via(tmp_path, options):
    part = draw(tmp_path / "images", 5)
    via(tmp_path / "via.json", part, **options)
    assert list(read(tmp_path)[0]["all"].values()) == list(part.values())


@pytest.mark.parametrize(
    ("shape", "attributes", "text"),
    [
        ({"name": "point", "cx": 9, "cy": 9}, {"class": "disc"}, "expected one of polygon, "),
        ({"name": "circle", "cx": 9, "cy": None, "r": 3}, {"class": "disc"}, "circle: expected cx, cy, r"),
        ({"name": "rect", "x": 1, "y": 2, "width": "wide", "height": 4}, {"class": "disc"}, "finite numbers"),
        (
            {"name": "polygon", "all_points_x": [1, 5, 3], "all_points_y": [1, 1]},
            {"class": "disc"},
            "as many",
        ),
        ({"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}, {}, "class: expected one name"),
        (
            {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
            {"class": {"a": True, "b": True}},
            "one name",
        ),
        (None, {"class": "disc"}, "shape_attributes"),
    ],
)
def test_mistakes_in_via_are_named(tmp_path, shape, attributes, text):
    part = draw(tmp_path, 3)
    via(tmp_path / "via.json", part)
    region = {"shape_attributes": shape, "region_attributes": attributes}
    edit_json(tmp_path / "via.json", lambda content: content["0001.jpg-1"]["regions"].append(region))
    (problem,) = find_parts(tmp_path).parts[0].read().problems
    assert "0001.jpg: regions[0]" in str(problem) and text in str(problem)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ({"name": "circle", "cx": 20, "cy": 12, "r": 8}, [12, 4, 16, 16]),
        ({"name": "ellipse", "cx": 20, "cy": 12, "rx": 9, "ry": 4}, [11, 8, 18, 8]),
        ({"name": "ellipse", "cx": 20, "cy": 12, "rx": 9, "ry": 4, "theta": math.pi / 2}, [16, 3, 8, 18]),
    ],
)
def test_round_shapes_of_via(tmp_path, shape, box):
    part = draw(tmp_path, 1, empty=())
    via(tmp_path / "via.json", part)
    edit_json(tmp_path / "via.json", lambda c: c["0000.jpg-1"]["regions"][0].update(shape_attributes=shape))
    (entry,) = find_parts(tmp_path).parts[0].read().content["annotations"]
    assert entry["bbox"] == pytest.approx(box, abs=0.02)
    assert entry["area"] == pytest.approx(math.pi * box[2] * box[3] / 4, rel=0.01)


def test_classes_of_via(tmp_path):
    """A box that is ticked, regions without attributes, attributes without a class among them."""
    part = draw(tmp_path, 3, empty=())
    for attributes, expected in (
        ({"class": {"disc": True, "box": False}, "occluded": "no"}, ["disc"]),
        ({}, ["object"]),
        ({"colour": "red", "size": "big"}, []),
    ):
        via(tmp_path / "via.json", part)
        content = json.loads((tmp_path / "via.json").read_text())
        for image in content.values():
            for region in image["regions"]:
                region["region_attributes"] = attributes
        write(tmp_path / "via.json", content)
        loaded = find_parts(tmp_path).parts[0].read()
        assert [category["name"] for category in loaded.content["categories"]] == expected
        assert bool(loaded.problems) == (not expected)


def account(folder):
    choice = find_parts(folder)
    return balance(choice, [part.read() for part in choice.parts], AS_THEY_ARE)


def test_what_is_not_used_is_named(tmp_path):
    truth = GENERATORS["YOLO, LabelImg"](tmp_path, {"train": 4, "val": 3})
    for folder, part in truth.values():  # LabelImg writes one in each folder
        shutil.copyfile(tmp_path / "classes.txt", folder / "classes.txt")
        for name, boxes in part.items():
            yolo((folder / name).with_suffix(".txt"), boxes)
    assert account(tmp_path).lines == []
    yolo(tmp_path / "train/gone.txt", [(0, 1, 2, 3, 4)])
    draw(tmp_path / "photos", 2)
    first, second = account(tmp_path).lines
    assert first.startswith("1 object of 1 file of YOLO") and "train/gone.txt" in first
    assert second.startswith("2 pictures (photos/0000.jpg, photos/0001.jpg)")
    write(tmp_path / "photos/photos.py", config_of("photos.py", ""))
    assert account(tmp_path).lines[1] == "2 pictures of 1 folder (photos): written by trainings"
    (tmp_path / "train/0002.txt").unlink()
    (error,) = account(tmp_path).errors
    assert "train/gone.txt: expected its picture" in error and "train/0002.jpg" in error
    write(tmp_path / "val/classes.txt", "star\ndisc\n")
    (problem, *_) = find_parts(tmp_path).parts[0].read().problems
    assert "names of the classes" in problem.text
