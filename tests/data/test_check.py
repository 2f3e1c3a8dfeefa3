"""``dcnzoo data check``, ``--fix``, ``split`` and training with each mistake that a COCO file can have."""

import contextlib
import io
import json
import logging
import math
import random
import re
from functools import partial

import numpy as np
import pytest
from mmdet.registry import DATASETS, METRICS
from mmengine.registry import DefaultScope
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import dcnzoo.openmmlab.datasets
from dcnzoo.data.check import KINDS, check_coco, checked_coco, decode_counts, fix
from dcnzoo.data.layouts import find_parts
from dcnzoo.data.split import split_coco
from dcnzoo.detect.metrics import replace_id_0
from dcnzoo.utils.errors import UserError, one_line

from ..commands import error_of, run

CLASSES = ("fig", "date")
POLYGON = [2, 3, 12, 3, 12, 23, 2, 13]


def good():
    mask = np.zeros((30, 40), np.uint8, order="F")
    mask[5:15, 10:30] = 1  # 20 × 10
    rle = {"size": [30, 40], "counts": coco_mask.encode(mask)["counts"].decode()}
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 5, "file_name": "b.png", "width": 20, "height": 50},
            {"id": 7, "file_name": "c.png", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 3, 10, 20], "area": 150, "iscrowd": 0,
             "segmentation": [[*POLYGON]]},
            {"id": 2, "image_id": 1, "category_id": 9, "bbox": [10, 5, 20, 10], "area": 200, "iscrowd": 1,
             "segmentation": rle},
            {"id": 3, "image_id": 5, "category_id": 3, "bbox": [0, 0, 20, 50], "area": 1000, "iscrowd": 0},
        ],
        "categories": [{"id": 3, "name": "fig"}, {"id": 9, "name": "date"}],
    }  # fmt: skip


@pytest.fixture
def root(tmp_path):
    for entry in good()["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(tmp_path / entry["file_name"])
    return tmp_path


def write_coco(root, change=lambda content: None):
    """Write the good file. ``change`` edits its content, or returns a text or bytes to write instead."""
    content = good()
    text = change(content)
    file = root / "coco.json"
    file.write_bytes(text if isinstance(text, bytes) else (text or json.dumps(content)).encode())
    return file


def check(root, change=lambda content: None, **arguments):
    return check_coco(write_coco(root, change), root, **arguments)


@pytest.mark.parametrize("images", [True, False])
def test_an_error_gives_the_command_that_lists_all_problems(root, images):
    file = write_coco(root, top(annotations=[{**entry, "bbox": None} for entry in good()["annotations"]]))
    command = f"`dcnzoo data check {file}{f' --images {root}' * images}` lists all 3 problems"
    with pytest.raises(UserError, match=re.escape(command)):
        checked_coco(file, root if images else None)


def names_all(line, *parts):
    return line.isprintable() and all(str(part) in line for part in parts)


def put(part, index, **values):
    return lambda content: content[part][index].update(values)


first, second, third = (partial(put, "annotations", index) for index in range(3))
image, category = partial(put, "images", 2), partial(put, "categories", 1)


def polygons(*polygons):
    return first(segmentation=list(polygons))


def rle(**values):
    return second(segmentation={"size": [30, 40], "counts": [305, 895], **values})


def top(**values):
    return lambda content: content.update(values)


def added(part, value):
    return lambda content: content[part].append(value)


def without(part, index, key):
    return lambda content: content[part][index].pop(key) and None


def text_with(old, new):
    return lambda content: json.dumps(content).replace(old, new, 1)


UNKNOWN = " unknown-category"
OUTSIDE = first(segmentation=[[2, 3, 12, 3, 12, 23, -1.5, 13]], bbox=[0, 3, 12, 20], area=185)
CASES = {  # case: (change, kinds of the problems, entry and word of the first problem)
    # the file
    "empty file": (lambda content: b"", "file", "line 1", "JSON"),
    "deep nesting": (lambda content: '{"a":' * 200_000, "file", "file", "nested"),
    "integer of 5,000 digits": (text_with("150", "1" * 5000), "file", "file", "JSON"),
    "Latin-1": (lambda content: b'{"images": "gr\xf6\xdfer"}', "file", "file", "UTF-8"),
    "UTF-16 that is cut": (lambda c: json.dumps(c).encode("utf-16")[:-1], "file", "file", "UTF-16"),
    "a list": (lambda content: "[1, 2]", "file", "file", "images"),
    "key twice": (text_with('"id": 5', '"id": 5, "width": 20'), "file", "file", "in the object with id 5"),
    "annotations are null": (top(annotations=None), "file", "file", "annotations: expected a list"),
    "no images": (top(images=[], annotations=[]), "empty empty", "images", "at least 1"),
    "no annotations": (top(annotations=[]), "empty", "annotations", "at least 1"),
    "no categories": (top(categories=[]), f"empty classes{UNKNOWN * 3}", "categories", "at least 1"),
    # images
    "image without id": (without("images", 2, "id"), "image-entry", "images[2]", "id"),
    "category id is a text": (category(id="9"), "text-id", "categories[1]", "id"),
    "image_id is a float": (third(image_id=5.0), "text-id", "annotations[2]", "image_id"),
    "no size": (image(width=None, height=None), "no-size", "image 7", "width"),
    "image_id is a text": (third(image_id="5"), "text-id", "annotations[2]", "image_id"),
    "image id twice": (image(id=1), "duplicate-image-id", "image 1", "id"),
    "width is NaN": (image(width=math.nan), "image-entry", "image 7", "width"),
    "height is 0": (image(height=0), "image-entry", "image 7", "height"),
    "file_name with NUL": (image(file_name="a\0b.png"), "image-entry", "image 7", "file_name"),
    "file_name twice": (image(file_name="a.png"), "duplicate-file-name", "image 7", "file_name"),
    "file name of 300 letters": (image(file_name="x" * 300), "missing-image", "image 7", "file_name"),
    "size of another order": (image(width=30, height=40), "image-size", "image 7", "swapped"),
    # categories
    "category without name": (category(name=""), "category-entry classes", "categories[1]", "name"),
    "category id twice": (category(id=3), "duplicate-category-id unknown-category", "categories[1]", "id"),
    "category name twice": (category(name="fig"), "duplicate-category classes", "categories[1]", "name"),
    "category with an escape sequence": (category(name="\x1b[31mfig"), "classes", "categories", "date"),
    # annotations
    "annotation is null": (added("annotations", None), "annotation-entry", "annotations[3]", "object"),
    "no id": (without("annotations", 2, "id"), "duplicate-annotation-id", "annotations[2]", "id"),
    "annotation id twice": (third(id=1), "duplicate-annotation-id", "annotation 1", "id"),
    "annotation id is 0": (third(id=0), "annotation-id-0", "annotation 0", "id"),
    "no image_id": (without("annotations", 2, "image_id"), "annotation-entry", "annotation 3", "image_id"),
    "no such image": (third(image_id=2), "unknown-image", "annotation 3", "image_id"),
    "no such category": (third(category_id=4), "unknown-category", "annotation 3", "category_id"),
    "iscrowd is a text": (third(iscrowd="no"), "iscrowd", "annotation 3", "iscrowd"),
    "no area": (without("annotations", 0, "area"), "area", "annotation 1", "area"),
    "area is NaN": (third(area=math.nan), "area", "annotation 3", "area"),
    "area of another polygon": (first(area=250), "area", "annotation 1", "area"),
    "area of another RLE": (second(area=20), "area", "annotation 2", "area"),
    "no bbox": (without("annotations", 2, "bbox"), "box", "annotation 3", "bbox"),
    "no bbox, but a mask": (without("annotations", 0, "bbox"), "box-with-mask", "annotation 1", "bbox"),
    "bbox inside out, but a mask": (second(bbox=[30, 5, -20, 10]), "box-with-mask", "annotation 2", "bbox"),
    "bbox of three": (third(bbox=[2, 3, 10]), "box", "annotation 3", "bbox"),
    "bbox with NaN": (third(bbox=[2, 3, math.nan, 20]), "box", "annotation 3", "bbox"),
    "bbox without an area": (third(bbox=[1, 2, 0, 4]), "box", "annotation 3", "bbox"),
    "bbox inside out": (third(bbox=[12, 3, -10, 20]), "box", "annotation 3", "bbox"),
    "bbox that reaches out": (third(bbox=[5, 10, 16.5, 20], area=330), "box-outside", "annotation 3", "bbox"),
    "bbox beside the image": (third(bbox=[25, 10, 5, 20], area=100), "box", "annotation 3", "bbox"),
    "bbox below the image": (third(bbox=[5, 55, 5, 20], area=100), "box", "annotation 3", "bbox"),
    "bbox around something else": (first(bbox=[20, 3, 10, 20]), "box-of-mask", "annotation 1", "bbox"),
    "bbox that is turned": (
        third(attributes={"rotation": 30.0}, bbox=[5, 10, 8, 20], area=160), "rotated", "annotation 3", "bbox"
    ),
    # masks
    "mask is a text": (third(segmentation="x"), "segmentation", "annotation 3", "segmentation"),
    "flat polygon": (polygons(*POLYGON), "segmentation", "annotation 1", "segmentation"),
    "polygon with NaN": (polygons([*POLYGON, math.nan, 1]), "segmentation", "annotation 1", "segmentation"),
    "huge integer": (polygons([*POLYGON, 10**400, 1]), "segmentation", "annotation 1", "segmentation"),
    "polygon of odd length": (polygons([*POLYGON, 1]), "polygon", "annotation 1", "segmentation"),
    "polygon of two points": (polygons([2, 3, 12, 23]), "polygon", "annotation 1", "segmentation"),
    "without an area": (polygons(POLYGON, [1, 1, 2, 2, 3, 3]), "polygon", "annotation 1", "segmentation"),
    "polygon that reaches out": (OUTSIDE, "polygon-outside", "annotation 1", "segmentation"),
    "RLE of another size": (rle(size=[40, 30]), "rle", "annotation 2", "segmentation"),
    "RLE without counts": (rle(counts=None), "rle", "annotation 2", "segmentation"),
    "RLE with a negative count": (rle(counts=[5, -5, 1200]), "rle", "annotation 2", "segmentation"),
    "RLE of too few pixels": (rle(counts=[100, 50]), "rle", "annotation 2", "segmentation"),
    "RLE of no pixel": (rle(counts=[1200]), "rle", "annotation 2", "segmentation"),
    "RLE of an empty text": (rle(counts=""), "rle", "annotation 2", "segmentation"),
    "RLE that is no text of counts": (rle(counts="\x7fÿ"), "rle", "annotation 2", "segmentation"),
    "RLE that ends within a number": (rle(counts="0o"), "rle", "annotation 2", "segmentation"),
    "RLE of one endless number": (rle(counts="o" * 100_000 + "0"), "rle", "annotation 2", "segmentation"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_coco_check_and_fix(root, case):
    change, kinds, where, word = CASES[case]
    file, out = write_coco(root, change), root / "fixed.json"
    report = check_coco(file, root, CLASSES)
    first = report.problems[0]
    assert word in first.text and [problem.kind for problem in report.problems] == kinds.split()
    shown = json.loads(json.dumps(report.as_dict()))["problems"][0]
    assert shown == {"kind": first.kind, "where": where, "text": first.text}
    if any(not KINDS[problem.kind].remedy for problem in report.problems):
        with pytest.raises(UserError, match="cannot be fixed"):
            fix(report, out)
        assert not out.exists()
        return
    done = fix(report, out)
    assert check_coco(out, root).problems == []
    remedy = KINDS[first.kind].remedy
    assert {what for counts in done.values() for what in counts} <= {remedy, "dropped"}
    if remedy != "dropped":
        annotations = json.loads(out.read_text())["annotations"]
        assert len(annotations) == 3
        if remedy == "recomputed":  # the boxes of the masks in the good file
            assert [each["bbox"] for each in annotations[:2]] == [[2, 3, 10, 20], [10, 5, 20, 10]]


def test_every_kind_of_problem_is_in_the_table():
    kinds = {kind for _, kinds, *_ in CASES.values() for kind in kinds.split()}
    assert kinds | {"unreadable-image", "normalised", "corners"} == set(KINDS)


LOAD = dict(type="LoadImageFromFile")
LOAD_BOXES = dict(type="LoadAnnotations")
LOAD_MASKS = dict(type="LoadAnnotations", with_bbox=True, with_mask=True)


def training_set(root, annotations=LOAD_MASKS, classes=CLASSES, **arguments):
    cfg = dict(type="CocoDataset", ann_file="coco.json", data_root=f"{root}/", data_prefix=dict(img=""))
    cfg.update(metainfo=dict(classes=classes), pipeline=[LOAD, annotations], **arguments)
    with DefaultScope.overwrite_default_scope("mmdet"):
        return DATASETS.build(cfg)


@pytest.fixture
def warnings(monkeypatch):
    lines = []

    def print_log(text, logger=None, level=logging.INFO):
        if level == logging.WARNING:
            lines.append(text)

    monkeypatch.setattr(dcnzoo.openmmlab.datasets.coco, "print_log", print_log)
    return lines


def test_the_good_file(root, warnings):
    report = check_coco(write_coco(root), root, CLASSES)
    assert report.problems == [] and report.empty_images == 1
    assert report.counts == {"images": 3, "annotations": 3, "categories": 2}
    assert report.per_class == {"fig": 2, "date": 1}
    data = training_set(root, LOAD_BOXES)
    assert [line.endswith("none of date") for line in warnings] == [True], "its only object is a crowd"
    assert [len(data[i]["gt_bboxes"]) for i in range(3)] == [2, 1, 0]
    assert training_set(root)[0]["gt_masks"].masks.sum((1, 2)).tolist() == [pytest.approx(150, abs=15), 200]


# not errors of the data set: images are opened later, and a test set may have no annotations
LATER = {"missing-image", "image-size", "empty"}


@pytest.mark.parametrize("case", [case for case, row in CASES.items() if row[1] not in LATER])
def test_coco_training(root, case, warnings):
    """An error if MMDetection would stop; a warning if it would skip or use the entry."""
    change, kinds, where, word = CASES[case]
    file = write_coco(root, change)
    try:
        data = training_set(root)
        for index in range(len(data)):
            data[index]
    except UserError as error:
        lines = [one_line(error)]
    else:
        assert kinds not in ("text-id", "segmentation"), "an error, not a warning"
        lines = [*warnings]
    in_list = where.replace("annotation", "ids")  # the entry's name in a list of ids
    assert any(names_all(line, file, where, word) or line.endswith(in_list) for line in lines), lines
    if word == "segmentation":  # boxes can still be trained, with a warning
        warnings.clear()
        boxes = training_set(root, LOAD_BOXES)
        assert len(boxes) == 3 and len(boxes[0]["gt_bboxes"]) == 2
        assert any(names_all(line, file, where, word) for line in warnings), warnings


def test_masks_that_the_metric_requires(root):
    for change in (without("annotations", 0, "segmentation"), polygons()):
        metric = dict(type="CocoMetric", ann_file=str(write_coco(root, change)), metric="segm")
        with pytest.raises(UserError, match=r"coco.json: annotation 1: segmentation: "):
            METRICS.build(metric)


def test_names_that_cannot_be_shown_or_stored(root):
    """Lone surrogates, as in JSON and in Python's file names that are not UTF-8."""
    shown = run("data", "check", write_coco(root, category(name="\x1b[31mfig")))
    assert r"\x1b[31mfig" in shown and "\x1b" not in shown
    run("data", "check", write_coco(root, category(name="\udcff")), "--fix", root / "fixed.json")
    assert json.loads((root / "fixed.json").read_text())["categories"][1]["name"] == "\udcff"


def test_names_of_classes(root):
    names = [f"class {i}" for i in range(80)]
    file = write_coco(root, top(categories=[{"id": 3 + 6 * i, "name": n} for i, n in enumerate(names)]))
    listing = root / "names.txt"
    listing.write_bytes("\r\n".join(names).encode("utf-16"))
    for option in (",".join(names), listing):
        run("data", "check", file, "--classes", option)
    listing.write_bytes(b"gr\xf6\xdfer")
    assert "--classes: " in (error := error_of("data", "check", file, "--classes", listing))
    assert str(listing) in error


def test_classes(root):
    for classes, named in (
        (["fig", "date", "nut"], "missing nut, got fig, date"),
        (["date", "fig"], "order"),
    ):
        (problem,) = check(root, classes=classes).problems
        assert problem.kind == "classes" and named in problem.text
    assert check(root, classes=["date"]).problems == [], "a part of them is a way to train on less"


def test_files(root):
    (root / "c.png").write_bytes(b"text")
    (problem,) = check(root).problems
    assert problem.kind == "unreadable-image" and problem.subject == "image 7"
    assert check_coco(root / "coco.json").problems == [], "without the folder, files are not looked at"


def test_a_pixel_is_no_problem(root):
    for change in (
        third(bbox=[-0.5, 0, 20.9, 50.4]),
        third(bbox=[1, 2, 0.5, 0.5], area=0.25),
        first(segmentation=[[2, 3, 12.4, 2.6, 12, 23, 2, 13]], area=170),
    ):
        assert check(root, change).problems == []


# --fix


def test_fix_by_hand(root):
    def change(content):
        content["annotations"][0].update(
            bbox=[34, 3, 10, 20], segmentation=[[34, 5, 44, 10, 34, 15], [34, 20, 39, 20, 39, 23]], area=57
        )
        content["annotations"][1]["area"] = 1
        content["annotations"][2]["id"] = 1
        content["annotations"] += [{**content["annotations"][2], "id": 9, "image_id": 7}]
        content["images"][2]["file_name"] = "gone.png"

    done = fix(check(root, change), root / "fixed.json")
    assert {key: dict(counts) for key, counts in done.items()} == {
        "images": {"dropped": 1},
        "annotations": {"clipped": 1, "computed": 1, "renumbered": 1, "dropped": 1},
    }
    first, second, third = json.loads((root / "fixed.json").read_text())["annotations"]
    # the triangle's tip is 4 pixels outside; test_conversion.py works out the numbers
    assert first["bbox"] == [34, 3, 6, 20] and first["area"] == 42 + 7.5
    assert COCO(root / "fixed.json").annToMask(first)[:, 39].sum() in (4, 5)
    assert second["area"] == 200 and [first["id"], second["id"], third["id"]] == [1, 2, 3]
    nothing = top(annotations=[{**first, "bbox": [1, 1, 0, 0], "segmentation": []}])
    with pytest.raises(UserError, match="annotations: expected at least 1"):
        fix(check(root, nothing), root / "no.json")
    assert not (root / "no.json").exists()


def encoded(kind):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, compression="tiff_lzw")
    return buffer.getvalue()


WHOLE = {kind: encoded(kind) for kind in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")}
JPEG, PNG = WHOLE["JPEG"], WHOLE["PNG"]
DAMAGED = {
    **{f"{kind} cut": content[: len(content) // 2] for kind, content in WHOLE.items()},
    "JPEG without its last bytes": JPEG[:-2],
    "JPEG with zeros": JPEG[:-300] + bytes(300),
    "PNG without its end": PNG[:-12],
    "PNG with a changed bit": PNG[:200] + bytes([PNG[200] ^ 1]) + PNG[201:],
    "PNG with zeros": PNG[:200] + bytes(100) + PNG[300:],
    "another file": b"<html>404 not found</html>",
    "no content": b"",
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", [*WHOLE, *DAMAGED])
def test_damaged_pictures(root, kind):
    (root / "a.png").write_bytes({**WHOLE, **DAMAGED}[kind])
    problems = [(problem.kind, problem.subject) for problem in check(root, decode=True).problems]
    assert problems == ([] if kind in WHOLE else [("unreadable-image", "image 1")])


def test_normalised_boxes(root):
    small = {"bbox": [1, 0.5, 1, 1], "area": 1, "segmentation": []}
    change = top(annotations=[{**entry, **small} for entry in good()["annotations"]])
    (problem,) = check(root, change).problems
    assert problem.kind == "normalised" and "3 of 3" in problem.text


def areas(root, area_of, boxes=(), **more):
    """The kinds of problems of a file whose boxes have these areas."""
    boxes = boxes or [[x, y, 6 + x, 5 + y] for x, y in ((4, 3), (10, 7), (3, 9))]
    entries = [
        {**good()["annotations"][0], "id": n, "bbox": box, "area": area_of(*box), "segmentation": [], **more}
        for n, box in enumerate(boxes, 1)
    ]
    return [problem.kind for problem in check(root, top(annotations=entries)).problems]


def test_boxes_of_two_corners(root):
    assert areas(root, lambda x1, y1, x2, y2: (x2 - x1) * (y2 - y1)) == ["corners"]
    assert areas(root, lambda x1, y1, x2, y2: (x2 - x1 + 1) * (y2 - y1 + 1)) == ["corners"], "pixels"
    with pytest.raises(UserError, match="x1, y1, x2, y2"):
        training_set(root)


@pytest.mark.parametrize(
    ("area_of", "boxes"),
    [
        (lambda x, y, w, h: w * h, ()),
        (lambda x, y, w, h: 0.7 * w * h, ()),  # of masks that the file does not have
        (lambda x, y, w, h: 1, ()),
        (lambda x, y, w, h: w * h, [[0, 0, 10, 8], [0, 0, 12, 9], [1, 0, 12, 9]]),
        (lambda x, y, w, h: (w - x) * (h - y) if x < 9 else w * h, ()),  # two of three, by chance
        (lambda x, y, w, h: (w - x) * (h - y), [[4, 3, 10, 8], [10, 9, 5, 5], [3, 2, 8, 9]]),
    ],
)
def test_boxes_that_are_no_corners(root, area_of, boxes):
    assert "corners" not in areas(root, area_of, boxes)


def test_annotation_id_0_is_replaced(root):
    """pycocotools would never match it."""
    content = checked_coco(write_coco(root, third(id=0))).content
    assert [annotation["id"] for annotation in content["annotations"]] == [1, 2, 3]


def test_fix_converts_ids_that_are_texts(root):
    """Numbers stay; names get free numbers. A name that no image has is not one of them."""

    def change(content):
        for image, text in zip(content["images"], ("1", "b-5f", "007"), strict=True):
            image["id"] = text
        for annotation, text in zip(content["annotations"], ("1", 1, "b-5f"), strict=True):
            annotation["image_id"] = text
        content["categories"][1]["id"] = content["annotations"][1]["category_id"] = "9"
        content["annotations"] += [{**content["annotations"][2], "id": 4, "image_id": "gone"}]

    done = fix(check(root, change), root / "fixed.json")
    assert {key: dict(counts) for key, counts in done.items()} == {
        "images": {"converted": 3},
        "annotations": {"converted": 3, "dropped": 1},
    }
    content = json.loads((root / "fixed.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 8, 7]
    assert [annotation["image_id"] for annotation in content["annotations"]] == [1, 1, 8]
    assert [category["id"] for category in content["categories"]] == [3, 9]
    assert [annotation["category_id"] for annotation in content["annotations"]] == [3, 9, 3]
    assert check_coco(root / "fixed.json", root).problems == []


def test_fix_recomputes_the_box_of_a_mask_that_it_clips(root):
    fix(check(root, first(bbox=None, segmentation=[[30, 5, 46, 5, 46, 15, 30, 15]])), root / "fixed.json")
    (fixed, *_) = json.loads((root / "fixed.json").read_text())["annotations"]
    assert fixed["bbox"] == [30, 5, 10, 10] and fixed["area"] == 100, "the image is 40 pixels wide"


def test_rle_against_pycocotools():
    generator = np.random.default_rng(0)
    for _ in range(50):
        size = generator.integers(1, 90, 2).tolist()
        mask = np.asfortranarray(generator.random(size) < generator.random(), np.uint8)
        rle = coco_mask.encode(mask)
        decoded = {"counts": decode_counts(rle["counts"].decode()), "size": size}
        assert coco_mask.frPyObjects(decoded, *size) == rle


VALUES = (None, 0, -1, 1.5, 10**30, math.inf, math.nan, "", "a", True, [], [[]], {}, [1], {"counts": "0"})


@pytest.mark.parametrize("seed", range(2))
def test_any_value_anywhere_is_a_problem_never_a_traceback(root, seed):
    generator = random.Random(seed)

    def places(node):
        for key in range(len(node)) if isinstance(node, list) else list(node):
            yield node, key
            if isinstance(node[key], list | dict):
                yield from places(node[key])

    for _ in range(80):
        content = good()
        for _ in range(generator.randint(1, 3)):
            node, key = generator.choice(list(places(content)))
            node[key] = generator.choice(VALUES)
        report = check(root, lambda _, content=content: json.dumps(content))
        json.dumps(report.as_dict())
        with contextlib.suppress(UserError):  # as of `train --data`
            [part.read() for part in find_parts(root / "coco.json").parts]
        try:
            fix(report, root / "fixed.json")
        except UserError:
            continue
        assert check_coco(root / "fixed.json", root).problems == []


# Two parts of one file


def test_split(root):
    image = {"width": 9, "height": 8}
    box = {"category_id": 9, "bbox": [0, 0, 4, 4], "area": 16}
    images = [{"id": i, "file_name": f"{i}.png", **image} for i in range(1, 11)]
    annotations = [{"id": i, "image_id": i // 2 + 1, **box} for i in range(1, 20)]
    file = write_coco(root, top(images=images, annotations=annotations))
    outs = (root / "train.json", root / "val.json")
    train, val = split_coco(file, outs, 0.25)
    assert [json.loads(out.read_text()) for out in outs] == [train, val]
    assert (len(train["images"]), len(val["images"])) == (8, 2)
    for part in (train, val):
        assert part["categories"] == good()["categories"]
        assert {a["image_id"] for a in part["annotations"]} <= {i["id"] for i in part["images"]}
    for key, entries in (("images", images), ("annotations", annotations)):
        assert sorted(train[key] + val[key], key=lambda entry: entry["id"]) == entries
    for killed_before in outs:  # the same call again
        killed_before.unlink()
        assert split_coco(file, outs, 0.25) == (train, val) and all(out.exists() for out in outs)
    with pytest.raises(UserError, match=r"train\.json and .*val\.json|train\.json, .*val\.json"):
        split_coco(file, outs, 0.25, seed=1)
    assert [json.loads(out.read_text()) for out in outs] == [train, val]
    assert split_coco(file, outs, 0.25, seed=1, force=True) != (train, val)
    for share, number in ((0.01, 1), (0.26, 3), (0.99, 9)):  # rounded, and neither part is empty
        assert len(split_coco(file, outs, share, force=True)[1]["images"]) == number
    for share in (0, 1, math.nan):
        with pytest.raises(UserError, match="share: "):
            split_coco(file, outs, share)


def test_split_mistakes(root):
    outs = (root / "train.json", root / "val.json")
    one = top(images=good()["images"][:1], annotations=good()["annotations"][:1])
    for change, named in (
        (third(image_id=2), "annotation 3: image_id: "),
        (one, "images: expected at least 2"),
    ):
        file = write_coco(root, change)
        with pytest.raises(UserError, match=named):
            split_coco(file, outs, 0.5)
    for same in ((outs[0], outs[0]), (file, outs[1]), (outs[0], root / "." / "coco.json")):
        with pytest.raises(UserError, match=f"{same[0].name}.* and .*{same[1].name}"):
            split_coco(file, same, 0.5)
    assert not outs[0].exists() and not outs[1].exists()


# The commands


def test_check_command(root):
    file, config = write_coco(root), root / "config.py"
    output = run("data", "check", file, "--images", root, "--classes", "fig,date")
    assert "no problems" in output and "3 images, 3 annotations, 2 categories" in output
    for dataset, arguments, named in (
        ("type='RepeatDataset', dataset=dict(metainfo=dict(classes=('date', 'fig')))", [], "date, fig, got"),
        ("type='CocoDataset'", [], "person, bicycle, car"),
        ("", ["--classes", "fig"], "error: --config: "),
    ):
        config.write_text(f"train_dataloader = dict(dataset=dict({dataset}))\n")
        assert named in run("data", "check", file, "--config", config, *arguments, status=1)

    write_coco(root, third(bbox=[5, 10, 16.5, 20], area=330))
    assert f"{file}: annotation 3: bbox: " in run("data", "check", file, status=1)
    assert len(json.loads(run("data", "check", file, "--json", status=1))["problems"]) == 1
    assert "1 annotation clipped" in run("data", "check", file, "--fix", file, "--force")
    run("data", "check", file)
    outs = root / "train.json", root / "val.json"
    output = run("data", "split", file, *outs, "--val-ratio", "0.3")
    assert output.startswith(f"written: {outs[0]}: 2 images, ")


def test_many_ids_of_zero_take_linear_time():
    class Annotation(dict):
        reads = 0

        def __getitem__(self, key):
            Annotation.reads += 1
            return super().__getitem__(key)

    annotations = [Annotation(id=number % 3) for number in range(999)]
    replace_id_0(annotations)
    assert [each.get("id") for each in annotations[:7]] == [3, 1, 2, 4, 1, 2, 5]
    assert Annotation.reads <= 3 * 999
