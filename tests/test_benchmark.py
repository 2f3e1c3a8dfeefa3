"""The benchmark: that it runs, says what is missing, and computes with its figures what it says."""

import csv
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tools" / "benchmark"
sys.path.append(str(FOLDER))  # its modules import one another as scripts do

import families  # noqa: E402
import measure  # noqa: E402
from results import MIB, Results, Row, Setting, goals  # noqa: E402

import ops as tool  # noqa: E402


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
    assert sorted(files) == [".csv", ".json", ".md", ".png"]
    document = json.loads(files[".json"].read_text())
    rows, name = document["rows"], document["name"]
    assert {path.stem for path in files.values()} == {name}
    assert f"torch-{torch.__version__.split('+')[0]}-dcnzoo-{document['machine']['dcnzoo']}" in name
    assert str(ROOT) not in files[".json"].read_text() + files[".md"].read_text()
    measured = {(row["contestant"], row["mode"]) for row in rows if row["timing"]}
    for contestant in ("dcnzoo", "dcnzoo channels_last", "F.conv2d", "reference"):
        assert {(contestant, mode) for mode in measure.PASSES} <= measured
    for row in rows:
        if row["timing"]:
            assert 0 < row["timing"]["low"] <= row["timing"]["median"] <= row["timing"]["high"]
    ours = [row for row in rows if row["contestant"] == "dcnzoo"]
    tensors = 4 * (64 * 16 * 16 + 27 * 8 * 8) + 64 * 64 * 9  # input, offset and mask; weight
    assert ours[0]["needed"] == 4 * (tensors + 4 * 64 * 8 * 8)
    with open(files[".csv"], newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows)
    assert float(table[0]["median_ms"]) == pytest.approx(rows[0]["timing"]["median"] * 1e3, rel=1e-3)
    rivals = {"mmcv", "onnxruntime", "torchvision", "tvdcn", "reference"}
    assert set(document["rivals"]) | set(document["absent"]) == rivals
    assert set(document["rivals"]) <= {row["contestant"] for row in rows}
    for name, absence in document["absent"].items():
        assert f"absent: {name}: {absence['reason']}; {absence['how_to_get']}" in output


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mmdet") is None, reason="mmdet is not installed")
def test_demo_training(tmp_path):
    run("--quick", "--demo-training", "only", "--out", tmp_path)
    (path,) = tmp_path.glob("*.json")
    document = json.loads(path.read_text())
    arms = document["demo_training"]["1"]
    assert [arms[arm]["count"] for arm in ("off", "on")] == [2, 2]
    (goal,) = document["goals"]
    assert goal["measured"] == pytest.approx(arms["on"]["median"] / arms["off"]["median"])


@pytest.mark.parametrize(
    "arguments",
    [
        *("--rivals nobody", "--shapes c9", "--family conv9d", "--ops v7", "--dtype int8"),
        *("--passes sideways", "--threads 0", "--seconds 0", "--shapes box-head --ops v1"),
    ],
)
def test_mistakes_get_one_line(arguments):
    result = CliRunner().invoke(tool.main, arguments.split())
    last = result.output.strip().splitlines()[-1]
    assert result.exit_code == 2 and last.startswith("Error: ")
    assert arguments.split()[0] in last or "both" in last


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_of_a_known_temporary(monkeypatch, tmp_path):
    """The benchmark reports the memory of a buffer of known size."""
    (tmp_path / "families").mkdir()
    for name in ("families/__init__.py", "measure.py", "memory_server.py"):
        (tmp_path / name).write_text((FOLDER / name).read_text())
    (tmp_path / "families" / "known.py").write_text(
        """
import torch
from . import Call
class Case:
    name, out_shape = "c", (1 << 20,)
    def small(self): return self
    def tensors(self, dtype, device): return {"x": torch.ones(3 << 20)}
def buffer(case, t, threads):
    def forward():
        big = t["x"].repeat(8)  # 96 MiB
        return big[: 1 << 20].clone()  # 4 MiB
    return Call(forward)
CASES, FLOORS, CONTESTANTS = [Case()], (), {"buffer": buffer}
"""
    )
    monkeypatch.setattr(measure, "__file__", str(tmp_path / "measure.py"))
    with measure.MemoryProbe() as probe:
        question = {"family": "known", "case": "c", "threads": 1, "dtype": "float32", "mode": "forward"}
        memory = probe.ask(contestant="buffer", **question)
    assert memory.needed == 16 * MIB and memory.extra / MIB == pytest.approx(96, abs=3)


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


# Goals


def results_of(times, **facts):
    """Results from {(case, mode, threads, contestant): seconds}."""
    results = Results({"bf16_instructions": True, **facts}, {"f": ("F.conv2d", "F.conv2d channels_last")})
    for (case, mode, threads, contestant), seconds in times.items():
        setting = Setting("f", "FPN", case, "1×2", True, "float32", mode, threads)
        timing = measure.Timing(seconds, seconds, seconds, 3)
        results.rows.append(Row(setting, contestant, timing))
    return results


def test_goals_are_medians_of_ratios_to_the_better_floor():
    times = {}
    for case, ours in (("a", 3.0), ("b", 2.4), ("c", 2.0)):
        times[case, "forward", 1, "dcnzoo"] = ours
        times[case, "forward", 1, "F.conv2d"] = 5.0
        times[case, "forward", 1, "F.conv2d channels_last"] = 2.0
        times[case, "forward", 1, "onnxruntime"] = 4.2
    times["a", "forward", 2, "dcnzoo"] = 1.5
    results = results_of(times)
    results.limits = {s: (2.0 if s.case == "a" else 1.0) for s in results.settings(threads=1)}
    found = {goal.figure: goal for goal in goals(results)}
    forward = found["forward, dcnzoo / F.conv2d, 1 thread"]
    assert forward.measured == pytest.approx(1.2) and forward.verdict == "met" and forward.count == 3
    rival = found["forward, onnxruntime / dcnzoo, 1 thread"]
    assert rival.measured == pytest.approx(4.2 / 2.4) and rival.verdict == "met"
    assert found["forward, 1 thread / 2 threads, a"].measured == pytest.approx(2.0)
    absent = found["forward, mmcv / dcnzoo, 2 threads"]
    assert absent.measured is None and absent.verdict == "not measured"


# Block sizes of the fused kernels


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_search_for_block_sizes_rehearsed(tmp_path):
    target = tmp_path / "table.json"
    command = [sys.executable, FOLDER / "autotune.py", "--rehearse", "--table", target]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    committed = (ROOT / "dcnzoo/ops/fused/configs.json").read_text()
    before, after = json.loads(committed), json.loads(target.read_text())
    source = after["interpreter"].pop("source")
    del before["interpreter"]["source"]
    assert source.startswith("measured on Triton's interpreter") and after == before
    same = target.read_text().splitlines()
    assert sum(a != b for a, b in zip(same, committed.splitlines(), strict=True)) == 1
