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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import dcnzoo.engine

# after dcnzoo.engine, which silences a warning of mmengine's import
# isort: split
import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict, DictAction
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from dcnzoo.datasets import CLASSES, PALETTE, ShapesSpec, make_shapes
from dcnzoo.engine.cli import UserError, command, user_errors
from dcnzoo.engine.progress import make_progress
from dcnzoo.visualization import (
    Curves,
    Instances,
    Section,
    data_uri,
    plot_detections,
    plot_learning_curves,
    plot_sampling,
    render_page,
)
from dcnzoo.visualization.detector import Detector

ROOT = Path(__file__).resolve().parent.parent
ARMS = {
    "off": "mask-rcnn_r14_fpn_8e_shapes.py",
    "v1": "mask-rcnn_r14-dconv_fpn_8e_shapes.py",
    "v2": "mask-rcnn_r14-mdconv_fpn_8e_shapes.py",
}
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

    @property
    def checkpoint(self) -> Path:
        return self.folder / Path((self.folder / "last_checkpoint").read_text()).name

    def is_finished(self) -> bool:
        return self._state() == {"fingerprint": self.fingerprint, "finished": True}

    def prepare(self) -> None:
        """Write the config; what another config left behind goes."""
        if self._state().get("fingerprint") != self.fingerprint:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cfg.dump(self.folder / "config.py")
        self.write_state(finished=False)

    def history(self) -> "History":
        return History.read(self.folder, self.iterations // self.cfg.train_cfg.max_epochs)

    def _state(self) -> dict:
        try:
            return json.loads((self.folder / "demo.json").read_text())
        except (OSError, json.JSONDecodeError):
            return {}

    def write_state(self, finished: bool) -> None:
        partial = self.folder / ".demo.json.partial"
        partial.write_text(json.dumps({"fingerprint": self.fingerprint, "finished": finished}))
        partial.replace(self.folder / "demo.json")


@dataclasses.dataclass
class History:
    """What mmengine logged of a run, over all its resumptions; keys are iterations."""

    loss: dict[int, float] = dataclasses.field(default_factory=dict)
    seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    box_ap: dict[int, float] = dataclasses.field(default_factory=dict)
    mask_ap: dict[int, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, iterations_per_epoch: int) -> "History":
        history = cls()
        for log in sorted(folder.glob("*/vis_data/scalars.json")):
            for line in log.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # being written
                    continue
                if "loss" in entry:
                    history.loss[entry["step"]] = entry["loss"]
                    history.seconds[entry["step"]] = entry["time"]
                elif "coco/segm_mAP" in entry:  # validation counts epochs
                    step = entry["step"] * iterations_per_epoch
                    history.box_ap[step] = entry["coco/bbox_mAP"]
                    history.mask_ap[step] = entry["coco/segm_mAP"]
        return history

    @property
    def iteration(self) -> int:
        return max([0, *self.loss, *self.mask_ap])

    def note(self) -> str:
        parts = []
        if self.loss:
            parts.append(f"loss {self.loss[max(self.loss)]:.2f}")
        if self.mask_ap:
            parts.append(f"mask AP {self.mask_ap[max(self.mask_ap)]:.3f}")
        return ", ".join(parts)


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


@command
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

        detectors = {arm: Detector(of[0].cfg, of[0].checkpoint) for arm, of in by_arm(runs).items()}
        table, verdict = summarise(runs, detectors), compare(runs)
        console.print(f"Mask R-CNN, {setting(runs)}", soft_wrap=True)
        show_table(table, console)
        console.print(verdict, soft_wrap=True)
        page = args.work_dir / "index.html"
        footer = (
            f"dcnzoo {dcnzoo.__version__}, torch {torch.__version__}, Python "
            f"{platform.python_version()}, {platform.machine()}, {cores} cores\n"
            f"{jobs} runs side by side, threads in each: {threads}"
        )
        html = render_page(
            "Deformable convolution, off and on",
            f"A small Mask R-CNN, trained from scratch: {setting(runs)}. {verdict}",
            table,
            make_sections(runs, detectors),
            footer,
        )
        page.write_text(html, encoding="utf-8")
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
    history = training.run.history()
    note = history.note()
    progress.update(training.bar, completed=history.iteration, note=note)
    if len(history.mask_ap) > training.validated and not console.is_terminal:
        done = f"{max(history.mask_ap)}/{training.run.iterations} iterations"
        console.print(f"{training.run.name}: {done}, {note}")
    training.validated = len(history.mask_ap)


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


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms


def mean_and_spread(values: Sequence[float]) -> str:
    text = f"{statistics.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.3f}"


def final_ap(run: Run) -> tuple[float, float]:
    """Box and mask AP of the last checkpoint."""
    history = run.history()
    return history.box_ap[max(history.box_ap)], history.mask_ap[max(history.mask_ap)]


def seconds_per_iteration(runs: Sequence[Run]) -> float:
    return statistics.mean(statistics.median(run.history().seconds.values()) for run in runs)


def summarise(runs: Sequence[Run], detectors: Mapping[str, Detector]) -> list[list[str]]:
    """The table; its first row is the head."""
    table = [["deformable conv", "box AP", "mask AP", "s / iteration", "parameters"]]
    for arm, seeds in by_arm(runs).items():
        box, mask = zip(*map(final_ap, seeds), strict=True)
        parameters = sum(p.numel() for p in detectors[arm].model.parameters())
        seconds = seconds_per_iteration(seeds)
        table.append([arm, mean_and_spread(box), mean_and_spread(mask), f"{seconds:.3f}", f"{parameters:,}"])
    return table


def setting(runs: Sequence[Run]) -> str:
    run, seeds = runs[0], len({run.seed for run in runs})
    per_arm = "one seed" if seeds == 1 else f"{seeds} seeds (mean ± standard deviation)"
    return (
        f"{run.shapes.train} training and {run.shapes.val} validation images, "
        f"equal iterations: {run.iterations} × {run.cfg.train_dataloader.batch_size} images, "
        f"{per_arm}"
    )


def compare(runs: Sequence[Run]) -> str:
    """What the table says, in a sentence: the best arm against the first."""
    arms = by_arm(runs)
    mask = {arm: statistics.mean(final_ap(run)[1] for run in seeds) for arm, seeds in arms.items()}
    first, best = next(iter(arms)), max(mask, key=mask.get)
    if best == first:
        return f"At equal iterations '{first}' is not beaten."
    ratio = seconds_per_iteration(arms[best]) / seconds_per_iteration(arms[first])
    return (
        f"At equal iterations '{best}' is {mask[best] - mask[first]:.3f} mask AP ahead of "
        f"'{first}'; one of its iterations takes {ratio:.2f} times as long."
    )


def show_table(table: Sequence[Sequence[str]], console: Console) -> None:
    view = Table()
    for i, head in enumerate(table[0]):
        view.add_column(head, justify="left" if i == 0 else "right")
    for row in table[1:]:
        view.add_row(*row)
    console.print(view)


def make_sections(runs: Sequence[Run], detectors: Mapping[str, Detector]) -> list[Section]:
    images = pick_images(detectors[runs[0].arm])
    predictions = {arm: [detector.predict(index) for index in images] for arm, detector in detectors.items()}
    first = predictions[runs[0].arm]
    columns = {"ground truth": [p.truth for p in first]}
    columns |= {arm: [p.detections for p in ps] for arm, ps in predictions.items()}
    detections = plot_detections([p.image for p in first], columns, CLASSES, PALETTE)
    sections = [
        Section(
            "Learning curves",
            "Training loss and validation AP. All arms see the same images equally often: equal "
            "iterations, not equal time. Thin lines are seeds, the thick line is their mean.",
            data_uri(plot_learning_curves(learning_curves(runs))),
        ),
        Section(
            "Detections",
            "The first validation images with three instances or more, seed 0, scores of 0.5 and "
            "up. Nothing was chosen by its result.",
            data_uri(detections),
        ),
    ]
    for arm, ps in predictions.items():
        if ps[0].fields:
            sections.append(
                Section(
                    f"Sampling points, {arm}",
                    f"What one place of the last deformable layer looks at (cross): its "
                    f"{len(ps[0].fields)} layers, {', '.join(f.name for f in ps[0].fields)}, "
                    "followed back to the image. Above, the grid of ordinary convolutions; below, "
                    "the learnt offsets, the more solid the more a point weighs.",
                    data_uri(plot_sampling(ps[0].image, ps[0].fields, locations(ps[0].truth))),
                )
            )
    return sections


def learning_curves(runs: Sequence[Run]) -> dict[str, Curves]:
    curves: dict[str, Curves] = {}
    names = {"loss": "training loss", "box_ap": "box AP", "mask_ap": "mask AP"}
    for field, title in names.items():
        curves[title] = {}
        for arm, seeds in by_arm(runs).items():
            series = [getattr(run.history(), field) for run in seeds]
            # a resumed run may lack a validation
            steps = sorted(set.intersection(*map(set, series)))
            values = np.array([[one[step] for step in steps] for one in series])
            curves[title][arm] = (np.array(steps), values)
    return curves


def pick_images(detector: Detector) -> list[int]:
    counts = [len(detector.dataset.get_data_info(i)["instances"]) for i in range(len(detector.dataset))]
    # stable: by index among those with three or more, then the others
    return sorted(range(len(counts)), key=lambda i: counts[i] < 3)[:SHOWN_IMAGES]


def locations(truth: Instances) -> dict[str, tuple[float, float]]:
    """The innermost place of the largest and the smallest instance, and one far from all."""
    order = np.argsort(truth.masks.sum((1, 2)))
    background = ~truth.masks.any(0)
    places = {
        f"{CLASSES[truth.labels[order[-1]]]}, the largest": truth.masks[order[-1]],
        f"{CLASSES[truth.labels[order[0]]]}, the smallest": truth.masks[order[0]],
        "background": background,
    }
    return {title: _innermost(mask) for title, mask in places.items()}


def _innermost(mask: np.ndarray) -> tuple[float, float]:
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(y), float(x)


if __name__ == "__main__":
    main()
