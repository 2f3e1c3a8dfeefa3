"""``make demo``, with trainings of a second."""

import sys

import pytest

from .distributed.launching import run, settings


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_demo(tmp_path, times):
    """Each training runs once, although the command is repeated."""
    options = ["--arms", "v2", "--work-dir", tmp_path / "demo", *settings(tmp_path / "data", 2, 1, 1)]
    for _ in range(times):
        run(sys.executable, "tools/demo.py", *options)
        assert "box AP" in (tmp_path / "demo/index.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "demo/v2-seed0").glob("*/vis_data/scalars.json"))) == 1
