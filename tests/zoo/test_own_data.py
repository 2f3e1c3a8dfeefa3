"""``dcnzoo train --data``: every format leads to a config that trains, or to the mistake."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope

import dcnzoo.models
from dcnzoo.openmmlab.runner import read_config_file
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo.own_data import find_format, prepare

from ..commands import run
from ..formats import CLASSES, fruits, objects, objects_of, write_labelme, write_voc, write_yolo


def write_coco(folder, parts):
    """Two files beside a folder of images."""
    (folder / "pictures").mkdir(parents=True)
    for split, content in parts.items():
        images = [{key: image[key] for key in image if key != "path"} for image in content["images"]]
        for image in content["images"]:
            (folder / "pictures" / image["file_name"]).symlink_to(image["path"])
        annotations = [
            {**a, "id": a["id"] + 1, "area": 24 * 32, "iscrowd": 0} for a in content["annotations"]
        ]
        text = json.dumps({**content, "images": images, "annotations": annotations})
        (folder / f"instances_{split}.json").write_text(text)


WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo, "labelme": write_labelme}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format(tmp_path, name):
    parts = fruits(tmp_path / "drawn")
    WRITERS[name](tmp_path / "fruits", parts)
    result = prepare(tmp_path / "fruits", tmp_path / "run")
    train, val = tmp_path / "run/data/train.json", tmp_path / "run/data/val.json"
    if name == "labelme":  # has no validation set: a random split
        assert not objects(train) & objects(val)
        assert any("at random" in line for line in result.decisions)
    else:
        assert objects(val) == objects_of(parts["val"])
    assert objects(train, val) == set().union(*map(objects_of, parts.values()))
    cfg = read_config_file(result.config)
    assert cfg.model.roi_head.bbox_head.num_classes == len(CLASSES) and cfg.model.backbone.dcn
    kind = "segm" if name == "labelme" else "bbox"
    assert cfg.default_hooks.checkpoint.save_best == f"coco/{kind}_mAP"
    with DefaultScope.overwrite_default_scope("mmdet"):
        data = DATASETS.build(cfg.train_dataloader.dataset)
    assert tuple(data.metainfo["classes"]) == CLASSES
    learnt = {
        (Path(item["img_path"]).name, CLASSES[instance["bbox_label"]], *instance["bbox"])
        for item in map(data.get_data_info, range(len(data)))
        for instance in item["instances"]
    }
    assert learnt == {(name, c, x, y, x + w, y + h) for name, c, x, y, w, h in objects(train)}
    assert result.epochs * len(json.loads(train.read_text())["images"]) >= 4 * 600


MISTAKES = {  # format: a file, and the text that is replaced
    "voc": ("Annotations/*.xml", "<xmax>", "<xmax>9"),
    "yolo": ("labels/train/*.txt", "0 ", "7 "),
    "labelme": ("*.json", "rectangle", "line"),
    "coco": ("instances_train.json", '"category_id": 1', '"category_id": 9'),
}


def spoil(name, folder):
    pattern, old, new = MISTAKES[name]
    file = next(folder.glob(pattern))
    file.write_text(file.read_text().replace(old, new, 1))


@pytest.mark.parametrize("name", WRITERS)
def test_a_mistake_is_one_line_and_nothing_is_prepared(tmp_path, name):
    WRITERS[name](tmp_path / "fruits", fruits(tmp_path / "drawn"))
    spoil(name, tmp_path / "fruits")
    with pytest.raises(UserError) as error:
        prepare(tmp_path / "fruits", tmp_path / "run")
    assert len(error.value.args) == 1
    assert not list((tmp_path / "run").rglob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_one_command_trains(tmp_path, name):
    WRITERS[name](tmp_path / "fruits", fruits(tmp_path / "drawn", [*map(str, range(40))]))
    shutil.copytree(tmp_path / "fruits", tmp_path / "mistake", symlinks=True)
    spoil(name, tmp_path / "mistake")
    output = run("train", "--data", tmp_path / "mistake", "--work-dir", tmp_path / "none", status=1)
    assert len(output.splitlines()) == 1 and not list((tmp_path / "none").rglob("*.pth"))
    folder = tmp_path / "run"
    seed = ("--cfg-options", "randomness.seed=0")
    run("train", "--data", tmp_path / "fruits", "--work-dir", folder, "--epochs", "40", *seed)
    (trained,) = json.loads((folder / "report.json").read_text())["runs"]
    assert all(each["ap"] > 0 for each in trained["classes"]), trained


def test_an_unknown_format_and_a_single_file(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(UserError, match="expected a COCO file"):
        prepare(tmp_path, tmp_path / "run")
    write_coco(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    assert find_format(tmp_path / "fruits/instances_val.json") == "coco"


def test_a_work_directory_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/epoch_1.pth").touch()
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "run"))):
        dcnzoo.train("mask-rcnn_r14_fpn_8e_shapes", work_dir="~/run")
