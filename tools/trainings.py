"""Run trainings in parallel, each ``tools/train.py`` in a separate process and folder.

Finished runs with an unchanged config are reused; interrupted runs are resumed at their last epoch.
"""

import copy
import dataclasses
import fcntl
import functools
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import dcnzoo.openmmlab.hooks  # noqa: F401  silences a warning of mmengine's import

# isort: split
from mmengine.config import Config, ConfigDict
from rich.console import Console
from rich.progress import Progress, TaskID

from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.report.history import History
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import write_text
from dcnzoo.utils.progress import make_progress

ROOT = Path(__file__).resolve().parent.parent
# the demo's detector, without deformable convolution and with each operator
ARMS = {
    "off": "mask-rcnn_r14_fpn_8e_shapes.py",
    "v1": "mask-rcnn_r14-dconv_fpn_8e_shapes.py",
    "v2": "mask-rcnn_r14-mdconv_fpn_8e_shapes.py",
    "v3": "mask-rcnn_r14-dcnv3_fpn_8e_shapes.py",
    "v4": "mask-rcnn_r14-dcnv4_fpn_8e_shapes.py",
}
POLL_SECONDS = 0.5


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
    def fingerprint(self) -> str:
        return hashlib.sha256(self.cfg.pretty_text.encode()).hexdigest()

    def is_finished(self) -> bool:
        return self._state() == {"fingerprint": self.fingerprint, "finished": True}

    def prepare(self) -> None:
        """Write the config; remove the files of a previous config."""
        if self._state().get("fingerprint") != self.fingerprint:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cfg.dump(self.folder / "config.py")
        self.write_state(finished=False)

    def _state(self) -> dict:
        try:
            return json.loads((self.folder / "run.json").read_text())
        except (OSError, json.JSONDecodeError):
            return {}

    def write_state(self, finished: bool) -> None:
        state = {"fingerprint": self.fingerprint, "finished": finished}
        write_text(self.folder / "run.json", json.dumps(state))


def make_run(name: str, config: str, seed: int, folder: Path, options: Mapping[str, object]) -> Run:
    """Prepare a training of a config in ``configs/demo``.

    Args:
        options: settings to override, as with ``--cfg-options``.
    """
    cfg = copy.deepcopy(_read_config(config))
    cfg.merge_from_dict(dict(options))
    cfg.randomness = {"seed": seed}
    cfg.work_dir = str(folder)
    batches = math.ceil(_images(cfg.train_dataloader.dataset) / cfg.train_dataloader.batch_size)
    return Run(name, cfg, folder, batches * cfg.train_cfg.max_epochs)


@functools.cache
def _read_config(name: str) -> Config:
    return Config.fromfile(ROOT / "configs" / "demo" / name, import_custom_modules=False)


def _images(dataset: ConfigDict) -> int:
    if dataset.type == "RepeatDataset":
        return dataset.times * _images(dataset.dataset)
    if "shapes" in dataset:
        return dataset.shapes.train
    file = Path(dataset.data_root) / dataset.ann_file
    if not file.is_file():
        raise UserError(f"{file}: expected annotations in COCO's format, found none")
    content = json.loads(file.read_text())
    return len({annotation["image_id"] for annotation in content["annotations"]})


def make_data(cfg: Config, console: Console) -> None:
    """Generate the data before the runs start, so that they do not generate it concurrently."""
    dataset = cfg.train_dataloader.dataset
    if "shapes" not in dataset:
        return
    spec = ShapesSpec(**dataset.shapes)
    started = time.monotonic()
    made = make_shapes(dataset.data_root, spec)
    how = f"generated in {time.monotonic() - started:.1f} s" if made else "already exists"
    console.print(f"data: {dataset.data_root}, {spec.train} + {spec.val} images, {how}")


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


def train(
    runs: Sequence[Run],
    jobs: int,
    threads: int,
    lock: IO,
    console: Console,
    finished: Callable[[Run], None] = lambda run: None,
) -> None:
    """Train the unfinished runs, ``jobs`` at a time, and show their progress.

    Args:
        threads: per run.
        lock: from :func:`locked`; held until the last process has ended.
        finished: called after each run that was trained.
    """
    waiting = [run for run in runs if not run.is_finished()]
    running: list[_Training] = []
    # long period: progress is read from logs, which are written in steps
    with make_progress(console, disable=not console.is_terminal, speed_estimate_period=600) as progress:
        bars = [progress.add_task(run.name, total=run.iterations, note="") for run in waiting]
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    running.append(_Training(run, _start(run, threads, lock), bars.pop(0)))
                    progress.reset(running[-1].bar)
                time.sleep(POLL_SECONDS)
                for training in list(running):
                    ended = training.process.poll() is not None
                    _show(training, progress, console)
                    if ended:
                        running.remove(training)
                        _finish(training)
                        finished(training.run)
        finally:
            for training in running:
                training.process.terminate()
            for training in running:
                training.process.wait()


def _start(run: Run, threads: int, lock: IO) -> subprocess.Popen:
    run.prepare()
    arguments = [ROOT / "tools" / "train.py", run.folder / "config.py", "--resume"]
    with open(run.folder / "console.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            pass_fds=[lock.fileno()],
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
    run.write_state(finished=True)


@contextmanager
def locked(folder: Path) -> Iterator[IO]:
    """Lock a folder against a second run. A termination signal cleans up like Ctrl-C."""
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: expected no other run in this folder, found one") from None
        yield lock
