"""Test, tune and time dcnzoo's kernels on a GPU, and train a detector with them (``make gpu``).

Each part ends in time, writes every result to FOLDER at once, and does not depend on the success of the part
before. A crash costs the part one job, or the rest of one file of tests. Except for the tests, a part is the
script of its name in benchmarks/gpu: processes.py starts it, and journal.py keeps its results.

Requires python3 with torch, numpy, pytest and filelock, and the libraries dcnzoo/ops/_C_*.so, which
``DCNZOO_CUDA=1 make setup`` builds on a machine with nvcc. The training also requires mmdet, the memory check
compute-sanitizer; without them, these steps are skipped. Requires no network.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.processes import ROOT, after, run, run_jobs

PYTEST = ["-m", "pytest", "-v", "-p", "no:cacheprovider"]
NO_TESTS = 5  # pytest's exit status if every test of a file is skipped, as without a GPU
REHEARSAL = {"OMP_NUM_THREADS": "1"}
INTERPRETED = {**REHEARSAL, "TRITON_INTERPRET": "1", "DCNZOO_BACKEND": "fused"}


@dataclass(frozen=True)
class Options:
    """The folder of results; whether tiny cases run without a GPU; the data set of the training."""

    out: Path
    rehearse: bool = False
    data: Path | None = None

    @property
    def workers(self) -> int:
        """The number of processes that compile kernels at the same time."""
        return 1 if self.rehearse else max(1, min(12, (os.cpu_count() or 1) - 2))

    def run_script(self, end: float, part: str, *arguments: str, processes: int = 1, **variables: str) -> str:
        """Run the script of a part; see :func:`benchmarks.gpu.processes.run_jobs`."""
        if self.rehearse:
            arguments = (*arguments, "--rehearse")
            # Triton's interpreter is slow, and a training would spend its time in it
            variables = {**(REHEARSAL if part == "training" else INTERPRETED), **variables}
        file = self.out / f"{part}.jsonl"
        return run_jobs(end, part, file, *arguments, processes=processes, **variables)


def correctness(options: Options, end: float) -> str:
    """Run tests/cuda in several processes, then small cases under compute-sanitizer."""
    tests = run_tests(options, after(end, 0.7))
    sanitizer = shutil.which("compute-sanitizer")
    if options.rehearse or sanitizer is None:
        memory = "sanitizer skipped"
    else:
        memory = check_memory(sanitizer, end, options.out / "correctness.sanitizer.log")
    return f"{'FAILED: ' if 'FAILED' in tests + memory else ''}{tests}; {memory}"


def run_tests(options: Options, end: float) -> str:
    """Run tests/cuda; count the outcomes. Without xdist, each file is a process with a log of its own."""
    files = sorted((ROOT / "tests/cuda").glob("test_*.py"))
    if options.rehearse:  # `make test` runs these on the host
        files = [path for path in files if path.name not in ("test_kernels_cuda.py", "test_large_cuda.py")]
    if find_spec("xdist") and not options.rehearse:  # Triton compiles on many cores
        parallel = ("-n", str(options.workers), "--dist", "loadgroup")
        commands, names = [[*PYTEST, *parallel, *map(str, files)]], ["tests"]
    else:
        commands, names = [[*PYTEST, "-p", "no:xdist", str(file)] for file in files], [f.stem for f in files]
    logs = [options.out / f"correctness.{name}.log" for name in names]
    statuses = run(end, *commands, logs=logs, OMP_NUM_THREADS="1")
    outcome = r"(PASSED|FAILED|ERROR|SKIPPED)"
    lines = rf"^tests/\S+.* {outcome}|^\[gw\d+\] .* {outcome} tests/"
    text = "\n".join(log.read_text() for log in logs)
    words = [alone or shared for alone, shared in re.findall(lines, text, re.MULTILINE)]
    text = ", ".join(f"{words.count(word)} {word.lower()}" for word in sorted(set(words)))
    if None in statuses:
        text += f", stopped: {statuses.count(None)} files"
    expected = {0, None, NO_TESTS} if options.rehearse else {0, None}
    failed = not words or {"FAILED", "ERROR"} & {*words} or not expected.issuperset(statuses)
    return f"tests FAILED: {text}" if failed else text


def check_memory(sanitizer: str, end: float, log: Path) -> str:
    """Run small cases under compute-sanitizer."""
    # torch's cache is off: its memory next to a tensor would hide invalid accesses
    under = [sanitizer, "--tool=memcheck", "--report-api-errors=no", "--error-exitcode=9"]
    small = [*PYTEST, "-p", "no:xdist", "tests/cuda", "-k", "matches_reference and float32"]
    (status,) = run(end, small, under=under, logs=[log], PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    text = f"sanitizer: {'stopped at the limit' if status is None else f'status {status}'}"
    return f"FAILED: {text}" if status or "Invalid" in log.read_text() else text


def tuning(options: Options, end: float) -> str:
    """Check all candidates for block sizes, time the correct ones, and update the table."""
    if find_spec("triton") is None:
        return "skipped: triton is not installed"
    # compiles in parallel
    options.run_script(after(end, 0.5), "tuning", "--step=check", processes=options.workers)
    text = options.run_script(end, "tuning", "--step=time")
    # also after the limit: keeps the entries that were not measured
    options.run_script(time.monotonic() + 60, "tuning", "--step=write")
    return text


def benchmark(options: Options, end: float) -> str:
    """Time the operators next to cuDNN, torchvision and formulas in plain PyTorch."""
    return options.run_script(end, "benchmark")


def without_library(options: Options, end: float) -> str:
    """Test the operators without the compiled CUDA library; time them and those of the library."""
    pytest = [*PYTEST, "tests/cuda/test_without_library.py"]
    if find_spec("xdist") and not options.rehearse:
        pytest += ["-n", str(options.workers)]
    log = options.out / "without_library.log"
    (status,) = run(after(end, 0.5), pytest, logs=[log], OMP_NUM_THREADS="1", DCNZOO_CUDA="0")
    passed = status == (NO_TESTS if options.rehearse else 0)
    tests = "tests passed" if passed else f"FAILED: tests: {'stopped' if status is None else status}"
    jobs = options.run_script(end, "without_library", DCNZOO_CUDA="0")
    if not options.rehearse:
        jobs = options.run_script(end, "without_library")  # the compiled kernels, into the same journal
    return f"{tests}; {jobs}"


def training(options: Options, end: float) -> str:
    """Time a detector's training step with and without dcn, then train and evaluate it."""
    required = ("mmengine", "mmcv", "mmdet", "pycocotools", "cv2", "msgspec", "platformdirs", "click")
    if missing := [name for name in required if not find_spec(name)]:
        return f"skipped: not installed: {', '.join(missing)}"
    data = [f"--data={options.data}"] if options.data else []
    return options.run_script(end, "training", *data)


PARTS: dict[str, tuple[int, Callable[[Options, float], str]]] = {  # limit in seconds
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
    options = Options(out.resolve(), args.rehearse, args.data and args.data.resolve())
    earlier = options.out / "earlier"  # keeps the results of the run before
    earlier.mkdir(parents=True, exist_ok=True)
    report = options.out / "report.json"
    words: dict[str, object] = json.loads(report.read_text()) if report.exists() else {}
    words["machine"] = describe("triton", gpu=not args.rehearse)
    words["day"] = datetime.date.today().isoformat()
    parts = args.parts or list(PARTS)
    for part in parts:
        limit, function = PARTS[part]
        for file in options.out.glob(f"{part}.*"):
            if not args.resume:
                file.replace(earlier / file.name)
        start = time.monotonic()
        words[part] = f"{function(options, start + (args.limit or limit))} ({time.monotonic() - start:.0f} s)"
        print(f"{part}: {words[part]}", flush=True)
        report.write_text(json.dumps(words, indent=1, ensure_ascii=False))
    sys.exit(any("FAILED" in str(words[part]) for part in parts))


if __name__ == "__main__":
    main()
