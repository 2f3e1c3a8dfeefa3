"""Python processes that end in time, and scripts that continue after a crash, for ``make gpu``."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from benchmarks.gpu import journal

ROOT = Path(__file__).resolve().parents[2]
GRACE = 5  # seconds that a process gets to write its last result


def after(end: float, share: float = 1.0) -> float:
    """Return the moment after this share of the time that is left until ``end``."""
    now = time.monotonic()
    return now + share * max(end - now, 1.0)


def run(
    end: float,
    *commands: Sequence[str],
    logs: Sequence[Path] = (),
    under: Sequence[str] = (),
    **variables: str,
) -> list[int | None]:
    """Run Python processes at the same time. Return their exit statuses; None: stopped at ``end``.

    Args:
        logs: a file for the output of each command; none: it is not stored.
        under: the command of a program that starts Python.
        variables: of the environment, in addition to those of this process.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **variables}
    running = []
    for command, log in zip_longest(commands, logs):
        output = log.open("ab") if log else None
        start = dict(cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True)
        running.append(subprocess.Popen([*under, sys.executable, *command], **start))
    try:
        return [_wait(process, end) for process in running]
    finally:
        for process in running:  # with its children
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen, end: float) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(max(end - time.monotonic(), 1.0))
    return None


def run_jobs(end: float, script: str, file: Path, *options: str, processes: int = 1, **variables: str) -> str:
    """Run a script of this folder until its jobs are done; start it again after a crash.

    Args:
        file: the journal of the jobs (:mod:`benchmarks.gpu.journal`).
        processes: number of processes that share the jobs.

    Returns:
        how many jobs have a result; it starts with ``FAILED`` if none has.
    """
    command = ["-m", f"benchmarks.gpu.{script}", str(file), *options]
    statuses: list[int | None] = []
    while (left := end - time.monotonic()) > 2 * GRACE:
        before = len(journal.results(file))
        limit = f"--limit={left - GRACE:.0f}"
        shares = [[*command, limit, "--share", str(i), str(processes)] for i in range(processes)]
        statuses = run(end, *shares, **variables)
        crashed = any(status not in (0, None, journal.UNFINISHED) for status in statuses)
        if not crashed or len(journal.results(file)) == before:
            break
    results = [result for _, result in journal.results(file)]
    good = sum("problem" not in result for result in results)
    done = statuses and set(statuses) == {0}
    text = f"{'done' if done else 'unfinished'}: {good} results, {len(results) - good} problems"
    return text if good else f"FAILED: {text}"
