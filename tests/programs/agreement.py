"""Processes that compare gradients, join, agree and end: ``python -m tests.programs.agreement FOLDER``.

They are forked from one process that has the packages. Each has its own current folder and host name.
"""

import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import dcnzoo.models  # noqa: F401  first: mmdet needs mmcv._ext

# isort: split
import mmdet.evaluation  # noqa: F401
import torch
from mmengine.config import Config
from mmengine.dist import barrier
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from mmengine.runner import Runner
from torch.multiprocessing import start_processes

from dcnzoo.openmmlab.hooks.summary_head import _processes, count_machines
from dcnzoo.openmmlab.options import RunOptions
from dcnzoo.openmmlab.runs import ranks
from dcnzoo.openmmlab.runs.options import write_options
from dcnzoo.openmmlab.runs.ranks import joined
from dcnzoo.utils.errors import JointError, UserError
from tests.programs.worker import compare_gradients

RANKS = 3
CONTEXTS = ExitStack()


@METRICS.register_module()
class Numbers(BaseMetric):
    default_prefix = "numbers"

    def process(self, data_batch, data_samples):
        raise AssertionError

    def compute_metrics(self, results):
        return {"all": results}


def error_of(action, *arguments):
    """The text of the error that an action raises on every rank."""
    try:
        action(*arguments)
    except JointError as error:
        return str(error)
    raise AssertionError("no error")


def set_variables(rank: int, port: int) -> None:
    socket.gethostname = lambda: f"machine-{rank}"
    variables = dict(RANK=rank, LOCAL_RANK=0, WORLD_SIZE=RANKS, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ.update({name: str(value) for name, value in variables.items()})


def join(rank: int, port: int, cfg: Config) -> None:
    set_variables(rank, port)
    CONTEXTS.enter_context(joined(cfg))


def check(rank: int, folder: Path, port: int) -> None:
    (folder / str(rank)).mkdir()
    os.chdir(folder / str(rank))
    settings = dict(model=dict(depth=50, classes=("a", "b"), init="/on/machine/0"))
    settings |= dict(train_dataloader={}, val_dataloader={})
    cfg = Config(dict(settings, launcher="pytorch", work_dir=str(folder / "work")))
    join(rank, port, cfg)

    # all ranks get the value or error of rank 0, even if the others would refuse
    assert ranks.exchange(lambda: f"of {rank}") == "of 0"

    def refuse():
        raise UserError(f"refused by {rank}")

    assert error_of(ranks.exchange, refuse) == "refused by 0"
    assert "[Errno 28]" in error_of(ranks.exchange, lambda: os.write(full, b"x"))

    # settings
    hook = ranks.AgreementHook(cfg)

    def start(train=(), val=(), file=None, resume=False):
        loops = (
            SimpleNamespace(dataloader=SimpleNamespace(dataset=each, num_workers=0)) for each in (train, val)
        )
        names = dict(zip(("_train_loop", "_val_loop"), loops, strict=True), _test_loop=dict(type="TestLoop"))
        hook.before_run(SimpleNamespace(_load_from=file, _resume=resume, **names))

    cfg.model.init = f"/on/machine/{rank}"
    cfg.train_dataloader.num_workers = rank
    start()
    cfg.work_dir = str(folder / "work" if rank != 1 else folder / "other")  # of another job
    assert "rank 1 on machine-1: work_dir: expected" in error_of(start)
    cfg.work_dir = str(folder / "work")
    cfg.model.depth = 50 if rank != 2 else 101
    text = error_of(start)
    assert all(part in text for part in ("rank 2 on machine-2", "model.depth", "50", "101"))
    cfg.model.depth = 50

    assert "rank 1" in error_of(ranks.agree, {"rank": rank})

    runner = SimpleNamespace(optim_wrapper=dict(type="OptimWrapper"))  # of a test
    assert _processes(runner, count_machines()) == "3 on 3 machines"

    # ranks compare the data and the checkpoint
    checkpoint = folder / str(rank) / "file.pth"
    for loader in ("train", "val"):
        files = dict(data_root=str(checkpoint.parent), ann_file=f"{loader}.json")
        cfg[f"{loader}_dataloader"].dataset = files
        (checkpoint.parent / f"{loader}.json").write_text("[]")
    torch.save({"weights": torch.arange(3)}, checkpoint)
    start("a", "aa", str(checkpoint), True)
    differing = error_of(start, "a" * (2 - (rank == 1)))
    assert "rank 1 on machine-1: train_dataloader: expected 2 pictures" in differing
    (checkpoint.parent / "val.json").write_text(f"[{rank % 2}]")
    assert "rank 1 on machine-1: val_dataloader, val.json: expected " in error_of(start)
    (checkpoint.parent / "val.json").write_text("[]")
    torch.save({"weights": torch.arange(3) + (rank == 1)}, checkpoint)
    assert "rank 1 on machine-1: resume: expected file.pth" in error_of(start, (), (), str(checkpoint), True)
    assert "weights: expected file.pth" in error_of(start, (), (), str(checkpoint))
    missing = str(checkpoint if rank != 1 else folder / "none.pth")
    assert "no such file" in error_of(start, (), (), missing)

    # results are collected without a common folder
    def build(settings):
        own = Config(dict(cfg.to_dict(), test_evaluator=settings))
        write_options(own, RunOptions(launcher="pytorch"))
        return Runner.build_evaluator(None, own.test_evaluator)

    for settings in (
        dict(type="Numbers"),
        [dict(type="Numbers")],
        dict(type="Evaluator", metrics=[dict(type="Numbers")]),
    ):
        (metric,) = build(settings).metrics
        metric.results = [rank, rank + RANKS]
        assert metric.evaluate(5) == {"numbers/all": [0, 1, 2, 3, 4]}
        assert not Path(".dist_test").exists()
    for setting in (dict(collect_dir="shared"), dict(collect_device="cpu")):
        (metric,) = build(dict(type="Numbers", **setting)).metrics
        assert metric.collect_device == "cpu" and metric.collect_dir == setting.get("collect_dir")

    barrier()
    print(f"rank {rank}: all checks passed", flush=True)
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    full = os.open("/dev/full", os.O_WRONLY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    compare_gradients(2, port)
    start_processes(check, (Path(sys.argv[1]), port), RANKS, start_method="fork")
