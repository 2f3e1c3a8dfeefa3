"""The progress of long steps on terminals, in files and in notebooks."""

import io
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

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
