"""A training that is repeatedly killed with SIGKILL ends with the result of an uninterrupted one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_killed_trainings_end_as_one_that_was_left_alone(tmp_path):
    """The assertions are in ``tests/crash.py``."""
    kills, loaders = 20, "0 1 2"
    result = subprocess.run(
        [sys.executable, "tests/crash.py", tmp_path, "--kills", str(kills), "--loaders", *loaders.split()],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-8000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["kills"] == kills
    assert figures["while a file was written"] > 0 < figures["at a random moment"]
