"""Train the demo detector without and with deformable convolutions, and show what they do.

Makes the data, trains every arm at equal iterations, evaluates, prints a table and writes a page.
Runs that are finished and whose config has not changed are kept; interrupted ones go on.
"""

import argparse
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dcnzoo.cli import one_line_errors
from dcnzoo.utils.errors import UserError, user_errors

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
from mmengine.config import Config, ConfigDict, DictAction
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.report.history import History
from dcnzoo.report.report import TrainedRun, by_label, load_detectors, render_runs, summary
from dcnzoo.report.write import footer
from dcnzoo.utils.files import write_text
from dcnzoo.utils.progress import make_progress

ROOT = Path(__file__).resolve().parent.parent
ARMS = {
    "off": "mask-rcnn_r14_fpn_8e_shapes.py",
    "v1": "mask-rcnn_r14-dconv_fpn_8e_shapes.py",
    "v2": "mask-rcnn_r14-mdconv_fpn_8e_shapes.py",
}
HEAD = "deformable conv"  # of the column of arms
POLL_SECONDS = 0.5
SHOWN_IMAGES = 5


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm with one seed, in a folder of its own."""

    arm: str
    seed: int
    cfg: Config
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.seed}"

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.cfg.pretty_text.encode()).hexdigest()

    @property
    def shapes(self) -> ConfigDict:
        return self.cfg.train_dataloader.dataset.shapes

    @property
    def iterations(self) -> int:
        batches = math.ceil(self.shapes.train / self.cfg.train_dataloader.batch_size)
        return batches * self.cfg.train_cfg.max_epochs

    def is_finished(self) -> bool:
        return self._state() == {"fingerprint": self.fingerprint, "finished": True}

    def prepare(self) -> None:
        """Write the config; what another config left behind goes."""
        if self._state().get("fingerprint") != self.fingerprint:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cfg.dump(self.folder / "config.py")
        self.write_state(finished=False)

    def history(self) -> History:
        return History.read(self.folder)

    def _state(self) -> dict:
        try:
            return json.loads((self.folder / "demo.json").read_text())
        except (OSError, json.JSONDecodeError):
            return {}

    def write_state(self, finished: bool) -> None:
        state = {"fingerprint": self.fingerprint, "finished": finished}
        write_text(self.folder / "demo.json", json.dumps(state))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seeds",
        type=int,
        default=os.environ.get("SEEDS") or "1",
        help="runs per arm; more than one gives mean ± standard deviation (default: $SEEDS or 1)",
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["off", "v2"])
    parser.add_argument("--jobs", type=int, help="runs side by side (default: as many as there are cores)")
    parser.add_argument("--force", action="store_true", help="train again what is finished")
    parser.add_argument("--work-dir", default="work_dirs/demo", type=Path)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    args = parser.parse_args()
    for name in ("seeds", "jobs"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: expected ≥ 1, got {value}")
    return args


@one_line_errors()
def main() -> None:
    args = parse_args()
    console = Console(highlight=False)
    started = time.monotonic()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with user_errors():
        runs = [
            make_run(arm, seed, args.work_dir, args.cfg_options)
            for seed in range(args.seeds)
            for arm in args.arms
        ]
    jobs = min(args.jobs or cores, len(runs))
    threads = max(1, cores // jobs)
    with locked(args.work_dir) as lock:
        if args.force:
            for run in runs:
                shutil.rmtree(run.folder, ignore_errors=True)
        make_data(runs[0].cfg, console)
        train([run for run in runs if not run.is_finished()], jobs, threads, lock, console)

        trained = [TrainedRun.read(run.folder, run.arm) for run in runs]
        detectors = load_detectors(trained)
        table, verdict = summary(trained, detectors, HEAD), compare(trained)
        console.print(f"Mask R-CNN, {setting(runs)}", soft_wrap=True)
        show_table(table, console)
        console.print(verdict, soft_wrap=True)
        page = args.work_dir / "index.html"
        html = render_runs(
            trained,
            detectors,
            "Deformable convolution, off and on",
            f"A small Mask R-CNN, trained from scratch: {setting(runs)}. {verdict}",
            HEAD,
            SHOWN_IMAGES,
            f"{footer()}\nPython {platform.python_version()}, {platform.machine()}, {cores} cores; "
            f"{jobs} runs side by side, threads in each: {threads}",
        )
        write_text(page, html)
        console.print(f"page: {page} ({time.monotonic() - started:.0f} s)", soft_wrap=True)


def make_run(arm: str, seed: int, work_dir: Path, options: dict) -> Run:
    cfg = Config.fromfile(ROOT / "configs" / "demo" / ARMS[arm], import_custom_modules=False)
    cfg.merge_from_dict(options)
    cfg.randomness = {"seed": seed}
    folder = work_dir / f"{arm}-seed{seed}"
    cfg.work_dir = str(folder)
    return Run(arm, seed, cfg, folder)


def make_data(cfg: Config, console: Console) -> None:
    """Before the runs start, so that they do not make it at the same time."""
    dataset = cfg.train_dataloader.dataset
    spec = ShapesSpec(**dataset.shapes)
    started = time.monotonic()
    made = make_shapes(dataset.data_root, spec)
    how = f"made in {time.monotonic() - started:.1f} s" if made else "already there"
    console.print(f"data: {dataset.data_root}, {spec.train} + {spec.val} images, {how}")


@dataclasses.dataclass
class Training:
    """A run in progress."""

    run: Run
    process: subprocess.Popen
    bar: TaskID
    validated: int = 0


def train(pending: Sequence[Run], jobs: int, threads: int, lock: IO, console: Console) -> None:
    """Train all runs, ``jobs`` at a time, each in a process of its own; show how far they are."""
    waiting = list(pending)
    running: list[Training] = []
    # estimated over minutes: the logs that it is read from come in steps
    with make_progress(console, disable=not console.is_terminal, speed_estimate_period=600) as progress:
        bars = [progress.add_task(run.name, total=run.iterations, note="") for run in pending]
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    running.append(Training(run, start(run, threads, lock), bars.pop(0)))
                    progress.reset(running[-1].bar)
                time.sleep(POLL_SECONDS)
                for training in list(running):
                    ended = training.process.poll() is not None
                    show(training, progress, console)
                    if ended:
                        running.remove(training)
                        finish(training)
        finally:
            for training in running:
                training.process.terminate()
            for training in running:
                training.process.wait()


def show(training: Training, progress: Progress, console: Console) -> None:
    """Move a bar; where there is no terminal, print a line per validation."""
    history, run = training.run.history(), training.run
    note = progress_note(history)
    progress.update(training.bar, completed=history.iteration, note=note)
    if len(history.validation) > training.validated and not console.is_terminal:
        done = max(history.validation) * run.iterations // run.cfg.train_cfg.max_epochs
        console.print(f"{run.name}: {done}/{run.iterations} iterations, {note}")
    training.validated = len(history.validation)


def progress_note(history: History) -> str:
    parts = []
    if history.training:
        parts.append(f"loss {history.training[history.iteration]['loss']:.2f}")
    if history.validation:
        parts.append(f"mask AP {history.validation[max(history.validation)]['coco/segm_mAP']:.3f}")
    return ", ".join(parts)


def finish(training: Training) -> None:
    run, status = training.run, training.process.returncode
    if status != 0:
        log = run.folder / "console.log"
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"training of {run.name} ended with status {status}, {log}: {last}")
    run.write_state(finished=True)


def start(run: Run, threads: int, lock: IO) -> subprocess.Popen:
    run.prepare()
    arguments = [ROOT / "tools" / "train.py", run.folder / "config.py", "--resume"]
    with open(run.folder / "console.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            pass_fds=[lock.fileno()],  # held until the last of us has ended
        )


@contextmanager
def locked(folder: Path) -> Iterator[IO]:
    """Keep other demos out of a folder; a termination signal cleans up like Ctrl-C."""
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another demo is still running there") from None
        yield lock


def setting(runs: Sequence[Run]) -> str:
    run, seeds = runs[0], len({run.seed for run in runs})
    per_arm = "one seed" if seeds == 1 else f"{seeds} seeds (mean ± standard deviation)"
    return (
        f"{run.shapes.train} training and {run.shapes.val} validation images, "
        f"equal iterations: {run.iterations} × {run.cfg.train_dataloader.batch_size} images, "
        f"{per_arm}"
    )


def compare(runs: Sequence[TrainedRun]) -> str:
    """What the table says, in a sentence: the best arm against the first."""
    arms = by_label(runs)
    mask = {
        arm: statistics.mean(run.last_validation["coco/segm_mAP"] for run in seeds)
        for arm, seeds in arms.items()
    }
    first, best = next(iter(arms)), max(mask, key=mask.get)
    if best == first:
        return f"At equal iterations '{first}' is not beaten."
    seconds = {arm: statistics.mean(run.seconds_per_iteration for run in arms[arm]) for arm in (first, best)}
    return (
        f"At equal iterations '{best}' is {mask[best] - mask[first]:.3f} mask AP ahead of "
        f"'{first}'; one of its iterations takes {seconds[best] / seconds[first]:.2f} times as long."
    )


def show_table(table: Sequence[Sequence[str]], console: Console) -> None:
    view = Table()
    for i, head in enumerate(table[0]):
        view.add_column(head, justify="left" if i == 0 else "right")
    for row in table[1:]:
        view.add_row(*row)
    console.print(view)


if __name__ == "__main__":
    main()
