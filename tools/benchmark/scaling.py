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
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
  for the tasks that were measured with p threads, region by region. Tasks that add to the same sums wait for
  each other. It neglects the start of a region, the memory's bandwidth and work that is not in a task.
- *MiB*: peak extra memory of a call in a new process, in 2²⁰ bytes.

{table}
"""
COLUMNS = ("shape", "pass", "p", "tasks", "MB/task", "CPU", "measured", "simulated", "MiB")


@dataclass
class Region:
    """A parallel region of a call.

    Attributes:
        bytes: that the largest task reads.
        tasks: of each sequence, microseconds of each task: before its first step, of the step, and so on.
    """

    bytes: int
    tasks: list[list[list[float]]]

    def time(self) -> float:
        return sum(sum(task) for sequence in self.tasks for task in sequence)

    def count(self) -> int:
        return sum(map(len, self.tasks))

    def makespan(self, cores: int) -> float:
        """Return when list scheduling ends: each task, in order, runs on the core that is free first.

        A core takes the tasks of a sequence until none are left, and then of the one with the most left. A
        task does a step after the task before it in its sequence has.
        """
        sequences = [deque(tasks) for tasks in self.tasks]
        steps_end = [[0.0] * max(map(len, tasks), default=0) for tasks in self.tasks]
        free = [(0.0, core % len(sequences)) for core in range(cores)]  # when, and the core's sequence
        end = 0.0
        while any(sequences):
            now, at = heapq.heappop(free)
            if not sequences[at]:
                at = max(range(len(sequences)), key=lambda i: len(sequences[i]))
            for part, spent in enumerate(sequences[at].popleft()):
                if part % 2:
                    now = max(now, steps_end[at][part])
                    steps_end[at][part] = now + spent
                now += spent
            heapq.heappush(free, (now, at))
            end = max(end, now)
        return end


def regions(run: Callable[[], object], log: Path, rounds: int) -> list[Region]:
    """Return the parallel regions of a call; times are medians."""
    calls = []
    for _ in range(rounds):
        start = log.stat().st_size
        run()
        with log.open() as file:
            file.seek(start)
            calls.append([line.split() for line in file])
    found = []
    for same in zip(*calls, strict=True):
        size, sequences = map(int, same[0][:2])
        times = [
            [statistics.median(map(float, part)) for part in zip(*(t.split(",") for t in task), strict=True)]
            for task in zip(*(tasks for _, _, *tasks in same), strict=True)
        ]
        found.append(Region(size, [times[i::sequences] for i in range(sequences)]))
    return found


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
            found = regions(run, log, rounds)
            alone = alone or sum(region.time() for region in found)
            tasks = sum(region.count() for region in found)
            largest = max(region.bytes for region in found) / 1e6
            cpu, speedup = taken[count][0] / taken[2][0], taken[1][1] / taken[count][1]
            simulated = alone / sum(region.makespan(count) for region in found)
            extra = memory.measure(
                family="deform_conv2d", case=name, contestant=OURS, threads=count, dtype="float32", mode=which
            ).extra
            figures = [f"{largest:.2f}", f"{cpu:.2f}", f"{speedup:.1f}", f"{simulated:.1f}"]
            yield [name, which, str(count), str(tasks), *figures, f"{extra / 2**20:.0f}"]


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
