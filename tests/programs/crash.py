"""Kill a training repeatedly, resume it, and compare it with an uninterrupted one.

``python -m tests.programs.crash FOLDER --each 2`` hits each of :data:`STEPS` twice, and as many random
moments. Each training is forked from a process that has imported all packages, so that it starts
fast. The resumed epoch and the final result are compared with an uninterrupted run. Prints how often each
step was hit as JSON; any difference raises an AssertionError. The other options choose the kind of training:
``--by iterations``, ``--accumulate``, ``--no-ema``, ``--ranks 2``. Of several ranks, rank 0 dies.
"""

import argparse
import contextlib
import errno
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._pytree import tree_flatten

import dcnzoo.models  # before mmdet, which needs mmcv.ops
import dcnzoo.openmmlab.datasets
import dcnzoo.openmmlab.hooks  # noqa: F401

# isort: split
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, ValLoop

from dcnzoo.openmmlab.checkpoints import load_file
from tests.helpers.demo import DEFORMABLE, write_tiny_config
from tests.helpers.processes import ROOT

EPOCHS = 4
CHANCE = random.Random(0)  # a generator of its own: the trainings use the global one
# (workers, persistent_workers) of the data loader
LOADERS = [(0, False), (2, False), (2, True)]
FULL = "disk full"  # the process exits by itself
RANDOM = "at a random moment"
STEPS = {  # of an epoch and of writing a checkpoint, in order, and the functions that they call
    "training": (None, "run_iter"),  # of the training's loop
    "validation begins": (ValLoop, "run"),
    "validating": (ValLoop, "run_iter"),
    "metrics": (CocoMetric, "compute_metrics"),
    "half written": (os, "fsync"),
    "written": (os, "replace"),
    "renamed": (os, "replace"),
    "outdated removed": (LocalBackend, "remove"),
    FULL: (os, "fsync"),
}


@dataclass(frozen=True)
class Kind:
    """The kind of training; see :func:`main`."""

    by: str
    ema: bool
    accumulate: bool
    ranks: int

    @property
    def name(self) -> str:
        return "epoch" if self.by == "epochs" else "iter"

    @property
    def unit(self) -> int:
        """By how much the numbers of two checkpoints differ."""
        return 1 if self.by == "epochs" else self.length

    @property
    def length(self) -> int:
        """Iterations of an epoch; a training by iterations saves and validates after as many.

        A checkpoint does not contain gradients, so a step of the optimizer ends before it.
        """
        return 4 if self.accumulate else 3

    @property
    def loop(self) -> type:
        return EpochBasedTrainLoop if self.by == "epochs" else IterBasedTrainLoop


def write_config(folder: Path, loader: int, kind: Kind) -> Path:
    workers, persistent = LOADERS[loader]
    settings = {
        "train_dataloader__num_workers": workers,
        "train_dataloader__persistent_workers": persistent,
        "optim_wrapper__accumulative_counts": 2 if kind.accumulate else 1,
    }
    pictures = kind.length * 2 * kind.ranks
    path = folder / f"loader{loader}.py"
    write_tiny_config(path, folder / "data", DEFORMABLE, train=pictures, val=2, epochs=EPOCHS, **settings)
    cfg = Config.fromfile(path)
    if not kind.ema:
        cfg.custom_hooks = []
    if kind.by == "iterations":
        loop = {"max_iters": EPOCHS * kind.length, "val_interval": kind.length}
        cfg.train_cfg = {"type": "IterBasedTrainLoop", **loop}
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=kind.length)
        cfg.log_processor = {"type": "LogProcessor", "window_size": 1, "by_epoch": False}
        cfg.train_dataloader.sampler = {"type": "InfiniteSampler"}
    cfg.dump(path)
    return path


def train(config: Path, work: Path, death: tuple[str, int] | None, kind: Kind, rank: int, port: int) -> None:
    """Train or resume, in a process that may die as in :func:`die_at`."""
    os.setpgid(0, 0)
    output = os.open(work / f"log{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    if death is not None and rank == 0:
        die_at(*death, kind)
    words = ["--resume"] if any(work.glob("[!.]*.pth")) else []
    if kind.ranks > 1:
        words += ["--launcher", "pytorch"]
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": kind.ranks, "MASTER_PORT": port}
        numbers |= {"LOCAL_WORLD_SIZE": kind.ranks}
        os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR="127.0.0.1")
    sys.argv = ["train", str(config), "--work-dir", str(work), *words]
    runpy.run_path(str(ROOT / "tools/train.py"), run_name="__main__")


Processes = list[multiprocessing.Process]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(config: Path, work: Path, kind: Kind, death: tuple[str, int] | None = None) -> Processes:
    """Start the processes of a training, rank 0 first."""
    work.mkdir(exist_ok=True)
    port, context = free_port(), multiprocessing.get_context("fork")
    processes = [
        context.Process(target=train, args=(config, work, death, kind, rank, port))
        for rank in range(kind.ranks)
    ]
    for process in processes:
        process.start()
    return processes


def wait(processes: Processes) -> int:
    """Return the exit status of rank 0, negative for a signal, and kill all other processes.

    Those are data loader workers, which can outlive it, and the other ranks, if it died, as a launcher does.
    """
    processes[0].join()
    status = processes[0].exitcode
    for process in processes:
        if status == 0:
            process.join()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return status


def die_at(step: str, times: int, kind: Kind) -> None:
    """Make this process die when it reaches ``step`` for the ``times``-th time."""
    target, name = STEPS[step]
    target = target or kind.loop
    function, left = getattr(target, name), times

    def die(*args, **kwargs):
        nonlocal left
        is_folder = name == "fsync" and not os.path.isfile(f"/proc/self/fd/{args[0]}")
        if not is_folder:
            left -= 1
        if left != 0 or is_folder:
            return function(*args, **kwargs)
        if step == FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if step == "half written":
            os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
        if step == "renamed":
            function(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(target, name, die)


def log(work: Path) -> str:
    return (work / "log0").read_text()


def saved(work: Path, kind: Kind) -> list[int]:
    """Numbers of the checkpoints with their final names, in ascending order."""
    return sorted(int(re.findall(r"\d+", path.name)[0]) for path in work.glob(f"{kind.name}_*.pth"))


def result(work: Path, kind: Kind) -> dict:
    """The results of a finished training that must not depend on interruptions."""
    assert saved(work, kind)[-1] == EPOCHS * kind.unit
    last = load_file(work / f"{kind.name}_{EPOCHS * kind.unit}.pth")
    (best,) = work.glob("best_*.pth")
    keys = ("state_dict", "optimizer", "param_schedulers", *(["ema_state_dict"] if kind.ema else []))
    return {
        **{key: last[key] for key in keys},
        "best": (best.name, torch.load(best, weights_only=True)["state_dict"]),
        "score": last["message_hub"]["runtime_info"]["best_score"],
        "iteration": last["meta"]["iter"],
    }


def assert_same(a: object, b: object) -> None:
    """Compare bit by bit."""
    (leaves, shape), (others, other) = tree_flatten(a), tree_flatten(b)
    assert shape == other
    for x, y in zip(leaves, others, strict=True):
        same = x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        assert same, (x, y)


def assert_resumed(text: str, last: int | None, kind: Kind) -> None:
    """Check that the run continued after the newest checkpoint of the process before, number ``last``."""
    resumed = re.findall(r"resumed epoch: (\d+), iter: (\d+)", text)
    position = str(last), str(kind.length * (last or 0))
    if kind.by == "iterations":
        position = "0", str(last)
    # empty if the process died before it resumed
    assert resumed in ([], [] if last is None else [position]), (last, text)
    begun = r"Iter\(train\) +\[ *(\d+)/"
    if kind.by == "epochs":
        begun = rf"Epoch\(train\) +\[(\d+)\]\[1/{kind.length}\]"
    trained = [int(number) for number in re.findall(begun, text)]
    assert trained == [(last or 0) + 1 + i for i in range(len(trained))], (last, text)


def next_death(counts: dict[str, int], each: int) -> str | None:
    """Return how the next process dies: at the rarest step or, every other time, at random. None: it ends."""
    step = min(STEPS, key=counts.get)
    if counts[step] >= each:
        return None
    return RANDOM if counts[RANDOM] < sum(counts[name] for name in STEPS) else step


def train_with_deaths(
    config: Path, work: Path, kind: Kind, counts: dict[str, int], each: int, seconds: float
) -> None:
    """Start processes, of which each resumes the training of the one before, until one finishes.

    Args:
        counts: how often each death has happened; updated
        seconds: duration of an uninterrupted training
    """
    last = None  # number of the newest checkpoint
    while True:
        how = next_death(counts, each)
        logs = {*work.glob("*/*.log")}
        processes = start(config, work, kind, (how, CHANCE.randint(1, 2)) if how in STEPS else None)
        if how == RANDOM:
            remaining = seconds * (1 - (last or 0) / kind.unit / EPOCHS)
            time.sleep(CHANCE.uniform(0, 0.6 * remaining))
            processes[0].kill()
        status = wait(processes)
        full = re.search(rf"^error: {work}/\S+ cannot be written.*No space left", log(work), re.MULTILINE)
        assert status in (0, -signal.SIGKILL) or (how == FULL and full), log(work)
        assert_resumed("".join(path.read_text() for path in {*work.glob("*/*.log")} - logs), last, kind)
        if status == 0:
            return
        counts[how] += 1
        last = max(saved(work, kind), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=2, help="how often each step is hit (default: 2)")
    parser.add_argument("--by", choices=["epochs", "iterations"], default="epochs")
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, default=True, help="average the weights"
    )
    parser.add_argument("--accumulate", action="store_true", help="two iterations per step of the optimizer")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a training (default: 1)")
    args = parser.parse_args()
    kind = Kind(args.by, args.ema, args.accumulate, args.ranks)
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    counts = dict.fromkeys([RANDOM, *STEPS], 0)
    configs = [write_config(folder, loader, kind) for loader in range(len(LOADERS))]
    expected, seconds = [], []
    for loader, config in enumerate(configs):
        work = folder / f"uninterrupted{loader}"
        shutil.rmtree(work, ignore_errors=True)
        began = time.monotonic()
        status = wait(start(config, work, kind))
        assert status == 0, log(work)
        seconds.append(time.monotonic() - began)
        expected.append(result(work, kind))
    trainings = 0
    while next_death(counts, args.each):
        loader = trainings % len(LOADERS)
        work = folder / f"killed{loader}"
        shutil.rmtree(work, ignore_errors=True)
        train_with_deaths(configs[loader], work, kind, counts, args.each, seconds[loader])
        assert len(saved(work, kind)) == 2 and not list(work.glob(".*.partial*")), os.listdir(work)
        assert_same(result(work, kind), expected[loader])
        trainings += 1
        print(f"{trainings} trainings, {sum(counts.values())} deaths: the same bits", file=sys.stderr)
    print(json.dumps({**counts, "trainings": trainings}))


if __name__ == "__main__":
    main()
