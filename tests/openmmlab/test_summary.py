"""What the terminal shows of a training and a test."""

import pytest

from dcnzoo.openmmlab.history import loss_parts
from dcnzoo.openmmlab.hooks.summary import labels

from ..commands import run
from ..demo import DEFORMABLE as CONFIG
from ..distributed.launching import settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work directory after two epochs, of which the second is validated, and the output."""
    folder = tmp_path_factory.mktemp("summary")
    options = settings(folder / "data", 8, 4, 2, train_cfg__val_interval=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        return folder, run("train", CONFIG, "--work-dir", folder / "run", *options)


def test_a_training_has_a_head_a_row_per_epoch_and_a_result(trained):
    _, output = trained
    lines = output.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 200
    assert all(len(line) <= 100 for line in lines if line.strip().startswith(("epoch ", "1/2", "2/2")))
    pairs = dict(line.split(maxsplit=1) for line in lines if line and not line[0].isspace())
    assert pairs["model"].startswith("MaskRCNN (mask-rcnn_r14-mdconv_fpn_8e_shapes), 0.6 million")
    assert pairs["layers"] == "3 × DCNv2"
    assert pairs["train"].startswith("8 images, ") and "3 classes: oval, trefoil, cross" in pairs["train"]
    rows = [line.split() for line in lines if line.strip().startswith(("1/2", "2/2"))]
    head = next(line for line in lines if line.strip().startswith("epoch"))
    assert len(rows) == 2 and len(rows[1]) == len(rows[0]) + 3, "the first epoch has no validation"
    assert [name for name in ("box AP", "mask AP") if name in head] == ["box AP", "mask AP"]
    assert head.split()[1:8] == ["loss", "class", "loss", "box", "loss", "mask", "loss"]
    losses = [float(value) for value in rows[0][1:5]]
    assert losses[0] == pytest.approx(sum(losses[1:]), abs=0.003) and min(losses) > 0
    assert pairs["last"].startswith("epoch 2: box AP ") and pairs["classes"].startswith("mask AP: ")
    assert pairs["next"].startswith("dcnzoo infer ")


def test_the_log_file_has_everything_and_verbose_prints_it(trained):
    folder, output = trained
    (log,) = (folder / "run").glob("*/*.log")
    text = log.read_text(encoding="utf-8")
    for part in ("Epoch(train)", "Average Precision", "System environment"):
        assert part in text and part not in output, part
    assert "FileClient" not in text + output, "a warning of mmengine about its own hooks"
    options = ("--work-dir", folder / "test")
    assert "Average Precision" not in (short := run("test", folder / "run", *options))
    assert "box AP" in short and "classes" in short
    assert "Average Precision" in run("test", folder / "run", *options, "--verbose")


def test_rows_fit_a_narrow_terminal(trained, monkeypatch):
    folder, _ = trained
    monkeypatch.setenv("COLUMNS", "80")
    output = run("train", CONFIG, "--work-dir", folder / "narrow", *settings(folder / "data", 8, 4, 1))
    rows = [line for line in output.splitlines() if line.strip().startswith(("epoch ", "1/1"))]
    assert len(rows) == 2 and max(map(len, rows)) <= 80
    for name in ("epoch", "loss", "box AP", "box AP50", "mask AP", "lr", "time"):
        assert f" {name}" in f" {rows[0]}"


def test_parts_of_the_loss_and_names_of_metrics():
    """Names of MMDetection's heads: two stages, cascades, DETR's decoder layers, CenterNet."""
    names = {
        "class loss": ("loss_rpn_cls", "s0.loss_cls", "d3.loss_cls", "enc_loss_cls", "loss_heatmap"),
        "box loss": ("loss_rpn_bbox", "s2.loss_bbox", "d0.loss_iou", "dn_loss_bbox", "loss_dfl"),
        "mask loss": ("loss_mask", "loss_mask_iou", "loss_dice"),
    }
    losses = {name: 1.0 for part in names.values() for name in part} | {
        "loss_unknown": 9.0,
        "accuracy_cls": 9.0,
    }
    assert loss_parts(losses) == {part: len(each) for part, each in names.items()}
    metrics = {"coco/bbox_mAP": 0.5, "coco/bbox_mAP_l": -1.0, "coco/bbox_mAP_75": 0.4, "pascal_voc/mAP": -1.0}
    shown = {"coco/bbox_mAP": "box AP", "coco/bbox_mAP_75": "box AP75", "pascal_voc/mAP": "mAP"}
    assert labels(metrics, most=100) == shown
    assert labels(metrics) == {"coco/bbox_mAP": "box AP"}
    assert labels({"accuracy/top1": 0.5, "name": "x"}) == {"accuracy/top1": "top1"}
