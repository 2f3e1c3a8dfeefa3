"""The progress of long steps on terminals, in files and in notebooks."""

import io
import sys
import time
from datetime import timedelta
from types import ModuleType, SimpleNamespace

import pytest
from mmengine.logging import MessageHub
from rich.console import Console

from dcnzoo.openmmlab.hooks import ProgressHook
from dcnzoo.utils import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def no_silence(monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 0.05)
    monkeypatch.setenv("FORCE_COLOR", "1")  # Jupyter sets it


def slow(items):
    for item in items:
        time.sleep(0.06)
        yield item


def test_lines_in_a_file(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    assert [*slow(progress.track(range(8), "reading"))] == [*range(8)]
    lines = [line for line in file.getvalue().splitlines() if line.startswith("reading ")]
    assert 3 <= len(lines) <= 11 and not any("\x1b" in line for line in lines)
    assert all("/8" in line and line.endswith("left") for line in lines)


def test_a_work_of_unknown_length_names_its_step(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    progress.name_step("nobody waits")
    with progress.waiting("exporting"):
        for step in ("trace", "verify"):
            progress.name_step(step)
            time.sleep(0.2)
    text = file.getvalue()
    assert 0 <= text.find("exporting: trace") < text.find("exporting: verify") and "nobody" not in text


@pytest.mark.parametrize("first", [0, 7])
def test_a_training_tells_the_time_to_its_end_after_ten_iterations(first):
    """Once, in a file, too; a resumed one after ten iterations of its own."""
    hub = MessageHub(f"time {first}")
    file, runner = io.StringIO(), SimpleNamespace(max_iters=100, iter=first, message_hub=hub)
    hook = ProgressHook(Console(file=file))
    hook.before_train(runner)
    for runner.iter in range(first, first + 30):
        hub.update_info("eta", 60 * (100 - runner.iter - 1))
        hook.after_train_iter(runner, runner.iter)
    hook.stop()
    left = timedelta(minutes=90 - first)
    assert [line for line in file.getvalue().splitlines() if "to the end" in line] == [
        f"about {left} to the end, without validations"
    ]


def test_a_bar_on_a_terminal_leaves_standard_output_alone(monkeypatch):
    screen, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    with progress.make_progress(Console(file=screen, force_terminal=True)) as bar:
        task = bar.add_task("train", total=2, note="")
        print("row of an epoch")
        bar.update(task, completed=2)
    assert file.getvalue() == "row of an epoch\n"
    assert "train" in screen.getvalue() and "row" not in screen.getvalue()


def test_a_notebook_updates_one_line(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=True)
    display.display = lambda data, raw, display_id: handle
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    assert len([*slow(progress.track(range(8), "detecting"))]) == 8
    assert len(shown) >= 3 and "detecting" in shown[-1] and file.getvalue() == ""
