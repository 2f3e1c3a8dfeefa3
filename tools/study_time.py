"""Measure the CPU time of each arm's training iteration: one process, one thread, alternating.

The trainings of a study run at different times and next to other work, so their seconds are not comparable.
"""

import copy
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import dcnzoo.models
import dcnzoo.openmmlab.datasets  # noqa: F401

# isort: split
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from study_results import TIME_COLUMNS, write_csv
from trainings import Run

BATCHES = 2  # iterations of a round


def measure_time(runs: Mapping[str, Run], file: Path, rounds: int) -> None:
    """Measure the arms and overwrite the file.

    Args:
        runs: a training of each arm, which is not started.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    steps = {arm: _train(run.cfg) for arm, run in runs.items()}
    rows = []
    for number in range(-1, rounds):
        for arm, step in steps.items():
            start = time.process_time()
            for _ in range(BATCHES):
                next(step)
            seconds = (time.process_time() - start) / BATCHES
            if number >= 0:  # round -1 is a warm-up
                rows.append(dict(zip(TIME_COLUMNS, (arm, number, f"{seconds:.4f}"), strict=True)))
    torch.set_num_threads(threads)
    write_csv(file, TIME_COLUMNS, rows)


def _train(cfg: Config) -> Iterator[None]:
    """Train endlessly on the first batches; yield after each iteration."""
    init_default_scope("mmdet")
    model = MODELS.build(copy.deepcopy(cfg.model)).train()
    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    loader = Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader), seed=0)
    for batch in itertools.cycle(list(itertools.islice(loader, BATCHES))):
        model.train_step(copy.deepcopy(batch), optim_wrapper=optimizer)
        yield
