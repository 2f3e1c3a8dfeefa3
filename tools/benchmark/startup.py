"""Measure the cost of importing dcnzoo relative to ``import torch``, in new processes that take turns."""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from machine import describe, slug

STATEMENTS = ("import torch", "import dcnzoo", "import dcnzoo.ops", "import dcnzoo.layers")
PAGE = """\
# Import time

{facts}.

CPU time of a new process, median over {rounds} rounds. The ratio is the median of the ratios within each
round. Other work on the machine affects CPU times only slightly.
Written by `python tools/benchmark/startup.py --rounds {rounds} --out docs/benchmarks`.

| | seconds | × of `import torch` |
|---|---|---|
"""


def seconds(statement: str) -> float:
    """Return the CPU time, user and system, of a process that runs ``statement``."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return spent() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=7, help="number of rounds after a warm-up (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write startup-<machine and versions>.md")
    args = parser.parse_args()
    rounds = args.rounds
    if rounds < 1:
        parser.error(f"argument --rounds: expected at least 1, got {rounds}")
    facts = describe("cpu") | {"load_average_before": round(os.getloadavg()[0], 1)}
    timings = [[seconds(statement) for statement in STATEMENTS] for _ in range(rounds + 1)][1:]
    listed = ", ".join(f"{key} {value}" for key, value in facts.items())
    page = PAGE.format(facts=listed, rounds=rounds)
    for statement, column in zip(STATEMENTS, zip(*timings, strict=True), strict=True):
        # ratios within a round: other work on the machine slows all processes of a round
        ratio = statistics.median(t / row[0] for t, row in zip(column, timings, strict=True))
        page += f"| `{statement}` | {statistics.median(column):.2f} | {ratio:.2f} |\n"
    print(page)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"startup-{slug(facts)}.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
