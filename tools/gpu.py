"""Test dcnzoo's kernels on a GPU, tune the fused kernels and time all of them (``make gpu``).

Takes less than ten minutes. The results of the tuning are also written to dcnzoo/ops/fused/configs.json.

Requires python3 with torch, numpy and pytest, and the libraries dcnzoo/ops/_C_*.so, which
``DCNZOO_CUDA=1 make setup`` builds on a machine with nvcc. Requires neither pip nor network. The benchmark
also requires click, matplotlib and rich, the memory check compute-sanitizer; a missing one is reported and
the step is skipped. Results go to docs/benchmarks/, named by GPU and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "benchmark")]  # dcnzoo need not be installed
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2]), "PYTHONUNBUFFERED": "1"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="FOLDER", help="default: docs/benchmarks")
    add("--seconds", type=float, default=0.1, help="time for each contestant and case (default: 0.1)")
    add("--limit", type=float, default=570, help="total time in seconds (default: 570)")
    add(
        "--rehearse",
        action="store_true",
        help="run the same steps without a GPU: kernels emulated on the host, one small case on the CPU; "
        "results go to work_dirs/benchmarks",
    )
    args = parser.parse_args()
    args.out = args.out or ROOT / ("work_dirs" if args.rehearse else "docs") / "benchmarks"
    return args


def require(rehearse: bool) -> None:
    """Exit with one line if a requirement is missing."""
    for package in ("torch", "numpy", "pytest"):
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


def run(command: list[str], seconds: float, under: Sequence[str] = (), **environment: str) -> bool:
    """Run Python, optionally under another program; return whether it succeeded in time."""
    print("+", *under, *command, flush=True)
    try:
        done = subprocess.run(
            [*under, sys.executable, *command],
            cwd=ROOT,
            env={**ENVIRONMENT, **environment},
            timeout=max(seconds, 1),
        )
    except subprocess.TimeoutExpired:
        print(f"stopped: not finished after {seconds:.0f} s", flush=True)
        return False
    return done.returncode == 0


def run_tests(target: Path, facts: dict[str, object], seconds: float) -> bool:
    """Run tests/cuda; write the counts and the messages of failures to ``target``."""
    report = target.with_suffix(".xml")
    command = ["-m", "pytest", "tests/cuda", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    passed = run(command, seconds)
    counts, failures = Counter(), {}
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):  # nosec B314  # written by pytest above
            kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
            counts[kinds.pop() if kinds else "passed"] += 1
            for problem in (*case.iterfind("failure"), *case.iterfind("error")):
                failures[f"{case.get('classname')}::{case.get('name')}"] = problem.get("message")
        report.unlink()
    document = {"machine": facts, "finished": bool(counts), **counts, "failures": failures}
    target.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {target}", flush=True)
    return passed and counts["passed"] > 0


def check_memory(log: Path, seconds: float, rehearse: bool) -> str:
    """Check small cases of every operator for invalid memory accesses, as far as time allows."""
    program = shutil.which("compute-sanitizer")
    if rehearse or program is None:
        return f"skipped, {'no GPU' if rehearse else 'compute-sanitizer not found'}"
    tests = ["tests/cuda/test_ops_cuda.py", "-k", "matches_reference and float32"]
    # without torch's cache, which also allocates the memory next to a tensor and so hides invalid accesses
    run(
        ["-m", "pytest", *tests, "-q", "-p", "no:cacheprovider"],
        seconds,
        under=[program, "--tool=memcheck", f"--log-file={log}"],
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )
    output = log.read_text() if log.exists() else ""
    found = re.findall(r"^=+ (?!COMPUTE-SANITIZER|ERROR SUMMARY: 0 )(.+)", output, re.MULTILINE)
    return f"FAILED, {found[0]}" if found else "no report" if output else "FAILED, no log"


def tune(args: argparse.Namespace, target: Path, seconds: float) -> bool:
    """Tune block sizes; copy the table to the other results."""
    if find_spec("triton") is None:
        print("tuning skipped: triton not installed", flush=True)
        return True
    extent = ["--rehearse", "--table", str(target)] if args.rehearse else [f"--limit={0.8 * seconds:.0f}"]
    done = run(["tools/benchmark/autotune.py", *extent], seconds)
    if not args.rehearse:
        shutil.copy(ROOT / "dcnzoo/ops/fused/configs.json", target)
    return done


def run_benchmark(args: argparse.Namespace, seconds: float) -> bool:
    missing = [package for package in ("click", "matplotlib", "rich") if find_spec(package) is None]
    if missing:
        print(f"benchmark skipped: {', '.join(missing)} not installed", flush=True)
        return True
    extent = ["--quick"] if args.rehearse else ["--device", "cuda", f"--seconds={args.seconds:g}"]
    return run(["tools/benchmark/ops.py", *extent, "--out", str(args.out)], seconds)


def main() -> None:
    start = time.monotonic()
    args = parse_args()
    require(args.rehearse)
    import machine

    facts = machine.describe("cpu" if args.rehearse else "cuda")
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)

    def remaining() -> float:
        return args.limit - (time.monotonic() - start)

    # tests get more than half of the time: timings of incorrect kernels are useless
    tested = run_tests(args.out / f"{machine.slug(facts)}-tests.json", facts, remaining() * 0.55)
    log = args.out / f"{machine.slug(facts)}-memory.log"
    memory = check_memory(log, remaining() * 0.25, args.rehearse)
    tuned = tune(args, args.out / f"{machine.slug(facts)}-configs.json", remaining() / 2)
    measured = run_benchmark(args, remaining())
    words = {
        "tests": "passed" if tested else "FAILED",
        "memory": memory,
        "tuning": "done" if tuned else "FAILED",
        "benchmark": "done" if measured else "FAILED",
    }
    print(", ".join(f"{name} {word}" for name, word in words.items()))
    sys.exit(any(word.startswith("FAILED") for word in words.values()))


if __name__ == "__main__":
    main()
