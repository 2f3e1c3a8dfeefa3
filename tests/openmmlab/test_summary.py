"""What the terminal shows of a training and a test."""

import pytest

from ..commands import run
from ..demo import DEFORMABLE as CONFIG
from ..distributed.launching import settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work directory after two epochs, of which the second is validated, and the output."""
    folder = tmp_path_factory.mktemp("summary")
    options = settings(folder / "data", 8, 4, 2, train_cfg__val_interval=2)
    return folder, run("train", CONFIG, "--work-dir", folder / "run", *options)


def test_a_training_has_a_head_a_row_per_epoch_and_a_result(trained):
    _, output = trained
    lines = output.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 200
    pairs = dict(line.split(maxsplit=1) for line in lines if line and not line[0].isspace())
    assert pairs["model"].startswith("MaskRCNN (mask-rcnn_r14-mdconv_fpn_8e_shapes), 0.6 million")
    assert pairs["layers"] == "3 × DCNv2"
    assert pairs["train"].startswith("8 images, ") and "3 classes: oval, trefoil, cross" in pairs["train"]
    rows = [line.split() for line in lines if line.strip().startswith(("1/2", "2/2"))]
    head = next(line for line in lines if line.strip().startswith("epoch"))
    assert len(rows) == 2 and len(rows[1]) == len(rows[0]) + 3, "the first epoch has no validation"
    assert [name for name in ("box AP", "mask AP") if name in head] == ["box AP", "mask AP"]
    assert float(rows[0][1]) > 0  # the loss
    assert pairs["best"].startswith("epoch 2: box AP ") and pairs["classes"].count(",") == 2
    assert pairs["next"].startswith("dcnzoo infer ")


def test_the_log_file_has_everything_and_verbose_prints_it(trained):
    folder, output = trained
    (log,) = (folder / "run").glob("*/*.log")
    text = log.read_text(encoding="utf-8")
    for part in ("Epoch(train)", "Average Precision", "System environment", "Running per image evaluation"):
        assert part in text and part not in output, part
    options = ("--work-dir", folder / "test")
    assert "Average Precision" not in (short := run("test", folder / "run", *options))
    assert "box AP" in short and "classes" in short
    assert "Average Precision" in run("test", folder / "run", *options, "--verbose")
