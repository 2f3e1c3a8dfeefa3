"""Read files that were written by version aaf49a3d, the last one before the package was reduced.

``versions/aaf49a3d.tar.xz`` contains files that the programs of that revision wrote:

- ``fruits``: six pictures with YOLO's labels; ``tiny.py`` and ``start.pth``: a small config and its weights,
- ``work``: ``train tiny.py --data fruits``, with an EMA, stopped after two of three epochs,
- ``model.onnx`` and ``detections/detections.json``: of the best checkpoint on the two validation pictures,
- ``converted``: the state dict of a network made by ``to_deformable``, by ``torch.save`` and as safetensors,
  and an input with its output,
- ``expected.json``: the AP after each epoch of the training, had it not been stopped.
"""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

import dcnzoo
from dcnzoo.openmmlab.history import History
from tests.helpers.commands import run

ARCHIVE = Path(__file__).with_name("versions") / "aaf49a3d.tar.xz"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def folder(unpacked, monkeypatch) -> Path:
    monkeypatch.chdir(unpacked)
    return unpacked


def expected_detections() -> tuple[list[list[float]], list[float]]:
    """Boxes (x, y, x, y) and scores of the validation pictures, picture by picture."""
    rows = json.loads(Path("detections/detections.json").read_text())["annotations"]
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]
    return boxes, [row["score"] for row in rows]


@pytest.mark.parametrize(
    "model",
    [("work",), ("model.onnx",), ("work/work.py", "work/best_coco_bbox_mAP_epoch_1.pth")],
    ids=["work", "onnx", "config and checkpoint"],
)
def test_detections(folder, model):
    detector = dcnzoo.load(*model, score_threshold=0.01)
    assert [*detector.names.values()] == ["date", "fig"]
    results = [*detector([f"fruits/images/val/{letter}.png" for letter in "ef"])]
    boxes, scores = expected_detections()
    np.testing.assert_allclose(np.concatenate([r.boxes for r in results]), boxes, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.concatenate([r.scores for r in results]), scores, rtol=1e-4)


def test_test(folder, tmp_path):
    """The best checkpoint has the AP of its epoch."""
    expected = json.loads(Path("expected.json").read_text())["validation"]["1"]
    output = run("test", "work", "--work-dir", tmp_path)
    assert re.search(rf"^box AP +{expected:.3f}$", output, re.MULTILINE)


@pytest.mark.slow  # test_tools.py exports a detector in `make test`
def test_export(folder, tmp_path):
    """A file exported today has the detections of that time."""
    run("export", "work", "--out", tmp_path / "new.onnx")
    results = [*dcnzoo.load(tmp_path / "new.onnx", score_threshold=0.01)(["fruits/images/val/e.png"])]
    boxes, scores = expected_detections()
    count = len(results[0])
    np.testing.assert_allclose(results[0].boxes, boxes[:count], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(results[0].scores, scores[:count], rtol=1e-4)


def converted() -> torch.nn.Module:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3)
    )
    dcnzoo.to_deformable(network, "*")
    return network


def test_converted_layers(folder):
    from safetensors.torch import load_file

    network, example = converted(), load_file("converted/example.safetensors")
    network.load_state_dict(torch.load("converted/model.pth"))
    torch.testing.assert_close(network(example["input"]), example["output"])
    # safetensors have no metadata, and that version saved no scale of a mask
    network, state = converted(), load_file("converted/model.safetensors")
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \S*mask_activation\.scale"):
        network.load_state_dict(state)
    state |= {key: torch.tensor(2.0) for key in network.state_dict() if key.endswith("mask_activation.scale")}
    network.load_state_dict(state)
    torch.testing.assert_close(network(example["input"]), example["output"])


def test_training_resumes(folder):
    """It ends with the AP of a training that was not stopped. Last, because it changes the work directory."""
    run("train", "work", "--resume", "--no-channels-last")
    assert (folder / "work/epoch_3.pth").exists()
    expected = json.loads(Path("expected.json").read_text())["validation"]
    validation = History.read(folder / "work").validation
    assert {str(epoch): row["coco/bbox_mAP"] for epoch, row in validation.items()} == pytest.approx(
        expected, abs=0.0011
    )
    assert "iterations are done" in run("train", "work", "--resume")
