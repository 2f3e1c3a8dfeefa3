"""Malformed annotations: each ends in one line with the file, the entry and the field.

COCO files go through ``data check`` and through the data set of the training; VOC, YOLO and LabelMe through
``data convert``, which writes nothing.
"""

import base64
import copy
import io
import json
import logging
import math
import subprocess
import sys

import pytest
from click.testing import CliRunner
from PIL import Image

import dcnzoo.openmmlab.datasets

# isort: split
from mmdet.registry import DATASETS, METRICS
from mmengine.registry import DefaultScope

from dcnzoo.cli import commands
from dcnzoo.data.check import check_coco
from dcnzoo.utils.errors import UserError, one_line

CLASSES = ("fig", "date")
GOOD = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 5, "file_name": "b.png", "width": 20, "height": 50},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 3, 10, 20], "area": 150, "iscrowd": 0,
         "segmentation": [[2, 3, 12, 3, 12, 23, 2, 13]]},
        {"id": 2, "image_id": 5, "category_id": 9, "bbox": [0, 0, 20, 50], "area": 1000, "iscrowd": 0,
         "segmentation": {"size": [50, 20], "counts": [0, 1000]}},
    ],
    "categories": [{"id": 3, "name": "fig"}, {"id": 9, "name": "date"}],
}  # fmt: skip
PIPELINE = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask=True)]


def invoke(*arguments):
    return CliRunner().invoke(commands, ["data", *map(str, arguments)])


def names_all(line, *parts):
    return line.isprintable() and all(part in line for part in parts)


# COCO


def entry(part, index, **values):
    def change(content):
        content[part][index].update(values)
        return json.dumps(content)

    return change


def image(**values):
    return entry("images", 1, **values)


def annotation(**values):
    return entry("annotations", 0, **values)


def category(**values):
    return entry("categories", 1, **values)


def top(**values):
    return lambda content: json.dumps({**content, **values})


def added(part, value):
    return lambda content: json.dumps({**content, part: [*content[part], value]})


def mask(*polygons):
    return annotation(segmentation=list(polygons))


def rle(**values):
    return entry("annotations", 1, segmentation={"size": [50, 20], "counts": [0, 1000], **values})


def without(part, index, key):
    def change(content):
        del content[part][index][key]
        return json.dumps(content)

    return change


def text_with(old, new):
    return lambda content: json.dumps(content).replace(old, new, 1)


POLYGON = [2, 3, 12, 3, 12, 23]
FIRST = "annotation 1:"
COCO = {  # what is wrong: the change, the entry, the field
    # the file
    "empty file": (lambda content: "", "line 1", "JSON"),
    "cut off": (lambda content: json.dumps(content)[:200], "line 1", "JSON"),
    "cut off in the third line": (lambda content: json.dumps(content, indent=1)[:18], "line 3", "JSON"),
    "deep nesting": (lambda content: "[" * 200_000, "file", "nested"),
    "deep nesting of objects": (lambda content: '{"a":' * 200_000, "file", "nested"),
    "integer of 5,000 digits": (text_with("150", "1" * 5000), "file", "JSON"),
    "Latin-1": (lambda content: b'{"images": "gr\xf6\xdfer"}', "file", "UTF-8"),
    "UTF-16 that is cut": (lambda content: json.dumps(content).encode("utf-16")[:-1], "file", "UTF-16"),
    "NUL bytes": (lambda content: json.dumps(content).encode() + b"\0" * 9, "file", "NUL"),
    "a list": (lambda content: "[1, 2]", "file", "images"),
    "key twice": (text_with('"id": 5', '"id": 5, "width": 20'), "id 5", "'width'"),
    "images twice": (text_with('"images"', '"images": [], "images"'), "file", "'images'"),
    "images are null": (top(images=None), "images:", "list"),
    "images are an object": (top(images={"a": 1}), "images:", "list"),
    "annotations are null": (top(annotations=None), "annotations:", "list"),
    "categories are an object": (top(categories={"fig": 3}), "categories:", "list"),
    "no images": (top(images=[]), "images:", "at least 1"),
    "no categories": (top(categories=[]), "categories:", "at least 1"),
    # images
    "image is null": (added("images", None), "images[2]", "id"),
    "image without id": (without("images", 1, "id"), "images[1]", "id"),
    "image id is a text": (image(id="5"), "images[1]", "id"),
    "image id twice": (image(id=1), "image 1:", "id"),
    "width is a text": (image(width="20"), "image 5:", "width"),
    "width is NaN": (image(width=math.nan), "image 5:", "width"),
    "height is 0": (image(height=0), "image 5:", "height"),
    "height is huge": (image(height=10**30), "image 5:", "height"),
    "no height": (without("images", 1, "height"), "image 5:", "height"),
    "file_name is null": (image(file_name=None), "image 5:", "file_name"),
    "file_name with NUL": (image(file_name="a\0b.png"), "image 5:", "file_name"),
    "file_name twice": (image(file_name="a.png"), "image 5:", "file_name"),
    # categories
    "category is a text": (added("categories", "fig"), "categories[2]", "id"),
    "category without id": (without("categories", 1, "id"), "categories[1]", "id"),
    "category without name": (without("categories", 1, "name"), "categories[1]", "name"),
    "category id twice": (added("categories", {"id": 3, "name": "nut"}), "categories[2]", "id"),
    "category name twice": (category(name="fig"), "categories[1]", "name"),
    "category with an escape sequence": (category(name="\x1b[31mfig"), "categories", r"\x1b[31mfig"),
    # annotations
    "annotation is null": (added("annotations", None), "annotations[2]", "object"),
    "annotation without id": (without("annotations", 0, "id"), "annotations[0]", "id"),
    "annotation id twice": (entry("annotations", 1, id=1), FIRST, "id"),
    "annotation id is 0": (annotation(id=0), "annotation 0:", "id"),
    "no image_id": (without("annotations", 0, "image_id"), FIRST, "image_id"),
    "image_id is a list": (annotation(image_id=[1]), FIRST, "image_id"),
    "no such category": (annotation(category_id=4), FIRST, "category_id"),
    "category_id is an object": (annotation(category_id={}), FIRST, "category_id"),
    "iscrowd is a text": (annotation(iscrowd="no"), FIRST, "iscrowd"),
    "no area": (without("annotations", 0, "area"), FIRST, "area"),
    "area is a text": (annotation(area="150"), FIRST, "area"),
    "area is NaN": (annotation(area=math.nan), FIRST, "area"),
    "area of something else": (annotation(area=1150), FIRST, "area"),
    "bbox is null": (annotation(bbox=None), FIRST, "bbox"),
    "bbox is an object": (annotation(bbox={"x": 1}), FIRST, "bbox"),
    "bbox of three": (annotation(bbox=[2, 3, 10]), FIRST, "bbox"),
    "bbox with a text": (annotation(bbox=[2, 3, "10", 20]), FIRST, "bbox"),
    "bbox with true": (annotation(bbox=[2, 3, True, 20]), FIRST, "bbox"),
    "bbox with NaN": (annotation(bbox=[2, 3, math.nan, 20]), FIRST, "bbox"),
    "bbox with Infinity": (annotation(bbox=[2, -math.inf, 10, 20]), FIRST, "bbox"),
    "bbox with 1e300": (annotation(bbox=[2, 3, 1e300, 20]), FIRST, "bbox"),
    "bbox with a huge integer": (annotation(bbox=[2, 3, 10**400, 20]), FIRST, "bbox"),
    "bbox inside out": (annotation(bbox=[12, 3, -10, 20]), FIRST, "bbox"),
    "bbox around something else": (annotation(bbox=[20, 3, 10, 20]), FIRST, "bbox"),
    # masks
    "mask is a text": (annotation(segmentation="x"), FIRST, "segmentation"),
    "mask is a number": (annotation(segmentation=7), FIRST, "segmentation"),
    "mask of a null": (mask(None), FIRST, "segmentation"),
    "flat polygon": (annotation(segmentation=POLYGON), FIRST, "segmentation"),
    "polygon of pairs": (mask([[2, 3], [12, 3], [12, 23]]), FIRST, "segmentation"),
    "polygon with NaN": (mask([*POLYGON, math.nan, 1]), FIRST, "segmentation"),
    "polygon with Infinity": (mask([*POLYGON, math.inf, 1]), FIRST, "segmentation"),
    "polygon with 1e30": (mask([*POLYGON, 1e30, 1]), FIRST, "segmentation"),
    "polygon with a huge integer": (mask([*POLYGON, 10**400, 1]), FIRST, "segmentation"),
    "polygon with a text": (mask([*POLYGON, "1", 1]), FIRST, "segmentation"),
    "polygon of odd length": (mask([*POLYGON, 1]), FIRST, "segmentation"),
    "polygon of two points": (mask([2, 3, 12, 23]), FIRST, "segmentation"),
    "polygon of none": (mask([]), FIRST, "segmentation"),
    "polygon without an area": (mask([2, 3, 12, 23, 2, 3]), FIRST, "segmentation"),
    "RLE without size": (rle(size=None), "annotation 2:", "segmentation"),
    "RLE of another size": (rle(size=[20, 50]), "annotation 2:", "segmentation"),
    "RLE of a huge size": (rle(size=[10**9, 10**9]), "annotation 2:", "segmentation"),
    "RLE without counts": (rle(counts=None), "annotation 2:", "segmentation"),
    "RLE with a negative count": (rle(counts=[5, -5, 1000]), "annotation 2:", "segmentation"),
    "RLE with NaN": (rle(counts=[math.nan, 1000]), "annotation 2:", "segmentation"),
    "RLE of too many pixels": (rle(counts=[0, 2**40]), "annotation 2:", "segmentation"),
    "RLE of too few pixels": (rle(counts=[0, 100]), "annotation 2:", "segmentation"),
    "RLE of no pixel": (rle(counts=[1000]), "annotation 2:", "segmentation"),
    "RLE that is no text of counts": (rle(counts="\x7fÿ"), "annotation 2:", "segmentation"),
    "RLE that ends within a number": (rle(counts="0o"), "annotation 2:", "segmentation"),
    "RLE of one endless number": (rle(counts="o" * 100_000 + "0"), "annotation 2:", "segmentation"),
}


@pytest.fixture
def folder(tmp_path):
    for entry in GOOD["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(tmp_path / entry["file_name"])
    return tmp_path


def write_coco(folder, change):
    text = change(copy.deepcopy(GOOD))
    file = folder / "coco.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def training_set(folder, **arguments):
    cfg = dict(type="CocoDataset", ann_file="coco.json", data_root=f"{folder}/", data_prefix=dict(img=""))
    cfg.update({"metainfo": dict(classes=CLASSES), "pipeline": PIPELINE, **arguments})
    with DefaultScope.overwrite_default_scope("mmdet"):
        return DATASETS.build(cfg)


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(
        dcnzoo.openmmlab.datasets.coco,
        "print_log",
        lambda text, logger=None, level=logging.INFO: (
            lines.append(text) if level == logging.WARNING else None
        ),
    )
    return lines


def test_the_good_file(folder, warnings):
    file = write_coco(folder, json.dumps)
    assert invoke("check", file, "--images", folder).exit_code == 0
    data = training_set(folder)
    assert [data[i]["gt_masks"].masks.sum() for i in range(2)] == [pytest.approx(150, abs=15), 1000]
    assert warnings == []


@pytest.mark.parametrize("case", COCO)
def test_coco_check(folder, case):
    change, where, field = COCO[case]
    file = write_coco(folder, change)
    result = invoke("check", file, "--classes", ",".join(CLASSES))
    assert result.exit_code == 1, result.exception
    assert any(names_all(line, str(file), where, field) for line in result.stdout.splitlines())


@pytest.mark.parametrize("case", COCO)
def test_coco_training(folder, case, warnings):
    """What MMDetection would stop at is an error, what it would pass over or use is a warning."""
    change, where, field = COCO[case]
    file = write_coco(folder, change)
    try:
        data = training_set(folder)
        for index in range(len(data)):
            data[index]
    except UserError as error:
        lines = [one_line(error)]
    else:
        lines = warnings
    assert any(names_all(line, str(file), where, field) for line in lines), lines


@pytest.mark.parametrize("case", [case for case, (*_, field) in COCO.items() if field == "segmentation"])
def test_masks_do_not_matter_to_boxes(folder, case, warnings):
    """A detector that learns from boxes is trained, and a line says what is wrong with the masks."""
    change, where, field = COCO[case]
    file = write_coco(folder, change)
    boxes = training_set(folder, pipeline=[PIPELINE[0], dict(type="LoadAnnotations")])
    assert len(boxes) == 2 and len(boxes[0]["gt_bboxes"]) == 1
    assert any(names_all(line, str(file), where, field) for line in warnings), warnings


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_coco_encodings(folder, encoding, warnings):
    """As Windows' editors and shells write it."""
    text = json.dumps(GOOD, indent=1).replace("fig", "Feige ü 果").replace("\n", "\r\n")
    text = text.replace('"Feige ü 果"', '"fig"') if encoding == "utf-32" else text
    names = ("fig" if encoding == "utf-32" else "Feige ü 果", "date")
    (folder / "coco.json").write_bytes(text.encode(encoding))
    report = check_coco(folder / "coco.json", folder, names)
    assert report.problems == [] and tuple(report.per_class) == names
    with DefaultScope.overwrite_default_scope("mmdet"):
        data = DATASETS.build(
            dict(type="CocoDataset", ann_file=f"{folder}/coco.json", metainfo=dict(classes=names),
                 data_prefix=dict(img=f"{folder}/"), pipeline=PIPELINE)
        )  # fmt: skip
        METRICS.build(dict(type="CocoMetric", ann_file=f"{folder}/coco.json", metric=["bbox", "segm"]))
    assert len(data) == 2 and warnings == []


def test_metric_reads_what_the_data_set_reads(folder):
    """An object needs a mask to be compared, an annotation no iscrowd, and its id may be 0."""

    def metric(change, what):
        file = write_coco(folder, change)
        with DefaultScope.overwrite_default_scope("mmdet"):
            return METRICS.build(dict(type="CocoMetric", ann_file=str(file), metric=what))

    api = metric(without("annotations", 0, "iscrowd"), "bbox")._coco_api
    assert api.loadAnns([1])[0]["iscrowd"] == 0
    api = metric(annotation(id=0), "bbox")._coco_api
    assert sorted(api.getAnnIds()) == [2, 3] and api.loadAnns([3])[0]["bbox"] == [2, 3, 10, 20]
    for change in (without("annotations", 0, "segmentation"), mask(), mask([2, 3, 12, 23])):
        metric(change, "bbox")
        with pytest.raises(UserError, match=r"coco.json: annotation 1: segmentation: expected a mask"):
            metric(change, "segm")
    with pytest.raises(UserError, match=r"coco.json: annotation 1: bbox: expected"):
        metric(annotation(bbox=None), "bbox")


def test_file_names_that_are_too_long(folder):
    file = write_coco(folder, image(file_name="x" * 300 + ".png"))
    result = invoke("check", file, "--images", folder)
    assert result.exit_code == 1
    assert any(names_all(line, str(file), "image 5:", "file_name") for line in result.stdout.splitlines())
    write_coco(folder, entry("images", 0, file_name="x" * 300 + ".png"))
    with pytest.raises(UserError, match="data_prefix: expected the images of"):
        training_set(folder)


def test_split_and_fix_keep_names_that_are_no_text(folder):
    """Half of a character, as JSON can have it, and Python in names of files that are not UTF-8."""
    file = write_coco(folder, category(name="\udcff"))
    assert invoke("split", file, folder / "train.json", folder / "val.json").exit_code == 0
    assert invoke("check", file, "--fix", folder / "fixed.json").exit_code == 0
    for name in ("train", "val", "fixed"):
        assert json.loads((folder / f"{name}.json").read_text())["categories"][1]["name"] == "\udcff"


def test_names_of_classes(folder):
    """More of them than a file's name may have characters, and a file of any encoding."""
    names = [f"class {i}" for i in range(80)]
    content = {**GOOD, "categories": [{"id": 3 + 6 * i, "name": name} for i, name in enumerate(names)]}
    file = write_coco(folder, lambda _: json.dumps(content))
    assert invoke("check", file, "--classes", ",".join(names)).exit_code == 0
    for encoding in ENCODINGS:
        (folder / "names.txt").write_bytes("\r\n".join(names).encode(encoding))
        assert invoke("check", file, "--classes", folder / "names.txt").exit_code == 0
    (folder / "names.txt").write_bytes(b"gr\xf6\xdfer")
    result = invoke("check", file, "--classes", folder / "names.txt")
    assert result.exit_code == 1 and "names.txt" in result.output and "--classes" in result.output


# VOC, YOLO and LabelMe


def voc(box="<xmin>3</xmin><ymin>5</ymin><xmax>12</xmax><ymax>25</ymax>", name="<name>fig</name>", **parts):
    parts = {"size": "<size>\n<width>40</width><height>30</height></size>", "extra": "", **parts}
    return (
        f"<annotation>\n{parts['extra']}{parts['size']}\n"
        f"<object>{name}\n<bndbox>{box}</bndbox></object>\n</annotation>\n"
    )


def width(text):
    return voc(size=f"<size>\n<width>{text}</width><height>30</height></size>")


VOC = {  # the content of a.xml, the line, the field
    "empty": ("", ":1:", "XML"),
    "cut off": (voc()[:50], ":3:", "XML"),
    "no XML": ("{}", ":1:", "XML"),
    "another root": ("<html/>", ":1:", "<annotation>"),
    "entities": ('<!DOCTYPE x [<!ENTITY a "a">]><annotation>&a;</annotation>', ":1:", "entities"),
    "Latin-1 without saying so": (voc(name="<name>gr\xf6\xdfer</name>").encode("latin-1"), ":4:", "XML"),
    "NUL": (voc().encode() + b"\0", ":7:", "XML"),
    "width is NaN": (width("nan"), ":3:", "<width>"),
    "width is infinite": (width("inf"), ":3:", "<width>"),
    "width is huge": (width("1e400"), ":3:", "<width>"),
    "width of another image": (width("41"), ":2:", "<size>"),
    "width with an underscore": (width("4_0"), ":3:", "<width>"),
    "two sizes": (voc(extra="<size></size>"), ":2:", "<size>"),
    "two names": (voc(name="<name>fig</name><name>date</name>"), ":4:", "<name>"),
    "no name": (voc(name=""), ":4:", "<name>"),
    "another class": (voc(name="<name>\u202enut</name>"), ":4:", r"\u202enut"),
    "no box": (voc().replace("bndbox", "box"), ":4:", "<bndbox>"),
    "NaN in a box": (voc("<xmin>nan</xmin><ymin>5</ymin><xmax>12</xmax><ymax>25</ymax>"), ":5:", "<xmin>"),
    "two xmin": (
        voc("<xmin>3</xmin><xmin>4</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax>"),
        ":5:",
        "<xmin>",
    ),
    "no ymax": (voc("<xmin>3</xmin><ymin>5</ymin><xmax>12</xmax>"), ":5:", "<ymax>"),
    "beyond the image": (voc("<xmin>3</xmin><ymin>5</ymin><xmax>50</xmax><ymax>9</ymax>"), ":4:", "50"),
}
LINE = "1 0.5 0.5 0.25 0.4"
YOLO = {  # the content of a.txt, the line, the field
    "NaN": ("1 0.5 nan 0.25 0.4", ":1:", "y:"),
    "infinite": (f"{LINE}\n1 inf 0.5 0.25 0.4", ":2:", "x:"),
    "underscore": ("1 0.5 0.5 0.2_5 0.4", ":1:", "width:"),
    "pixels": ("1 20 15 10 12", ":1:", "x:"),
    "negative": ("1 0.5 0.5 0.25 -0.4", ":1:", "height:"),
    "a name as the class": ("fig 0.5 0.5 0.25 0.4", ":1:", "class:"),
    "no such class": (f"{LINE}\n\n2 0.5 0.5 0.25 0.4", ":3:", "class:"),
    "a class of NaN": ("nan 0.5 0.5 0.25 0.4", ":1:", "class:"),
    "four values": ("1 0.5 0.5 0.25", ":1:", "class x y width height"),
    "a confidence": (f"{LINE} 0.9", ":1:", "class x y width height"),
    "NaN in a polygon": ("1 0.1 0.1 0.9 nan 0.9 0.9", ":1:", "y2:"),
    "huge number in a polygon": ("1 0.1 0.1 0.9 0.1 1e300 0.9", ":1:", "x3:"),
    "polygon without an area": ("1 0.1 0.1 0.2 0.2 0.3 0.3", ":1:", "polygon"),
    "box without an area": ("1 0.5 0.5 0.25 0", ":1:", "box"),
    "box that rounds to nothing": ("1 0.5 0.5 0.0000001 0.4", ":1:", "box"),
    "Latin-1": (b"1 0.5 0.5 0.25 0.4 \xf6", ":", "UTF-8"),
}
DATA = "train: images\nnames: [fig, date]\n"
YAML = {  # the content of data.yaml, where, the field
    "no YAML": ("names: [a\n", "data.yaml:2:", "YAML"),
    "key twice": (f"{DATA}names: [date, fig]\n", "data.yaml:3:", "'names'"),
    "deep nesting": (f"{DATA}x: {'[' * 5000}", "data.yaml", "nested"),
    "no such day": (f"{DATA}x: 2026-99-99\n", "data.yaml", "YAML"),
    "names that refer to themselves": ("train: images\nnames: &a [fig, *a]\n", "data.yaml", "names"),
    "split of 300 characters": (f"train: {'x' * 300}\nnames: [fig, date]\n", "data.yaml", "train"),
    "split with NUL": ('train: "a\\0b"\nnames: [fig, date]\n', "data.yaml", "train"),
}


def shape(**values):
    good = {"label": "fig", "shape_type": "polygon", "points": [[2, 3], [12, 3], [12, 23]]}
    return {**good, **values}


def labelme(*shapes, **values):
    content = {"imagePath": "a.png", "imageWidth": 40, "imageHeight": 30, "imageData": None}
    return json.dumps({**content, "shapes": shapes, **values})


def png(size, cut=None):
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()[:cut]).decode()


LABELME = {  # the content of a.json, the entry, the field
    "cut off": (labelme()[:30], ":1:", "JSON"),
    "deep nesting": ("[" * 200_000, "a.json:", "nested"),
    "key twice": (labelme(shape()).replace('"label"', '"label": "a", "label"'), "a.json:", "'label'"),
    "integer of 5,000 digits": (labelme(shape()).replace("23", "2" * 5000), "a.json:", "JSON"),
    "Latin-1": (b'{"a": "\xf6"}', "a.json:", "UTF-8"),
    "a list": ("[]", "a.json:", "shapes"),
    "shapes are null": (labelme(shapes=None), "a.json:", "shapes"),
    "no image": (labelme(shape(), imagePath="c.png"), "a.json:", "imagePath"),
    "image name with NUL": (labelme(shape(), imagePath="a\0.png"), "a.json:", "imagePath"),
    "image name of 300 characters": (labelme(shape(), imagePath="x" * 300), "a.json:", "imagePath"),
    "width of another image": (labelme(shape(), imageWidth="40"), "a.json:", "imageWidth"),
    "image data that is none": (labelme(imagePath="", imageData="?"), "a.json:", "imageData"),
    "image data that is cut": (
        labelme(shape(), imagePath="", imageData=png((40, 30), -300)),
        "a.json:",
        "imageData",
    ),
    "shape is null": (labelme(None), "shapes[0]", "label"),
    "label is null": (labelme(shape(), shape(label=None)), "shapes[1]", "label"),
    "label with an escape sequence": (labelme(shape(label="\x1b[2J")), "shapes[0]", r"\x1b[2J"),
    "points are null": (labelme(shape(points=None)), "shapes[0]", "points"),
    "points with NaN": (labelme(shape(points=[[2, 3], [12, 3], [math.nan, 23]])), "shapes[0]", "points"),
    "points with 1e30": (labelme(shape(points=[[2, 3], [12, 3], [1e30, 23]])), "shapes[0]", "points"),
    "points with a huge integer": (
        labelme(shape(points=[[2, 3], [12, 3], [10**400, 2]])),
        "shapes[0]",
        "points",
    ),
    "polygon of two points": (labelme(shape(points=[[2, 3], [12, 3]])), "shapes[0]", "points"),
    "a line": (labelme(shape(shape_type="line")), "shapes[0]", "area"),
    "no such kind": (labelme(shape(shape_type=["polygon"])), "shapes[0]", "shape_type"),
    "mask that is cut": (
        labelme(shape(shape_type="mask", points=[[0, 0], [39, 29]], mask=png((40, 30), -300))),
        "shapes[0]",
        "mask",
    ),
    "mask of another size": (
        labelme(shape(shape_type="mask", points=[[0, 0], [9, 9]], mask=png((9, 9)))),
        "shapes[0]",
        "mask",
    ),
}
TABLES = {"voc": VOC, "yolo": YOLO, "yaml": YAML, "labelme": LABELME}
ROWS = [(kind, case) for kind, table in TABLES.items() for case in table]


def write_source(folder, kind, content):
    """A data set that is right but for the file with ``content``: what is converted, and that file."""
    file = {"voc": "a.xml", "yolo": "labels/a.txt", "yaml": "data.yaml", "labelme": "a.json"}[kind]
    if kind in ("yolo", "yaml"):
        for name in ("images/a.png", "images/b.png"):
            (folder / "images").mkdir(exist_ok=True)
            Image.new("RGB", (40, 30)).save(folder / name)
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels/b.txt").write_text(LINE)
        (folder / "data.yaml").write_text(DATA)
    elif kind == "voc":
        (folder / "b.xml").write_text(voc(size=""))
    else:
        (folder / "b.json").write_text(labelme(shape(), imagePath="b.png", imageWidth=20, imageHeight=50))
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return "yolo" if kind == "yaml" else kind, folder / file


@pytest.mark.parametrize(("kind", "case"), ROWS)
def test_conversion(folder, kind, case):
    content, where, field = TABLES[kind][case]
    convert, file = write_source(folder, kind, content)
    before = sorted(folder.rglob("*"))
    options = ["--extract", folder / "extracted"] if convert == "labelme" else []
    options += ["--classes", ",".join(CLASSES)] if convert != "yolo" else []
    result = invoke("convert", convert, folder, folder / "out.json", *options)
    assert result.exit_code == 1, result.exception
    lines = result.output.splitlines()
    assert any(names_all(line, str(file), where, field) for line in lines), lines
    assert sorted(folder.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["voc", "yolo", "labelme"])
def test_conversion_encodings(folder, kind, encoding):
    if kind == "voc" and encoding not in ("utf-8", "utf-8-sig", "utf-16"):
        pytest.skip("XML has UTF-16 with a byte order mark, and no UTF-32")
    text = {"voc": voc(), "yolo": f"{LINE}\n{LINE}\n", "labelme": labelme(shape())}[kind]
    convert, _ = write_source(folder, kind, text.replace("\n", "\r\n").encode(encoding))
    result = invoke("convert", convert, folder, folder / "out.json")
    assert result.exit_code == 0, result.exception
    assert len(json.loads((folder / "out.json").read_text())["annotations"]) == (3 if kind == "yolo" else 2)


def test_long_names_in_lists(folder):
    (folder / "images").mkdir()
    Image.new("RGB", (40, 30)).save(folder / "images/a.png")
    name = "x" * 300
    (folder / "ImageSets").mkdir()
    (folder / "a.xml").write_text(voc(size=""))
    (folder / "ImageSets/train.txt").write_text(f"a\n{name}")
    result = invoke("convert", "voc", folder, folder / "out.json", "--split", "train")
    assert result.exit_code == 1
    assert names_all(result.stderr.splitlines()[0], f"{folder}/ImageSets/train.txt:2:")
    (folder / "c.xml").write_text(voc(extra=f"<filename>{name}</filename>"))
    result = invoke("convert", "voc", folder, folder / "out.json")
    assert result.exit_code == 1
    assert names_all(result.stderr.splitlines()[0], f"{folder}/c.xml:2:")
    (folder / "list.txt").write_text(f"images/a.png\n{name}\n")
    (folder / "data.yaml").write_text(DATA.replace("images", "list.txt"))
    result = invoke("convert", "yolo", folder, folder / "out.json")
    assert result.exit_code == 1
    assert names_all(result.stderr.splitlines()[0], f"{folder}/list.txt:2:")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "LONG"],
        ["check", "coco.json", "--images", "LONG"],
        ["split", "LONG", "a.json", "b.json"],
        ["convert", "voc", "LONG", "out.json"],
        ["convert", "voc", ".", "out.json", "--split", "LONG"],
        ["convert", "yolo", "LONG", "out.json"],
        ["convert", "labelme", "LONG", "out.json"],
    ],
)
def test_arguments_that_are_too_long(folder, arguments, monkeypatch):
    monkeypatch.chdir(folder)
    write_coco(folder, json.dumps)
    result = invoke(*(text.replace("LONG", "x" * 300) for text in arguments))
    assert result.exit_code == 1 and "x" * 300 in result.output


# As a user types it


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "dcnzoo", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_check_as_a_program(folder):
    change, where, field = COCO["polygon with NaN"]
    file = write_coco(folder, change)
    ran = run("data", "check", file)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert any(names_all(line, str(file), where, field) for line in ran.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["polygon with NaN", "key twice"])
def test_training_as_a_program(folder, case):
    change, where, field = COCO[case]
    file = write_coco(folder, change)
    config = folder / "config.py"
    config.write_text(
        "_base_ = 'dcnzoo::demo/mask-rcnn_r14_fpn_8e_shapes.py'\n"
        f"data = dict(type='ShapesDataset', data_root='{folder}/', ann_file='coco.json',\n"
        "            data_prefix=dict(img=''), metainfo=dict(classes=('fig', 'date')), shapes=None)\n"
        "train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)\n"
        "val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)\n"
        "test_dataloader = val_dataloader\n"
    )
    ran = run("train", config, "--work-dir", folder / "work")
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert names_all(ran.stderr.splitlines()[-1], str(file), where, field)
