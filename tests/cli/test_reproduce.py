"""``dcnzoo reproduce``: measured and published figures, with a detector of known AP."""

import hashlib
import json
import math
import re
import shlex
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.structures import InstanceData

import dcnzoo.models  # noqa: F401  registers the layers
from dcnzoo import zoo
from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo.measurements import append_row
from dcnzoo.zoo.testing import use_data
from tests.helpers import commands
from tests.zoo.conftest import entry, package  # noqa: F401  a fixture

IMAGES = 5


@MODELS.register_module()
class KnowsTheAnswer(BaseDetector):
    """Returns the annotations of a fraction ``weight`` of the images, so the AP shows the loaded weight."""

    def __init__(self, annotations: str, data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        content = json.loads(Path(annotations).read_text())
        self.truth = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            self.truth[annotation["image_id"]].append(annotation)

    def loss(self, batch_inputs, batch_data_samples):
        raise AssertionError

    def predict(self, batch_inputs, batch_data_samples, **_):
        for sample in batch_data_samples:
            share = float(self.weight.clamp(0, 1))
            known = self.truth[sample.img_id] if sample.img_id < round(share * len(self.truth)) else []
            boxes = torch.tensor([a["bbox"] for a in known]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            sample.pred_instances = InstanceData(
                bboxes=boxes,
                scores=torch.ones(len(known)),
                labels=torch.tensor([a["category_id"] for a in known], dtype=torch.long) - 1,
                masks=torch.zeros(len(known), *sample.ori_shape, dtype=torch.bool),  # mask AP is 0
            )
        return batch_data_samples

    def extract_feat(self, batch_inputs):
        return batch_inputs

    def _forward(self, batch_inputs, batch_data_samples=None):
        return batch_inputs


CONFIG = """
_base_ = 'dcnzoo::demo/mask-rcnn_r14_fpn_8e_shapes.py'
annotations = '{root}/annotations/instances_val2017.json'
model = dict(
    _delete_=True, type='KnowsTheAnswer', annotations=annotations,
    data_preprocessor=dict(type='DetDataPreprocessor', pad_mask=True))
data = dict(
    _delete_=True, type='CocoDataset', pipeline={{_base_.test_pipeline}},
    ann_file='annotations/instances_val2017.json', data_root='data/coco/', data_prefix=dict(img='val2017/'),
    metainfo=dict(classes=('oval', 'trefoil', 'cross')), test_mode=True)
val_dataloader = dict(dataset=data)
test_dataloader = dict(batch_size=2, dataset=data)
val_evaluator = dict(ann_file='data/coco/annotations/instances_val2017.json')
test_evaluator = dict(ann_file='data/coco/annotations/instances_val2017.json')
custom_hooks = []
"""


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    make_shapes(root / "shapes", ShapesSpec(train=1, val=IMAGES))
    (root / "annotations").mkdir()
    content = json.loads((root / "shapes/annotations/val.json").read_text())
    for number, image in enumerate(content["images"]):
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                annotation["image_id"] = number
        image["id"] = number
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    (root / "shapes/val").rename(root / "val2017")
    return root


@pytest.fixture
def reproduce(package, coco, tmp_path, monkeypatch):  # noqa: F811
    """Runs the command on a published model. Returns the output and the rows in the file."""
    published = entry("knows", text=CONFIG.replace("{root}", str(coco)), Published="its author")
    published["Results"][0]["Metrics"] = {"box AP": 75.0, "AR@1000": 90.0}
    package(published)
    out = tmp_path / "results" / "rows.jsonl"
    monkeypatch.chdir(tmp_path)

    def run(*arguments, config="knows", status=0):
        line = ["reproduce", config, "--work-dir", tmp_path / "work", "--out", out, *arguments]
        if status:
            return commands.error_of(*line, status=status)
        return commands.run(*line), [json.loads(line) for line in out.read_text().splitlines()]

    return run


@pytest.fixture
def checkpoint(tmp_path):
    def save(weight):
        content = {"state_dict": {"module.weight": torch.tensor([weight])}, "meta": {}}
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return save


def table(printed):
    return {name: rest.split() for name, rest in re.findall(r"^(\w+ AP) +(.*)$", printed, re.MULTILINE)}


def test_measured_beside_published(reproduce, checkpoint, coco):
    path = checkpoint(1.0)
    printed, (row,) = reproduce("--checkpoint", path, "--data-root", coco)
    assert table(printed) == {"box AP": ["100.0", "75.0", "+25.0"], "mask AP": ["0.0", "–", "–"]}
    assert row["measured"]["box AP"] == 100.0 and row["listed"] == {"box AP": 75.0}
    assert row["difference"] == {"box AP": 25.0} and row["source"] == "published (its author)"
    assert row["model"] == "dcnzoo::paper/knows.py" and row["images"] == IMAGES
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and row["checkpoint"] == path.name
    assert row["versions"]["torch"] == torch.__version__ and row["machine"] and row["date"]
    assert 0 <= row["seconds"] < 3600
    assert row["command"] == shlex.join(["python", *sys.argv])
    # the next row: the detector knows three images; its precision is 1 up to the recall
    _, (_, row) = reproduce("--checkpoint", checkpoint(3 / IMAGES), "--data-root", coco)
    content = json.loads((coco / "annotations/instances_val2017.json").read_text())
    recalls = []
    for category in content["categories"]:
        images = [a["image_id"] for a in content["annotations"] if a["category_id"] == category["id"]]
        recalls += [sum(image < 3 for image in images) / len(images)] if images else []
    # AP averages 101 points
    expected = sum(math.floor(recall * 100 + 1e-9) + 1 if recall else 0 for recall in recalls) / 101
    assert row["measured"]["box AP"] == pytest.approx(100 * expected / len(recalls), abs=0.06)


def test_data_without_annotations(tmp_path):
    """As COCO's test-dev."""
    content = {"images": [{"id": 1}], "categories": [], "annotations": []}
    (tmp_path / "test.json").write_text(json.dumps(content))
    dataset = dict(type="CocoDataset", data_root=str(tmp_path), ann_file="test.json")
    cfg = Config(dict(test_dataloader=dict(dataset=dataset), test_evaluator={}, work_dir=str(tmp_path)))
    with pytest.raises(UserError, match="annotated objects"):
        use_data(Recipe(cfg), None)


def test_a_config_of_ones_own_and_mistakes(reproduce, checkpoint, coco, tmp_path):
    own, path, data = tmp_path / "own.py", checkpoint(1.0), ["--data-root", coco]
    own.write_text(CONFIG.replace("{root}", str(coco)))
    printed, (row,) = reproduce("--checkpoint", path, *data, config=str(own))
    assert table(printed)["box AP"] == ["100.0", "–", "–"]
    assert row["listed"] == row["difference"] == {} and row["model"] == str(own)
    torch.save({"state_dict": {"other": torch.ones(1)}}, tmp_path / "other.pth")
    for config, arguments, message in (
        ("knows", ["--checkpoint", path, "--data-root", tmp_path], "dcnzoo data download"),
        ("knows", data, "--checkpoint: expected a file with weights"),
        (str(own), ["--data-root", tmp_path], "--checkpoint: expected a file with weights"),
        ("knows", [*data, "--checkpoint", tmp_path / "other.pth"], "1 parameter (weight) missing"),
    ):
        assert message in reproduce(*arguments, config=config, status=1)
    assert len((tmp_path / "results/rows.jsonl").read_text().splitlines()) == 1, "no row of a failed run"


def test_rows_are_added_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "rows.jsonl"
    append_row(path, {"a": 1, "text": "zwei\nZeilen – ±"})
    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be written: disk full"):
        patch.setattr("os.fsync", Mock(side_effect=OSError("disk full")))
        append_row(path, {"a": 2})
    append_row(path, {"a": 3})
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert rows == [{"a": 1, "text": "zwei\nZeilen – ±"}, {"a": 3}]
    assert not list(path.parent.glob(".*partial"))


SHIPPED = [model for model in zoo.models() if model.weights and "://" not in model.weights[0]]


@pytest.mark.slow
# the other models need data that must be downloaded
@pytest.mark.parametrize("name", [model.name for model in SHIPPED if model.name.endswith("shapes")])
def test_shipped_weights_reproduce_their_figures(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DCNZOO_OFFLINE", "1")
    few = ["--cfg-options", "test_dataloader.dataset.shapes.train=1"]  # it is not evaluated
    commands.run("reproduce", name, "--out", "rows.jsonl", *few)
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert set(row["difference"]) == {"box AP", "mask AP"}
    assert row["difference"] == pytest.approx(dict.fromkeys(row["difference"], 0), abs=0.051)
