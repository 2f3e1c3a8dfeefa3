"""Kill a training repeatedly, resume it, and compare it with an uninterrupted one.

``python tests/crash.py FOLDER --kills 20``, or ``--each 2``: each of :data:`STEPS` until it was hit twice.
Each training is forked from a process that has imported all packages, so that it starts fast. SIGKILL ends
it at a random moment or at a chosen step of an epoch. The resumed epoch and the final result are compared
with an uninterrupted run. Prints a summary as JSON; any difference raises an AssertionError.
"""

import argparse
import contextlib
import errno
import itertools
import json
import os
import random
import re
import runpy
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.utils._pytree import tree_flatten  # noqa: E402

import dcnzoo.models  # noqa: E402  before mmdet, which needs mmcv.ops
import dcnzoo.openmmlab.datasets  # noqa: E402
import dcnzoo.openmmlab.hooks  # noqa: E402, F401

# isort: split
from mmdet.evaluation import CocoMetric  # noqa: E402
from mmengine.fileio import LocalBackend  # noqa: E402
from mmengine.runner import EpochBasedTrainLoop, ValLoop  # noqa: E402

from dcnzoo.openmmlab.checkpoints import load_file  # noqa: E402

EPOCHS = 4
CONFIG = """
_base_ = {base!r}
train_cfg = dict(max_epochs={epochs})
randomness = dict(seed=5)
small = dict(
    data_root={data!r},
    shapes=dict(train=6, val=2, size=64, min_radius=8, max_radius=28))
train_dataloader = dict(
    batch_size=2, num_workers={workers}, persistent_workers={persistent}, dataset=small)
val_dataloader = dict(dataset=small)
val_evaluator = dict(ann_file={data!r} + 'annotations/val.json')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(save_best='coco/bbox_mAP', max_keep_ckpts=2))
model = dict(
    train_cfg=dict(rpn_proposal=dict(max_per_img=16)),
    test_cfg=dict(rpn=dict(max_per_img=16), rcnn=dict(score_thr=0.0, max_per_img=4)))
"""
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
    path = folder / f"loader{loader}.py"
    base = str(ROOT / "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py")
    settings = {"workers": workers, "persistent": persistent, "epochs": EPOCHS, "base": base}
    path.write_text(CONFIG.format(data=f"{folder / 'data'}/", **settings))
    return path


def start(config: Path, work: Path, death: tuple[str, int] | None = None) -> int:
    sys.stdout.flush()
    work.mkdir(exist_ok=True)
    output = os.open(work / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    if process := os.fork():
        os.close(output)
        return process
    status = 1
    try:
        os.setpgid(0, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if death is not None:
            die_at(*death)
        resume = ["--resume"] if any(work.glob("[!.]*.pth")) else []
        sys.argv = ["train", str(config), "--work-dir", str(work), *resume]
        runpy.run_path(str(ROOT / "tools/train.py"), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code not in (0, None))
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(process: int) -> int:
    """Exit status. Also kills its data loader workers, which can outlive it."""
    _, status = os.waitpid(process, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    return status


def die_at(step: str, times: int) -> None:
    """Make this process die when it reaches ``step`` for the ``times``-th time."""
    target, name = STEPS[step]
    function, left = getattr(target, name), times

    def die(*args, **kwargs):
        nonlocal left
        left -= name != "fsync" or os.path.isfile(f"/proc/self/fd/{args[0]}")  # does not count folders
        if left:
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
    """The run continued after epoch ``last``, the newest checkpoint when the previous process died."""
    resumed = re.findall(r"resumed epoch: (\d+), iter: (\d+)", text)
    # empty if the process died before it resumed
    assert resumed in ([], [] if last is None else [(str(last), str(3 * last))]), (last, text)
    trained = [int(epoch) for epoch in re.findall(r"Epoch\(train\) +\[(\d+)\]\[1/3\]", text)]
    assert trained == [(last or 0) + 1 + i for i in range(len(trained))], (last, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--each", type=int, help="in place of --kills: how often each step is hit")
    args = parser.parse_args()
    folder, chance = args.folder.resolve(), random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    whole, seconds = {}, {}
    for loader in range(len(LOADERS)):
        began = time.monotonic()
        work = folder / f"whole{loader}"
        shutil.rmtree(work, ignore_errors=True)
        status = wait(start(write_config(folder, loader), work))
        assert status == 0, log(work)
        seconds[loader] = time.monotonic() - began
        whole[loader] = result(work)

    deaths = dict.fromkeys([RANDOM, *STEPS], 0)
    # every other kill at a random moment
    order = itertools.cycle([RANDOM, *(how for step in STEPS for how in (step, RANDOM))])
    finished, kills, writing = 0, 0, 0

    def next_death() -> str | None:
        """How the next process dies; None: the run may finish."""
        if args.each is None:
            return next(order) if kills < args.kills else None
        return min(STEPS, key=lambda step: deaths[step]) if is_left() else None

    def is_left() -> bool:
        if args.each is None:
            return kills < args.kills
        return any(deaths[step] < args.each for step in STEPS)

    while True:
        loader = finished % len(LOADERS)
        config, work, last = folder / f"loader{loader}.py", folder / f"killed{loader}", None
        shutil.rmtree(work, ignore_errors=True)
        while True:
            how = next_death()
            death = (how, chance.randint(1, 5 if args.each is None else 2)) if how in STEPS else None
            before = {*work.glob("*/*.log")}
            process = start(config, work, death)
            if how is not None and death is None:
                left = 1 - (last or 0) / EPOCHS
                time.sleep(chance.uniform(0, 0.6 * left * seconds[loader]))  # less than the remaining time
                os.kill(process, signal.SIGKILL)
            status = wait(process)
            full = re.search(rf"^error: {work}/\S+ cannot be written.*No space left", log(work), re.MULTILINE)
            assert status in (0, signal.SIGKILL) or (how == FULL and full), log(work)
            assert_resumed("".join(path.read_text() for path in {*work.glob("*/*.log")} - before), last)
            if status == 0:
                break
            kills += how != FULL
            deaths[how] += 1
            writing += status != 0 and any(work.glob(".*.partial*"))
            last = max(epochs(work), default=None)
        finished += 1
        assert len(epochs(work)) == 2 and not list(work.glob(".*.partial*")), os.listdir(work)
        assert_same(result(work), whole[loader])
        print(f"{finished} trainings, {kills} kills: the same bits", file=sys.stderr)
        if not is_left():
            break
    figures = {"kills": kills, "while a file was written": writing, **deaths, "trainings": finished}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
