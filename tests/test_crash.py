"""A training that is killed with SIGKILL, again and again, ends where one that was left alone ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("kills", "loaders"), [(5, [2]), pytest.param(20, [0, 1, 2], marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_killed_trainings_end_as_one_that_was_left_alone(tmp_path, kills, loaders):
    """``tests/crash.py`` asserts it. Five kills are one of each kind, with a full disk among them."""
    result = subprocess.run(
        [sys.executable, "tests/crash.py", tmp_path, "--kills", str(kills), "--loaders", *map(str, loaders)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-8000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["kills"] == kills and figures["trainings"] >= 1
    assert figures["while a file was written"] >= kills // 5
