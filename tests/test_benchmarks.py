"""The programs of benchmarks/ run. Their results are not tested here."""

import json

import pytest
import torch

from benchmarks import data
from dcnzoo.data.check import check_coco
from dcnzoo.data.layouts import convert

from .processes import ROOT, python


@pytest.mark.slow
def test_operators(tmp_path):
    options = f"--cases tiny-64 --threads 1 --dtypes float32 --seconds 0.01 --out {tmp_path}"
    python("-m", "benchmarks.ops", "deform_conv2d", *options.split(), cwd=ROOT)
    (file,) = tmp_path.glob("*.json")
    rows = json.loads(file.read_text())["rows"]
    ours = [row for row in rows if row["contestant"] == "dcnzoo"]
    assert {row["mode"] for row in ours} == {"forward", "forward+backward"}
    assert all(row["seconds"] > 0 and row["extra"] >= 0 for row in ours)
    assert {"F.conv2d", "reference"} <= {row["contestant"] for row in rows}


def test_every_contestant_of_a_convolution_computes_the_same():
    """Those that are installed; a plain convolution does not."""
    from benchmarks.cases import CASES, contestants, passes

    (case,) = (case for case in CASES if (case.operator, case.name) == ("deform_conv2d", "tiny-64"))
    sample = case.sample(torch.float32).leaves()
    found = contestants(case.operator)
    names = ("dcnzoo", "dcnzoo channels_last", "reference", "F.conv2d")
    ours, *same, plain = (passes(found[name](sample), sample.given, "forward+backward")() for name in names)
    for other in same:
        torch.testing.assert_close(other, ours, rtol=1e-3, atol=1e-3)
    assert plain[0].shape == ours[0].shape and not torch.allclose(plain[0], ours[0], atol=0.1)


def test_data_set_is_valid(tmp_path):
    data.make(tmp_path, 3)
    file, images = tmp_path / "coco/annotations/instances_train.json", tmp_path / "coco/train"
    report = check_coco(file, images)
    assert not report.problems and report.counts["images"] == 3
    converted = convert(tmp_path / "yolo", "YOLO", "train")
    assert not converted.problems and len(converted.content["annotations"]) == report.counts["annotations"]
