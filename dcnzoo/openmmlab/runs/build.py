"""From a config to a model, or to a runner that trains or tests one."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

import dcnzoo.openmmlab.export.deployed  # noqa: F401  for tests of exported files
from dcnzoo.openmmlab import hooks
from dcnzoo.openmmlab.classes import names_of_model
from dcnzoo.openmmlab.config.errors import config_errors, with_paths
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.runs.batches import number_batches
from dcnzoo.openmmlab.runs.device import require_device
from dcnzoo.openmmlab.runs.ranks import AgreementHook
from dcnzoo.openmmlab.runs.recipe import Recipe, RunConfig
from dcnzoo.openmmlab.runs.runner import runner_class
from dcnzoo.openmmlab.runs.start import Start, WorkDirHook
from dcnzoo.openmmlab.weights import load_weights
from dcnzoo.utils.files import require_writable


def build_model(
    recipe: Recipe,
    weights: Path | str | None = None,
    *,
    device: str | torch.device = "cpu",
    unsafe_load: bool = False,
    allow_partial: bool = False,
) -> nn.Module:
    """Build the model in evaluation mode. All code except MMEngine's runners uses this function.

    Args:
        weights: a checkpoint; None: random weights.
        device, unsafe_load, allow_partial: see :func:`dcnzoo.load`.

    Returns:
        The model, with the attributes ``cfg`` and, if it has weights, ``dataset_meta``: the names and colours
        of its classes.
    """
    target, cfg = require_device(device), copy.deepcopy(recipe.cfg)
    for _, node in dicts(cfg.model):
        node.pop("teacher_ckpt", None)  # the teacher is used only in training
    with config_errors(cfg):
        init_default_scope(cfg.get("default_scope", "mmdet"))  # not undone: inference_detector needs it too
        # a copy: detectors such as DINO add settings to their heads' configs, which a second build refuses
        model = revert_sync_batchnorm(MODELS.build(with_paths(cfg).model))
        if weights is not None:
            meta, report = load_weights(model, weights, unsafe_load, allow_partial, cfg.model)
            if report:
                print_log(f"{weights}: {report}", logger="current")
            model.dataset_meta = names_of_model(cfg, meta)
        model.cfg = cfg
        model.eval()  # eval() returns None in detectors with a teacher
        return model.to(target)


def build_runner(
    cfg: Config,
    start: Start,
    *,
    training: RunConfig | None = None,
    summary: hooks.SummaryHook | None = None,
    allow_partial: bool = False,
    checks: Sequence[Hook] = (),
) -> Any:
    """Build mmengine's runner; it loads checkpoints by :func:`dcnzoo.openmmlab.weights.load_state`.

    Args:
        cfg: with the options of a run. It stays as it is.
        training: the training, which fine-tunes unless it resumes. None: a test, which keeps the config in
            the work directory: it belongs to the checkpoints there.
        summary: hook that prints in place of mmengine's log. The terminal then shows only the log's warnings;
            the log file is complete.
        allow_partial: see :func:`dcnzoo.openmmlab.weights.load_state`.
        checks: hooks that run when the weights are loaded, before the training loop.

    Raises:
        UserError: there is no such runner, or the work directory cannot be written.
    """
    cfg = _adapted(cfg, is_training=training is not None)
    kind = runner_class(cfg, is_quiet=summary is not None)
    if is_main_process():
        require_writable(cfg.work_dir)
    built = with_paths(cfg)
    if cfg.default_hooks.get("epoch_seed"):
        number_batches(built)
    runner = kind.from_cfg(built)
    runner.set_start(start, is_training=training is not None)
    if cfg.launcher == "none" and isinstance(runner.model, nn.Module):
        runner.model = revert_sync_batchnorm(runner.model)
    added = [*checks, summary, AgreementHook(training.cfg if training else cfg)]
    added += [hooks.LoadCheckpointHook(training is not None, allow_partial)]
    if training is not None:
        added += [WorkDirHook(training), hooks.ResumeHook()]
    for hook in filter(None, added):
        runner.register_hook(hook)
    return runner


def _adapted(cfg: Config, is_training: bool) -> Config:
    """Return a copy of a config in which mmengine reads the settings as dcnzoo means them."""
    cfg = copy.deepcopy(cfg)
    cfg.pop("resume", None)  # Start decides
    scaling = cfg.get("auto_scale_lr") or {}
    if is_training and scaling.get("enable"):  # mmengine counts images per iteration, not per step
        scaling["base_batch_size"] /= cfg.optim_wrapper.get("accumulative_counts", 1)
    for name in hooks.DEFAULT_HOOKS.keys() - {"checkpoint"}:  # mmengine knows None only for its own names
        if cfg.default_hooks.get(name) is None:
            cfg.default_hooks.pop(name, None)
    return cfg
