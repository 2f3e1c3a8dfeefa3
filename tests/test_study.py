"""``tools/study.py``: its measurements and comparisons."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dcnzoo import zoo
from dcnzoo.report import SamplingField
from dcnzoo.report.detector import Prediction
from dcnzoo.report.plots import Instances
from dcnzoo.report.sampling import effective_dilation
from dcnzoo.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))  # its modules import each other as scripts

import study_sampling  # noqa: E402
from study import EXPERIMENTS  # noqa: E402
from study_page import WITH_FIGURES, fill_in, write_page  # noqa: E402
from study_results import RESULTS, Comparison, Row, differences, read_rows, read_time, select, write_rows  # noqa: E402
from trainings import ARMS  # noqa: E402


def field(scale=1.0, dilation=(1, 1), weight=None, size=(6, 8)):
    """A 3 × 3 kernel with taps ``scale`` times as far from the centre as in a convolution."""
    shape = SamplingField(
        "layer",
        torch.zeros(9, 2, *size),
        torch.ones(9, *size),
        *((3, 3), (1, 1), dilation, dilation),
        input_size=size,
    )
    offset = (scale - 1) * (shape.grid - shape.grid[4])
    weight = shape.weight if weight is None else weight
    return SamplingField("layer", offset, weight, (3, 3), (1, 1), dilation, dilation, size)


@pytest.mark.parametrize(
    ("scale", "dilation", "expected"), [(1, (1, 1), 1), (2.5, (1, 1), 2.5), (1, (1, 3), 2)]
)
def test_effective_dilation(scale, dilation, expected):
    found = effective_dilation(field(scale, dilation))
    assert found.shape == (6, 8)
    torch.testing.assert_close(found, torch.full((6, 8), float(expected)))


def test_sampling_in_regions():
    """A layer at half the resolution of the image, and one object in the left half."""
    mask = np.zeros((12, 16), bool)
    mask[:, :8] = True
    truth = Instances(np.array([[0.0, 0.0, 8.0, 12.0]]), np.array([0]), mask[None])
    prediction = Prediction(np.zeros((12, 16, 3), np.uint8), truth, truth, [], (12, 16), {})
    centre = torch.zeros(9, 6, 8)
    centre[4] = 1.0  # only the centre tap has weight
    found = dict(study_sampling.in_regions(prediction, field(3.0, weight=centre)))
    assert list(found) == ["small", "background"]
    dilation, on_object, regular = found["small"]
    assert len(dilation) == 6 * 4 and found["background"].shape == (3, 6 * 4)
    assert dilation.eq(3).all() and on_object.eq(1).all()
    # without offsets, 2 of 6 · 3 rows and 2 of 4 · 3 columns are outside the image or the object
    inside = (6 * 3 - 2) / (6 * 3) * (4 * 3 - 2) / (4 * 3)
    assert regular.mean().item() == pytest.approx(inside)


def row(arm, seed, ap, setting="full"):
    return Row("operators", arm, setting, seed, ap + 0.01, ap, 0.125, 640, "abc")


def test_results(tmp_path):
    rows = [row("v2", 1, 0.53), row("off", 2, 0.4), row("off", 1, 0.5), row("v2", 2, 0.45), row("v2", 3, 0.9)]
    rows.append(Row("real", "off", "bccd", 0, 0.5, None, 0.125, 640, "abc"))
    file = tmp_path / "study.csv"
    assert read_rows(file) == []
    write_rows(file, rows)
    assert sorted(read_rows(file), key=rows.index) == rows
    with file.open() as lines:
        expected = "study,arm,setting,seed,box_ap,mask_ap,seconds_per_iteration,iterations,commit"
        assert next(csv.reader(lines)) == expected.split(",")
    values = differences(select(rows, "v2"), select(rows, "off"))
    assert values == pytest.approx([0.03, 0.05]), "only seeds that both have"
    file.write_text("study,arm\n")
    with pytest.raises(UserError, match=r"study\.csv: columns"):
        read_rows(file)


def test_comparison():
    found = Comparison.of([1.0, 2.0, 3.0])
    half = 4.302653 / 3**0.5  # Student's t with 2 degrees of freedom, standard deviation 1
    assert (found.mean, found.ahead, found.pairs) == (2, 3, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert Comparison.of([0.0, -1.0]).ahead == 0


@pytest.mark.slow
def test_quick(tmp_path):
    command = [sys.executable, "tools/study.py", "--quick", "--work-dir", tmp_path, "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += ["--studies", "operators", "where"]
    for _ in range(2):  # nothing is left to do in the second run
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    assert "iterations" not in result.stdout
    rows = read_rows(tmp_path / "study.csv")
    assert len(rows) == len({each.key for each in rows}) == 2 * 7
    sampling = study_sampling.read_sampling(tmp_path / "study_sampling.csv")
    assert {each.arm for each in sampling} == {"v1", "v2"} and all(each.dilation > 0 for each in sampling)
    assert "| v4 |" in (tmp_path / "study.md").read_text()


def test_committed_figures_are_of_the_committed_results(tmp_path):
    """The page, the tables in other pages, and the figures of seed 0 in the zoo."""
    rows, docs = read_rows(RESULTS), RESULTS.parent
    files = (docs / f"study{name}.csv" for name in ("", "_sampling", "_time"))
    write_page(tmp_path / "study.md", *files, sum(each.seeds for each in EXPERIMENTS))
    assert (tmp_path / "study.md").read_text() == (docs / "study.md").read_text()
    for file in WITH_FIGURES:
        text = file.read_text()
        assert "<!-- study: " in text
        assert fill_in(text, rows, read_time(docs / "study_time.csv")) == text
    for arm, config in ARMS.items():
        row = select(rows, arm).get(0)
        listed = {} if row is None else {"box AP": 100 * row.box_ap, "mask AP": 100 * row.mask_ap}
        assert zoo.find(Path(config).stem).metrics() == pytest.approx(listed), arm
