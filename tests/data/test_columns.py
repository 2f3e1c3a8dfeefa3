"""Large COCO files: the same findings and the same items as by the readers of Python objects."""

import copy
import json
import os
import pickle
import random

import pytest
from mmdet.datasets.coco import CocoDataset as MMDetections
from mmengine.dataset import BaseDataset, ClassBalancedDataset
from PIL import Image
from torch.utils.data import DataLoader

from dcnzoo.data import annotations as reading
from dcnzoo.data import check
from dcnzoo.data.files import Entries
from dcnzoo.openmmlab.datasets.coco import CocoDataset
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo.config_writer import BOXES
from dcnzoo.zoo.own_data import prepare

VALUES = (
    *(None, 0, -1, 1, 2, 1.5, -0.0, 1e30, 2**63, 10**400, "7", "a", "", True, [], {}, [1], [[]], [[1, 2]]),
    *([[1, 2, 3, 4, 5, "6"]], [[0, 0, 9, 0, 9, 9, 0, 9]], [1, 2, 3, 4], [5, 6, 0, 8], [-9, 6, 7, 8]),
    *({"size": [48, 64], "counts": "a"}, {"size": [48, 64], "counts": [0, 48 * 64]}, float("nan"), "é", 99),
)


@pytest.fixture(autouse=True)
def all_files_are_large(monkeypatch):
    monkeypatch.setattr(reading, "LEAST", 0)


def made(choose):
    """Return a COCO file with polygons, RLE, crowds, and objects that are ignored or have no mask."""
    images = [{"id": 3 * i + 1, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(6)]
    annotations = []
    for number in range(1, 31):
        x, y, w, h = choose.choice([(3, 4, 10, 8), (20.5, 7.25, 9.5, 20), (0, 0, 64, 48)])
        mask = choose.choice(
            [
                None,
                [],
                [[x, y, x + w, y, x + w, y + h, x, y + h]],
                [[x, y, x + w, y, x, y + h], [x + w, y, x + w, y + h, x, y + h]],
                {
                    "size": [48, 64],
                    "counts": [48 * int(x) + int(y), int(h), 64 * 48 - 48 * int(x) - int(y) - int(h)],
                },
            ]
        )
        annotation = {
            "id": number,
            "image_id": images[choose.randrange(5)]["id"],
            "category_id": choose.choice([5, 2]),
        }
        annotation |= {"bbox": [x, y, w, h], "area": int(h) if isinstance(mask, dict) else w * h}
        annotation |= {"iscrowd": int(isinstance(mask, dict)), "segmentation": mask}
        if choose.random() < 0.2:
            annotation |= {"ignore": choose.choice([0, 1]), "attributes": {"note": 'a "b"'}}
        if choose.random() < 0.1:
            del annotation["segmentation"]
        annotations.append(annotation)
    categories = [{"id": 5, "name": "a"}, {"id": 2, "name": "b"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def mutated(content, choose):
    """Change a value, drop or repeat one, somewhere."""
    for _ in range(choose.randint(1, 3)):
        entry = choose.choice(content[choose.choice(["annotations", "annotations", "images", "categories"])])
        key, kind = choose.choice([*entry]), choose.random()
        if kind < 0.1:
            del entry[key]
        elif kind < 0.6:
            entry[key] = copy.deepcopy(choose.choice(VALUES))
        elif isinstance(entry[key], list) and entry[key]:
            values = entry[key][0] if isinstance(entry[key][0], list) and entry[key][0] else entry[key]
            index = choose.randrange(len(values))
            values[index] = choose.choice(
                [*VALUES, values[index] * 1.2 if isinstance(values[index], float) else 7]
            )
        elif isinstance(entry[key], int | float):
            entry[key] = entry[key] * choose.choice([-1, 0.89, 1.1, 2, 1e7])
    return content


@pytest.mark.parametrize("count", [160, pytest.param(400, marks=pytest.mark.slow)])
def test_the_same_findings(tmp_path, monkeypatch, count):
    choose, file, usual = random.Random(0), tmp_path / "made.json", 0
    for number in range(count):
        content = made(choose)
        text = json.dumps(mutated(content, choose) if number else content)
        if number % 20 == 1:
            text = choose.choice(
                [
                    text[:-9],
                    text.replace('"id": 3,', '"id": 3, "id": 4,', 1),
                    text.replace("{", '{"info": 1,', 1),
                ]
            )
        file.write_text(text, encoding="utf-16" if number % 30 == 2 else "utf-8")
        monkeypatch.setattr(reading, "LEAST", 10**9)
        expected = check.check_coco(file)
        monkeypatch.setattr(reading, "LEAST", 0)
        report = check.check_coco(file)
        usual += isinstance(report.content.get("annotations"), Entries)
        assert report.as_dict() == expected.as_dict() and report.problems == expected.problems
        assert list(report.places) == list(expected.places) and report.crowds == expected.crowds
    assert usual > count / 4, "of the mutated files; NaN, texts and large numbers are left to the other path"


def opened(kind, file, **options):
    steps = [
        {"type": "mmdet.LoadAnnotations", "with_bbox": True, "with_mask": options.pop("with_mask", False)}
    ]
    if options.pop("reads_images", False):
        steps.insert(0, {"type": "LoadImageFromFile"})
    classes = options.pop("classes", ("a", "b"))
    return kind(
        ann_file=str(file),
        data_prefix={"img": str(options.pop("folder", file.parent))},
        metainfo={"classes": classes},
        pipeline=steps,
        **options,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"with_mask": True},
        {"filter_cfg": {"filter_empty_gt": True, "min_size": 32}},
        {"indices": 3},
        {"indices": [4, 0, -1]},
        {"classes": ("b",), "filter_cfg": {"filter_empty_gt": True}},
        {"test_mode": True, "return_classes": True},
    ],
)
def test_the_same_items_as_mmdetection(tmp_path, monkeypatch, options):
    content = made(random.Random(3))
    if options.get("with_mask"):  # MMDetection needs one of every object
        content["annotations"] = [each for each in content["annotations"] if each.get("segmentation")]
    for image in content["images"]:
        (tmp_path / image["file_name"]).touch()
    file = tmp_path / "made.json"
    file.write_text(json.dumps(content))
    own, other = (opened(kind, file, **dict(options)) for kind in (CocoDataset, MMDetections))
    assert own._entries is not None, "the path for large files"
    assert len(own) == len(other) and [*map(own.get_data_info, range(len(own)))] == [
        *map(other.get_data_info, range(len(own)))
    ]
    (copies,) = BaseDataset._copy_without_annotation.__defaults__
    monkeypatch.setitem(copies, id(own._entries), "of a deleted object that had this number")
    subset = own.get_subset([1, 0])
    assert subset.get_data_info(0) == {**other.get_data_info(1), "sample_idx": 0}
    assert [own.get_cat_ids(i) for i in range(len(own))] == [other.get_cat_ids(i) for i in range(len(own))]
    balanced = [ClassBalancedDataset(each, 0.5) for each in (own, other)]
    assert balanced[0].repeat_indices == balanced[1].repeat_indices
    assert own.get_data_info(-1) == other.get_data_info(-1)
    loaded = pickle.loads(pickle.dumps(own))
    assert loaded.get_data_info(0) == other.get_data_info(0)


class Items(CocoDataset):
    def prepare_data(self, idx):
        return self.get_data_info(idx)


def test_workers_share_the_file(tmp_path):
    """Also after the file was replaced; a pickle does not have the annotations."""
    content = made(random.Random(3))
    for annotation in content["annotations"]:
        annotation["note"] = "x" * 10_000
    (tmp_path / "0.jpg").touch()
    file = tmp_path / "made.json"
    file.write_text(json.dumps(content))
    dataset = opened(Items, file)
    expected = [*map(dataset.get_data_info, range(6))]
    assert len(pickle.dumps(dataset)) < 20_000
    loaded = pickle.loads(pickle.dumps(dataset))  # as a spawned worker does
    assert [*map(loaded.get_data_info, range(6))] == expected
    (tmp_path / "new.json").write_text("{}")
    os.replace(tmp_path / "new.json", file)
    assert [*DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork")] == expected
    with pytest.raises(UserError, match=r"made\.json: expected the file as it was"):
        pickle.loads(pickle.dumps(dataset)).get_data_info(0)


def test_problems_of_a_data_set(tmp_path):
    content = made(random.Random(3))
    file = tmp_path / "made.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"^data_prefix: .*0\.jpg"):
        opened(CocoDataset, file, reads_images=True)
    content["annotations"][7]["bbox"] = [1, 2, 3]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"annotation 8: bbox"):
        opened(CocoDataset, file)
    del content["annotations"][7]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"in the order b, a"):
        opened(CocoDataset, file, classes=("b", "a"))


@pytest.mark.parametrize("order", [1, -1])
def test_own_data(tmp_path, order):
    """Files with the same categories are copied; others are written with the same ones."""
    for number, split in enumerate(("train", "val")):
        (tmp_path / "fruits" / split).mkdir(parents=True)
        content = made(random.Random(number))
        for image in content["images"]:
            color = (200 * number, 10 * image["id"], 0)
            Image.new("RGB", (64, 48), color).save(tmp_path / "fruits" / split / image["file_name"])
        if split == "val":
            content["categories"] = content["categories"][::order]
        (tmp_path / "fruits" / f"{split}.json").write_text(json.dumps(content))
    result = prepare(tmp_path / "fruits", tmp_path / "work", model=BOXES)
    for split in ("train", "val"):
        files = [tmp_path / folder / f"{split}.json" for folder in ("fruits", "work/data")]
        old, new = (json.loads(file.read_text()) for file in files)
        assert (files[0].read_bytes() == files[1].read_bytes()) == (order > 0)
        assert [each["name"] for each in new["categories"]] == ["a", "b"]
        names = [{each["id"]: each["name"] for each in content["categories"]} for content in (old, new)]
        objects = [
            [names[i][a["category_id"]] for a in content["annotations"]]
            for i, content in enumerate((old, new))
        ]
        assert objects[0] == objects[1]
    assert any("6 pictures" in line and "objects and" in line for line in result.decisions)
    assert reading._written or order < 0
    dataset = opened(CocoDataset, tmp_path / "work/data/train.json", folder=tmp_path / "fruits/train")
    assert dataset._entries is not None and len(dataset) == 6
