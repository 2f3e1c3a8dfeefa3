"""COCO files: what a check names, and the items of the data set against MMDetection's."""

import contextlib
import json
import logging
import pickle
import random

import numpy as np
import pytest
from mmdet.datasets.coco import CocoDataset as MMDetections
from mmengine.dataset import BaseDataset, ClassBalancedDataset
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch.utils.data import DataLoader

from dcnzoo.data import check, coco_file
from dcnzoo.data.check import CocoTruth, judge
from dcnzoo.data.coco_file import CocoFile, checked_rle
from dcnzoo.data.files import InvalidAnnotation, read_json
from dcnzoo.data.reading import describe, read
from dcnzoo.detect import metrics
from dcnzoo.detect.detections import Detections
from dcnzoo.openmmlab.datasets.coco import CocoDataset, CocoMetric
from dcnzoo.utils.errors import UserError
from tests.helpers.commands import run
from tests.helpers.formats import coco, draw, write

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
            {"id": 3, "image_id": 5, "category_id": 3, "bbox": [0, 0, 20, 50], "area": 1000, "iscrowd": 0,
             "segmentation": [[0, 0, 20, 0, 20, 50]]},
        ],
        "categories": [{"id": 3, "name": "fig", "supercategory": "fruit"}, {"id": 9, "name": "date"}],
    }  # fmt: skip


def problems(root, change=None, masks=True):
    content = good()
    text = change(content) if change else None
    (root / "coco.json").write_bytes(text if isinstance(text, bytes) else json.dumps(content).encode())
    return CocoTruth(CocoFile(root / "coco.json"), masks).problems


def put(key, number, **values):
    return lambda content: content[key][number].update(values)


def third(**values):
    return put("annotations", 2, **values)


def rle(**values):
    return put("annotations", 1, segmentation={"size": [30, 40], "counts": [305, 895], **values})


def polygons(*parts):
    return put("annotations", 0, segmentation=[*parts])


def drop(key, number, name):
    return lambda content: content[key][number].pop(name) and None


REACHING = {"bbox": [5, 10, 16.5, 20], "segmentation": [[5, 10, 21.5, 10, 21.5, 30, 5, 30]]}
CASES = {  # the change, whether the first problem stops a training, its subject, a word of its text
    "no images": (lambda c: c.update(images=[]), True, "images", "at least 1"),
    "no categories": (lambda c: c.update(categories=[]), True, "categories", "at least 1"),
    "no annotations": (lambda c: c.update(annotations=[]), False, "annotations", "at least 1"),
    "image without id": (drop("images", 2, "id"), True, "images[2]", "id"),
    "image id twice": (put("images", 2, id=1), True, "images", "once"),
    "no size": (put("images", 2, width=None), True, "image 7", "width"),
    "category id is a text": (put("categories", 1, id="9"), True, "categories[1]", "id"),
    "category name twice": (put("categories", 1, name="fig"), True, "categories", "once"),
    "annotation id twice": (third(id=1), True, "annotations", "once"),
    "annotation is null": (lambda c: c["annotations"].append(None), True, "annotations[3]", "object"),
    "image_id is a text": (third(image_id="5"), False, "annotation 3", "image_id"),
    "no such image": (third(image_id=2), False, "annotation 3", "image_id"),
    "no such category": (third(category_id=4), True, "annotation 3", "category_id"),
    "iscrowd is a text": (third(iscrowd="0"), True, "annotation 3", "iscrowd"),
    "no area": (drop("annotations", 2, "area"), True, "annotation 3", "area"),
    "no bbox": (drop("annotations", 2, "bbox"), True, "annotation 3", "bbox"),
    "bbox of three": (third(bbox=[2, 3, 10]), True, "annotation 3", "bbox"),
    "bbox of texts": (third(bbox=["2", "3", "9", "9"]), True, "annotations[2]", "bbox"),
    "far away": (third(bbox=[2e6, 3, 10, 10]), True, "annotation 3", "bbox"),
    "inside out": (third(bbox=[12, 3, -10, 20]), True, "annotation 3", "corners"),
    "without an area": (third(bbox=[1, 2, 0.5, 4]), False, "annotation 3", "box"),
    "reaches out": (third(**REACHING), False, "annotation 3", "20 × 50"),
    "unlike its polygons": (third(bbox=[0, 0, 20, 40]), False, "annotation 3", "polygons"),
    "y before x": (polygons([*POLYGON[::-1]]), False, "annotation 1", "polygons"),
    "iscrowd of 2": (third(iscrowd=2), True, "annotation 3", "iscrowd"),
    "beside the image": (third(bbox=[25, 10, 5, 20]), False, "annotation 3", "20 × 50"),
    "no mask": (drop("annotations", 0, "segmentation"), False, "annotation 1", "segmentation"),
    "mask is a text": (third(segmentation="x"), True, "annotation 3", "segmentation"),
    "flat polygon": (polygons(*POLYGON), True, "annotation 1", "segmentation"),
    "odd polygon": (polygons([*POLYGON, 1]), True, "annotation 1", "segmentation"),
    "two points": (polygons([2, 3, 12, 23]), True, "annotation 1", "segmentation"),
    "RLE of another size": (rle(size=[40, 30]), True, "annotation 2", "segmentation"),
    "RLE without counts": (rle(counts=None), True, "annotation 2", "segmentation"),
    "negative count": (rle(counts=[5, -5, 1200]), True, "annotation 2", "segmentation"),
    "too few pixels": (rle(counts=[100, 50]), True, "annotation 2", "segmentation"),
    "no text of counts": (rle(counts="\x7f"), True, "annotation 2", "segmentation"),
    "ends within a number": (rle(counts="0o"), True, "annotation 2", "segmentation"),
    "one endless number": (rle(counts="o" * 100_000 + "0"), True, "annotation 2", "segmentation"),
}


@pytest.mark.parametrize("case", CASES)
def test_problems(tmp_path, case):
    change, stops, subject, word = CASES[case]
    (problem, *_) = problems(tmp_path, change)
    assert (problem.stops, problem.subject) == (stops, subject) and word in problem.text


def test_a_pixel_is_no_problem(tmp_path):
    assert problems(tmp_path) == []
    assert problems(tmp_path, third(bbox=[-0.5, 0, 20.9, 50.4])) == []


@pytest.mark.parametrize("crowd", [False, True, None, 0, 1])
def test_iscrowd_as_tools_write_it(tmp_path, crowd):
    assert problems(tmp_path, third(iscrowd=crowd)) == []


def test_masks_that_are_not_used(tmp_path):
    assert problems(tmp_path, polygons(*POLYGON), masks=False) == []


OF_MASKS = ("no mask", "flat polygon", "odd polygon", "two points", "RLE of another size", "too few pixels")
OF_BOXES = (
    "no size",
    "no such category",
    "no area",
    "no bbox",
    "inside out",
    "iscrowd is a text",
    "not a number",
)


@pytest.mark.parametrize("case", OF_MASKS + OF_BOXES)
def test_each_reader_names_the_same_problem(tmp_path, case):
    """A training, a test, ``evaluate`` and a report read a file by one function."""
    change = polygons([2, float("nan"), 12, 3, 12, 23]) if case == "not a number" else CASES[case][0]
    path, masks = str(tmp_path / "coco.json"), case in OF_MASKS
    try:
        (problem, *_) = problems(tmp_path, change, masks)
    except InvalidAnnotation as error:
        problem = error
    mask = np.ones((1, 30, 40), bool)
    found = Detections(
        np.zeros((1, 4)), np.ones(1), np.zeros(1, int), mask if masks else None, ("fig", "date")
    )
    pipeline = [dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=masks)]
    data = dict(metainfo=dict(classes=("fig", "date")), pipeline=pipeline, data_prefix=dict(img="s3://x/"))
    readers = {
        "evaluate": lambda: metrics.evaluate(metrics.read_coco(path, found.classes), [found]),
        "test": lambda: CocoMetric(path, metric="segm" if masks else "bbox"),
        "report": lambda: CocoDataset(ann_file=path, test_mode=True, **data),
        "training": lambda: CocoDataset(ann_file=path, **data),
    }
    if case == "no mask":  # a training ignores the object, and says so
        readers = dict(list(readers.items())[:2])
    for reader in readers.values():
        with pytest.raises((UserError, ValueError)) as raised:
            reader()
        assert str(problem) in str(raised.value) and path in str(raised.value)


def test_a_file_is_parsed_and_judged_once(tmp_path, monkeypatch):
    problems(tmp_path)
    parsed, judged = [], []
    monkeypatch.setattr(coco_file, "read_json", lambda *args: parsed.append(1) or read_json(*args))
    monkeypatch.setattr(check, "judge", lambda *args: judged.append(1) or judge(*args))
    path = str(tmp_path / "coco.json")
    data = dict(metainfo=dict(classes=("fig", "date")), pipeline=[], data_prefix=dict(img="s3://x/"))
    kept = CocoDataset(ann_file=path, test_mode=True, **data), CocoMetric(path)
    assert (len(parsed), len(judged)) == (1, 3) and kept


def test_ignored_objects_are_counted_by_each_reader(tmp_path, monkeypatch, capsys):
    lines = []
    monkeypatch.setattr("dcnzoo.openmmlab.datasets.coco.print_log", lambda text, **_: lines.append(text))
    assert problems(tmp_path, put("annotations", 0, ignore=1)) == []
    path = tmp_path / "coco.json"
    data = dict(metainfo=dict(classes=("fig", "date")), pipeline=[], data_prefix=dict(img="s3://x/"))
    CocoDataset(ann_file=str(path), test_mode=True, **data)
    metrics.read_coco(path, ("fig", "date"))
    lines += [capsys.readouterr().err, run("data", "check", path, "--as-mmdetection")]
    assert len(lines) == 3 and all(
        "1 object with ignore=1: counted in the AP, not trained" in x for x in lines
    )
    for image in good()["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    data = read(path)
    assert data.crowds == 2 and "training ignores 2" in describe(data, {"all": data})[1]


@pytest.mark.parametrize("content", [b"", b'{"a":' * 200_000, b'{"images": [1', b"\xff\xfe{"])
def test_what_is_no_json(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InvalidAnnotation, match=r"JSON|UTF"):
        CocoFile(tmp_path / "x.json")


def test_rle_against_pycocotools():
    generator = np.random.default_rng(0)
    for _ in range(50):
        height, width = generator.integers(1, 90, 2).tolist()
        mask = np.asfortranarray(generator.random((height, width)) < generator.random(), np.uint8)
        compressed = {"size": [height, width], "counts": coco_mask.encode(mask)["counts"].decode()}
        assert checked_rle(compressed, height, width) == compressed
        ends = np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=2))  # of runs, 0 first
        counts = np.diff([0, *ends])
        assert checked_rle({**compressed, "counts": counts.tolist()}, height, width) == compressed


VALUES = (None, 0, -1, 1.5, 10**30, "", "a", "7", True, [], [[]], {}, [1], [[1, 2]], {"counts": "0"})


@pytest.mark.parametrize("seed", range(2))
def test_any_value_anywhere_is_a_problem_never_a_traceback(tmp_path, seed):
    choose = random.Random(seed)

    def places(node):
        for key in range(len(node)) if isinstance(node, list) else list(node):
            yield node, key
            if isinstance(node[key], list | dict):
                yield from places(node[key])

    for image in good()["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    accepted = 0
    for _ in range(150):
        content = good()
        for _ in range(choose.randint(1, 3)):
            node, key = choose.choice(list(places(content)))
            node[key] = choose.choice(VALUES)
        write(tmp_path / "coco.json", content)
        with contextlib.suppress(InvalidAnnotation):
            truth = CocoTruth(CocoFile(tmp_path / "coco.json"), True).require_usable(compared=True)
            if not truth.content.annotations:  # perhaps no list
                continue
            usable = COCO(str(tmp_path / "coco.json"))  # what is accepted, pycocotools can use
            known = [each for each in usable.anns.values() if each["image_id"] in usable.imgs]
            assert all(usable.annToMask(each).any() for each in known)
            accepted += 1
        with contextlib.suppress(UserError):
            read(tmp_path / "coco.json")
    assert accepted > 4


def test_the_view_of_mmdetection(tmp_path):
    command = "data", "check", tmp_path / "coco.json", "--as-mmdetection"
    problems(tmp_path)
    output = run(*command)
    assert "no problems" in output and "3 images, 3 annotations, 2 categories" in output
    problems(tmp_path, third(**REACHING))
    assert "annotation 3: expected a box" in run(*command, status=1)

    def boxes_only(content):
        for entry in content["annotations"]:
            del entry["segmentation"]
        content["annotations"][0]["bbox"] = [30, 10, 16.5, 20]

    problems(tmp_path, boxes_only)
    output = run(*command, status=1)
    assert "annotation 1: expected a box" in output and "1 problem" in output


def test_masks_that_are_all_invalid_are_problems(tmp_path):
    """They do not make a file of boxes only."""

    def flatten(content):
        for entry in content["annotations"]:
            entry["segmentation"] = [*POLYGON]

    problems(tmp_path, flatten)
    output = run("data", "check", tmp_path / "coco.json", "--as-mmdetection", status=1)
    assert output.count("segmentation: ") == 3 and "3 problems" in output
    with pytest.raises(
        InvalidAnnotation, match=r"2 more: `dcnzoo data check \S+ --as-mmdetection` lists them"
    ):
        check.read_truth(tmp_path / "coco.json", masks=True).require_usable()


# The data set


def made(choose):
    """A COCO file with polygons, RLE, crowds, and objects that are ignored or have no mask."""
    images = [{"id": 3 * i + 1, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(6)]
    annotations = []
    for number in range(1, 31):
        x, y, w, h = choose.choice([(3, 4, 10, 8), (20.5, 7.25, 9.5, 20), (0, 0, 64, 48)])
        counts = [48 * int(x) + int(y), int(h), 64 * 48 - 48 * int(x) - int(y) - int(h)]
        box = [x, y, x + w, y, x + w, y + h, x, y + h]
        two = [[x, y, x + w, y, x, y + h], [x + w, y, x + w, y + h, x, y + h]]
        mask = choose.choice([None, [], [box], two, {"size": [48, 64], "counts": counts}])
        entry = {"id": number, "image_id": images[choose.randrange(5)]["id"]}
        entry |= {"category_id": choose.choice([5, 2]), "bbox": [x, y, w, h], "area": w * h}
        entry |= {"iscrowd": int(isinstance(mask, dict)), "segmentation": mask}
        if choose.random() < 0.2:
            entry |= {"ignore": choose.choice([0, 1]), "attributes": {"note": 'a "b"'}}
        annotations.append(entry)
    categories = [{"id": 5, "name": "a"}, {"id": 2, "name": "b"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def opened(kind, file, with_mask=False, classes=("a", "b"), **options):
    steps = [{"type": "mmdet.LoadAnnotations", "with_bbox": True, "with_mask": with_mask}]
    folder, metainfo = {"img": str(file.parent)}, {"classes": classes}
    return kind(ann_file=str(file), data_prefix=folder, metainfo=metainfo, pipeline=steps, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"with_mask": True},
        {"filter_cfg": {"filter_empty_gt": True, "min_size": 32}},
        {"indices": 3},
        {"indices": [4, 0, -1]},
        {"serialize_data": False},
        {"classes": ("b",), "filter_cfg": {"filter_empty_gt": True}},
        {"test_mode": True, "return_classes": True},
    ],
)
def test_the_same_items_as_mmdetection(tmp_path, monkeypatch, options):
    content = made(random.Random(3))
    if options.get("with_mask"):  # MMDetection needs a mask for every object
        content["annotations"] = [each for each in content["annotations"] if each.get("segmentation")]
    for image in content["images"]:
        (tmp_path / image["file_name"]).touch()
    write(tmp_path / "made.json", content)
    own, other = (opened(kind, tmp_path / "made.json", **options) for kind in (CocoDataset, MMDetections))
    assert len(own) == len(other) and [*map(own.get_data_info, range(len(own)))] == [
        *map(other.get_data_info, range(len(own)))
    ]
    subset = own.get_subset([1, 0])
    assert subset.get_data_info(0) == {**other.get_data_info(1), "sample_idx": 0}
    assert [own.get_cat_ids(i) for i in range(len(own))] == [other.get_cat_ids(i) for i in range(len(own))]
    balanced = [ClassBalancedDataset(each, 0.5) for each in (own, other)]
    assert balanced[0].repeat_indices == balanced[1].repeat_indices
    assert own.get_data_info(-1) == other.get_data_info(-1)
    assert pickle.loads(pickle.dumps(own)).get_data_info(0) == other.get_data_info(0)
    (copies,) = BaseDataset._copy_without_annotation.__defaults__
    monkeypatch.setitem(copies, id(own._content), "of a deleted object that had this number")
    assert own.get_subset([0]).get_data_info(0) == {**other.get_data_info(0), "sample_idx": 0}


class Items(CocoDataset):
    def prepare_data(self, idx):
        return self.get_data_info(idx)


def test_workers_read_the_file_that_was_opened(tmp_path):
    """They keep reading it after another file got its name."""
    (tmp_path / "0.jpg").touch()
    write(tmp_path / "made.json", made(random.Random(3)))
    dataset = opened(Items, tmp_path / "made.json")
    expected = [*map(dataset.get_data_info, range(6))]
    write(tmp_path / "new.json", {})
    (tmp_path / "new.json").replace(tmp_path / "made.json")
    assert [*DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork")] == expected


def test_problems_of_a_data_set(tmp_path):
    content = made(random.Random(3))
    for change, text in (
        (lambda: content["annotations"][7].update(bbox=[1, 2, 3]), "annotation 8: bbox"),
        (
            lambda: content["annotations"].pop(7) and content["categories"].reverse(),
            "expected a, b, got b, a: the order differs",
        ),
        (lambda: content["images"].clear(), "images: expected at least 1"),
    ):
        change()
        write(tmp_path / "made.json", content)
        with pytest.raises(UserError, match=text):
            opened(CocoDataset, tmp_path / "made.json")
    with pytest.raises(UserError, match="ann_file: expected a file, found none"):
        opened(CocoDataset, tmp_path / "none.json")


def test_written_files_are_read_by_pycocotools(tmp_path):
    part = draw(tmp_path / "images", 12, empty=(2,))
    content = coco(part)
    for number, entry in enumerate(content["annotations"]):
        x, y, w, h = entry["bbox"]
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]] if number % 2 else []
    write(tmp_path / "all.json", content)
    logging.disable(logging.INFO)
    pool = read(tmp_path)
    pool.write(tmp_path / "out" / "written.json")
    api = COCO(tmp_path / "out" / "written.json")
    logging.disable(logging.NOTSET)
    assert len(api.imgs) == 12 and len(api.anns) == 11
    for entry in api.anns.values():
        assert {"area", "iscrowd", "bbox"} <= entry.keys()
        if entry["segmentation"]:
            assert api.annToMask(entry).sum() == entry["area"]
