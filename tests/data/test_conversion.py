"""VOC, YOLO and LabelMe to COCO's format: boxes worked out by hand, and files with errors."""

import base64
import io
import json
import math
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import mmcv
import numpy as np
import pytest
import shapely
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from pycocotools.coco import COCO

import dcnzoo.openmmlab.datasets  # noqa: F401
from dcnzoo.data import conversion
from dcnzoo.data.check import check_coco
from dcnzoo.data.conversion import (
    CocoBuilder,
    clip_box,
    clip_polygon,
    corners_of,
    image_size,
    polygon_area,
)
from dcnzoo.data.files import InvalidAnnotation, write_json
from dcnzoo.data.layouts import convert
from dcnzoo.data.splits import ReadOptions, Tree
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.formats import PICTURES

from ..commands import error_of, run
from ..formats import write

WIDTH, HEIGHT = 40, 30


def convert_voc(root, split="", **options):
    return convert(root, "Pascal VOC", split, ReadOptions(**options))


def convert_yolo(source, split="train", **options):
    return convert(source, "YOLO", split, ReadOptions(**options))


def convert_labelme(root, **options):
    return convert(root, "LabelMe", options=ReadOptions(**options))


def write_image(file, size=(WIDTH, HEIGHT), orientation=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size, (200, 30, 60)).save(file, exif=exif)


def problems(conversion, root):
    """The problems as displayed, without the folder."""
    found = [*conversion.problems, *conversion.missing]
    return [str(problem).replace(f"{root}/", "") for problem in found]


def boxes(conversion):
    """(file, class, box) of every object."""
    content = conversion.edit()
    files = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    return [(files[a["image_id"]], names[a["category_id"]], a["bbox"]) for a in content["annotations"]]


def file_names(conversion):
    return [image["file_name"] for image in conversion.edit()["images"]]


# Images


@pytest.mark.parametrize("suffix", PICTURES)
@pytest.mark.parametrize("orientation", [None, 3, 6])
def test_image_size_is_that_of_the_image_as_it_is_loaded(tmp_path, suffix, orientation):
    file = tmp_path / f"image{suffix}"
    write_image(file, orientation=None if suffix in (".bmp", ".ppm") else orientation)
    width, height = image_size(file)
    assert mmcv.imread(str(file)).shape == (height, width, 3)
    file.unlink()
    with pytest.raises(InvalidAnnotation, match=file.name):
        image_size(file)


def test_avif_without_a_decoder_of_opencv(tmp_path, monkeypatch):
    write_image(tmp_path / "a.avif")
    monkeypatch.setattr(conversion, "_opencv_reads_avif", lambda: False)
    with pytest.raises(InvalidAnnotation, match="AVIF, which this OpenCV cannot read"):
        image_size(tmp_path / "a.avif")


def test_size_of_a_picture_that_pillow_refuses(tmp_path, monkeypatch):
    """Of more than 178 megapixels, which OpenCV reads."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    write_image(tmp_path / "a.jpg", orientation=6)
    for file in (tmp_path / "a.jpg", io.BytesIO((tmp_path / "a.jpg").read_bytes())):
        assert image_size(file) == mmcv.imread(str(tmp_path / "a.jpg")).shape[1::-1]
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    with pytest.raises(InvalidAnnotation, match=r"a\.jpg"):
        image_size(tmp_path / "a.jpg")


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    ("before", "behind", "turned"),
    [
        ([], [], False),
        ([], [(b"tEXt", b"date:create\x002026"), (b"tIME", bytes(7))], False),
        ([(b"eXIf", EXIF)], [(b"tEXt", b"Comment\0 ")], True),
        ([(b"iTXt", XMP)], [], False),
        ([], [(b"eXIf", EXIF)], True),
        ([], [(b"tEXt", b"Comment\0 "), (b"iTXt", XMP)], False),
        ([], [(b"tEXt", b"Raw profile type exif\0\nexif\n26\n" + EXIF.hex().encode())], False),
    ],
)
def test_size_of_a_png_without_its_pixels(tmp_path, monkeypatch, before, behind, turned):
    """Of EXIF data, not of the texts that only Pillow reads."""
    file = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(file)
    content = file.read_bytes()
    pixels = content.index(b"IDAT") - 4
    parts = [content[:pixels], *(chunk(*each) for each in before), content[pixels:-12]]
    file.write_bytes(b"".join([*parts, *(chunk(*each) for each in behind), content[-12:]]))
    expected = (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)
    assert mmcv.imread(str(file)).shape[1::-1] == expected
    assert image_size(file) == image_size(file, decode=True) == expected
    cut = tmp_path / "cut.png"
    for length in (pixels + 4, pixels + 30, pixels + 900):
        cut.write_bytes(content[:length])
        with pytest.raises(InvalidAnnotation, match=r"cut\.png"):
            image_size(cut)
    monkeypatch.setattr(PngImageFile, "load", None)
    assert image_size(file) == image_size(io.BytesIO(file.read_bytes()), "image") == expected


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", ".png"])
def test_an_orientation_in_xmp_only_is_not_applied(tmp_path, suffix):
    file = tmp_path / f"image{suffix}"
    Image.new("RGB", (WIDTH, HEIGHT)).save(file, xmp=XMP.partition(b"\0" * 5)[2])
    assert image_size(file) == mmcv.imread(str(file)).shape[1::-1] == (WIDTH, HEIGHT)


# Geometry


# around a picture of 40 × 30 pixels: a box, and what is left of it in the picture
CLIPPED = [
    ((-2, 3, 20, 15), (0, 3, 20, 15)),
    ((3, -2, 20, 15), (3, 0, 20, 15)),
    ((3, 4, 45, 15), (3, 4, 40, 15)),
    ((3, 4, 20, 33), (3, 4, 20, 30)),
    ((-9, 4, 0.25, 15), (0, 4, 0.25, 15)),  # less than a pixel reaches in
    ((3, -9, 20, 0.25), (3, 0, 20, 0.25)),
    ((39.75, 4, 45, 15), (39.75, 4, 40, 15)),
    ((3, 29.75, 20, 33), (3, 29.75, 20, 30)),
    ((-9, 4, -3, 15), None),
    ((3, -9, 20, -1), None),
    ((40, 4, 45, 15), None),
    ((3, 31, 20, 33), None),
]


@pytest.mark.parametrize(("corners", "expected"), CLIPPED, ids=str)
def test_each_side_clips(tmp_path, corners, expected):
    builder = CocoBuilder(clip=True)
    builder.add_image(tmp_path / "a.png", (40, 30))
    if expected is None:
        x1, y1, x2, y2 = clip_box(corners, (40, 30))
        assert 0 <= x1 <= x2 <= 40 and 0 <= y1 <= y2 <= 30 and (x1 == x2 or y1 == y2)
        with pytest.raises(InvalidAnnotation, match=r"^fig: expected a box with an area, got "):
            builder.add_box("fig", corners)
        assert builder.clipped == 0
        return
    assert clip_box(corners, (40, 30)) == expected
    builder.add_box("fig", corners)
    (entry,) = builder.content()["annotations"]
    x1, y1, x2, y2 = expected
    assert entry["bbox"] == [x1, y1, x2 - x1, y2 - y1] and builder.clipped == 1


def test_clipping_by_hand():
    # a triangle whose corner (44, 10) is 4 outside: its sides meet the border at y = 8 and 12
    triangle = [(34, 5), (44, 10), (34, 15)]
    (clipped,) = clip_polygon(triangle, (40, 30))
    assert sorted(clipped) == [(34, 5), (34, 15), (40, 8), (40, 12)]
    assert polygon_area(triangle) == 50 and polygon_area(clipped) == 42
    assert clip_polygon([(50, 5), (60, 5), (50, 9)], (40, 30)) == []
    inside = [(0, 0), (40, 0), (40, 30)]
    assert clip_polygon(inside, (40, 30)) == [inside]
    # a U on its side, with its middle outside the border: the arms are not joined along the border
    arms = [(30, 5), (50, 5), (50, 25), (30, 25), (30, 20), (45, 20), (45, 10), (30, 10)]
    parts = sorted(map(sorted, clip_polygon(arms, (40, 30))))
    assert parts == [[(30, y), (30, y + 5), (40, y), (40, y + 5)] for y in (5, 20)]
    # a frame, as one outline to its hole and back. First the whole hole is in the image, then half of it.
    frame = [(-1, 1), (19, 1), (19, 19), (-1, 19), (-1, 1), (5, 5), (5, 15), (15, 15), (15, 5), (5, 5)]
    for width, expected in ((40, 19 * 18 - 10 * 10), (10, 10 * 18 - 5 * 10)):
        assert sum(map(polygon_area, clip_polygon(frame, (width, 30)))) == expected
    # a second hole, of 2 × 4
    two = [*frame, (-1, 1), (16, 5), (16, 9), (18, 9), (18, 5), (16, 5)]
    assert sum(map(polygon_area, clip_polygon(two, (40, 30)))) == 19 * 18 - 10 * 10 - 2 * 4


def test_areas_and_corners_are_those_of_shapely():
    random = np.random.default_rng(0)
    for number in range(300):
        polygon = random.uniform(-50, 50, (random.integers(3, 30), 2)).round(number % 4) + (number % 2) * 1e5
        expected = shapely.area(shapely.polygons(polygon - polygon[0]))
        assert polygon_area(polygon) == polygon_area([*map(tuple, polygon.tolist())]) == expected
        assert corners_of(polygon) == tuple(shapely.bounds(shapely.polygons(polygon)))


def test_long_lists_are_written_as_short_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("dcnzoo.data.files.PART", 2)
    content = {"a": [], "b ü": {"c": [1, 2, 3]}, "d": [[1], {}, "\udcff"], "e": [*range(4)], "f": 1}
    write_json(content, tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == json.dumps(content) + "\n"


def test_objects_take_little_memory():
    builder = CocoBuilder(("date",), folder=Path())
    builder.add_image(Path("a.jpg"), (40, 30))
    tracemalloc.start()
    for number in range(1000):
        x = number / 700
        builder.add_polygons("date", [[(x + side, 2 * side % 29) for side in range(20)]])
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 1200 * 1000  # dictionaries take 2.2 MB
    builder.add_box("date", (1.2345, 2, 4.3456, 7.007))
    first, *_, last, box = builder.content()["annotations"]
    assert (first["id"], last["id"]) == (1, 1000)
    assert (last["bbox"], last["category_id"]) == ([1.43, 0.0, 19.0, 28.0], 1)
    assert last["segmentation"][0][:4] == [1.43, 0, 2.43, 2]
    assert (box["bbox"], box["area"]) == ([1.23, 2, 3.11, 5.01], 15.58), "hundredths"


def test_voc_beside_its_images(tmp_path):
    """Zero-based coordinates, a size of zeros, and coordinates outside: more than a pixel needs ``clip``."""
    write_image(tmp_path / "a.PNG")
    outside = voc_object("fig", (5, 6, 60, 99))
    objects = voc_object("fig", (0, 4, 12, 25)), voc_object("fig", (5, 6, 41, 30)), outside
    write(tmp_path / "a.xml", voc_file(*objects, size=(0, 0), name=r"C:\my photos\a.PNG"))
    conversion = convert_voc(tmp_path)
    assert [box for *_, box in boxes(conversion)] == [[4, 5, 36, 25]]
    zero_based, beyond = problems(conversion, tmp_path)
    assert zero_based.startswith("a.xml:5: fig: ") and "zero_based=True" in zero_based
    assert beyond.startswith("a.xml:8: ")
    conversion = convert_voc(tmp_path, zero_based=True, clip=True)
    assert conversion.problems == [] and conversion.folder == tmp_path
    assert conversion.repaired == ["objects clipped to their images: 2"]
    assert boxes(conversion)[0] == ("a.PNG", "fig", [0, 4, 12, 21])


# Pascal VOC


def voc_object(name, box, extra=""):
    x1, y1, x2, y2 = box
    return (
        f"<object><name>{name}</name>{extra}\n<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
    )


def voc_file(*objects, size=(WIDTH, HEIGHT), name="a.jpg"):
    head = f"<annotation>\n<filename>{name}</filename>\n<size><width>{size[0]}</width>"
    return f"{head}<height>{size[1]}</height><depth>3</depth></size>\n{''.join(objects)}</annotation>\n"


@pytest.fixture
def voc(tmp_path):
    """Three images, two of them in the split."""
    part = "<part><name>head</name><bndbox><xmin>4</xmin></bndbox></part>"
    fig = voc_object("fig", (3, 5, 12, 25), f"<truncated>1</truncated><difficult>0</difficult>{part}")
    date = voc_object("date", (1, 1, 40, 30), "<difficult>1</difficult>")
    for name, objects in {"a": fig + date, "b": voc_object("hazelnut", ("7.5", 2, 7.5, 4)), "c": ""}.items():
        write_image(tmp_path / f"JPEGImages/{name}.jpg")
        write(tmp_path / f"Annotations/{name}.xml", voc_file(objects, name=f"{name}.jpg"))
    write(tmp_path / "ImageSets/Main/train.txt", "a\nc  -1\n\n")
    return tmp_path


def test_voc_by_hand(voc):
    conversion = convert_voc(voc)
    assert problems(conversion, voc) == [] and conversion.folder == voc / "JPEGImages"
    # columns 3 to 12 are ten columns, and the first starts 2 pixels from the edge
    assert boxes(conversion) == [
        ("a.jpg", "fig", [2, 4, 10, 21]),
        ("a.jpg", "date", [0, 0, 40, 30]),
        ("b.jpg", "hazelnut", [6.5, 1, 1, 3]),
    ]
    content = conversion.edit()
    names = [(category["id"], category["name"]) for category in content["categories"]]
    assert names == [(1, "date"), (2, "fig"), (3, "hazelnut")]
    assert file_names(conversion) == ["a.jpg", "b.jpg", "c.jpg"]
    first, second, _ = content["annotations"]
    ids = {"id": 1, "image_id": 1, "category_id": 2}
    flags = {"iscrowd": 0, "difficult": 0, "truncated": 1}
    assert first == {**ids, "bbox": [2, 4, 10, 21], "area": 210, **flags}
    assert second["iscrowd"] == 1, "difficult objects are neither wanted nor wrong"


def test_voc_split_classes_and_difficult(voc):
    classes = ["hazelnut", "fig", "date"]
    conversion = convert_voc(voc, "train", classes=classes, difficult="drop")
    assert file_names(conversion) == ["a.jpg", "c.jpg"]
    assert [category["name"] for category in conversion.edit()["categories"]] == classes
    assert boxes(conversion) == [("a.jpg", "fig", [2, 4, 10, 21])]
    kept = convert_voc(voc, "train", difficult="keep").edit()["annotations"]
    assert [annotation["iscrowd"] for annotation in kept] == [0, 0]


def test_voc_split_mistakes(voc):
    write(voc / "ImageSets/Main/train.txt", "a\nnone\nb\na\n")
    conversion = convert_voc(voc, "train")
    missing, twice = problems(conversion, voc)
    assert missing.startswith("ImageSets/Main/train.txt:2: ") and "Annotations/none.xml" in missing
    assert twice.startswith("Annotations/a.xml: expected each image once")
    for arguments, options, message in (
        ((voc, "val"), {}, "for val.*found train"),
        ((voc / "JPEGImages",), {}, "annotations"),
        ((voc,), {"classes": ["fig", "date", "fig"]}, "classes: .*fig"),
    ):
        with pytest.raises(UserError, match=message):
            convert_voc(*arguments, **options)


def test_which_image_an_xml_file_is_of(voc):
    write(voc / "Annotations/d.xml", voc_file(name="a.jpg"))
    write(voc / "Annotations/e.xml", voc_file(name="none.jpg"))
    write(voc / "Annotations/f.xml", "<annotation/>")
    write_image(voc / "JPEGImages/renamed.JPG")
    write(voc / "Annotations/renamed.xml", voc_file(name="DSC0001.jpg"))
    conversion = convert_voc(voc)
    found = [problem.partition(" expected")[0] for problem in problems(conversion, voc)]
    assert found == ["Annotations/d.xml:", "Annotations/e.xml:2:", "Annotations/f.xml:1:"]
    assert file_names(conversion)[-1] == "renamed.JPG"


# YOLO


@pytest.fixture
def yolo(tmp_path):
    for name in ("train/a.jpg", "train/empty.jpg", "val/c.jpg"):
        write_image(tmp_path / "images" / name)
    write_image(tmp_path / "images/train/deep/b.png", (20, 50))
    write(tmp_path / "labels/train/a.txt", "1 0.5 0.5 0.25 0.4\n\n0 0.1 0.2 0.2 0.4\n")
    write(tmp_path / "labels/train/deep/b.txt", "0 0.1 0.1 0.6 0.1 0.6 0.5 0.1 0.3")
    write(tmp_path / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames: {1: fig, 0: date}\n")
    return tmp_path


def test_yolo_polygons_and_boxes_are_clipped(yolo):
    write(yolo / "labels/train/a.txt", "0 -0.1 0.5 0.5 -0.1 0.5 0.5\n0 1.1 0.5 0.4 0.2\n0 2 2 0.1 0.1\n")
    assert len(convert_yolo(yolo).problems) == 3
    conversion = convert_yolo(yolo, clip=True)
    (outside,) = conversion.problems
    assert outside.subject.endswith("a.txt:3")
    assert "objects clipped to their images: 2" in conversion.repaired
    polygon, box = (annotation["bbox"] for annotation in conversion.edit()["annotations"][:2])
    assert polygon == [0, 0, 20, 15] and box == [36, 12, 4, 6]


def test_yolo_by_hand(yolo):
    conversion = convert_yolo(yolo / "data.yaml")
    assert problems(conversion, yolo) == [] and conversion.folder == yolo
    assert boxes(conversion) == [
        # 10 × 12 pixels around (20, 15)
        ("images/train/a.jpg", "fig", [15, 9, 10, 12]),
        ("images/train/a.jpg", "date", [0, 0, 8, 12]),
        # (2, 5), (12, 5), (12, 25), (2, 15): 10 × 20 without a triangle of 10 × 10
        ("images/train/deep/b.png", "date", [2, 5, 10, 20]),
    ]
    assert file_names(conversion)[2] == "images/train/empty.jpg"
    box, _, polygon = conversion.edit()["annotations"]
    assert polygon["segmentation"] == [[2, 5, 12, 5, 12, 25, 2, 15]] and polygon["area"] == 150
    assert "segmentation" not in box and box["iscrowd"] == polygon["iscrowd"] == 0
    val = convert_yolo(yolo, split="val")
    assert file_names(val) == ["images/val/c.jpg"]
    assert len(val.categories) == 2 and boxes(val) == []


@pytest.mark.parametrize("path", ["/content/sets/fruits", "C:\\sets\\fruits", "../sets/fruits"])
@pytest.mark.parametrize("place", ["", "fruits", "sets/fruits"])
def test_yolo_path_of_another_machine(yolo, tmp_path, path, place):
    for name in ("images", "labels"):
        (tmp_path / "new" / place).mkdir(parents=True, exist_ok=True)
        (yolo / name).rename(tmp_path / "new" / place / name)
    write(tmp_path / "new/any.yaml", f"path: {path}\ntrain: images/train\nnames: [date, fig]\n")
    assert len(boxes(convert_yolo(tmp_path / "new/any.yaml"))) == 3


def test_yolo_values_that_rounding_made_larger_than_one(yolo):
    write(yolo / "labels/train/a.txt", "0 0.5 0.5 1.0000001 1\n0 0.5 0.5 0.9 1.02\n0 0.99 0.5 0.2 0.5\n")
    conversion = convert_yolo(yolo)
    assert [boxes(conversion)[0][2], len(boxes(conversion))] == [[0, 0, 40, 30], 2]
    assert [text.partition(": ")[0][-1] for text in problems(conversion, yolo)] == ["2", "3"]


@pytest.mark.parametrize("folders", [("Images", "labels"), ("Images", "Labels"), ("IMAGES", "labels")])
def test_yolo_names_in_capital_letters(yolo, folders):
    expected = [each[1:] for each in boxes(convert_yolo(yolo))]
    for old, new in zip(("images", "labels"), folders, strict=True):
        (yolo / old).rename(yolo / new)
    labels = yolo / folders[1] / "train/a.txt"
    labels.rename(labels.with_suffix(".TXT"))
    write(yolo / "data.yaml", f"train: {folders[0]}/train\nnames: {{1: fig, 0: date}}\n")
    assert [each[1:] for each in boxes(convert_yolo(yolo))] == expected


def test_yolo_lists_and_other_places(yolo):
    write(yolo / "list.txt", "./images/train/a.jpg\nimages/val/c.jpg\nimages/none.jpg\n")
    write(yolo / "data.yaml", "train: [../images/val, list.txt]\nnames: [date, fig]\nnc: 2\n")
    conversion = convert_yolo(yolo)
    assert file_names(conversion) == ["images/val/c.jpg", "images/train/a.jpg"], "each once"
    (problem,) = problems(conversion, yolo)
    assert problem.startswith("list.txt:3: ") and "images/none.jpg" in problem
    # without a folder named images, labels are beside their images
    write_image(yolo / "flat/d.jpg")
    write(yolo / "flat/d.txt", "0 0.5 0.5 1 1")
    write(yolo / "data.yml", "train: flat\nnames: [date]\n")
    (yolo / "data.yaml").unlink()
    assert boxes(convert_yolo(yolo)) == [("flat/d.jpg", "date", [0, 0, 40, 30])]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("names: [a\n", "data.yaml: .*line 2"),
        ("- a\n", "data.yaml: expected keys"),
        ("names: [yes, no]\ntrain: x", "names: .*True"),
        ("names: {1: a, 2: b}\ntrain: x", "names: "),
        ("names: [a]\nnc: 2\ntrain: x", "nc: "),
        (f"x: {'[' * 500}", "data.yaml: .*recursion"),
        ("x: 2026-99-99\n", "data.yaml: .*YAML"),
        ("names: [a, a]\ntrain: images/train", "classes: "),
        ("names: [a]\nval: x\ntest:\n", "split 'train', found val$"),
        ("names: [a]\ntrain: x\n", "train: .*/x$"),
        ("names: [a]\ntrain: images/gone\npath: /moved/away", "train: .*/moved/away/images/gone$"),
        ("names: [a]\ntrain: images\nkpt_shape: [17, 3]", "keypoints"),
        ("names: !!python/object/apply:os.system ['touch hacked']", "data.yaml: .*line 1"),
    ],
)
def test_yolo_description_mistakes(yolo, text, place, monkeypatch):
    monkeypatch.chdir(yolo)
    write(yolo / "data.yaml", text)
    with pytest.raises(UserError, match=place) as error:
        convert_yolo(yolo)
    assert "\n" not in str(error.value) and not (yolo / "hacked").exists()


def test_the_order_of_yolo_classes_does_not_rename_them(yolo):
    expected = sorted(boxes(convert_yolo(yolo)))
    conversion = convert_yolo(yolo, classes=["fig", "date"])
    assert sorted(boxes(conversion)) == expected
    assert [category["name"] for category in conversion.edit()["categories"]] == ["fig", "date"]
    (first, *_) = problems(convert_yolo(yolo, classes=["fig"]), yolo)
    assert "expected one of the classes fig, got 'date'" in first
    with pytest.raises(UserError, match="classes: expected names among date, fig, got daet"):
        convert_yolo(yolo, classes=["daet", "fig"])
    write(yolo / "data.yaml", "path: .\ntrain: images/train\n")
    assert sorted(boxes(convert_yolo(yolo, classes=["date", "fig"]))) == expected


@pytest.mark.parametrize("place", ["obj.data", "data/obj.data"])
def test_darknet(yolo, place):
    """Its paths are relative to the folder in which darknet runs."""
    expected = boxes(convert_yolo(yolo, "val")), boxes(convert_yolo(yolo))[:2]
    (yolo / "data.yaml").unlink()
    write(yolo / place, "classes= 2\ntrain  = train.txt\nvalid = data/val.txt\nnames = obj.names\n")
    write(yolo / "obj.names", "date\nfig\n")
    write(yolo / "train.txt", "images/train/a.jpg\n")
    write(yolo / "data/val.txt", "images/val/c.jpg\n")
    file = yolo / place
    assert (boxes(convert_yolo(file, "val")), boxes(convert_yolo(file))) == expected
    conversion = convert_yolo(file.parent)
    assert conversion.folder.samefile(yolo) and file_names(conversion) == ["images/train/a.jpg"]
    (yolo / "obj.names").unlink()
    with pytest.raises(UserError, match=r"obj.data: names: .*obj.names"):
        convert_yolo(file)


# LabelMe


BOX = [[1, 2], [5, 9]]


def shape(label, kind, points, group=None, mask=None):
    made = {"label": label, "shape_type": kind, "points": points, "group_id": group, "flags": {}}
    return made if mask is None else {**made, "mask": mask}


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


IMAGE = encoded(np.zeros((HEIGHT, WIDTH)))

CUT = encoded(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH)))[:-300]


def labelme_file(*shapes, path="a.jpg", size=(WIDTH, HEIGHT), data=None):
    image = {"imagePath": path, "imageData": data, "imageHeight": size[1], "imageWidth": size[0]}
    return json.dumps({"version": "5.4.1", "flags": {}, "shapes": shapes, **image}, indent=1)


def test_labelme_by_hand(tmp_path):
    write_image(tmp_path / "photos/a.jpg")
    mask = np.array([[0, 255, 255], [255, 255, 0]], np.uint8)
    shapes = [
        shape("fig", "polygon", [[2, 3], [12, 3], [12, 23]]),
        shape("date", "rectangle", [[30.5, 20], [20, 8]]),  # from any corner to the opposite one
        shape("date", "circle", [[20, 15], [23, 19]]),  # radius 5
        # two parts of one object, which overlap in 2 × 2 pixels, and an object of another group
        shape("fig", "rectangle", [[0, 0], [4, 4]], group=1),
        shape(" fig\n", "rectangle", [[2, 2], [6, 6]], group=1),
        shape("fig", "rectangle", [[0, 0], [4, 4]], group=2),
        shape("hazelnut", "mask", [[5, 10], [7, 11]], mask=encoded(mask)),
    ]
    write(tmp_path / "labels/a.json", labelme_file(*shapes, path="..\\photos\\a.jpg"))
    conversion = convert_labelme(tmp_path)
    assert problems(conversion, tmp_path) == [] and conversion.folder == tmp_path
    assert boxes(conversion) == [
        ("photos/a.jpg", "fig", [2, 3, 10, 20]),
        ("photos/a.jpg", "date", [20, 8, 10.5, 12]),
        ("photos/a.jpg", "date", [15, 10, 10, 10]),
        ("photos/a.jpg", "fig", [0, 0, 6, 6]),
        ("photos/a.jpg", "fig", [0, 0, 4, 4]),
        ("photos/a.jpg", "hazelnut", [5, 10, 3, 2]),
    ]
    conversion.save(tmp_path / "out.json")
    content = conversion.edit()
    areas = [annotation["area"] for annotation in content["annotations"]]
    assert areas == [100, 126, pytest.approx(25 * math.pi, rel=0.002), 16 + 16 - 4, 16, 4]
    assert content["annotations"][1]["segmentation"] == [[30.5, 20, 20, 20, 20, 8, 30.5, 8]]
    assert len(content["annotations"][3]["segmentation"]) == 2
    coco = COCO(tmp_path / "out.json")
    pixels = coco.annToMask(coco.anns[6])
    assert [tuple(at) for at in np.argwhere(pixels)] == [(10, 6), (10, 7), (11, 5), (11, 6)]
    assert check_coco(tmp_path / "out.json", tmp_path).problems == []


def test_labelme_embedded_images(tmp_path):
    box = shape("fig", "rectangle", BOX)
    write(tmp_path / "in/b.json", labelme_file(box, path="../../../escape.png", data=IMAGE))
    write(tmp_path / "in/deep/b.json", labelme_file(box, path="none.jpg", data=IMAGE))
    (first, second) = problems(convert_labelme(tmp_path / "in"), tmp_path)
    assert first.startswith("in/b.json: ") and "extract=FOLDER" in first
    assert second.startswith("in/deep/b.json: ")
    write(tmp_path / "in/c.json", labelme_file(shape("fig", "line", BOX), path="", data=IMAGE))
    conversion = convert_labelme(tmp_path / "in", extract=tmp_path / "out")
    with pytest.raises(UserError, match="nothing is written"):
        conversion.save(tmp_path / "coco.json")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    conversion.save(tmp_path / "coco.json", skip_invalid=True)  # keeps c's image without its object
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    # where the JSON files are, not where they say
    assert files == ["out/b.png", "out/c.png", "out/deep/b.png"]
    assert all((tmp_path / file).read_bytes() == base64.b64decode(IMAGE) for file in files)
    assert file_names(conversion) == [f"../{file}" for file in files]
    assert check_coco(tmp_path / "coco.json", tmp_path / "in").problems == []
    assert "imageData" not in Tree.json_of(tmp_path / "in/b.json"), "the pictures may not fit into memory"


LABELME_SHAPES = [
    (("line", BOX), "fig: shape_type: "),
    ((["polygon"], BOX), "fig: shape_type: "),
    (("polygon", BOX), "fig: points: expected at least 3"),
    (("polygon", None), "fig: points: "),
    (("rectangle", [[1, 2], [5]]), "fig: points: "),
    (("rectangle", [[1, math.nan], [5, 1]]), "fig: points: "),
    (("rectangle", [[1, 10**400], [5, 1]]), "fig: points: "),
    (("rectangle", [[1, 2], [1, 9]]), "fig: expected a polygon with an area"),
    (("circle", [[35, 10], [45, 10]]), "expected coordinates inside of the image"),
    (("mask", BOX, None, "?"), "fig: mask: "),
    (("mask", [[0, 0], [39, 29]], None, CUT), "fig: mask: "),
    (("mask", BOX, None, encoded(np.ones((7, 4)))), "fig: mask: expected 5 × 8 pixels"),
    (("mask", [[39, 5], [40, 5]], None, encoded([[1, 1]])), "fig: mask: expected points inside the image"),
    (("mask", [[3, 5], [4, 5]], None, encoded([[0, 0]])), "fig: expected a mask that covers"),
]
MISTAKES = {
    "a.xml": [
        ("<annotation>\n<a></b>\n</annotation>", "2: "),
        (voc_file(voc_object("gr\xf6\xdfer", (1, 1, 2, 2))).encode("latin-1"), "4: expected XML"),
        ('<!DOCTYPE x [\n<!ENTITY a "aa">]><annotation>&a;</annotation>', "2: expected XML without custom"),
        (voc_file(name="c.jpg"), "2: expected one image a.jpg (.png, …) or c.jpg in "),
        (voc_file(size=(30, 40)), "3: <size>: "),
        (voc_file(size=("nan", 40)), "3: <width>: "),
        (voc_file(voc_object("fig", (1, 1, 2, 2)).replace("ymin", "xmin")), "5: expected one <xmin>"),
        (voc_file(voc_object("", (1, 1, 2, 2))), "4: expected <name>"),
        (voc_file(voc_object("fig", (1, 1, "", 2))), "5: expected <xmax>"),
        (voc_file(voc_object("fig", (1, 1, "wide", 2))), "5: <xmax>: "),
        (voc_file(voc_object("fig", (9, 1, 8, 2))), "4: fig: expected a box with an area"),
        (voc_file(voc_object("fig", (9, 1, 42, 2))), "4: expected coordinates inside of the image"),
        (voc_file("<object><name>fig</name></object>"), "4: fig: expected <bndbox>"),
        (voc_file(voc_object("fig", (1, 1, 2, 2), "<difficult>No</difficult>")), "4: <difficult>: "),
        (voc_file(voc_object("grape", (1, 1, 2, 2))), "4: expected one of the classes fig, date"),
    ],
    "a.txt": [
        ("\n1 0.5 0.5 0.1 0.1 0.9 0.9 0.9", "2: expected class x y width height"),
        ("2 0.5 0.5 0.1 0.1", "1: class: "),
        ("1 0,5 0.5 0.1 0.1", "1: x: "),
        (b"# \xf6\n", " expected text in UTF-8, got invalid start byte at 2"),
        ("1 0.5 0.5 0.1 1.2", "1: height: "),
        ("1 0.5 nan 0.1 0.1", "1: y: "),
        ("1 0.5 0.5 0.1 0", "1: fig: expected a box with an area"),
        ("1 0.1 0.5 0.4 0.1", "1: expected coordinates inside of the image"),
        ("1 0.1 0.1 0.2 0.2 0.3 0.3", "1: fig: expected a polygon with an area"),
    ],
    "a.json": [
        (labelme_file(path=""), " expected an image at imagePath"),
        (labelme_file(path=None, data="?"), " imageData: "),
        (labelme_file(path="", data=CUT), " imageData: "),
        (labelme_file(size=(30, 40)), " imageWidth, imageHeight: "),
        (labelme_file(7), " shapes[0]: "),
        (labelme_file(shape(None, "polygon", BOX)), " shapes[0]: label: "),
        *((labelme_file(shape("fig", *given)), f" shapes[0]: {place}") for given, place in LABELME_SHAPES),
    ],
}
CONVERTERS = {
    "a.xml": lambda folder: convert_voc(folder, classes=["fig", "date"]),
    "a.txt": convert_yolo,
    "a.json": lambda folder: convert_labelme(folder, extract=folder / "extracted"),
}


@pytest.mark.parametrize(
    ("file", "text", "place"), [(file, *row) for file, rows in MISTAKES.items() for row in rows]
)
def test_mistakes_in_a_file(tmp_path, file, text, place):
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "c.jpg")
    write(tmp_path / "data.yaml", "train: .\nnames: [date, fig]\n")
    write(tmp_path / file, text)
    conversion = CONVERTERS[file](tmp_path)
    assert problems(conversion, tmp_path)[0].startswith(f"{file}:{place}")
    with pytest.raises(UserError, match="skip_invalid=True"):
        conversion.save(tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


# All formats

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings(tmp_path, encoding):
    write_image(tmp_path / "a.jpg")
    for name, text in {
        "data.yaml": "train: .\nnames: [date, Feige ü]\n",
        "a.txt": "1 0.5 0.5 0.25 0.4\n",
        "a.xml": voc_file(voc_object("Feige ü", (16, 10, 25, 21))),
        "a.json": labelme_file(shape("Feige ü", "rectangle", [[15, 9], [25, 21]])),
    }.items():
        write(tmp_path / name, text.replace("\n", "\r\n").encode(encoding))
    # XML allows UTF-16 with a byte order mark, but not UTF-32
    for read in (convert_yolo, convert_labelme, *([convert_voc] if encoding in ENCODINGS[:3] else [])):
        assert boxes(read(tmp_path)) == [("a.jpg", "Feige ü", [15, 9, 10, 12])]


def test_pipes_are_not_read(tmp_path):
    """Reading one would wait for its other end for ever."""
    os.mkfifo(pipe := tmp_path / "a.xml")
    for command in (
        f"data convert yolo {pipe} out.json",
        f"data config {pipe} {pipe} out.py --images {tmp_path}",
        f"export --check {pipe}",
    ):
        assert "pipe" in error_of(*command.split())


def test_sources_are_not_overwritten(voc, yolo, tmp_path):
    write(tmp_path / "labelme/a.json", labelme_file(path="../JPEGImages/a.jpg"))
    for read, folder, outs in (
        (convert_voc, voc, ("Annotations/a.xml", "./JPEGImages/a.jpg")),
        (convert_yolo, yolo, ("data.yaml", "labels/train/a.txt", "images/train/a.jpg")),
        (convert_labelme, tmp_path / "labelme", ("a.json", "../JPEGImages/a.jpg")),
    ):
        for out in outs:
            before = (folder / out).read_bytes()
            with pytest.raises(UserError, match=rf"out: .*{(folder / out).name}"):
                read(folder).save(folder / out, skip_invalid=True)
            assert (folder / out).read_bytes() == before


def test_the_same_data_gives_the_same_file(voc):
    out = voc / "new/out.json"
    conversion = convert_voc(voc)
    conversion.save(out)
    assert json.loads(out.read_text()) == conversion.edit()
    first = out.read_bytes()
    convert_voc(voc).save(out)
    assert out.read_bytes() == first
    assert check_coco(out, voc / "JPEGImages").problems == []
    for xml in (voc / "Annotations").iterdir():
        write(xml, voc_file(name=f"{xml.stem}.jpg"))
    with pytest.raises(UserError, match=r"^annotations: "):
        convert_voc(voc).save(out)
    with pytest.raises(UserError, match="ImageSets"):
        convert_labelme(voc / "ImageSets")


# The commands


def test_convert_command(voc):
    arguments = "data", "convert", "voc", voc, voc / "train.json", "--classes", "date,fig"
    for number in range(30):
        write(voc / f"Annotations/b{number:02}.xml", "<annotation>")
    problems = run(*arguments, status=1)
    assert f"{voc}/Annotations/b.xml:4: " in problems and len(problems.splitlines()) == 20 + 2, "cut"
    assert "classes: date, fig\n" in (output := run(*arguments, "--skip-invalid"))
    assert "objects: 31 skipped, 1 image without" in output and f"images:  {voc}/JPEGImages\n" in output
    annotations = json.loads((voc / "train.json").read_text())["annotations"]
    assert [annotation["iscrowd"] for annotation in annotations] == [0, 1], "the difficult one is ignored"
