"""Test, tune and time dcnzoo's kernels on a GPU, and train a detector with them (``make gpu``).

Each part ends in time, writes every result to FOLDER at once, and does not depend on the success of the part
before. A crash costs the part one job, or the rest of one file of tests.

Requires python3 with torch, numpy, pytest and filelock, and the libraries dcnzoo/ops/_C_*.so, which
``DCNZOO_CUDA=1 make setup`` builds on a machine with nvcc. The training also requires mmdet, the memory check
compute-sanitizer; without them, these steps are skipped. Requires no network.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu import journal

ROOT = Path(__file__).resolve().parents[2]
GRACE = 5  # seconds that a process gets to write its last result
PYTEST = ["-m", "pytest", "-v", "-p", "no:cacheprovider"]
NO_TESTS = 5  # pytest's exit status if every test of a file is skipped, as without a GPU


class Session:
    """The options, and the time that is left for a part."""

    def __init__(self, out: Path, rehearse: bool = False, data: Path | None = None) -> None:
        self.out, self.rehearse, self.data, self.end = out, rehearse, data, 0.0
        self.processes = 1 if rehearse else max(1, min(12, (os.cpu_count() or 1) - 2))

    @property
    def left(self) -> float:
        return max(self.end - time.monotonic(), 1.0)

    def run(
        self, *commands: Sequence[str], log: Path | None = None, under: Sequence[str] = (), **environment: str
    ) -> list[int | None]:
        """Run Python processes at the same time. Return their exit statuses; None: stopped at the limit."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment}
        output = log.open("ab") if log else None
        start = dict(cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True)
        running = [subprocess.Popen([*under, sys.executable, *command], **start) for command in commands]
        try:
            return [self._wait(process) for process in running]
        finally:
            for process in running:  # with its children
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _wait(self, process: subprocess.Popen) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(self.left)
        return None

    def run_jobs(
        self, part: str, *options: str, processes: int = 1, interpret: bool = True, **variables: str
    ) -> str:
        """Run a script that works through its journal; continue after a crash. Return a line about it."""
        file = self.out / f"{part}.jsonl"
        command = ["-m", f"benchmarks.gpu.{part}", str(file), *options]
        if self.rehearse:
            command.append("--rehearse")
        environment = {"OMP_NUM_THREADS": "1"} if self.rehearse else {}
        if self.rehearse and interpret:  # Triton's interpreter is slow
            environment |= {"TRITON_INTERPRET": "1", "DCNZOO_BACKEND": "fused"}
        environment |= variables
        statuses: list[int | None] = []
        while self.left > 2 * GRACE:
            before = len(journal.results(file))
            limit = f"--limit={self.left - GRACE:.0f}"
            shares = [[*command, limit, "--share", str(i), str(processes)] for i in range(processes)]
            statuses = self.run(*shares, **environment)
            crashed = any(status not in (0, None, journal.UNFINISHED) for status in statuses)
            if not crashed or len(journal.results(file)) == before:
                break
        results = [result for _, result in journal.results(file)]
        good = sum("problem" not in result for result in results)
        done = statuses and set(statuses) == {0}
        text = f"{'done' if done else 'unfinished'}: {good} results, {len(results) - good} problems"
        return text if good else f"FAILED: {text}"


def correctness(session: Session) -> str:
    """Run tests/cuda in several processes, then small cases under compute-sanitizer."""
    end = session.end
    session.end -= 0.3 * session.left
    tests = run_tests(session, session.out / "correctness.log")
    session.end = end
    sanitizer = shutil.which("compute-sanitizer")
    if session.rehearse or sanitizer is None:
        memory = "sanitizer skipped"
    else:
        memory = check_memory(session, sanitizer, session.out / "sanitizer.log")
    return f"{'FAILED: ' if 'FAILED' in tests + memory else ''}{tests}; {memory}"


def run_tests(session: Session, log: Path) -> str:
    """Run tests/cuda; count the outcomes."""
    files = sorted((ROOT / "tests/cuda").glob("test_*.py"))
    if session.rehearse:  # `make test` runs these on the host
        files = [path for path in files if path.name not in ("test_kernels_cuda.py", "test_large_cuda.py")]
    if find_spec("xdist") and not session.rehearse:  # Triton compiles on many cores
        parallel = ("-n", str(session.processes), "--dist", "loadgroup")
        commands = [[*PYTEST, *parallel, *map(str, files)]]
    else:
        commands = [[*PYTEST, "-p", "no:xdist", str(file)] for file in files]
    statuses = session.run(*commands, log=log, OMP_NUM_THREADS="1")
    outcome = r"(PASSED|FAILED|ERROR|SKIPPED)"
    lines = rf"^tests/\S+.* {outcome}|^\[gw\d+\] .* {outcome} tests/"
    words = [alone or shared for alone, shared in re.findall(lines, log.read_text(), re.MULTILINE)]
    text = ", ".join(f"{words.count(word)} {word.lower()}" for word in sorted(set(words)))
    if None in statuses:
        text += f", stopped: {statuses.count(None)} files"
    expected = {0, None, NO_TESTS} if session.rehearse else {0, None}
    failed = not words or {"FAILED", "ERROR"} & {*words} or not expected.issuperset(statuses)
    return f"tests FAILED: {text}" if failed else text


def check_memory(session: Session, sanitizer: str, log: Path) -> str:
    """Run small cases under compute-sanitizer."""
    # torch's cache is off: its memory next to a tensor would hide invalid accesses
    under = [sanitizer, "--tool=memcheck", "--report-api-errors=no", "--error-exitcode=9"]
    small = [*PYTEST, "-p", "no:xdist", "tests/cuda", "-k", "matches_reference and float32"]
    (status,) = session.run(small, under=under, log=log, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    text = f"sanitizer: {'stopped at the limit' if status is None else f'status {status}'}"
    return f"FAILED: {text}" if status or "Invalid" in log.read_text() else text


def tuning(session: Session) -> str:
    """Check all candidates for block sizes, time the correct ones, and update the table."""
    if find_spec("triton") is None:
        return "skipped: triton is not installed"
    end = session.end
    session.end -= 0.5 * session.left
    session.run_jobs("tuning", "--step=check", processes=session.processes)  # compiles in parallel
    session.end = end
    text = session.run_jobs("tuning", "--step=time")
    session.end = time.monotonic() + 60  # keeps the entries that were not measured
    session.run_jobs("tuning", "--step=write")
    return text


def benchmark(session: Session) -> str:
    """Time the operators next to cuDNN, torchvision and formulas in plain PyTorch."""
    return session.run_jobs("operators")


def without_library(session: Session) -> str:
    """Test the operators without the compiled CUDA library; time them and those of the library."""
    pytest = [*PYTEST, "tests/cuda/test_without_library.py"]
    if find_spec("xdist") and not session.rehearse:
        pytest += ["-n", str(session.processes)]
    log, end = session.out / "without_library.log", session.end
    session.end -= 0.5 * session.left
    (status,) = session.run(pytest, log=log, OMP_NUM_THREADS="1", DCNZOO_CUDA="0")
    session.end = end
    passed = status == (NO_TESTS if session.rehearse else 0)
    tests = "tests passed" if passed else f"FAILED: tests: {'stopped' if status is None else status}"
    jobs = session.run_jobs("without_library", DCNZOO_CUDA="0")
    if not session.rehearse:
        jobs = session.run_jobs("without_library")  # the compiled kernels, into the same journal
    return f"{tests}; {jobs}"


def training(session: Session) -> str:
    """Time a detector's training step with and without dcn, then train and evaluate it."""
    required = ("mmengine", "mmcv", "mmdet", "pycocotools", "cv2", "msgspec", "platformdirs", "click")
    if missing := [name for name in required if not find_spec(name)]:
        return f"skipped: not installed: {', '.join(missing)}"
    data = [f"--data={session.data}"] if session.data else []
    return session.run_jobs("training", *data, interpret=False)


PARTS: dict[str, tuple[int, Callable[[Session], str]]] = {  # limit in seconds
    "correctness": (400, correctness),
    "tuning": (360, tuning),
    "benchmark": (420, benchmark),
    "without_library": (180, without_library),
    "training": (360, training),
}


def require(rehearse: bool, with_library: bool) -> None:
    """Exit with one line if a requirement is missing."""
    import torch

    from dcnzoo.ops import _library, has_ops, with_cuda

    if not has_ops():
        sys.exit(f"error: {_library.problems['cpu']}")
    if rehearse:
        return
    if not torch.cuda.is_available():
        sys.exit(f"error: expected a GPU, torch {torch.__version__} finds none; --rehearse runs without one")
    if with_library and not with_cuda():
        sys.exit(f"error: {_library.problems['cuda']}")


def main() -> None:
    limits = "\n".join(f"  {n:12} {limit} s  {f.__doc__}" for n, (limit, f) in PARTS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nparts, with their default limits:\n{limits}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help="default: all, in this order")
    add("--out", type=Path, metavar="FOLDER", help="results (default: work_dirs/gpu)")
    add("--limit", type=float, metavar="SECONDS", help="limit of each part")
    add("--data", type=Path, metavar="FOLDER", help="COCO data set: train.json, val.json and images/")
    add("--resume", action="store_true", help="measure only what FOLDER lacks (default: all, anew)")
    add("--rehearse", action="store_true", help="run tiny cases without a GPU: work_dirs/gpu-rehearsal")
    args = parser.parse_args()
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"PART: expected {', '.join(PARTS)}, got {', '.join(unknown)}")
    require(args.rehearse, with_library=args.parts != ["without_library"])
    from benchmarks.measure import describe

    out = args.out or ROOT / "work_dirs" / ("gpu-rehearsal" if args.rehearse else "gpu")
    session = Session(out.resolve(), args.rehearse, args.data and args.data.resolve())
    earlier = session.out / "earlier"  # keeps the results of the run before
    earlier.mkdir(parents=True, exist_ok=True)
    report = session.out / "report.json"
    words: dict[str, object] = json.loads(report.read_text()) if report.exists() else {}
    words["machine"] = describe("triton", gpu=not args.rehearse)
    words["day"] = datetime.date.today().isoformat()
    parts = args.parts or list(PARTS)
    for part in parts:
        limit, function = PARTS[part]
        for file in session.out.glob(f"{'operators' if part == 'benchmark' else part}.*"):
            if not args.resume:
                file.replace(earlier / file.name)
        start = time.monotonic()
        session.end = start + (args.limit or limit)
        words[part] = f"{function(session)} ({time.monotonic() - start:.0f} s)"
        print(f"{part}: {words[part]}", flush=True)
        report.write_text(json.dumps(words, indent=1, ensure_ascii=False))
    sys.exit(any("FAILED" in str(words[part]) for part in parts))


if __name__ == "__main__":
    main()
