"""The study of plan.md and equal_time.md in benchmarks/study, which were fixed before their first results.

``run`` works through the trainings of the plans and appends a row to results.csv after each evaluation. It
can be interrupted: incomplete trainings start again. ``page``, after all of them, writes docs/study.md
and its pictures.
"""

import argparse
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

from benchmarks.measure import ROOT, describe, revision
from benchmarks.study import page, training

# set when any training of the search fails: then no process waits for a learning rate any longer
FAILED = multiprocessing.get_context("fork").Event()


def work(args: argparse.Namespace) -> None:
    """Run the trainings without results, in the order of the plan, until the time is up."""
    end = time.monotonic() + args.seconds
    rows = training.read()
    runs = [run for run in training.PLAN if args.data or run.setting not in ("bccd", training.TIMED)]
    queue = training.pending(runs, rows)
    facts = describe()
    machine = f"{facts['cpu']} ({facts['cpu_capability']}), {facts['cores']} cores"
    columns = {"commit": revision(), "machine": machine, "torch": facts["torch"]}
    print(f"{len(queue)} trainings are left", flush=True)
    FAILED.clear()

    def failed(run: training.Run, error: BaseException) -> None:
        print(f"{run.name}: {error}", flush=True)
        if run.stage == "search":
            FAILED.set()

    # a process per training, forked from this one, which has imported everything
    with multiprocessing.get_context("fork").Pool(args.processes, maxtasksperchild=1) as pool:
        tasks = [
            pool.apply_async(work_on, (run, columns, args), error_callback=partial(failed, run))
            for run in queue
        ]
        for task in tasks:
            task.wait(max(0, end - time.monotonic()))


def work_on(run: training.Run, columns: dict[str, object], args: argparse.Namespace) -> None:
    """Train once, as soon as the search has determined the learning rate of the arm."""
    setting = training.TIMED if run.setting == training.TIMED else "shapes"
    while not (rate := run.rate or training.best_rate(training.read(), run.arm, setting)):
        if FAILED.wait(1):
            raise RuntimeError(
                "not trained: a training of the search failed before its learning rate was known"
            )
    training.train(run, rate, args.work_dir, args.data, columns)
    print(f"{run.name}: finished", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    add = commands.add_parser("run", help="train what has no results yet").add_argument
    add("--processes", type=int, default=os.cpu_count(), help="parallel trainings, one thread each")
    add("--seconds", type=float, default=12 * 3600, help="stop after this time")
    add("--work-dir", type=Path, default=Path("work_dirs/study"), help="folder of data and logs")
    add("--data", type=Path, help="folder of BCCD (dcnzoo data download --dataset-name bccd)")
    commands.add_parser("page", help="write docs/study.md and its pictures")
    args = parser.parse_args()
    if args.command == "run":
        work(args)
    else:
        page.write_page(training.read(), ROOT / "docs")


if __name__ == "__main__":
    main()
