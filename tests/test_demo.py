"""``make demo``, with trainings of a second."""

import signal

import pytest
from click.testing import CliRunner

from benchmarks.demo import main
from tests.helpers.demo import small_options


@pytest.mark.slow
def test_demo(tmp_path, monkeypatch):
    """Each training runs once, although the command is repeated."""
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    options = ["--arms", "v2", "--work-dir", tmp_path / "demo", *small_options(tmp_path / "data", 2, 1, 1)]
    for _ in range(2):
        result = CliRunner().invoke(main, [*map(str, options)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "box AP" in (tmp_path / "demo/index.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "demo/v2-seed0").glob("*/vis_data/scalars.json"))) == 1
