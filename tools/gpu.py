"""Test, tune, time and profile dcnzoo's kernels on a GPU, and train a detector with them (``make gpu``).

Each part ends in time, writes every result at once, and does not depend on the success of the part before.
A crash costs the part one job: it continues in a new process.

Requires python3 with torch, numpy, pytest and filelock, and the libraries dcnzoo/ops/_C_*.so, which
``DCNZOO_CUDA=1 make setup`` builds on a machine with nvcc. The training also requires mmdet, the memory check
compute-sanitizer, the bytes in the profile ncu; without them, these steps are skipped. Requires no network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools" / "benchmark"
sys.path[:0] = [str(ROOT), str(TOOLS)]  # dcnzoo need not be installed
import journal  # noqa: E402

TABLE = ROOT / "dcnzoo" / "ops" / "fused" / "configs.json"
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_journal"]
GRACE = 5  # seconds that a process gets to write its last result


class Session:
    """The options, and the time that is left for a part."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.out, self.rehearse, self.data = args.out, args.rehearse, args.data
        self.end = 0.0

    @property
    def processes(self) -> int:
        """How many processes compile or test at the same time."""
        return 1 if self.rehearse else max(1, min(12, (os.cpu_count() or 1) - 2))

    @property
    def left(self) -> float:
        return max(self.end - time.monotonic(), 1.0)

    def file(self, name: str) -> Path:
        return self.out / name

    def run(
        self,
        *commands: list[str],
        seconds: float | None = None,
        under: Sequence[str] = (),
        **environment: str,
    ) -> list[int | None]:
        """Run Python processes at the same time. Return their exit statuses; None: stopped at the limit.

        A process that is stopped takes its children with it.
        """
        paths = os.pathsep.join(filter(None, (str(ROOT), str(TOOLS), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **environment}
        end = min(self.end, time.monotonic() + (seconds or self.left))
        running = []
        try:
            for command in commands:
                print("+", *under, "python", *command, flush=True)
                line = [*under, sys.executable, *command]
                running.append(subprocess.Popen(line, cwd=ROOT, env=environment, start_new_session=True))
            return [self._wait(process, end) for process in running]
        finally:
            for process in running:
                _kill(process)

    @staticmethod
    def _wait(process: subprocess.Popen, end: float) -> int | None:
        try:
            return process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            print(f"stopped at the time limit: {process.args[-1]}", flush=True)
            return None

    def run_jobs(
        self, script: str, file: Path, *options: str, processes: int = 1, interpret: bool = True
    ) -> bool:
        """Run a script that works through a journal; continue after a crash. Return whether it finished.

        Args:
            interpret: in a rehearsal, run the fused kernels in Triton's interpreter, which is slow.
        """
        while True:
            before = _size(file)
            command = [str(TOOLS / script), "--journal", str(file), *options]
            command += [f"--limit={self.left - GRACE:.0f}", *(["--rehearse"] if self.rehearse else [])]
            shares = [[*command, f"--share={i}/{processes}"] for i in range(processes)]
            environment = {"OMP_NUM_THREADS": "1"} if self.rehearse else {}
            if self.rehearse and interpret:
                environment |= {"TRITON_INTERPRET": "1", "DCNZOO_BACKEND": "fused"}
            statuses = self.run(*(shares if processes > 1 else [command]), **environment)
            if all(status == 0 for status in statuses):
                return True
            crashed = any(status not in (0, None, journal.UNFINISHED) for status in statuses)
            if not crashed or self.left < 2 * GRACE or _size(file) == before:
                return False
            print("continues after a crash", flush=True)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _kill(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(2)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def correctness(session: Session) -> str:
    """Run tests/cuda, then small cases of every kernel under compute-sanitizer."""
    file = session.file("correctness.jsonl")
    write = f"--journal={file}"
    left_out = ["test_kernels_cuda.py"] if session.rehearse else []  # runs on the host in `make test`
    tests = [*PYTEST, write, "tests/cuda", *(f"--ignore=tests/cuda/{name}" for name in left_out)]
    if find_spec("pytest_timeout"):
        tests += ["--timeout=240"]
    share = 0.7 * session.left
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if find_spec("xdist"):
        parallel = ["-n", str(session.processes), "--dist=loadgroup", "--max-worker-restart=30"]
        tests += parallel if session.processes > 1 else ["-p", "no:xdist"]
        session.run(tests, seconds=share, **environment)
    else:  # one process per file
        files = [p for p in sorted((ROOT / "tests/cuda").glob("test_*.py")) if p.name not in left_out]
        each = [[str(path) if part == "tests/cuda" else part for part in tests] for path in files]
        session.run(*each, seconds=share, **environment)
    return f"{count_tests(file)}; {check_memory(session)}"


def count_tests(file: Path) -> str:
    outcomes = [result.get("outcome", "crashed") for _, result in journal.results(file)]
    counts = {word: outcomes.count(word) for word in ("passed", "failed", "crashed", "skipped")}
    text = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    bad = counts["failed"] or counts["crashed"] or not counts["passed"]
    return f"FAILED: {text or 'no test ran'}" if bad else text


def check_memory(session: Session) -> str:
    """Check small cases for invalid memory accesses, as far as time allows."""
    program = shutil.which("compute-sanitizer")
    if session.rehearse or program is None:
        return f"sanitizer skipped ({'no GPU' if session.rehearse else 'compute-sanitizer not found'})"
    small = "matches_reference and float32"
    shards = {  # in parallel, because the sanitizer is slow
        "convolution": ["tests/cuda/test_ops_cuda.py", "-k", f"{small} and conv"],
        "attention": ["tests/cuda/test_ops_cuda.py", "-k", f"{small} and (dcnv or attn)"],
        "pooling": ["tests/cuda/test_ops_cuda.py", "-k", f"{small} and roi"],
        "fused": ["tests/cuda/test_fused_cuda.py", "-k", small],
    }
    files = {name: session.file(f"sanitizer-{name}.jsonl") for name in shards}
    commands = [
        [*PYTEST, "-p", "no:xdist", f"--journal={files[name]}", *arguments]
        for name, arguments in shards.items()
    ]
    log = session.file("sanitizer.log")
    parts = log.with_name("sanitizer-%p.log")
    # without torch's cache, which also allocates the memory next to a tensor and so hides invalid accesses
    statuses = session.run(
        *commands,
        under=[program, "--tool=memcheck", "--report-api-errors=no", f"--log-file={parts}"],
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )
    counts = {name: sum("outcome" in r for _, r in journal.results(file)) for name, file in files.items()}
    output = ""
    for part in sorted(session.out.glob("sanitizer-*.log")):
        output += part.read_text()
        part.unlink()
    log.write_text(output)
    for file in files.values():
        file.unlink(missing_ok=True)
    found = re.findall(r"^=+ (Invalid .+|Program hit .+|Race .+|Uninitialized .+)", output, re.MULTILINE)
    if found:
        return f"FAILED: sanitizer: {found[0]}"
    if not all(counts.values()):
        return f"FAILED: sanitizer: tests that ran: {counts}"
    stopped = ", stopped at the limit" if None in statuses else ""
    return f"sanitizer: no errors in {sum(counts.values())} tests{stopped}"


def tuning(session: Session) -> str:
    """Check all candidates for block sizes, time the correct ones, and update the table."""
    if find_spec("triton") is None:
        return "skipped: triton is not installed"
    file, table = session.file("tuning.jsonl"), session.file("configs.json")
    end, session.end = session.end, session.end - 0.5 * session.left
    checked = session.run_jobs(
        "autotune.py", file, "check", processes=session.processes
    )  # compiles in parallel
    session.end = end
    timed = session.run_jobs("autotune.py", file, "time")
    # needs a second only, and keeps the entries that were not measured
    session.end = time.monotonic() + 60
    written = session.run_jobs("autotune.py", file, "write", "--table", str(table))
    if not written or not any("error" in result for _, result in journal.results(file, step="check")):
        return "FAILED: no candidate is correct"
    if not session.rehearse:
        shutil.copy(table, TABLE)
    return "done" if checked and timed else "unfinished: the table keeps its entries for the rest"


def benchmark(session: Session) -> str:
    """Time the operators next to cuDNN, torchvision and formulas in plain PyTorch."""
    file, table = session.file("benchmark.jsonl"), session.file("configs.json")
    finished = session.run_jobs("gpu_benchmark.py", file, "--table", str(table))
    if not session.rehearse and table.exists():
        shutil.copy(table, TABLE)
    return _words(file, finished)


def profile(session: Session) -> str:
    """List the kernels of a few calls with their times and, by ncu, the bytes that they move."""
    file = session.file("profile.jsonl")
    return _words(file, session.run_jobs("gpu_profile.py", file))


def training(session: Session) -> str:
    """Time a detector's training step with and without dcn, then train and evaluate it."""
    needed = ("mmengine", "mmcv", "mmdet", "pycocotools", "shapely", "cv2", "addict", "yapf", "platformdirs")
    missing = [package for package in needed if not find_spec(package)]
    if missing:
        return f"skipped: not installed: {', '.join(missing)}"
    file = session.file("training.jsonl")
    data = ["--data", str(session.data)] if session.data else []
    return _words(file, session.run_jobs("gpu_training.py", file, *data, interpret=False))


def _words(file: Path, finished: bool) -> str:
    found = [result for _, result in journal.results(file)]
    good = sum("problem" not in result for result in found)
    if not good:
        return "FAILED: no result"
    return f"{'done' if finished else 'unfinished'}: {good} results, {len(found) - good} problems"


PARTS: dict[str, tuple[int, Callable[[Session], str]]] = {  # limit in seconds
    "correctness": (400, correctness),
    "tuning": (360, tuning),
    "benchmark": (420, benchmark),
    "profile": (140, profile),
    "training": (360, training),
}


def parse_args() -> argparse.Namespace:
    limits = "\n".join(f"  {n:12} {limit} s  {f.__doc__.splitlines()[0]}" for n, (limit, f) in PARTS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nparts, with their default limits:\n{limits}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all, in this order)")
    add("--out", type=Path, metavar="FOLDER", help="results (default: work_dirs/gpu)")
    add("--limit", type=float, metavar="SECONDS", help="limit of each part")
    add("--data", type=Path, metavar="FOLDER", help="COCO data set: train.json, val.json and images/")
    add("--resume", action="store_true", help="keep the results in FOLDER and measure only what is missing")
    add(
        "--rehearse",
        action="store_true",
        help="run the same steps without a GPU, on tiny cases; results go to work_dirs/gpu-rehearsal",
    )
    args = parser.parse_args()
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"PART: expected {', '.join(PARTS)}, got {part}")
    args.parts = args.parts or list(PARTS)
    args.out = (args.out or ROOT / "work_dirs" / ("gpu-rehearsal" if args.rehearse else "gpu")).resolve()
    args.data = args.data and args.data.resolve()
    return args


def require(rehearse: bool) -> None:
    """Exit with one line if a requirement is missing."""
    for package in ("torch", "numpy", "pytest", "filelock"):
        if find_spec(package) is None:
            sys.exit(f"error: expected {package} in {sys.executable}, found none")
    from dcnzoo.ops import _library, has_ops, with_cuda

    if not has_ops():
        sys.exit(f"error: {_library.problems['cpu']}")
    if rehearse:
        return
    import torch

    if not torch.cuda.is_available():
        sys.exit(f"error: expected a GPU, torch {torch.__version__} finds none; --rehearse runs without one")
    if not with_cuda():
        sys.exit(f"error: {_library.problems['cuda']}")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the processes of a part too
    args = parse_args()
    require(args.rehearse)
    import gpu_report
    import machine

    facts = machine.describe("cpu" if args.rehearse else "cuda")
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    session = Session(args)
    words = {}
    for part in args.parts:
        limit, function = PARTS[part]
        if not args.resume:
            (args.out / f"{part}.jsonl").unlink(missing_ok=True)
        start = time.monotonic()
        session.end = start + (args.limit or limit)
        try:
            words[part] = function(session)
        except Exception:
            traceback.print_exc()
            words[part] = "FAILED: an error of the harness"
        words[part] += f" ({time.monotonic() - start:.0f} s)"
        gpu_report.write(args.out, facts, words, args.rehearse)
    print(json.dumps(words, indent=1, ensure_ascii=False))
    sys.exit(any("FAILED" in word for word in words.values()))


if __name__ == "__main__":
    main()
