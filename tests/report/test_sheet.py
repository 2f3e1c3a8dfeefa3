"""The sheet of annotated pictures, compared with pycocotools' masks."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from dcnzoo.data.reading import read
from dcnzoo.report import write_sheet
from dcnzoo.report.sheet import annotated
from dcnzoo.utils.errors import UserError
from tests.helpers.formats import FORMATS, fruits, write


@pytest.fixture
def masks(tmp_path):
    """A picture with two polygons and one with run lengths, in a COCO file."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 30, "height": 20} for i in (1, 2)]
    (tmp_path / "images").mkdir()
    for image in images:
        Image.new("RGB", (30, 20), "blue").save(tmp_path / "images" / image["file_name"])
    whole, rle = [5, 4, 15, 4, 15, 12, 5, 12], {"size": [20, 30], "counts": [45, 5, 15, 5, 530]}
    segmentations = [(1, [[*whole], [20, 5, 28, 5, 28, 15]], [5, 4, 23, 11]), (1, [whole], [5, 4, 10, 8])]
    segmentations.append((2, rle, [2, 5, 2, 5]))
    annotations = [
        {
            "id": i,
            "image_id": image,
            "category_id": 1,
            "bbox": box,
            "segmentation": mask,
            "iscrowd": 0,
            "area": 9,
        }
        for i, (image, mask, box) in enumerate(segmentations, 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "fig"}]}
    write(tmp_path / "coco.json", content)
    return tmp_path


def test_objects_are_those_of_the_file(masks):
    data = read(masks)
    truth = COCO(masks / "coco.json")
    for number, picture in enumerate(data, 1):
        result, entries = annotated(picture, ["date", "fig"]), truth.imgToAnns[number]
        assert result.names == ["fig"] * len(entries) and (result.image == [0, 0, 255]).all()
        for mask, box, entry in zip(result.masks, result.boxes.tolist(), entries, strict=True):
            assert np.array_equal(mask, truth.annToMask(entry) > 0)
            x, y, width, height = entry["bbox"]
            assert box == [x, y, x + width, y + height]


def test_a_class_is_shown_by_its_object_of_middle_size(tmp_path):
    boxes = [5, 5, 40, 40], [60, 60, 10, 10], [60, 10, 20, 20]
    annotations = [{"id": i, "image_id": 1, "category_id": 1, "bbox": box} for i, box in enumerate(boxes, 1)]
    images = [{"id": 1, "file_name": "1.png", "width": 100, "height": 90}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "fig"}]}
    write(tmp_path / "coco.json", content)
    Image.new("RGB", (100, 90), "blue").save(tmp_path / "1.png")
    page = write_sheet({"train": read(tmp_path)}, tmp_path / "sheet.html").read_text()
    crop = re.findall(r"data:image/png;base64,([^\"]+)", page)[-1]
    assert Image.open(io.BytesIO(base64.b64decode(crop))).size == (28, 28), "20 pixels and a fifth around"


@pytest.mark.parametrize("name", FORMATS)
def test_a_sheet_of_every_format(tmp_path, name):
    FORMATS[name](tmp_path / "fruits", fruits(tmp_path / "drawn"))
    out = write_sheet(tmp_path / "fruits", tmp_path / "sheet.html", size=64)
    page = out.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)|url\(', page), "self-contained"
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    trained = 5 if name == "LabelMe" else 4  # a fifth is drawn for validation
    assert sum(": 1 × date, 1 × fig" in text for text in captions) == trained
    assert captions[-2:] == [f"{fruit}: {trained} objects" for fruit in ("date", "fig")]
    (alt,) = re.findall(r'alt="(sides [^"]*)"', page)
    side = (24 * 32) ** 0.5
    assert f"in the files {side:.0f} pixels, at 64 pixels {side / 2:.0f} pixels" in alt
    with pytest.raises(UserError, match=r"sheet\.html"):
        write_sheet(tmp_path / "fruits", out)
    assert "at 64 pixels" not in write_sheet(tmp_path / "fruits", out, force=True).read_text()
    page = write_sheet(tmp_path / "fruits", out, size=(64, 40), force=True).read_text()  # of 128 × 96
    assert f"at 64 × 40 {side * 40 / 96:.0f} pixels" in page
