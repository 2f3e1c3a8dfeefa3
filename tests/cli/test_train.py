"""The train, test and browse commands, with a configuration that trains in seconds."""

import pickle
import re
import shutil
from pathlib import Path

import cv2
import pytest
import torch

from tests.helpers import commands
from tests.helpers.commands import error_of
from tests.helpers.demo import PLAIN as CONFIG
from tests.helpers.demo import average_precisions, log_of, small_options


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the folder for data with the default numbers of pictures; other numbers would replace them."""
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """A work directory after training with deformable convolutions, and the output."""
    work = tmp_path_factory.mktemp("trained")
    options = [*small_options(data, 4, 4, 2), "model.backbone.dcn=True"]
    return work, commands.run("train", CONFIG, "--work-dir", work, "--report", *options)


def test_train_writes_checkpoints_and_a_report(trained, data):
    work, output = trained
    assert len(list((data / "train").iterdir())) == 4
    assert sorted(p.name for p in work.glob("*.pth")) == ["epoch_1.pth", "epoch_2.pth"]
    assert Path((work / "last_checkpoint").read_text()) == work / "epoch_2.pth"
    weights = torch.load(work / "epoch_2.pth", weights_only=False)["state_dict"]
    assert any("conv_offset" in name for name in weights), "dcn=True took effect"
    assert "Epoch(train) [2][2/2]" in log_of(work)
    *_, shown, following = output.splitlines()
    assert shown.split() == ["report", str(work / "report.html")] and following.startswith("next ")
    assert not any(text in output for text in ("be deprecated", "\x1b["))
    page = (work / "report.html").read_text(encoding="utf-8")
    box, mask = average_precisions(work)
    assert f"<dt>box AP</dt><dd>{float(box):.3f}</dd>" in page
    assert f"<dt>mask AP</dt><dd>{float(mask):.3f}</dd>" in page
    assert "backbone.layer3.0.conv2" in page and "conv_offset" not in page


def test_test_repeats_the_last_validation(trained, tmp_path):
    work, _ = trained
    config = work / Path(CONFIG).name  # saved by training, with the options of its command line
    shown, predictions = tmp_path / "shown", tmp_path / "predictions.pkl"
    commands.run(
        "test", config, work / "epoch_2.pth", "--work-dir", tmp_path, "--out", predictions,
        "--show-dir", shown,
    )  # fmt: skip
    assert average_precisions(tmp_path) == average_precisions(work)
    assert len(pickle.loads(predictions.read_bytes())) == 4
    images = sorted(shown.glob("*.png"))
    assert len(images) == 4 and cv2.imread(str(images[0])).shape[2] == 3
    again = ("test", config, work / "epoch_2.pth", "--work-dir", tmp_path, "--show-dir", shown)
    images[1].write_bytes(b"mine")
    assert "--force" in commands.error_of(*again) and images[1].read_bytes() == b"mine"


def test_mixed_precision_on_the_cpu(tmp_path):
    options = ["--amp", "--auto-scale-lr", "--epochs", 1, "--lr", 0.003, "--patience", 1]
    options += small_options(tmp_path / "data", 2, 1, 2)
    output = commands.run("train", CONFIG, "--work-dir", tmp_path, "--verbose", *options)
    assert "max_epochs 2 → 1, " in output and "lr 0.0015 → 0.003" in output
    assert "changed: optim_wrapper.type OptimWrapper → AmpOptimWrapper, " in output
    losses = re.findall(r"\bloss: ([\d.]+|nan)", output)
    assert losses and all(0 < float(loss) < 20 for loss in losses)
    weights = torch.load(tmp_path / "epoch_1.pth", weights_only=False)["state_dict"]
    assert weights["backbone.conv1.weight"].dtype == torch.float32
    assert not list(tmp_path.glob("report.*")), "only with --report"


def test_weights_of_the_classes_in_another_order(data, trained, tmp_path):
    """The commands refuse them: each object would silently count as one of another class."""
    work = shutil.copytree(trained[0], tmp_path / "work")  # reproduce writes a log into the work directory
    config, weights = work / Path(CONFIG).name, tmp_path / "weights.pth"
    checkpoint = torch.load(work / "epoch_2.pth", weights_only=False)
    checkpoint["meta"]["dataset_meta"]["classes"] = ("cross", "trefoil", "oval")
    torch.save(checkpoint, weights)
    for line in (
        ["test", config, weights, "--work-dir", tmp_path],
        ["reproduce", config, "--checkpoint", weights, "--out", tmp_path / "rows.jsonl"],
        ["train", config, "--work-dir", tmp_path / "w", "--resume", weights, "--epochs", 3],
    ):
        assert "whose class 0 is oval, got cross" in error_of(*line)
    checkpoint["meta"]["dataset_meta"]["classes"] = ("Oval", "Trefoil", "Cross")
    torch.save(checkpoint, weights)
    commands.run("test", config, weights, "--work-dir", tmp_path)
