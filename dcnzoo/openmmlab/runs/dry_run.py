"""A dry run: everything is built, one step is trained, and nothing is written."""

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from dcnzoo.openmmlab.config.errors import config_errors
from dcnzoo.openmmlab.hooks import FiniteLossHook


class _DryRunEnds(Exception):
    """Raised when the step is trained."""


@contextlib.contextmanager
def without_files(cfg: Config) -> Iterator[Config]:
    """Context of a dry run, with its config: the log is written to a temporary folder, and nothing else."""
    cfg = copy.deepcopy(cfg)
    if cfg.get("visualizer"):
        cfg.visualizer.vis_backends = None  # such as wandb, which opens a run
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_DryRunEnds):
        cfg.work_dir = folder
        yield cfg


class DryRunHook(Hook):
    """Before the training loop: train one step, and end the context :func:`without_files`."""

    priority = "HIGHEST"  # before a hook writes a file

    def before_train(self, runner: Runner) -> None:
        _train_one(runner)
        raise _DryRunEnds


def _train_one(runner: Runner) -> None:
    """Train one step with the first batch, and require a finite loss."""
    with config_errors(runner.cfg, "train_dataloader"):
        loader = runner.train_dataloader
        batches = getattr(loader.batch_sampler, "batches", loader.batch_sampler)  # of NumberedBatches
        batch = loader.collate_fn([loader.dataset[index] for index in next(iter(batches))])
    # RuntimeInfoHook, which sets these, does not run here; models that resize batches read them
    runner.message_hub.update_info_dict({"epoch": runner.epoch, "iter": runner.iter})
    wrapper: Any = runner.optim_wrapper
    wrapper.initialize_count_status(runner.model, runner.iter, runner.max_iters)
    runner.model.train()  # returns None in detectors with a teacher
    losses = runner.model.train_step(batch, optim_wrapper=wrapper)
    FiniteLossHook().after_train_iter(runner, 0, batch, losses)
