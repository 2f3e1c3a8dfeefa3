"""What the benchmarks conclude from their measurements: tables, block sizes, kernels, verdicts."""

import functools
import itertools
import json
import math
import subprocess
import time

import pytest

from benchmarks import measure, ops, runtimes
from benchmarks.cases import Case, convolution, ours
from benchmarks.coverage import table
from benchmarks.study.page import verdict

pytest.importorskip("triton")

from benchmarks.gpu import benchmark, processes, tuning
from dcnzoo.ops.fused.deform_conv import Config


def test_summary_has_medians_of_ratios_and_the_worst_case():
    times = {"c3": (2.0, 6.0, 1.0), "c4": (2.0, 10.0, 4.0), "c5": (2.0, 2.0, 1.0)}  # dcnzoo, mmcv, F.conv2d
    rows = [
        ops.Row("deform_conv2d", case, True, "float32", "forward", 1, name, seconds, 0.0)
        for case, each in times.items()
        for name, seconds in zip(("dcnzoo", "mmcv", "F.conv2d"), each, strict=True)
    ]
    rows.append(ops.Row("deform_conv2d", "p2", False, "float32", "forward", 1, "mmcv", 0.1, 0.0))
    _, *lines = ops.summary(rows)
    assert {line[3]: line[4:] for line in lines} == {
        "mmcv / dcnzoo": ["3.00×", "1.00× c5", "3"],
        "dcnzoo / F.conv2d, the faster": ["2.00×", "2.00× c3", "3"],
    }


@pytest.mark.parametrize("wrong", [math.nan, 1.1])
def test_a_contestant_with_another_result_is_not_timed(wrong):
    case = Case("deform_conv2d", "small", "", functools.partial(convolution, "small", 1, 4, (5, 4)))
    call = functools.partial(ours, case.operator)
    contestants = {"dcnzoo": call, "same": call, "other": lambda sample: lambda: call(sample)() * wrong}
    (problem,) = ops.measure(case, "float32", contestants, ops.Settings([1], passes=[], seconds=0), None)
    assert problem.startswith("other: different result")


@pytest.fixture(autouse=True)
def pixels(monkeypatch):
    """Output pixels by the first letters of a case; the benchmark makes its tensors, which takes long."""
    pixels = {"p3": 33_600, "c3": 33_600, "c4": 8400, "c5": 2100, "p5": 2100}
    monkeypatch.setattr(benchmark, "output_pixels", lambda case: pixels[case.name[:2]])


def write_journal(path, jobs):
    path.write_text("".join(json.dumps({"job": job, "result": result}) + "\n" for job, result in jobs))


def test_block_sizes_are_the_fastest_correct_ones_of_each_map(tmp_path):
    small, large, wrong = Config(32, 32, 32, 4, 2), Config(128, 128, 64, 8, 3), Config(64, 64, 64, 4, 2)
    every, journal = [small, large, wrong], tmp_path / "tuning.jsonl"
    place = {"kernel": "forward", "kind": "half"}
    jobs = [({"step": "check", **place, "config": [*config]}, {"error": 0.0}) for config in (small, large)]
    jobs.append(({"step": "check", **place, "config": [*wrong]}, {"problem": "wrong result"}))
    for name, config in itertools.product(tuning.MAPS, (small, large)):
        time = 1.0 if (config is small) == (name == "c5") else 2.0
        jobs.append(({"step": "time", **place, "map": name, "config": [*config]}, {"us": time}))
    write_journal(journal, jobs)
    assert tuning.choose(journal, "forward", "half", every, small) == [large, small]
    assert tuning.choose(journal, "forward", "half", every, wrong) is None, "the smallest one is wrong"
    write_journal(journal, jobs[:-1])
    assert tuning.choose(journal, "forward", "half", every, small) is None, "one is not measured"


@pytest.mark.parametrize(
    ("faster_from", "launches", "least"),
    [(0, 75, 2100), (3000, 75, 8400), (10_000, 75, 33_600), (math.inf, 75, None), (0, 2000, None)],
)
def test_fused_kernels_run_from_the_size_on_where_they_are_faster(faster_from, launches, least):
    times = {}
    for case, form in itertools.product(benchmark.CONVOLUTIONS, benchmark.FORMATS):
        times[f"dcnzoo{form}", case.name] = 1000.0
        faster = benchmark.output_pixels(case) >= faster_from
        times[f"dcnzoo fused{form}", case.name] = 500.0 if faster else 950.0
    assert benchmark.least_pixels(times, launches) == least


def test_the_table_of_a_gpu_changes_where_all_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "target", lambda: "sm_00")
    before = {"forward": 9000}
    tables = {"default": {"auto": {"float32": before, "float16": before}, "forward": {}}}
    kernels = [f"{kind}{form}" for kind in ("dcnzoo", "dcnzoo fused") for form in benchmark.FORMATS]
    jobs = []
    for dtype, mode in itertools.product(("bfloat16", "float16"), benchmark.PASSES):
        for name, case in itertools.product(kernels, benchmark.CONVOLUTIONS):
            job = {"operator": "deform_conv2d", "case": case.name, "dtype": dtype}
            time = (500.0 if "fused" in name else 1000.0) * (1 if mode == benchmark.PASSES[0] else 2)
            jobs.append(({**job, "contestant": name, "mode": mode}, {"cached_us": time}))
    write_journal(tmp_path / "benchmark.jsonl", jobs[:-1])
    benchmark.set_auto(tmp_path / "benchmark.jsonl", tables)
    measured = {"forward": 2100, "backward": 2100}
    assert tables["sm_00"]["auto"] == {"bfloat16": measured, "float16": before, "float32": before}
    assert tables["default"]["auto"] == {"float32": before, "float16": before}


def test_results_of_a_benchmark_do_not_change_its_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    files = [tmp_path / name for name in ("docs/own_data.csv", "benchmarks/coverage/mmdet.json", "code.py")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    author = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    for command in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "first")):
        subprocess.run(("git", "-C", tmp_path, *command), check=True)
    clean = measure.revision()
    measure.append_row(files[0], ("a", "b"), {"a": 1, "b": 2})
    files[1].write_text("{}")
    assert measure.revision() == clean and len(clean) == 7
    files[2].write_text("changed")
    assert measure.revision() == f"{clean}-dirty"


def test_rows_are_appended_to_a_file_with_a_head(tmp_path):
    file = tmp_path / "results.csv"
    assert measure.read_rows(file) == []
    for value in (1, None):
        measure.append_row(file, ("a", "b"), {"a": "x, y", "b": value})
    assert measure.read_rows(file) == [{"a": "x, y", "b": "1"}, {"a": "x, y", "b": ""}]


def test_processes_at_the_same_time_have_logs_of_their_own(tmp_path):
    print_slowly = "import time; print({0}, end=' '); time.sleep(.2); print({0})"
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    commands = [["-c", print_slowly.format(number)] for number in (1, 2)]
    assert processes.run(processes.after(time.monotonic() + 60), *commands, logs=logs) == [0, 0]
    assert [log.read_text() for log in logs] == ["1 1\n", "2 2\n"]


@pytest.mark.parametrize("rehearse", [True, False])
def test_both_parts_write_the_table_of_the_page(rehearse, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark.available, "TABLE", tmp_path / "package.json")
    benchmark.tuning.save({"sm_00": {"auto": {"float32": {"forward": 1}}}}, tmp_path, rehearse)
    assert json.loads((tmp_path / "configs.json").read_text())["sm_00"]["auto"]["float32"] == {"forward": 1}
    assert (tmp_path / "package.json").exists() is not rehearse


def test_coverage_lists_families_of_equal_results(tmp_path):
    results = {"a": "ok", "b": "ok, fixed size", "c": "No module named 'clip'", "d": f"{table.REFUSED}X: why"}
    for name, more in (("first", {}), ("further", {"c": "ok"})):
        cases = "".join(
            f'<testcase><properties><property name="family" value="{family}"/>'
            f'<property name="result" value="{result}"/></properties></testcase>'
            for family, result in {**results, **more}.items()
        )
        (tmp_path / f"{name}.xml").write_text(f"<testsuite>{cases}</testsuite>")
    trained = table.merged([tmp_path / "first.xml", tmp_path / "further.xml"])
    exported = {family: {"result": "ok"} for family in results} | {"d": {"result": results["d"]}}
    _, _, *lines = table.families(trained, exported).splitlines()
    assert table.counts(trained).startswith("3 of 4")
    assert sorted(lines) == [
        "| a | yes | yes |  |",
        "| b | fixed size | yes |  |",
        "| c | yes | yes | clip |",
        "| d | no: why | no: why |  |",
    ]
    assert "no: why" in lines[-1], "what cannot be exported comes last"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.05, 0.06, 0.07, 0.06], "gain"),
        ([-0.05, -0.06, -0.07, -0.06], "loss"),
        ([0.001, -0.001, 0.0005, -0.0005], "no difference"),
        ([0.1, -0.1, 0.05, -0.04], "undecided"),
    ],
)
def test_verdict_of_the_study(values, expected):
    assert verdict(values, 1) == expected


def test_a_wrong_result_of_a_runtime_is_a_problem():
    rows = [{"detector": name, "outputs": "raw", "difference": 1e-6} for name in runtimes.DETECTORS]
    contents = {name: {"rows": [dict(row) for row in rows]} for name in runtimes.RUNTIMES}
    refused = {"detector": "Mask R-CNN", "error": "no such operator"}
    contents["tract"]["rows"][runtimes.DETECTORS.index("Mask R-CNN")] = refused
    assert not [*runtimes.problems(contents)]
    contents["mnn"]["rows"][0]["difference"] = math.nan
    contents["ncnn"]["rows"][1] |= {"matched": 90, "number": 100}
    contents["litert"]["rows"].pop(2)
    contents["mnn"]["rows"][runtimes.DETECTORS.index("Mask R-CNN")] = refused
    names = [line.partition(":")[0] for line in runtimes.problems(contents)]
    assert names == ["mnn", "mnn", "litert", "ncnn"]
