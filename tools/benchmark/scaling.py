"""Measure how deform_conv2d divides its work among threads, and simulate more cores than the machine has.

Set OMP_WAIT_POLICY=passive: threads that wait would otherwise use CPU time.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from families import OURS, deform_conv2d
from machine import describe, slug
from measure import PASSES, MemoryProbe, make_pass
from report import write
from sections import markdown

CASES = {case.name: case for case in deform_conv2d.CASES}
PAGE = """\
# Division of work among threads

{facts}.

Written by `{command}`. For each shape, pass and number of threads p:

- *tasks*: their number in all parallel regions of a call.
- *MB/task*: packed weights, columns and gradients that the largest task reads, in 10⁶ bytes.
- *CPU*: CPU time of the process relative to that with 2 threads.
- *measured*: speedup of the wall time over 1 thread. It cannot exceed the number of cores.
- *simulated*: the tasks' CPU time with 1 thread, divided by the time that list scheduling on p cores needs
  for the tasks that were measured with p threads, region by region. It neglects the start of a region, the
  memory's bandwidth and work that is not in a task.
- *MiB*: peak extra memory of a call in a new process, in 2²⁰ bytes.

{table}
"""
COLUMNS = ("shape", "pass", "p", "tasks", "MB/task", "CPU", "measured", "simulated", "MiB")


def makespan(times: Sequence[float], cores: int) -> float:
    """Return when list scheduling ends: each task, in order, runs on the core that is free first."""
    free = [0.0] * cores
    for time_ in times:
        heapq.heapreplace(free, free[0] + time_)
    return max(free)


def regions(run: Callable[[], object], log: Path) -> list[tuple[int, list[float]]]:
    """Return the parallel regions of a call: bytes read by the largest task, and the tasks' microseconds."""
    start = log.stat().st_size
    run()
    with log.open() as file:
        file.seek(start)
        lines = [line.split() for line in file]
    return [(int(size), [float(t) for t in times]) for size, *times in lines]


def measure(run: Callable[[], object], threads: Sequence[int], rounds: int) -> dict[int, tuple[float, float]]:
    """Return the medians of CPU time and wall time for each number of threads, which take turns."""
    samples: dict[int, list[tuple[float, float]]] = {count: [] for count in threads}
    for _ in range(rounds):
        for count in threads:
            torch.set_num_threads(count)
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            samples[count].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {count: tuple(map(statistics.median, zip(*s, strict=True))) for count, s in samples.items()}


def rows(
    shapes: Sequence[str], threads: Sequence[int], rounds: int, log: Path, memory: MemoryProbe
) -> Iterator[list[str]]:
    os.environ["DCNZOO_TASK_LOG"] = str(log)  # read by the library when it runs its first task
    for name, which in itertools.product(shapes, PASSES):
        case = CASES[name]
        call = deform_conv2d.CONTESTANTS[OURS](case, case.tensors(torch.float32, "cpu"), 1)
        run = make_pass(call, which, case.out_shape)
        assert run is not None  # our operators have a backward
        run()
        taken = measure(run, threads, rounds)
        alone = 0.0
        for count in threads:
            torch.set_num_threads(count)
            found = regions(run, log)
            alone = alone or sum(sum(times) for _, times in found)
            tasks = sum(len(times) for _, times in found)
            largest = max(size for size, _ in found) / 1e6
            cpu, speedup = taken[count][0] / taken[2][0], taken[1][1] / taken[count][1]
            simulated = alone / sum(makespan(times, count) for _, times in found)
            extra = memory.measure(
                family="deform_conv2d", case=name, contestant=OURS, threads=count, dtype="float32", mode=which
            ).extra
            figures = f"{largest:.2f} {cpu:.2f} {speedup:.1f} {simulated:.1f} {extra / 2**20:.0f}"
            yield [name, which, str(count), str(tasks), *figures.split()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    main_shapes = [name for name, case in CASES.items() if case.main and case.batch == 1]
    parser.add_argument("--shapes", nargs="+", choices=CASES, default=main_shapes, metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64], metavar="P")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write scaling-<machine and versions>.md")
    args = parser.parse_args()
    facts = describe("cpu") | {"load_average_before": round(os.getloadavg()[0], 1)}
    lines = []
    with tempfile.TemporaryDirectory() as folder, MemoryProbe() as memory:
        threads = sorted({1, 2, *args.threads})
        for row in rows(args.shapes, threads, args.rounds, Path(folder) / "tasks", memory):
            lines.append(row)
            print(*row, sep="\t", flush=True)
    page = PAGE.format(
        facts=", ".join(f"{key} {value}" for key, value in facts.items()),
        command=shlex.join(["python", *sys.argv]),
        table=markdown([COLUMNS, *lines]),
    )
    if args.out:
        write(args.out, f"scaling-{slug(facts)}", {".md": page.encode()})
    else:
        print(page)


if __name__ == "__main__":
    main()
