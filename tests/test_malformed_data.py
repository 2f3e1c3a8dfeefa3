"""Malformed COCO files: each error is one line with the file, the entry and the field.

They are tested with ``check_coco``, ``fix`` and the training data set; test_conversion.py tests VOC, YOLO and
LabelMe.
"""

import json
import logging
import math

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco_mask

import dcnzoo.openmmlab.datasets

# isort: split
from mmdet.registry import DATASETS, METRICS
from mmengine.registry import DefaultScope

from dcnzoo.cli import commands
from dcnzoo.data.check import KINDS, check_coco, fix
from dcnzoo.utils.errors import UserError, one_line

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


def draw_images(folder):
    for entry in good()["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(folder / entry["file_name"])
    return folder


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path)


def write_coco(folder, change=lambda content: None):
    """Write the good file. ``change`` edits its content, or returns a text or bytes to write instead."""
    content = good()
    text = change(content)
    file = folder / "coco.json"
    file.write_bytes(text if isinstance(text, bytes) else (text or json.dumps(content)).encode())
    return file


def invoke(*arguments):
    return CliRunner().invoke(commands, ["data", *map(str, arguments)])


def names_all(line, *parts):
    return line.isprintable() and all(part in line for part in parts)


def put(part, index, **values):
    return lambda content: content[part][index].update(values)


def image(**values):
    return put("images", 2, **values)


def ann(**values):
    return put("annotations", 2, **values)


def category(**values):
    return put("categories", 1, **values)


def mask(*polygons, **values):
    return put("annotations", 0, segmentation=list(polygons), **values)


def rle(**values):
    return put("annotations", 1, segmentation={"size": [30, 40], "counts": [305, 895], **values})


def top(**values):
    return lambda content: content.update(values)


def added(part, value):
    return lambda content: content[part].append(value)


def without(part, index, key):
    return lambda content: content[part][index].pop(key) and None


def text_with(old, new):
    return lambda content: json.dumps(content).replace(old, new, 1)


COCO = {  # case: (change, kinds of the problems, entry and word of the first problem)
    # the file
    "empty file": (lambda content: b"", "file", "line 1", "JSON"),
    "deep nesting": (lambda content: '{"a":' * 200_000, "file", "file", "nested"),
    "integer of 5,000 digits": (text_with("150", "1" * 5000), "file", "file", "JSON"),
    "Latin-1": (lambda content: b'{"images": "gr\xf6\xdfer"}', "file", "file", "UTF-8"),
    "UTF-16 that is cut": (lambda c: json.dumps(c).encode("utf-16")[:-1], "file", "file", "UTF-16"),
    "NUL bytes": (lambda content: json.dumps(content).encode() + b"\0" * 9, "file", "line 1", "JSON"),
    "a list": (lambda content: "[1, 2]", "file", "file", "images"),
    "key twice": (text_with('"id": 5', '"id": 5, "width": 20'), "file", "file", "in the object with id 5"),
    "images are an object": (top(images={}), "file", "file", "images: expected a list"),
    "annotations are null": (top(annotations=None), "file", "file", "annotations: expected a list"),
    "no images": (top(images=[], annotations=[]), "empty empty", "images", "at least 1"),
    "no annotations": (top(annotations=[]), "empty", "annotations", "at least 1"),
    "no categories": (
        top(categories=[]), "empty classes" + 3 * " unknown-category", "categories", "at least 1",
    ),
    # images
    "image without id": (without("images", 2, "id"), "image-entry", "images[2]", "id"),
    "image id is a text": (image(id="7"), "text-id", "images[2]", "id"),
    "image id is a name": (image(id="c"), "text-id", "images[2]", "id"),
    "category id is a text": (category(id="9"), "text-id", "categories[1]", "id"),
    "image_id is a text": (ann(image_id="5"), "text-id", "annotations[2]", "image_id"),
    "image id twice": (image(id=1), "duplicate-image-id", "image 1", "id"),
    "width is NaN": (image(width=math.nan), "image-entry", "image 7", "width"),
    "height is 0": (image(height=0), "image-entry", "image 7", "height"),
    "file_name with NUL": (image(file_name="a\0b.png"), "image-entry", "image 7", "file_name"),
    "file_name twice": (image(file_name="a.png"), "duplicate-file-name", "image 7", "file_name"),
    "file that is missing": (image(file_name="d.png"), "missing-image", "image 7", "file_name"),
    "file name of 300 letters": (image(file_name="x" * 300), "missing-image", "image 7", "file_name"),
    "size of another order": (image(width=30, height=40), "image-size", "image 7", "swapped"),
    # categories
    "category without name": (category(name=""), "category-entry classes", "categories[1]", "name"),
    "category id twice": (
        added("categories", {"id": 3, "name": "nut"}), "duplicate-category-id", "categories[2]", "id",
    ),
    "category name twice": (category(name="fig"), "duplicate-category classes", "categories[1]", "name"),
    "category with an escape sequence": (category(name="\x1b[31mfig"), "classes", "categories", "date"),
    # annotations
    "annotation is null": (added("annotations", None), "annotation-entry", "annotations[3]", "object"),
    "annotation without id": (
        without("annotations", 2, "id"), "duplicate-annotation-id", "annotations[2]", "id",
    ),
    "annotation id twice": (ann(id=1), "duplicate-annotation-id", "annotation 1", "id"),
    "annotation id is 0": (ann(id=0), "annotation-id-0", "annotation 0", "id"),
    "no image_id": (without("annotations", 2, "image_id"), "annotation-entry", "annotation 3", "image_id"),
    "no such image": (ann(image_id=2), "unknown-image", "annotation 3", "image_id"),
    "no such category": (ann(category_id=4), "unknown-category", "annotation 3", "category_id"),
    "iscrowd is a text": (ann(iscrowd="no"), "iscrowd", "annotation 3", "iscrowd"),
    "no area": (without("annotations", 0, "area"), "area", "annotation 1", "area"),
    "area is NaN": (ann(area=math.nan), "area", "annotation 3", "area"),
    "area of another polygon": (put("annotations", 0, area=250), "area", "annotation 1", "area"),
    "area of another RLE": (put("annotations", 1, area=20), "area", "annotation 2", "area"),
    "no bbox": (without("annotations", 2, "bbox"), "box", "annotation 3", "bbox"),
    "no bbox, but a mask": (
        without("annotations", 0, "bbox"), "box-with-mask", "annotation 1", "bbox",
    ),
    "bbox inside out, but a mask": (
        put("annotations", 1, bbox=[30, 5, -20, 10]), "box-with-mask", "annotation 2", "bbox",
    ),
    "bbox of three": (ann(bbox=[2, 3, 10]), "box", "annotation 3", "bbox"),
    "bbox with NaN": (ann(bbox=[2, 3, math.nan, 20]), "box", "annotation 3", "bbox"),
    "bbox with Infinity": (ann(bbox=[2, -math.inf, 10, 20]), "box", "annotation 3", "bbox"),
    "bbox without an area": (ann(bbox=[1, 2, 0, 4]), "box", "annotation 3", "bbox"),
    "bbox inside out": (ann(bbox=[12, 3, -10, 20]), "box", "annotation 3", "bbox"),
    "bbox that reaches out": (
        ann(bbox=[5, 10, 16.5, 20], area=330), "box-outside", "annotation 3", "bbox",
    ),
    "bbox beside the image": (ann(bbox=[25, 10, 5, 20], area=100), "box", "annotation 3", "bbox"),
    "bbox around something else": (
        put("annotations", 0, bbox=[20, 3, 10, 20]), "box-of-mask", "annotation 1", "bbox",
    ),
    # masks
    "mask is a text": (ann(segmentation="x"), "segmentation", "annotation 3", "segmentation"),
    "flat polygon": (mask(*POLYGON), "segmentation", "annotation 1", "segmentation"),
    "polygon with NaN": (mask([*POLYGON, math.nan, 1]), "segmentation", "annotation 1", "segmentation"),
    "polygon with a huge integer": (
        mask([*POLYGON, 10**400, 1]), "segmentation", "annotation 1", "segmentation",
    ),
    "polygon of odd length": (mask([*POLYGON, 1]), "polygon", "annotation 1", "segmentation"),
    "polygon of two points": (mask([2, 3, 12, 23]), "polygon", "annotation 1", "segmentation"),
    "polygon without an area": (mask(POLYGON, [1, 1, 2, 2, 3, 3]), "polygon", "annotation 1", "segmentation"),
    "polygon that reaches out": (
        mask([2, 3, 12, 3, 12, 23, -1.5, 13], bbox=[0, 3, 12, 20], area=185),
        "polygon-outside", "annotation 1", "segmentation",
    ),
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


@pytest.mark.parametrize("case", COCO)
def test_coco_check_and_fix(folder, case):
    change, kinds, where, word = COCO[case]
    file, out = write_coco(folder, change), folder / "fixed.json"
    report = check_coco(file, folder, CLASSES)
    first = report.problems[0]
    assert first.where == where and word in first.text
    assert [problem.kind for problem in report.problems] == kinds.split()
    shown = json.loads(json.dumps(report.as_dict()))["problems"][0]
    assert shown == {"kind": first.kind, "where": where, "text": first.text}
    if any(KINDS[problem.kind].remedy is None for problem in report.problems):
        with pytest.raises(UserError, match="--fix"):
            fix(report, out)
        assert not out.exists()
        return
    done = fix(report, out)
    assert check_coco(out, folder).problems == []
    remedy = KINDS[first.kind].remedy
    assert {what for counts in done.values() for what in counts} <= {remedy, "dropped"}
    if remedy != "dropped":
        annotations = json.loads(out.read_text())["annotations"]
        assert len(annotations) == 3
        if remedy == "recomputed":  # the boxes of the masks in the good file
            assert [each["bbox"] for each in annotations[:2]] == [[2, 3, 10, 20], [10, 5, 20, 10]]


def test_every_kind_of_problem_is_in_the_table():
    kinds = {kind for _, kinds, *_ in COCO.values() for kind in kinds.split()}
    assert kinds | {"unreadable-image"} == set(KINDS)


LOAD = dict(type="LoadImageFromFile")
LOAD_BOXES = dict(type="LoadAnnotations")
LOAD_MASKS = dict(type="LoadAnnotations", with_bbox=True, with_mask=True)


def training_set(folder, annotations=LOAD_MASKS, classes=CLASSES, **arguments):
    cfg = dict(type="CocoDataset", ann_file="coco.json", data_root=f"{folder}/", data_prefix=dict(img=""))
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


def test_the_good_file(folder, warnings):
    report = check_coco(write_coco(folder), folder, CLASSES)
    assert report.problems == [] and report.empty_images == 1
    assert report.counts == {"images": 3, "annotations": 3, "categories": 2}
    assert report.per_class == {"fig": 2, "date": 1}
    data = training_set(folder, LOAD_BOXES)
    assert warnings == [] and [len(data[i]["gt_bboxes"]) for i in range(3)] == [2, 1, 0]
    assert training_set(folder)[0]["gt_masks"].masks.sum((1, 2)).tolist() == [pytest.approx(150, abs=15), 200]


# not errors of the data set: images are opened later, and a test set may have no annotations
LATER = {"missing-image", "image-size", "empty"}


@pytest.mark.parametrize("case", [case for case, row in COCO.items() if row[1] not in LATER])
def test_coco_training(folder, case, warnings):
    """An error if MMDetection would stop; a warning if it would skip or use the entry."""
    change, kinds, where, word = COCO[case]
    file = write_coco(folder, change)
    try:
        data = training_set(folder)
        for index in range(len(data)):
            data[index]
    except UserError as error:
        lines = [one_line(error)]
    else:
        assert kinds not in ("text-id", "segmentation"), "an error, not a warning"
        lines = [*warnings]
    passed_over = where.replace("annotation", "ids")  # the entry's name in a list of ids
    assert any(names_all(line, str(file), where, word) or line.endswith(passed_over) for line in lines), lines
    if word == "segmentation":  # boxes can still be trained, with a warning
        warnings.clear()
        boxes = training_set(folder, LOAD_BOXES)
        assert len(boxes) == 3 and len(boxes[0]["gt_bboxes"]) == 2
        assert any(names_all(line, str(file), where, word) for line in warnings), warnings


def test_metric_reads_what_the_data_set_reads(folder):
    """Evaluating masks requires masks. Annotations need no iscrowd, and their id may be 0."""

    def metric(change, what):
        file = write_coco(folder, change)
        with DefaultScope.overwrite_default_scope("mmdet"):
            return METRICS.build(dict(type="CocoMetric", ann_file=str(file), metric=what))

    api = metric(without("annotations", 0, "iscrowd"), "bbox")._coco_api
    assert api.loadAnns([1])[0]["iscrowd"] == 0
    api = metric(ann(id=0), "bbox")._coco_api
    assert sorted(api.getAnnIds()) == [1, 2, 3] and api.loadAnns([3])[0]["bbox"] == [0, 0, 20, 50]
    for change in (without("annotations", 0, "segmentation"), mask(), mask([2, 3, 12, 23])):
        metric(change, "bbox")
        with pytest.raises(UserError, match=r"coco.json: annotation 1: segmentation: "):
            metric(change, "segm")
    with pytest.raises(UserError, match=r"coco.json: annotation 3: bbox: "):
        metric(ann(bbox=None), "bbox")


def test_names_that_cannot_be_shown_or_stored(folder):
    """Lone surrogates, as in JSON and in Python's file names that are not UTF-8."""
    file = write_coco(folder, category(name="\x1b[31mfig"))
    shown = invoke("check", file, "--classes", "fig,date").stdout
    assert r"\x1b[31mfig" in shown and "\x1b" not in shown
    file = write_coco(folder, category(name="\udcff"))
    assert invoke("split", file, folder / "train.json", folder / "val.json").exit_code == 0
    assert invoke("check", file, "--fix", folder / "fixed.json").exit_code == 0
    for name in ("train", "val", "fixed"):
        assert json.loads((folder / f"{name}.json").read_text())["categories"][1]["name"] == "\udcff"


def test_names_of_classes(folder):
    names = [f"class {i}" for i in range(80)]
    file = write_coco(folder, top(categories=[{"id": 3 + 6 * i, "name": n} for i, n in enumerate(names)]))
    assert invoke("check", file, "--classes", ",".join(names)).exit_code == 0
    (folder / "names.txt").write_bytes("\r\n".join(names).encode("utf-16"))
    assert invoke("check", file, "--classes", folder / "names.txt").exit_code == 0
    (folder / "names.txt").write_bytes(b"gr\xf6\xdfer")
    result = invoke("check", file, "--classes", folder / "names.txt")
    assert result.exit_code == 1 and "names.txt" in result.output and "--classes" in result.output
