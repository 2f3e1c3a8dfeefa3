"""Train the demo's detector with and without deformable convolution, and compare.

Generates the data, trains every arm for the same number of iterations, evaluates, prints a table and writes a
page. Finished runs with an unchanged config are reused; interrupted runs are resumed.
"""

import platform
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import click
from study_results import RESULTS, differences, read_rows, select
from trainings import ARMS, Run, cores, locked, make_data, make_run, train

from dcnzoo.cli import _options, one_line_errors
from dcnzoo.utils.errors import user_errors

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
from rich.console import Console
from rich.table import Table

from dcnzoo.report.report import TrainedRun, by_label, load_detectors, render_runs, summary
from dcnzoo.report.write import footer
from dcnzoo.utils.files import write_text

HEAD = "deformable conv"  # heading of the column of arms
SHOWN_IMAGES = 5


@click.command(cls=_options.Command, help=__doc__)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    envvar="SEEDS",
    show_default=True,
    help="Runs per arm; several give mean ± standard deviation.",
)
@_options.option(
    "--arms", several=True, type=click.Choice(list(ARMS)), default=["off", "v2"], show_default=True
)
@click.option("--jobs", type=click.IntRange(min=1), help="Parallel runs (default: one per core).")
@click.option("--force", is_flag=True, help="Repeat finished trainings.")
@click.option("--work-dir", type=_options.FOLDER, default="work_dirs/demo", show_default=True)
@_options.cfg_options
@one_line_errors()
def main(
    seeds: int, arms: tuple[str, ...], jobs: int | None, force: bool, work_dir: Path, cfg_options: dict
) -> None:
    console = Console(highlight=False)
    started = time.monotonic()
    with user_errors():
        runs = {
            (arm, seed): make_run(
                f"{arm} seed {seed}", ARMS[arm], seed, work_dir / f"{arm}-seed{seed}", cfg_options
            )
            for seed in range(seeds)
            for arm in arms
        }
    jobs = min(jobs or cores(), len(runs))
    threads = max(1, cores() // jobs)
    with locked(work_dir) as lock:
        if force:
            for run in runs.values():
                shutil.rmtree(run.folder, ignore_errors=True)
        first = next(iter(runs.values()))
        make_data(first.cfg, console)
        train(list(runs.values()), jobs, threads, lock, console)

        trained = [TrainedRun.read(run.folder, arm) for (arm, _), run in runs.items()]
        detectors = load_detectors(trained)
        about = setting(first, seeds)
        verdict = " ".join([compare(trained), *(() if cfg_options else among_others(trained))])
        console.print(f"Mask R-CNN, {about}", soft_wrap=True)
        show_table(summary(trained, detectors, HEAD), console)
        console.print(verdict, soft_wrap=True)
        page = work_dir / "index.html"
        html = render_runs(
            trained,
            detectors,
            "A detector with and without deformable convolution",
            f"A small Mask R-CNN, trained from scratch: {about}. {verdict}",
            HEAD,
            SHOWN_IMAGES,
            f"{footer()}\nPython {platform.python_version()}, {platform.machine()}, {cores()} cores; "
            f"{jobs} parallel runs, threads per run: {threads}",
        )
        write_text(page, html)
        console.print(f"page: {page} ({time.monotonic() - started:.0f} s)", soft_wrap=True)


def setting(run: Run, seeds: int) -> str:
    shapes = run.cfg.train_dataloader.dataset.shapes
    per_arm = "one seed" if seeds == 1 else f"{seeds} seeds (mean ± standard deviation)"
    return (
        f"{shapes.train} training and {shapes.val} validation images, "
        f"equal iterations: {run.iterations} × {run.cfg.train_dataloader.batch_size} images, "
        f"{per_arm}"
    )


def mask_ap(runs: Sequence[TrainedRun]) -> dict[str, float]:
    """Return the mean mask AP of each arm."""
    return {
        arm: statistics.mean(run.last_validation["coco/segm_mAP"] for run in seeds)
        for arm, seeds in by_label(runs).items()
    }


def compare(runs: Sequence[TrainedRun]) -> str:
    """Summarise the table in a sentence: the best arm compared with the first."""
    arms, mask = by_label(runs), mask_ap(runs)
    first, best = next(iter(arms)), max(mask, key=mask.get)
    if best == first:
        return f"At equal iterations, '{first}' has the highest mask AP."
    seconds = {arm: statistics.mean(run.seconds_per_iteration for run in arms[arm]) for arm in (first, best)}
    return (
        f"At equal iterations, the mask AP of '{best}' is {mask[best] - mask[first]:.3f} higher than that of "
        f"'{first}'. An iteration takes {seconds[best] / seconds[first]:.2f} times as long."
    )


def among_others(runs: Sequence[TrainedRun]) -> list[str]:
    """Compare the difference between v2 and off with the differences in the committed study."""
    mask, rows = mask_ap(runs), read_rows(RESULTS)
    if not {"off", "v2"} <= set(mask):
        return []
    committed = differences(select(rows, "v2"), select(rows, "off"))
    if not committed:
        return []
    smaller = sum(each < mask["v2"] - mask["off"] for each in committed)
    return [
        f"In docs/study.md, v2 − off is {statistics.mean(committed):+.3f} mask AP on average over "
        f"{len(committed)} seeds ({min(committed):+.3f} to {max(committed):+.3f}); {smaller} of these "
        "differences are smaller than the one of this run."
    ]


def show_table(table: Sequence[Sequence[str]], console: Console) -> None:
    view = Table()
    for i, head in enumerate(table[0]):
        view.add_column(head, justify="left" if i == 0 else "right")
    for row in table[1:]:
        view.add_row(*row)
    console.print(view)


if __name__ == "__main__":
    main()
