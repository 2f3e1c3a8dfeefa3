"""A file of jobs and their results, one JSON object per line: a crash or a time limit loses one job."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

# exit statuses: this process cannot use the GPU any more, a new one can continue; no time was left
RESTART, UNFINISHED = 75, 76


def results(path: Path, **having: object) -> list[tuple[dict, dict]]:
    """Return the jobs with these values and their results: a ``problem`` for a job that did not end."""
    entries: dict[str, dict] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # the process was killed while it wrote this line
            entry = json.loads(line)
            entries[key(entry["job"])] = entry
    stopped = {"problem": "crashed, or stopped at the time limit"}
    return [
        (entry["job"], entry.get("result", stopped))
        for entry in entries.values()
        if having.items() <= entry["job"].items()
    ]


def key(job: dict) -> str:
    return json.dumps(job, sort_keys=True)


class Journal:
    """Runs jobs that the file does not list yet, until the time is over. Processes may share a file."""

    def __init__(self, path: Path, seconds: float, share: tuple[int, int] = (0, 1)) -> None:
        self.path, self.end, self.share, self.jobs = path, time.monotonic() + seconds, share, 0
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            self._append("\n")
        self.known = {key(job) for job, _ in results(path)}
        self.skipped = 0

    @classmethod
    def of_command_line(cls) -> tuple[Journal, argparse.Namespace]:
        """Return the journal and the arguments of a script that the harness starts."""
        parser = argparse.ArgumentParser()
        parser.add_argument("file", type=Path)
        parser.add_argument("--limit", type=float, required=True, help="seconds")
        parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help="I N: only every N-th job")
        parser.add_argument("--step", choices=["check", "time", "write"])
        parser.add_argument("--data", type=Path)
        parser.add_argument("--rehearse", action="store_true")
        args = parser.parse_args()
        args.device = "cpu" if args.rehearse else "cuda"
        return cls(args.file, args.limit, tuple(args.share)), args

    def exit(self) -> None:
        """End the process; the status tells whether jobs were skipped for lack of time."""
        sys.exit(UNFINISHED if self.skipped else 0)

    def run(self, job: dict, function: Callable[[], dict]) -> None:
        """Run a job if it is in this process's share, the file does not list it yet, and time is left."""
        self.jobs += 1
        if key(job) in self.known or self.jobs % self.share[1] != self.share[0]:
            return
        if time.monotonic() > self.end:
            self.skipped += 1
            return
        self._append(json.dumps({"job": job}) + "\n")
        try:
            result = function()
        except Exception as error:
            result = {"problem": " ".join(str(error).split())[:300] or type(error).__name__}
        self._append(json.dumps({"job": job, "result": result}, ensure_ascii=False) + "\n")
        print(f"{' '.join(map(str, job.values()))}: {json.dumps(result)}"[:200], flush=True)
        if "problem" in result and gpu_is_lost():
            sys.exit(RESTART)

    def _append(self, text: str) -> None:
        with open(self.path, "a", encoding="utf-8") as file:  # one write: lines of processes do not mix
            file.write(text)


def gpu_is_lost() -> bool:
    """Return whether an error has ended the CUDA context, so that all later calls in this process fail."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
