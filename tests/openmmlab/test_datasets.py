import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset as MMDetectionsCocoDataset
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope
from PIL import Image
from pycocotools.coco import COCO
from torch.utils.data import DataLoader

import dcnzoo.openmmlab.datasets
from dcnzoo.cli import one_line_errors
from dcnzoo.data.reading import read
from dcnzoo.data.shapes import CLASSES
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import BaseDetector
from dcnzoo.openmmlab.datasets import CocoDataset
from dcnzoo.openmmlab.datasets.coco import CocoMetric
from dcnzoo.utils.errors import UserError
from tests.data import conftest

SPEC, root = conftest.SPEC, conftest.root

# COCO files with errors


def read_coco(root, change, name=CocoDataset, **arguments):
    """The data set of ``root``'s training images, with annotations that ``change`` has modified."""
    annotations = json.loads((root / "annotations" / "train.json").read_text())
    changed = root / "annotations" / "changed.json"
    changed.write_text(json.dumps(change(annotations) or annotations))
    defaults = dict(metainfo=dict(classes=CLASSES), filter_cfg=dict(filter_empty_gt=True))
    cfg = {"ann_file": "annotations/changed.json", "data_prefix": dict(img="train/"), **defaults, **arguments}
    with DefaultScope.overwrite_default_scope("mmdet"):
        return DATASETS.build(dict(type=name, data_root=f"{root}/", **cfg))


@pytest.mark.parametrize("name", ["CocoDataset", "ShapesDataset"])
@pytest.mark.parametrize("settings", [{}, dict(return_classes=True, caption_prompt={"oval": {"name": "o"}})])
@pytest.mark.parametrize("folders", [dict(img="train/"), dict(img="train/", seg="maps/")])
def test_a_good_file_is_read_as_mmdetection_reads_it(root, name, settings, folders):
    settings = dict(settings, data_prefix=folders)
    ours = read_coco(root, lambda file: None, name, **settings)
    assert isinstance(ours, MMDetectionsCocoDataset) and isinstance(ours, CocoDataset)
    theirs = MMDetectionsCocoDataset(
        ann_file="annotations/train.json",
        data_root=f"{root}/",
        metainfo=dict(classes=CLASSES),
        **settings,
    )
    assert len(ours) == 6
    assert [ours.get_data_info(i) for i in range(6)] == [theirs.get_data_info(i) for i in range(6)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: {**file, "annotations": []}, "at least 1 image .*filter_empty_gt.*True"),
        (lambda file: file["categories"][0].update(name="date"), "categories: .*got date.*missing oval"),
        (lambda file: file["annotations"][0].update(category_id=9), "annotation 1: category_id: expected"),
        (lambda file: file["categories"].reverse(), "got cross, trefoil, oval: the order differs"),
    ],
)
def test_mistakes_in_a_coco_file(root, change, message):
    """Errors of a config. data/test_coco.py tests errors of the file."""
    with pytest.raises(UserError, match=f"^{root}/annotations/changed.json: .*{message}"):
        read_coco(root, change)


def test_classes_and_images_of_a_file(root):
    data = read_coco(root, lambda file: None, metainfo=dict(classes=("cross",)))
    assert {i["bbox_label"] for n in range(len(data)) for i in data[n]["instances"]} == {0}
    assert len(read_coco(root, lambda file: {**file, "annotations": []}, test_mode=True)) == 6

    def empty(file):
        file["annotations"] = [a for a in file["annotations"] if a["image_id"] != file["images"][2]["id"]]

    assert len(read_coco(root, empty)) == 5


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(
        dcnzoo.openmmlab.datasets.coco, "print_log", lambda text, **options: lines.append(text)
    )
    return lines


@pytest.mark.parametrize("first", [0, 1])
def test_ap_of_perfect_detections(root, tmp_path, first):
    """The AP is right also without ``iscrowd`` and with an id of 0, which pycocotools takes for no match."""
    coco = COCO(root / "annotations" / "val.json")
    for number, annotation in enumerate(coco.dataset["annotations"], first):
        annotation["id"] = number
        del annotation["iscrowd"]
    (tmp_path / "truth.json").write_text(json.dumps(coco.dataset))
    metric = CocoMetric(str(tmp_path / "truth.json"), metric=["bbox", "segm"])
    metric.dataset_meta = {"classes": CLASSES}
    for number, image in coco.imgs.items():
        found = coco.imgToAnns[number]
        boxes = torch.tensor([a["bbox"] for a in found])
        boxes[:, 2:] += boxes[:, :2]
        prediction = {
            "bboxes": boxes,
            "labels": torch.tensor([a["category_id"] - 1 for a in found]),
            "scores": torch.ones(len(found)),
            "masks": torch.tensor(np.array([coco.annToMask(a) for a in found])),
        }
        size = image["height"], image["width"]
        metric.process({}, [{"img_id": number, "ori_shape": size, "pred_instances": prediction}])
    figures = metric.evaluate(len(coco.imgs))
    assert figures["coco/bbox_mAP"] == pytest.approx(1) and figures["coco/segm_mAP"] == pytest.approx(1)
    assert metric.class_aps == dict.fromkeys(("bbox", "segm"), dict.fromkeys(CLASSES, (1, 1)))
    assert "coco/oval_precision" not in figures
    empty = {key: value[:0] for key, value in prediction.items()}
    metric.process({}, [{"img_id": number, "ori_shape": size, "pred_instances": empty}])
    without = metric.evaluate(1)
    assert without.keys() == figures.keys() and {*without.values()} <= {0, -1}, "also without any"
    assert without["coco/bbox_mAP"] == without["coco/segm_mAP"] == 0
    coco.dataset["annotations"][0]["segmentation"] = [[1, 1, 9, 9]]
    (tmp_path / "truth.json").write_text(json.dumps(coco.dataset))
    with pytest.raises(UserError, match=r"segmentation: expected"):
        CocoMetric(str(tmp_path / "truth.json"), metric="segm")
    CocoMetric(str(tmp_path / "truth.json"), metric="segm", format_only=True, outfile_prefix="unused")
    coco.dataset["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    (tmp_path / "truth.json").write_text(json.dumps(coco.dataset))
    CocoMetric(str(tmp_path / "truth.json"), metric="segm")


def test_annotations_that_are_passed_over_are_counted(root, warnings):
    def degenerate(file):
        size = file["images"][0]["width"]
        boxes = ([5, 6, 0, 8], [5, 6, 7, 0.5], [size, 6, 7, 8], [-9, 6, 7, 8])
        changes = [*(dict(bbox=box) for box in boxes), dict(area=0), dict(image_id=10**6)]
        changes += [dict(bbox=[5, 6, 0, 8], ignore=1), dict(bbox=[5, 6, 1, 1.5], area=1.5)]
        for annotation, change in zip(file["annotations"], changes, strict=False):
            annotation.update(change)

    data = read_coco(root, degenerate, filter_cfg=None)
    total = len(json.loads((root / "annotations" / "train.json").read_text())["annotations"])
    assert total > 8
    assert sum(len(data[i]["instances"]) for i in range(len(data))) == total - 7
    ids = [text.rpartition("ids ")[2] for text in warnings if "annotations are skipped" in text]
    assert sorted(ids) == ["1, 2, 3, 4, 5", "6"]


def test_objects_without_a_segmentation_are_ignored(root, warnings):
    def bare(file):
        del file["annotations"][0]["segmentation"]
        file["annotations"][1]["segmentation"] = []

    pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask=True)]
    data = read_coco(root, bare, pipeline=pipeline)
    sample = data[0]
    ignored = sample["gt_ignore_flags"].tolist()
    assert ignored[:2] == [True, True] and not any(ignored[2:])
    assert sample["gt_masks"].masks[:2].sum() == 0
    assert len(warnings) == 1
    warnings.clear()
    boxes = read_coco(root, bare, pipeline=[pipeline[0], dict(type="LoadAnnotations", with_bbox=True)])
    assert not warnings and not boxes[0]["gt_ignore_flags"].any(), "they have boxes, which are learnt"


# Images that cannot be used


LOAD = [dict(type="LoadImageFromFile")]


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def make_wider(path):
    Image.open(path).resize((140, 128)).save(path)


@pytest.mark.parametrize("test_mode", [False, True])
@pytest.mark.parametrize(
    ("harm", "problem", "cls"),
    [
        (make_wider, "96 × 96 .*140 × 128", CocoDataset),
        (make_wider, "96 × 96 .*140 × 128", MMDetectionsCocoDataset),
        (cut_off, "", CocoDataset),
        (lambda path: path.write_bytes(b""), "", MMDetectionsCocoDataset),
        (Path.unlink, "file not found", CocoDataset),
    ],
)
def test_a_picture_that_cannot_be_used_is_named(root, tmp_path, harm, problem, cls, test_mode):
    """Also by a loader's process, in dcnzoo's data set and in MMDetection's; the command prints one line."""
    folder = shutil.copytree(root, tmp_path / "shapes")
    harm(folder / "train" / "00003.png")
    resize = [*LOAD, dict(type="Resize", scale=(128, 128), keep_ratio=True)]
    data = read_coco(folder, lambda file: None, cls, pipeline=resize, test_mode=test_mode)
    assert data[2]["img_path"] == f"{folder}/train/00002.png"
    loader = DataLoader(data, batch_size=1, num_workers=1, collate_fn=lambda batch: batch)
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        list(loader)
    assert re.match(rf"error: {folder}/train/00003.png: .*{problem}", stopped.value.code)


class FindsNothing(BaseDetector):
    classes, score_threshold = CLASSES, 0.0

    def prepare(self, picture, path=""):
        return picture

    def _detect(self, inputs, threshold):
        return [Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), None) for _ in inputs]


@pytest.mark.parametrize("orientation", [1, 6])  # EXIF's; 6 turns a picture
@pytest.mark.parametrize("stated", [(60, 40), (40, 60), (41, 60), (60, None), (0, 0), (-1, -1), (None, None)])
def test_every_reader_compares_sizes(tmp_path, orientation, stated):
    """The size of the picture as OpenCV loads it; None, 0 and −1 are unknown, but not in a config's file."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    loaded = cv2.imread(str(tmp_path / "a.jpg")).shape[1::-1]
    image = dict(id=1, file_name="a.jpg", width=stated[0], height=stated[1])
    entry = dict(id=1, image_id=1, category_id=1, bbox=[2, 3, 10, 12], area=120, iscrowd=0)
    categories = [dict(id=number, name=name) for number, name in enumerate(CLASSES, 1)]
    content = dict(images=[image], annotations=[entry], categories=categories)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))

    def test():
        metainfo = dict(classes=CLASSES)
        data = CocoDataset(
            str(file), metainfo, data_prefix=dict(img=f"{tmp_path}/"), pipeline=LOAD, test_mode=True
        )
        return data[0]

    doors = [lambda: read(file)]
    if all(side and side > 0 for side in stated):
        doors += [test, lambda: FindsNothing().evaluate(file, images=tmp_path)]
    is_right = all(side == known for side, known in zip(loaded, stated, strict=True) if known and known > 0)
    for door in doors:
        if is_right:
            door()
        else:
            sizes = rf"{stated[0]} × {stated[1]} .*{loaded[0]} × {loaded[1]}"
            with pytest.raises((UserError, ValueError), match=rf"{tmp_path}/a\.jpg: .*{sizes}"):
                door()
