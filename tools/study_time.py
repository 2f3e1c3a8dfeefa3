"""Measure the CPU time of a training iteration of each arm, in turns in one process, on one thread.

Trainings of a study run at different times, beside other work. Their seconds cannot be compared.
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
    """Write the file anew.

    Args:
        runs: a training of each arm; it is not begun.
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
            if number >= 0:  # the round before it warms up
                rows.append(dict(zip(TIME_COLUMNS, (arm, number, f"{seconds:.4f}"), strict=True)))
    torch.set_num_threads(threads)
    write_csv(file, TIME_COLUMNS, rows)


def _train(cfg: Config) -> Iterator[None]:
    """Train without end on the first batches, an iteration at a time."""
    init_default_scope("mmdet")
    model = MODELS.build(copy.deepcopy(cfg.model)).train()
    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    loader = Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader), seed=0)
    for batch in itertools.cycle(list(itertools.islice(loader, BATCHES))):
        model.train_step(copy.deepcopy(batch), optim_wrapper=optimizer)
        yield
