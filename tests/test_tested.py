"""The records of tested platforms, and their table in docs/get_started.md."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("elftools")
ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tools"), str(ROOT / "tools" / "benchmark")]  # scripts import each other

import tested  # noqa: E402
from sections import markdown  # noqa: E402


@pytest.mark.parametrize("compiler", ["g++", "g++-11", "clang++-14", "aarch64-linux-gnu-g++"])
def test_compiler_of_a_library(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    source, library = tmp_path / "x.cpp", tmp_path / "x.so"
    source.write_text("int x() { return 1; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    printed = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    name, version = tested.compiler_of(library).split()
    assert version in printed.splitlines()[0] and (name == "Clang") == ("clang" in compiler)


def test_new_result_replaces_that_of_the_same_combination(tmp_path, monkeypatch):
    monkeypatch.setattr(tested, "RECORDS", tmp_path / "tested.json")
    for result in (
        "FAILED: 1 failed in 2.0s",
        "ok: 2 passed, 1 deselected in 3.1s (0:00:03); ok: 1 passed in 2.0s",
    ):
        tested.record("make b", result, 0.0, [sys.executable], ROOT, os.environ | {"PYTHONPATH": str(ROOT)})
        (row,) = [row for row in tested.read() if row["command"] == "make b"]
        (tmp_path / "tested.json").write_text(json.dumps([row | {"command": "make a"}, row]))
    assert row["result"] == "ok: 2 passed; ok: 1 passed" and row["torch"] == torch.__version__
    assert len(tested.read()) == 2


def test_page_has_the_records():
    """After a new result: python tools/tested.py"""
    page = (ROOT / "docs" / "get_started.md").read_text(encoding="utf-8")
    assert len(tested.rows()) > 1 and markdown(tested.rows()) in page
