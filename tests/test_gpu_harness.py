"""The harness of ``make gpu``: a crash or a time limit costs one result, not the others."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tools"), str(ROOT / "tools" / "benchmark")]  # scripts import each other

import gpu  # noqa: E402
import sections  # noqa: E402
from journal import UNFINISHED, Journal, read, results  # noqa: E402

# A script that crashes in its second job and never ends its fourth one.
SCRIPT = """
import argparse, os, time
from pathlib import Path
from journal import Journal
parser = argparse.ArgumentParser()
parser.add_argument("--journal", type=Path)
parser.add_argument("--limit", type=float)
args = parser.parse_args()
journal = Journal(args.journal, args.limit)
jobs = [lambda: {"value": 1}, lambda: os._exit(9), lambda: {"value": 3}, lambda: time.sleep(60)]
for number, job in enumerate(jobs):
    journal.run({"number": number}, job)
"""


@pytest.fixture
def session(tmp_path):
    session = gpu.Session(argparse.Namespace(out=tmp_path, rehearse=False, data=None))
    session.end = time.monotonic() + 60
    return session


def test_a_crash_and_the_time_limit_leave_the_other_results(session, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "TOOLS", tmp_path)
    monkeypatch.setattr(gpu, "GRACE", 1)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tools" / "benchmark"))  # kept, for journal
    (tmp_path / "script.py").write_text(SCRIPT)
    session.end = time.monotonic() + 6
    assert not session.run_jobs("script.py", tmp_path / "jobs.jsonl")
    found = {job["number"]: result for job, result in results(tmp_path / "jobs.jsonl")}
    assert found[0] == {"value": 1} and found[2] == {"value": 3}
    assert "problem" in found[1] and "problem" in found[3]


def test_the_time_limit_ends_children_too(session, tmp_path):
    file = tmp_path / "child"
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); "
    code += f"open({str(file)!r}, 'w').write(str(p.pid)); p.wait()"
    assert session.run(["-c", code], ["-c", "pass"], seconds=3) == [None, 0]
    child = int(file.read_text())
    deadline = time.monotonic() + 5
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    try:
        os.kill(process, 0)
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_journal(tmp_path):
    file = tmp_path / "jobs.jsonl"
    journal = Journal(file, 60)
    assert journal.run({"n": 1}, lambda: {"value": 1}) == {"value": 1}
    assert journal.run({"n": 2}, lambda: 1 / 0) is None
    journal.start({"n": 3})
    with open(file, "a") as lines:
        lines.write('{"job": {"n": 4}, "res')  # killed while it wrote
    again = Journal(file, 60)
    never = lambda: pytest.fail("has a result")  # noqa: E731
    assert again.run({"n": 1}, never) == {"value": 1}
    assert again.run({"n": 2}, never) is None
    assert again.run({"n": 3}, never) is None
    assert again.run({"n": 4}, lambda: {"value": 4}) == {"value": 4}
    late = Journal(file, 0)
    assert late.run({"n": 5}, never) is None
    for journal, status in ((again, 0), (late, UNFINISHED)):
        with pytest.raises(SystemExit) as end:
            journal.exit()
        assert end.value.code == status
    assert {job["n"]: "problem" in result for job, result in read(file).values()} == {
        1: False, 2: True, 3: True, 4: False,
    }  # fmt: skip


def test_the_tuner_keeps_what_it_did_not_measure(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    import autotune
    from autotune import Config

    file = tmp_path / "tuning.jsonl"
    slow, fast, wrong, small = (Config(size, 64, 32, 4, 1) for size in (256, 128, 512, 64))
    journal = Journal(file, 60)
    place = {"kernel": "forward", "kind": "half"}

    def add(step: str, config: Config, result: dict, **more: str) -> None:
        journal.finish({"step": step, **place, **more, "config": list(config)}, result)

    for config in (slow, fast, small):
        add("check", config, {"error": 0.0})
    add("check", wrong, {"problem": "wrong result"})
    times = {slow: 30.0, fast: 10.0, small: 20.0}
    for name in autotune.MAPS[:-1]:
        for config, us in times.items():
            add("time", config, {"us": us}, map=name)
    every = [slow, fast, wrong, small]
    assert autotune.choose(file, "forward", "half", every, small) is None, "a map was not measured"
    for config, us in times.items():
        add("time", config, {"us": 40 - us}, map=autotune.MAPS[-1])
    assert autotune.choose(file, "forward", "half", every, small) == [slow, fast, small]
    assert autotune.choose(file, "forward", "half", [*every, Config(8, 8, 8, 1, 1)], small) is None
    assert autotune.choose(file, "forward", "half", every, wrong) is None

    monkeypatch.setattr(autotune, "target", lambda: "sm_90")
    old = {kernel: {kind: [[8, 8, 8, 1, 1]] for kind in autotune.KINDS} for kernel in autotune.MORE}
    autotune.write_table(file, {"default": old}, tmp_path / "configs.json", rehearse=True)
    written = json.loads((tmp_path / "configs.json").read_text())["sm_90"]
    assert {kernel: written[kernel] for kernel in autotune.MORE} == old


def test_sections_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- model: command -->\nold\n<!-- end of model -->\nafter\n")
    sections.replace_section("model", [["a", "b"], [1, "x|y"]], True, page)
    table = "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n"
    assert page.read_text() == (f"before\n<!-- model: command -->\n\n{table}\n<!-- end of model -->\nafter\n")
    with pytest.raises(SystemExit):
        sections.replace_section("absent", [["a"]], True, page)


def test_the_journal_of_tests(tmp_path):
    """A test that ends its process, a failure and a skip are recorded; the other tests run."""
    pytest.importorskip("xdist")
    (tmp_path / "test_some.py").write_text(
        "import os, pytest\n"
        "def test_passes(): pass\n"
        "def test_crashes(): os._exit(3)\n"
        "def test_fails(): assert 1 == 2\n"
        "def test_skips(): pytest.skip('no GPU')\n"
        "def test_passes_too(): pass\n"
    )
    file = tmp_path / "tests.jsonl"
    command = [
        sys.executable,
        *gpu.PYTEST,
        f"--journal={file}",
        "-n1",
        f"--rootdir={tmp_path}",
        "test_some.py",
    ]
    environment = {**os.environ, "PYTHONPATH": str(gpu.TOOLS), "PYTEST_ADDOPTS": ""}
    environment.pop("PYTEST_XDIST_WORKER", None)
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    found = {job["test"].split("::")[1]: result for job, result in results(file)}
    assert {name: result["outcome"] for name, result in found.items()} == {
        "test_passes": "passed", "test_crashes": "failed", "test_fails": "failed",
        "test_skips": "skipped", "test_passes_too": "passed",
    }  # fmt: skip
    assert "no GPU" in found["test_skips"]["problem"]
