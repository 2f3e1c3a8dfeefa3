"""What importing costs beside ``import torch``: fresh processes, taking turns; read the ratios."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

STATEMENTS = ("import torch", "import dcnzoo", "import dcnzoo.ops", "import dcnzoo.layers")


def seconds(statement: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s, after one to warm up")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error(f"argument --rounds: expected at least 1, got {rounds}")
    timings = [[seconds(statement) for statement in STATEMENTS] for _ in range(rounds + 1)][1:]
    for statement, column in zip(STATEMENTS, zip(*timings, strict=True), strict=True):
        # the ratio within a round, since a restless machine slows all of one
        ratio = statistics.median(t / row[0] for t, row in zip(column, timings, strict=True))
        print(f"{statement:22} {statistics.median(column):6.2f} s   {ratio:.2f}× import torch")


if __name__ == "__main__":
    main()
