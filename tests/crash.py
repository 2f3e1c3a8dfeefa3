"""Kill a training repeatedly, resume it, and compare it with an uninterrupted one.

``python -m tests.crash FOLDER --each 2`` hits each of :data:`STEPS` twice, with as many kills at random
moments between them. Each training is forked from a process that has imported all packages, so that it starts
fast. The resumed epoch and the final result are compared with an uninterrupted run. Prints how often each
step was hit as JSON; any difference raises an AssertionError.
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
import sys
import time
from pathlib import Path

import torch
from torch.utils._pytree import tree_flatten

import dcnzoo.models  # before mmdet, which needs mmcv.ops
import dcnzoo.openmmlab.datasets
import dcnzoo.openmmlab.hooks  # noqa: F401

# isort: split
from mmdet.evaluation import CocoMetric
from mmengine.fileio import LocalBackend
from mmengine.runner import EpochBasedTrainLoop, ValLoop

from dcnzoo.openmmlab.checkpoints import load_file
from tests.demo import DEFORMABLE, write_tiny_config
from tests.processes import ROOT

EPOCHS = 4
CHANCE = random.Random(0)  # a generator of its own: the trainings use the global one
# (workers, persistent_workers) of the data loader
LOADERS = [(0, False), (2, False), (2, True)]
FULL = "disk full"  # the process exits by itself
RANDOM = "at a random moment"
STEPS = {  # of an epoch and of writing a checkpoint, in order, and the functions that they call
    "training": (EpochBasedTrainLoop, "run_iter"),
    "validation begins": (ValLoop, "run"),
    "validating": (ValLoop, "run_iter"),
    "metrics": (CocoMetric, "compute_metrics"),
    "half written": (os, "fsync"),
    "written": (os, "replace"),
    "renamed": (os, "replace"),
    "outdated removed": (LocalBackend, "remove"),
    FULL: (os, "fsync"),
}


def write_config(folder: Path, loader: int) -> Path:
    workers, persistent = LOADERS[loader]
    return write_tiny_config(
        folder / f"loader{loader}.py", folder / "data", DEFORMABLE, train=6, val=2, epochs=EPOCHS,
        train_dataloader__num_workers=workers, train_dataloader__persistent_workers=persistent,
    )  # fmt: skip


def train(config: Path, work: Path, death: tuple[str, int] | None) -> None:
    """Train or resume, in a process that may die as in :func:`die_at`."""
    os.setpgid(0, 0)
    output = os.open(work / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    if death is not None:
        die_at(*death)
    resume = ["--resume"] if any(work.glob("[!.]*.pth")) else []
    sys.argv = ["train", str(config), "--work-dir", str(work), *resume]
    runpy.run_path(str(ROOT / "tools/train.py"), run_name="__main__")


def start(config: Path, work: Path, death: tuple[str, int] | None = None) -> multiprocessing.Process:
    work.mkdir(exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=train, args=(config, work, death))
    process.start()
    return process


def wait(process: multiprocessing.Process) -> int:
    """Return the exit status, negative for a signal, and kill data loader workers, which can outlive it."""
    process.join()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.exitcode


def die_at(step: str, times: int) -> None:
    """Make this process die when it reaches ``step`` for the ``times``-th time."""
    target, name = STEPS[step]
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
    return (work / "log").read_text()


def epochs(work: Path) -> list[int]:
    """Epochs of the checkpoints with their final names, in ascending order."""
    return sorted(int(re.findall(r"\d+", path.name)[0]) for path in work.glob("epoch_*.pth"))


def result(work: Path) -> dict:
    """The results of a finished training that must not depend on interruptions."""
    assert epochs(work)[-1] == EPOCHS
    last = load_file(work / f"epoch_{EPOCHS}.pth")
    (best,) = work.glob("best_*.pth")
    return {
        **{key: last[key] for key in ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")},
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


def assert_resumed(text: str, last: int | None) -> None:
    """Check that the run continued after epoch ``last``, the newest checkpoint when the last process died."""
    resumed = re.findall(r"resumed epoch: (\d+), iter: (\d+)", text)
    # empty if the process died before it resumed
    assert resumed in ([], [] if last is None else [(str(last), str(3 * last))]), (last, text)
    trained = [int(epoch) for epoch in re.findall(r"Epoch\(train\) +\[(\d+)\]\[1/3\]", text)]
    assert trained == [(last or 0) + 1 + i for i in range(len(trained))], (last, text)


def next_death(counts: dict[str, int], each: int) -> str | None:
    """Return how the next process dies: at the rarest step or, every other time, at random. None: it ends."""
    step = min(STEPS, key=counts.get)
    if counts[step] >= each:
        return None
    return RANDOM if counts[RANDOM] < sum(counts[name] for name in STEPS) else step


def train_with_deaths(config: Path, work: Path, counts: dict[str, int], each: int, seconds: float) -> None:
    """Start processes, of which each resumes the training of the one before, until one finishes.

    Args:
        counts: how often each death has happened; updated
        seconds: duration of an uninterrupted training
    """
    last = None  # epoch of the newest checkpoint
    while True:
        how = next_death(counts, each)
        logs = {*work.glob("*/*.log")}
        process = start(config, work, (how, CHANCE.randint(1, 2)) if how in STEPS else None)
        if how == RANDOM:
            remaining = seconds * (1 - (last or 0) / EPOCHS)
            time.sleep(CHANCE.uniform(0, 0.6 * remaining))
            process.kill()
        status = wait(process)
        full = re.search(rf"^error: {work}/\S+ cannot be written.*No space left", log(work), re.MULTILINE)
        assert status in (0, -signal.SIGKILL) or (how == FULL and full), log(work)
        assert_resumed("".join(path.read_text() for path in {*work.glob("*/*.log")} - logs), last)
        if status == 0:
            return
        counts[how] += 1
        last = max(epochs(work), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=2, help="how often each step is hit (default: 2)")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    counts = dict.fromkeys([RANDOM, *STEPS], 0)
    configs = [write_config(folder, loader) for loader in range(len(LOADERS))]
    expected, seconds = [], []
    for loader, config in enumerate(configs):
        work = folder / f"uninterrupted{loader}"
        shutil.rmtree(work, ignore_errors=True)
        began = time.monotonic()
        status = wait(start(config, work))
        assert status == 0, log(work)
        seconds.append(time.monotonic() - began)
        expected.append(result(work))
    trainings = 0
    while next_death(counts, args.each):
        loader = trainings % len(LOADERS)
        work = folder / f"killed{loader}"
        shutil.rmtree(work, ignore_errors=True)
        train_with_deaths(configs[loader], work, counts, args.each, seconds[loader])
        assert len(epochs(work)) == 2 and not list(work.glob(".*.partial*")), os.listdir(work)
        assert_same(result(work), expected[loader])
        trainings += 1
        print(f"{trainings} trainings, {sum(counts.values())} deaths: the same bits", file=sys.stderr)
    print(json.dumps({**counts, "trainings": trainings}))


if __name__ == "__main__":
    main()
