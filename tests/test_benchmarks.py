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


@pytest.mark.slow
def test_models():
    options = "startup --rounds 1 --threads 1"
    assert "import dcnzoo.ops" in python("-m", "benchmarks.models", *options.split(), cwd=ROOT).stdout


@pytest.fixture(scope="module")
def study_rows():
    """Results of three seeds; the gain of v2 over plain differs between them, the one over v1 is constant."""
    from benchmarks.study.training import PLAN

    rows = []
    for run in PLAN:
        if run.setting == "shapes" and (run.stage == "search" or run.seed < 3):
            ap = {"v2": 0.8, "v1": 0.7}.get(run.arm, 0.7 + 0.01 * run.seed)
            row = {**run.columns, "rate": run.rate or 0.003, "box_ap": ap + 0.1, "mask_ap": ap - 0.1}
            splits = {4: "val", run.epochs: "val" if run.stage == "search" else "test"}
            rows += [
                {name: str(value) for name, value in {**row, "epoch": epoch, "split": split}.items()}
                for epoch, split in splits.items()
            ]
    return rows


def test_study_compares_complete_seeds_only(study_rows):
    from benchmarks.study import page
    from benchmarks.study.training import ARMS

    for rows, seeds in ((study_rows, 3), (study_rows[:-1], 2)):
        gains = page.gains(page.complete(rows, "shapes", tuple(ARMS)))
        assert gains["plain"] == pytest.approx([0.1, 0.09, 0.08][:seeds])
        assert gains["v1"] == pytest.approx([0.1] * seeds)


def test_study_verdict_is_of_the_simultaneous_interval():
    """Five differences with mean .02: Student's t is 4.604 for 99% and 4 degrees of freedom."""
    from benchmarks.study import page

    for spread, expected in ((0.009, "gain"), (0.0105, "undecided")):
        differences = [0.02 + spread * step for step in (-1.2649, -0.6325, 0, 0.6325, 1.2649)]
        assert page.interval(differences, 5)[0] == pytest.approx(0.02 - 4.604 * spread / 5**0.5, abs=1e-4)
        assert page.verdict(differences) == expected
    assert page.verdict([-0.02, -0.021, -0.019]) == "loss"
    assert page.verdict([0.001, -0.001, 0.0005]) == "no difference"


def test_data_set_is_valid(tmp_path):
    data.make(tmp_path, 3)
    file, images = tmp_path / "coco/annotations/instances_train.json", tmp_path / "coco/train"
    report = check_coco(file, images)
    assert not report.problems and report.counts["images"] == 3
    converted = convert(tmp_path / "yolo", "YOLO", "train")
    assert not converted.problems and len(converted.content["annotations"]) == report.counts["annotations"]
