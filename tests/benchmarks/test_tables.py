"""What the benchmarks conclude from their measurements: tables, block sizes, kernels, verdicts."""

import argparse
import functools
import itertools
import json
import math
import runpy
import subprocess
import sys
import time

import pytest

from benchmarks import demo, measure, ops, runtimes
from benchmarks.cases import Case, convolution, ours
from benchmarks.coverage import table
from benchmarks.study.page import verdict

pytest.importorskip("triton")

from benchmarks.gpu import benchmark, page, processes, tuning
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


def test_summary_has_rows_for_each_stride():
    row = functools.partial(
        ops.Row, "deform_conv2d", dtype="float32", mode="forward", threads=1, main=True, iqr=0.0
    )
    rows = [
        row(case=case, contestant=name, seconds=seconds, stride=stride)
        for case, stride, seconds in (("c3", 1, 2.0), ("half", 2, 4.0))
        for name, seconds in (("dcnzoo", seconds), ("F.conv2d", 1.0))
    ]
    medians = {line[3].rpartition("faster")[2]: line[4] for line in ops.summary(rows)[1:]}
    assert medians == {"": "3.00×", ", stride 1": "2.00×", ", stride 2": "4.00×"}


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


@pytest.fixture
def run_ops(tmp_path, monkeypatch):
    """Run ``python -m benchmarks.ops`` with these arguments, in an empty repository."""

    def run(*words):
        monkeypatch.setattr(ops, "ROOT", tmp_path)
        monkeypatch.setattr(sys, "argv", ["ops", *words, "--out", str(tmp_path / "out")])
        ops.main()
        return sorted(file.name for file in tmp_path.rglob("*.md"))

    return run


NMS = ("nms", "--cases", "1000", "--dtypes", "float32", "--threads", "1", "--seconds", "0", "--no-memory")
NMS = (*NMS, "--contestants", "dcnzoo")


def test_a_part_does_not_replace_complete_results(run_ops, tmp_path):
    names = {*run_ops(*NMS, "--passes", "forward")}
    assert len(names) == 2 and all("-part-nms-cases-1000-" in name for name in names)
    assert not (tmp_path / "docs").exists()
    assert len(run_ops(*NMS, "--passes", "forward", "--threads", "2")) == 4, "another part has another name"


def test_a_comparison_with_revisions_is_named_by_them(run_ops, monkeypatch):
    monkeypatch.setattr(ops.revision, "load", lambda revision: f"dcnzoo_{revision}")
    monkeypatch.setattr(ops, "run", lambda args, cases, revisions, results, file: results.rows.append(ROW))
    assert any(
        name.startswith("revisions-abc1234-def5678-") for name in run_ops("--against", "abc1234", "def5678")
    )


ROW = ops.Row("deform_conv2d", "c3", True, "float32", "forward", 1, "dcnzoo", 1.0, 0.0)


def test_nothing_to_measure_is_one_error(run_ops):
    with pytest.raises(SystemExit, match=r"error: .* nothing was measured"):
        run_ops(*NMS, "--passes", "forward+backward")


def test_the_page_of_a_gpu_keeps_what_was_written_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROOT", tmp_path)
    machine = {
        "gpu": "GPU",
        "cuda": "13.0",
        "torch": "2.13.0",
        "triton": "3",
        "dcnzoo": "1",
        "target": "sm_00",
    }
    machine |= {"cpu": "CPU", "cores": 2, "cpu_capability": "avx2"}
    job = {"operator": "nms", "case": "1000", "dtype": "float32", "mode": "forward", "contestant": "dcnzoo"}

    def write(part, **report):
        (tmp_path / "report.json").write_text(json.dumps({"machine": machine, "day": "today", **report}))
        write_journal(tmp_path / f"{part}.jsonl", [(job, {"us": 1.0, "cached_us": 1.0, "error": 0.0})])
        page.main(tmp_path)
        (file,) = tmp_path.rglob("gpu-*.md")
        return file

    file = write("benchmark", benchmark="status 0")
    assert "Not measured." in file.read_text() and "0.001" in file.read_text()
    file.write_text(file.read_text().replace("Median times", "By hand. Median times"))
    write("training", correctness="9 passed")
    text = file.read_text()
    assert "By hand. Median times" in text and "9 passed" in text and text.count("## All cases") == 1


@pytest.mark.slow
def test_a_family_out_of_scope_is_recorded(tmp_path):
    tests = measure.ROOT / "benchmarks/coverage/test_export.py"
    command = (
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "reid",
        "--junitxml",
        str(tmp_path / "x.xml"),
        str(tests),
    )
    subprocess.run(command, cwd=measure.ROOT, check=True, stdout=subprocess.DEVNULL)
    assert table.read(tmp_path / "x.xml")["reid"]["result"].startswith("out of scope: it compares")


def test_the_study_does_not_wait_for_a_search_that_failed(tmp_path, monkeypatch, capfd):
    from benchmarks.study import __main__ as study

    def fail(run, *_):
        raise RuntimeError("no memory")

    runs = [
        study.training.Run("search", "shapes", "v2", 9100, 0.1),
        study.training.Run("main", "shapes", "v2", 0),
    ]
    monkeypatch.setattr(study.training, "PLAN", runs)
    monkeypatch.setattr(study.training, "read", list)
    monkeypatch.setattr(study.training, "train", fail)
    study.work(argparse.Namespace(seconds=30, processes=2, data=None, work_dir=tmp_path))
    assert "main-shapes-v2-0: not trained: a training of the search" in capfd.readouterr().out


def test_the_demo_keeps_trainings_of_other_options(tmp_path):
    first = demo.make_run("v2", 0, tmp_path / "v2-seed0", {})
    first.prepare()
    (first.folder / "epoch_8.pth").write_text("weights")
    first.prepare()
    assert (first.folder / "epoch_8.pth").exists(), "an unchanged config is resumed"
    demo.make_run("v2", 0, first.folder, {"train_cfg.max_epochs": 9}).prepare()
    assert not list(first.folder.iterdir()) and (tmp_path / "v2-seed0.1/epoch_8.pth").read_text() == "weights"


def test_a_metafile_without_the_model_is_refused(tmp_path):
    file = tmp_path / "metafile.yml"
    file.write_text("Models:\n  - Name: a\n    Metadata:\n      FLOPs (G): 1\n")
    add_metadata = runpy.run_path(str(measure.ROOT / "tools/model_zoo.py"))["add_metadata"]
    add_metadata(file, "a", {"Parameters (M)": 2.0})
    assert "    Metadata:\n      Parameters (M): 2.0\n      FLOPs (G): 1\n" in file.read_text()
    with pytest.raises(ValueError, match="expected a model of the name b"):
        add_metadata(file, "b", {"Parameters (M)": 2.0})
