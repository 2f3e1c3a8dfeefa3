"""Train the demo's detector with and without deformable convolution, and compare.

Generates the data, trains every arm for the same number of iterations, evaluates, prints a table and writes a
page. Finished runs with an unchanged config are reused, interrupted ones are resumed. A folder of another
config is renamed if it has a checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import Progress, TaskID

from benchmarks.measure import ROOT, read_rows
from dcnzoo.cli import _command, _options, _types, one_line_errors
from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.openmmlab.config.read import read_config_file
from dcnzoo.openmmlab.history import History
from dcnzoo.openmmlab.runs.start import free_name
from dcnzoo.report.report import footer, render, summary
from dcnzoo.report.runs import Setting, TrainedRun, settings_of
from dcnzoo.report.validation import load_detectors
from dcnzoo.utils.errors import UserError, show, user_errors
from dcnzoo.utils.files import write_text
from dcnzoo.utils.progress import make_progress
from dcnzoo.utils.text import columns, counted

if TYPE_CHECKING:
    from mmengine.config import Config

TRAININGS = ROOT / "docs" / "demo_trainings.csv"
# the demo's detector, without deformable convolution and with each operator
ARMS = {
    "off": "mask-rcnn_r14_fpn_8e_shapes.py",
    "v1": "mask-rcnn_r14-dconv_fpn_8e_shapes.py",
    "v2": "mask-rcnn_r14-mdconv_fpn_8e_shapes.py",
    "v3": "mask-rcnn_r14-dcnv3_fpn_8e_shapes.py",
    "v4": "mask-rcnn_r14-dcnv4_fpn_8e_shapes.py",
    "vit-adapter": "mask-rcnn_vit-adapter_fpn_8e_shapes.py",
}
HEAD = "deformable conv"  # heading of the column of arms
SHOWN_IMAGES = 5


@click.command(cls=_command.Command, help=__doc__)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    envvar="SEEDS",
    show_default=True,
    help="Runs per arm; several give mean ± standard deviation.",
)
@click.option(
    "--arms", multiple=True, type=click.Choice(list(ARMS)), default=["off", "v2"], show_default=True
)
@click.option("--jobs", type=click.IntRange(min=1), help="Parallel runs (default: one per core).")
@click.option("--force", is_flag=True, help="Repeat finished trainings; earlier folders are renamed.")
@click.option("--work-dir", type=_types.FOLDER, default="work_dirs/demo", show_default=True)
@_options.cfg_options
@one_line_errors()
def main(
    seeds: int, arms: tuple[str, ...], jobs: int | None, force: bool, work_dir: Path, cfg_options: dict
) -> None:
    console = Console(highlight=False)
    started = time.monotonic()
    with user_errors():
        runs = {
            (arm, seed): make_run(arm, seed, work_dir / f"{arm}-seed{seed}", cfg_options)
            for seed in range(seeds)
            for arm in arms
        }
    jobs = min(jobs or cores(), len(runs))
    threads = max(1, cores() // jobs)
    work_dir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up like Ctrl-C
    try:
        lock = FileLock(work_dir / ".lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"{work_dir}: expected no other run in this folder, found one") from None
    with lock:
        if force:
            for run in runs.values():
                run.set_aside()
        first = next(iter(runs.values()))
        make_data(first.cfg, console)
        train(list(runs.values()), jobs, threads, console)

        trained = settings_of(
            [arm for arm, _ in runs], [TrainedRun.read(run.folder) for run in runs.values()]
        )
        detectors = load_detectors(trained)
        about = setting(first, seeds)
        verdict = compare(trained) + ("." if cfg_options else among_others(trained))
        console.print(f"Mask R-CNN, {about}", soft_wrap=True)
        show(*columns(summary(trained, detectors, HEAD), numbers=True))
        console.print(verdict, soft_wrap=True)
        page = work_dir / "index.html"
        html = render(
            trained,
            detectors,
            "A detector with and without deformable convolution",
            f"{verdict} A small Mask R-CNN, trained from scratch: {about}.",
            HEAD,
            SHOWN_IMAGES,
            f"{footer()}\nPython {platform.python_version()}, {platform.machine()}, {cores()} cores; "
            f"{jobs} parallel runs, threads per run: {threads}",
        )
        write_text(page, html)
        console.print(f"page: {page} ({time.monotonic() - started:.0f} s)", soft_wrap=True)


# Trainings, each `tools/train.py` in a separate process and folder


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: label of its progress bar.
        iterations: of the complete training.
    """

    name: str
    cfg: Config
    folder: Path
    iterations: int

    @property
    def end(self) -> Path:
        """A file that marks a finished training."""
        return self.folder / "finished"

    @property
    def config(self) -> Path:
        """The config's file, beside the folder: the training writes its own copy into the folder."""
        return self.folder.with_name(f"{self.folder.name}.py")

    def is_current(self) -> bool:
        return self.config.is_file() and self.config.read_text(encoding="utf-8") == self.cfg.pretty_text

    def set_aside(self) -> None:
        """Rename the folder if it has a checkpoint, as ``dcnzoo train --force`` does; if not, delete it."""
        if any(self.folder.glob("*.pth")):
            self.folder.rename(free_name(self.folder))
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def prepare(self) -> None:
        """Write the config. First set aside the files of a previous config."""
        if not self.is_current():
            self.set_aside()
            write_text(self.config, self.cfg.pretty_text)
        self.folder.mkdir(parents=True, exist_ok=True)


def make_run(arm: str, seed: int, folder: Path, options: Mapping[str, object]) -> Run:
    """Prepare a training; ``options``: settings to override, as with ``--cfg-options``."""
    cfg = read_config_file(ROOT / "configs" / "demo" / ARMS[arm])
    cfg.merge_from_dict(dict(options))
    cfg.randomness, cfg.work_dir = {"seed": seed}, str(folder)
    batches = math.ceil(cfg.train_dataloader.dataset.shapes.train / cfg.train_dataloader.batch_size)
    return Run(f"{arm} seed {seed}", cfg, folder, batches * cfg.train_cfg.max_epochs)


def make_data(cfg: Config, console: Console) -> None:
    """Generate the data before the runs start, so that they do not generate it concurrently."""
    dataset = cfg.train_dataloader.dataset
    spec = ShapesSpec(**dataset.shapes)
    started = time.monotonic()
    made = make_shapes(dataset.data_root, spec)
    how = f"generated in {time.monotonic() - started:.1f} s" if made else "already exists"
    console.print(f"data: {dataset.data_root}, {spec.train} + {counted(spec.val, 'images')}, {how}")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass
class _Training:
    """A run in progress."""

    run: Run
    process: subprocess.Popen
    bar: TaskID
    validated: int = 0


def train(runs: Sequence[Run], jobs: int, threads: int, console: Console) -> None:
    """Train the unfinished runs, ``jobs`` at a time with ``threads`` each, and show their progress."""
    waiting = [run for run in runs if not (run.is_current() and run.end.exists())]
    running: list[_Training] = []
    with make_progress(console, disable=not console.is_terminal) as progress:
        bars = [progress.add_task(run.name, total=run.iterations, note="") for run in waiting]
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    running.append(_Training(run, _start(run, threads), bars.pop(0)))
                    progress.reset(running[-1].bar, completed=History.read(run.folder).iteration)
                time.sleep(0.5)
                for training in list(running):
                    ended = training.process.poll() is not None
                    _show(training, progress, console)
                    if ended:
                        running.remove(training)
                        _finish(training)
        finally:
            for training in running:
                training.process.terminate()
            for training in running:
                training.process.wait()


def _start(run: Run, threads: int) -> subprocess.Popen:
    run.prepare()
    arguments = [ROOT / "tools" / "train.py", run.config]
    if any(run.folder.glob("*.pth")):
        arguments.append("--resume")
    with open(run.folder / "console.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)},
        )


def _show(training: _Training, progress: Progress, console: Console) -> None:
    """Update a progress bar; without a terminal, print a line per validation."""
    run, history = training.run, History.read(training.run.folder)
    notes = []
    if history.training:
        notes.append(f"loss {history.training[history.iteration]['loss']:.2f}")
    if history.validation:
        metrics = history.validation[max(history.validation)]
        kind = "segm" if "coco/segm_mAP" in metrics else "bbox"
        notes.append(f"{'mask' if kind == 'segm' else 'box'} AP {metrics[f'coco/{kind}_mAP']:.3f}")
    note = ", ".join(notes)
    progress.update(training.bar, completed=history.iteration, note=note)
    if len(history.validation) > training.validated and not console.is_terminal:
        done = max(history.validation) * run.iterations // run.cfg.train_cfg.max_epochs
        console.print(f"{run.name}: {done}/{run.iterations} iterations, {note}")
    training.validated = len(history.validation)


def _finish(training: _Training) -> None:
    run, status = training.run, training.process.returncode
    if status != 0:
        log = run.folder / "console.log"
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"training of {run.name} ended with status {status}, {log}: {last}")
    run.end.touch()


# The comparison


def setting(run: Run, seeds: int) -> str:
    shapes = run.cfg.train_dataloader.dataset.shapes
    per_arm = "one seed" if seeds == 1 else f"{seeds} seeds (mean ± standard deviation)"
    return (
        f"{shapes.train} training and {shapes.val} validation images, "
        f"equal iterations: {run.iterations} × {run.cfg.train_dataloader.batch_size} images, "
        f"{per_arm}"
    )


def mask_ap(settings: Sequence[Setting]) -> dict[str, float]:
    """Return the mean mask AP of each arm."""
    return {
        setting.label: statistics.mean(run.metrics["coco/segm_mAP"] for run in setting.runs)
        for setting in settings
    }


def compare(settings: Sequence[Setting]) -> str:
    """Summarise the table in a sentence: the best arm compared with the first."""
    mask = mask_ap(settings)
    first, best = settings[0].label, max(mask, key=mask.get)
    if best == first:
        return f"At equal iterations, '{first}' has the highest mask AP"
    difference = f"{mask[best] - mask[first]:.3f} higher than that of '{first}'"
    return f"At equal iterations, the mask AP of '{best}' is {difference}"


def among_others(settings: Sequence[Setting]) -> str:
    """Return how sure the difference between v2 and off is, from the committed trainings."""
    mask = mask_ap(settings)
    rows = [row for row in read_rows(TRAININGS) if row["setting"] == "full"]
    if not {"off", "v2"} <= set(mask) or not rows:
        return "."
    aps = {(row["arm"], row["seed"]): float(row["mask_ap"]) for row in rows}
    pairs = [(aps.get(("v2", seed)), aps.get(("off", seed))) for seed in {row["seed"] for row in rows}]
    committed = [v2 - off for v2, off in pairs if None not in (v2, off)]
    return (
        f"; over {len(committed)} seeds, v2 − off is {statistics.mean(committed):+.3f} on average "
        f"({min(committed):+.3f} to {max(committed):+.3f}). Longer trainings: docs/study.md."
    )


if __name__ == "__main__":
    main()
