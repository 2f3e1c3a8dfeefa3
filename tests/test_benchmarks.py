"""The programs of benchmarks/ run. Their results are not tested here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments):
    command = [sys.executable, "-m", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


@pytest.mark.slow
def test_operators(tmp_path):
    options = [
        "--cases",
        "tiny-64",
        "--threads",
        1,
        "--dtypes",
        "float32",
        "--seconds",
        0.01,
        "--out",
        tmp_path,
    ]
    run("benchmarks.ops", "deform_conv2d", *options)
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
    ours, *same, plain = (
        passes(found[name](sample, 1), sample.given, "forward+backward")() for name in names
    )
    for other in same:
        torch.testing.assert_close(other, ours, rtol=1e-3, atol=1e-3)
    assert plain[0].shape == ours[0].shape and not torch.allclose(plain[0], ours[0], atol=0.1)


@pytest.mark.slow
def test_models():
    output = run("benchmarks.models", "startup", "demo*", "--rounds", 1, "--threads", 1)
    assert "import dcnzoo.ops" in output and "demo: training iteration" in output
