"""Start Python in a new process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python(
    *arguments: object, status: int = 0, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess:
    """Run ``python ARGUMENTS`` with these environment variables. An unexpected exit status fails the test."""
    command, environment = [sys.executable, *map(str, arguments)], {**os.environ, **variables}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == status, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def run_code(code: str, *arguments: object, **variables: str) -> str:
    """What the code prints."""
    return python("-c", code, *arguments, **variables).stdout
