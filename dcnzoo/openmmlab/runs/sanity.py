"""The sanity check: predict one validation picture before the first step, so that mistakes show early."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import DataLoader

from dcnzoo.openmmlab.config.errors import config_errors
from dcnzoo.openmmlab.hooks.random_states import random_states
from dcnzoo.utils.errors import UserError

_OF_ALL_PICTURES = {"ReIDMetrics", "CocoOccludedSeparatedMetric", "CrowdHumanMetric"}  # fail with one


class SanityHook(Hook):
    """Predict one picture before the training loop; see :func:`predict_one`."""

    priority = "HIGHEST"  # before a hook writes a file

    def before_train(self, runner: Runner) -> None:
        if runner.val_loop:
            predict_one(runner)


def predict_one(runner: Runner) -> None:
    """Predict the first picture of the validation's data set; compute its metrics with copies of the metrics.

    No loop, hook, loader or sampler runs: a sampler, such as AspectRatioBatchSampler, may begin with what is
    left of its last iteration. The training then gives bit-identical results to one without this check.

    Raises:
        UserError: the pipeline, the model or a metric fails.
    """
    loop: Any = runner.val_loop
    loader, evaluator = getattr(loop, "dataloader", None), getattr(loop, "evaluator", None)
    if not (isinstance(loader, DataLoader) and isinstance(evaluator, Evaluator)):
        return
    try:
        with _unchanged(runner.model):
            with config_errors(runner.cfg, "val_dataloader"):
                batch = loader.collate_fn([loader.dataset[0]])
            with config_errors(runner.cfg, "model"), autocast(enabled=getattr(loop, "fp16", False)):
                runner.model.eval()  # returns None in detectors with a teacher
                outputs = runner.model.val_step(batch)
            samples = [each.to_dict() if isinstance(each, BaseDataElement) else each for each in outputs]
            with config_errors(runner.cfg, "val_evaluator"):
                for metric in evaluator.metrics:
                    # other evaluators give each metric its own pictures
                    if type(evaluator).evaluate is Evaluator.evaluate and _can_be_copied(metric):
                        _compute(metric, batch, samples)
    except UserError as error:
        *lines, last = error.args
        raise UserError(*lines, f"{last}; sanity=False trains without this check") from error


def _can_be_copied(metric: BaseMetric) -> bool:
    """Return whether a copy of a metric works with one picture, and neither writes nor deletes files."""
    writes = any(value for name, value in vars(metric).items() if name.startswith(("out", "tmp_dir")))
    is_usual = type(metric).evaluate is BaseMetric.evaluate and type(metric).__name__ not in _OF_ALL_PICTURES
    return is_usual and not writes and not hasattr(metric, "__del__")


def _compute(metric: BaseMetric, batch: Any, samples: list[dict]) -> None:
    """Compute a metric of these pictures with a copy that has its own lists and dictionaries."""
    own = copy.copy(metric)
    lists = {name: copy.copy(v) for name, v in vars(metric).items() if isinstance(v, list | dict | set)}
    vars(own).update(lists, results=[])
    if hasattr(metric, "img_ids"):  # of CocoMetric, which otherwise evaluates all pictures of its file
        own.img_ids = [sample["img_id"] for sample in samples]
    own.process(batch, samples)
    if own.results:
        own.compute_metrics(own.results)


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Context without log and gradients that restores the modes, the buffers and the random generators."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with random_states(), torch.random.fork_rng(gpus), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(io.StringIO()):
                yield
            for buffer, before in buffers:
                buffer.copy_(before)
    finally:
        logging.disable(disabled)
        for module, training in modes:
            module.training = training
