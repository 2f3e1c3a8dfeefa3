"""The benchmark runs, lists absent packages, and computes its ratios correctly."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tools" / "benchmark"
sys.path.append(str(FOLDER))  # its modules import each other as scripts do

import families  # noqa: E402
import measure  # noqa: E402
import report  # noqa: E402


def run(*arguments):
    command = [sys.executable, "tools/benchmark/ops.py", *map(str, arguments)]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout + result.stderr


@pytest.mark.slow
def test_quick_run(tmp_path):
    output = run("--quick", "--out", tmp_path)
    files = {path.suffix: path for path in tmp_path.iterdir()}
    assert sorted(files) == [".json", ".md", ".png"]
    document = json.loads(files[".json"].read_text())
    rows = document["rows"]
    measured = {(row["contestant"], row["mode"]) for row in rows if row["timing"]}
    for contestant in ("dcnzoo", "dcnzoo channels_last", "F.conv2d", "reference"):
        assert {(contestant, mode) for mode in measure.PASSES} <= measured
    ours = [row for row in rows if row["contestant"] == "dcnzoo"]
    tensors = 4 * (64 * 16 * 16 + 27 * 8 * 8) + 64 * 64 * 9  # input, offset and mask; weight
    assert ours[0]["needed"] == 4 * (tensors + 4 * 64 * 8 * 8)
    rivals = {"mmcv", "onnxruntime", "torchvision", "tvdcn", "torch-ms-deform-attn", "reference"}
    assert set(document["rivals"]) | set(document["absent"]) == rivals
    for name, absence in document["absent"].items():
        assert f"unavailable: {name}: {absence['reason']}" in output


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mmdet") is None, reason="mmdet is not installed")
def test_demo_training(tmp_path):
    run("--quick", "--demo-training", "only", "--out", tmp_path)
    (path,) = tmp_path.glob("*.json")
    document = json.loads(path.read_text())
    arms = document["demo_training"]["1"]
    assert [arms[arm]["count"] for arm in ("off", "on")] == [2, 2]
    ratio = arms["on"]["median"] / arms["off"]["median"]
    (page,) = tmp_path.glob("*[!s].md")
    assert f"| dcn on / off | {report.number(ratio, '×')} |" in page.read_text()


# Cases


def test_cases_of_other_ranks_are_run_by_every_contestant():
    known = families.load()
    names = [f"deform_conv{kind}d" for kind in ("1", "3", "_transpose1", "_transpose2", "_transpose3")]
    assert set(names) <= set(known)
    for name in names:
        module = known[name]
        assert {case.rank for case in module.CASES} == {int(name[-2])}
        for case in module.CASES:
            case = case.small()
            tensors = case.tensors(torch.float32, "cpu")
            outputs = {
                contestant: prepare(case, tensors, 1).forward()
                for contestant, prepare in module.CONTESTANTS.items()
                if contestant != "tvdcn"
            }
            assert all(output.shape == case.out_shape for output in outputs.values())
            floor = f"F.{name.removeprefix('deform_')}"
            assert module.FLOORS[0] == floor
            torch.testing.assert_close(outputs["dcnzoo"], outputs["reference"], rtol=1e-4, atol=1e-4)
            assert measure.disagreement(outputs[floor], outputs["dcnzoo"]) > 0.1


@pytest.mark.parametrize(
    ("sequences", "cores", "end"),
    [
        ([[[1], [1], [1], [1]]], 2, 2),
        ([[[3], [1], [1], [1]]], 2, 3),
        ([[[1], [1], [3]]], 2, 4),
        ([[[2]]], 8, 2),
        ([[[1, 2, 0], [1, 2, 0]]], 2, 5),  # the second task waits for the first one's step
        ([[[1, 2, 1, 2, 0], [1, 2, 1, 2, 0]]], 2, 8),  # and again
        ([[[1, 2, 0]], [[1, 2, 0]]], 2, 3),  # not for that of another sequence
        ([[[1, 2, 0], [1, 2, 0]], [[1]]], 2, 5),  # helps the first sequence when its own is done
    ],
)
def test_list_scheduling(sequences, cores, end):
    import scaling

    assert scaling.Region(0, sequences).makespan(cores) == end
