"""``make test-matrix``: that it asks pip for the right things, and tells what goes wrong."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import test_matrix as tool  # noqa: E402

PINS = (ROOT / "requirements.txt").read_text()


def test_the_oldest_torch_is_among_the_pairs():
    """And every Python that is supported, the oldest with the oldest."""
    (oldest,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[:1]
    pairs = [pair.split(":") for pair in tool.PAIRS]
    assert pairs[0] == ["3.10", f"{oldest}.0"]
    assert [python for python, _ in pairs] == ["3.10", "3.11", "3.12", "3.13"]
    assert f"torch=={tool.PINNED}\n" in PINS


def test_another_torch_chooses_its_triton():
    assert tool.requirements(tool.PINNED) == PINS and "triton==" in PINS
    lines = set(tool.requirements("2.10.0").splitlines())
    assert "torch==2.10.0" in lines and not any(line.startswith("triton") for line in lines)
    assert len(set(PINS.splitlines()) - lines) == 2, "all others as they are"


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "FOLDER", tmp_path)
    return tmp_path


def test_what_pip_says_is_told(folder, monkeypatch):
    monkeypatch.setattr(tool, "interpreter", lambda version: sys.executable)
    monkeypatch.setattr(tool, "requirements", lambda torch: "--no-index\nno-such-package-at-all==1\n")
    result = tool.trial("3.11", "2.10.0")
    assert result.startswith("FAILED: ERROR: No matching distribution found for no-such-package-at-all==1")
    assert not list(folder.glob("*/.installed")), "it is begun anew next time"


def test_a_python_that_is_not_here(folder):
    assert tool.trial("3.2", "2.10.0") == "absent: no such Python here"


def test_failing_tests_are_told(monkeypatch, tmp_path):
    test = tmp_path / "test_it.py"
    monkeypatch.setattr(tool, "SMOKE", str(test))
    test.write_text("import pytest\n@pytest.mark.environments\ndef test(): assert 0")
    assert re.match(r"FAILED: .*1 failed", tool.smoke(Path(sys.executable)))
