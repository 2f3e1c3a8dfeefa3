"""Train, test or build the model of a recipe."""

import copy
import logging
import os
import signal
import tempfile
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger, print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import CheckpointLoader, Runner
from torch import nn

import dcnzoo.openmmlab.export.test_loop  # noqa: F401  for tests of exported files
from dcnzoo.compat.patches import Changes
from dcnzoo.detect.metric_names import named
from dcnzoo.openmmlab import hooks
from dcnzoo.openmmlab.checkpoints import load_file
from dcnzoo.openmmlab.classes import names_of_model
from dcnzoo.openmmlab.config.errors import config_errors, with_paths
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.options import TestOptions, TrainOptions
from dcnzoo.openmmlab.runs import ranks
from dcnzoo.openmmlab.runs.batches import number_batches
from dcnzoo.openmmlab.runs.device import require_device, use_device
from dcnzoo.openmmlab.runs.loading import loader_errors
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.openmmlab.runs.sanity import predict_one
from dcnzoo.openmmlab.runs.separate_run import separate_run
from dcnzoo.openmmlab.runs.start import Start, WorkDirHook, claim, require_new_config
from dcnzoo.openmmlab.weights import load_weights
from dcnzoo.utils.errors import UserError, user_errors
from dcnzoo.utils.files import require_new, require_writable
from dcnzoo.utils.text import few


class _DryRunEnds(Exception):
    """Raised when a dry run has trained one step."""


def _stop_bars(runner: Runner) -> None:
    """Stop the progress bars of a runner: mmengine calls no hook after an error."""
    for hook in runner.hooks:
        if isinstance(hook, hooks.ProgressHook):
            hook.stop()


def train(
    recipe: Recipe,
    options: TrainOptions,
    *,
    resume: bool | str | os.PathLike | None = False,
    force: bool = False,
    dry_run: bool = False,
    sanity: bool = True,
) -> Path:
    """Train a detector in a work directory that this function locks; return the work directory.

    Args:
        resume, force: see :func:`~dcnzoo.openmmlab.runs.start.choose_start`.
        dry_run, sanity: see :func:`run`.

    Raises:
        UserError: as :func:`run`; or the folder is in use.
    """
    with ExitStack() as stack:
        with user_errors():
            stack.enter_context(use_device(options.device, options.launcher))
            recipe = recipe.with_options(options)
            stack.enter_context(ranks.joined(recipe.cfg))
            locks = stack.enter_context(ExitStack())

            def decide() -> Start:
                with claim(locks, recipe, dry_run, resume=resume, force=force) as start:
                    return start

            start = ranks.exchange(decide)
        return run(recipe, options, start, dry_run=dry_run, sanity=sanity)


@separate_run()
def run(
    recipe: Recipe, options: TrainOptions, start: Start, *, dry_run: bool = False, sanity: bool = True
) -> Path:
    """Train a detector in a work directory that is locked; return the work directory.

    Args:
        recipe: the training, with its options.
        dry_run: build everything, train one step, and write nothing.
        sanity: predict one picture of the validation first; see :mod:`dcnzoo.openmmlab.runs.sanity`.

    Raises:
        UserError: the config has a mistake, or the weights cannot be downloaded or do not fit.
    """
    with ExitStack() as stack:
        ranks.exchange(lambda: require_new_config(recipe, start))
        for context in (_interruption_hint(recipe), config_errors(recipe.cfg), loader_errors()):
            stack.enter_context(context)
        if dry_run:
            stack.enter_context(suppress(_DryRunEnds))  # innermost: config_errors converts exceptions
        runner = _build_training(stack, recipe, options, start, dry_run, sanity)
        runner.train()
    return recipe.work_dir


def _build_training(
    stack: ExitStack, recipe: Recipe, options: TrainOptions, start: Start, dry_run: bool, sanity: bool
) -> Runner:
    """Build the runner of a training; ``stack`` gets the contexts in which it runs."""
    changes = ", ".join(recipe.changes)
    runner = build_runner(
        _without_files(recipe.cfg, stack) if dry_run else recipe.cfg,
        start,
        training=recipe,
        summary=None if options.verbose else hooks.SummaryHook(recipe.saved, changes),
        allow_partial=options.allow_partial,
        check=_CheckHook(sanity and not start.resumes, dry_run),
    )
    if changes:
        runner.logger.info(f"changed: {changes}")
    stack.callback(_stop_bars, runner)
    return runner


def _without_files(cfg: Config, stack: ExitStack) -> Config:
    """Return the config of a dry run, which writes its log to a temporary folder and nothing else."""
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = stack.enter_context(tempfile.TemporaryDirectory())
    if cfg.get("visualizer"):
        cfg.visualizer.vis_backends = None  # such as wandb, which opens a run
    return cfg


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
    hooks.FiniteLossHook().after_train_iter(runner, 0, batch, losses)


@separate_run()
def test(recipe: Recipe, options: TestOptions, weights: Path | None, force: bool = False) -> dict[str, float]:
    """Evaluate a model on the test set; return its metrics by the names of :mod:`dcnzoo.detect.metric_names`.

    Args:
        weights: a checkpoint; None: those of ``options.exported``.
        force: replace drawings that exist.

    Raises:
        UserError: the config has a mistake, or the weights do not fit.
    """
    with ExitStack() as stack:
        stack.enter_context(use_device("auto" if options.exported else options.device, options.launcher))
        with user_errors():
            recipe = recipe.with_options(options)
            stack.enter_context(ranks.joined(recipe.cfg))
        for context in (config_errors(recipe.cfg), loader_errors()):
            stack.enter_context(context)
        changes = stack.enter_context(Changes())
        if options.unsafe_load:
            readers, unsafe = CheckpointLoader._schemes, options.unsafe_load
            changes.set_item(readers, "", lambda file, where=None: load_file(file, unsafe, where))
        runner = build_runner(
            recipe.cfg,
            Start(None if weights is None else str(weights)),
            summary=None if options.verbose else hooks.SummaryHook(),
            allow_partial=options.allow_partial,
        )
        dataset = runner.test_dataloader.dataset
        if options.show_dir is not None and is_main_process():  # other processes may already draw
            names = Counter(Path(dataset.get_data_info(n)["img_path"]).name for n in range(len(dataset)))
            if twice := [name for name, count in names.items() if count > 1]:
                text = f"expected pictures with different names, got {few(twice, 3)} in several folders"
                raise UserError(f"show_dir: {text}; dcnzoo infer draws the pictures of a folder")
            require_new("test", *(Path(options.show_dir, name) for name in sorted(names)), force=force)
        stack.callback(_stop_bars, runner)
        metrics = runner.test()
    return {name: float(value) for name, value in named(metrics).items()}  # numpy's, of classes


def build(
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
    training: Recipe | None = None,
    summary: hooks.SummaryHook | None = None,
    allow_partial: bool = False,
    check: Hook | None = None,
) -> Runner:
    """Build mmengine's runner; it loads checkpoints by :func:`dcnzoo.openmmlab.weights.load_state`.

    Args:
        training: the recipe of a training, which fine-tunes unless it resumes. None: a test, which keeps the
            config in the work directory: it belongs to the checkpoints there.
        summary: hook that prints in place of mmengine's log. The terminal then shows only the log's warnings;
            the log file is complete.
        allow_partial: see :func:`dcnzoo.openmmlab.weights.load_state`.
        check: hook that runs when the weights are loaded, before the training loop.

    Raises:
        UserError: there is no such runner, or the work directory cannot be written.
    """
    name = cfg.get("runner_type", "Runner")
    kind: Any = name if isinstance(name, type) else RUNNERS.get(name)
    if kind is None:
        raise UserError(f"runner_type: expected the name of a runner, got {name}")
    cfg = copy.deepcopy(cfg)  # the caller's stays as it is
    if is_main_process():
        require_writable(cfg.work_dir)
    cfg.pop("resume", None)
    scaling = cfg.get("auto_scale_lr") or {}
    if training and scaling.get("enable"):  # mmengine counts images per iteration, not per step
        scaling["base_batch_size"] /= cfg.optim_wrapper.get("accumulative_counts", 1)
    for name in hooks.DEFAULT_HOOKS.keys() - {"checkpoint"}:  # mmengine knows None only for its own names
        if cfg.default_hooks.get(name) is None:
            cfg.default_hooks.pop(name, None)
    built = with_paths(cfg)
    if cfg.default_hooks.get("epoch_seed"):
        number_batches(built)
    runner = _with_changes(kind, cfg, quiet=summary is not None).from_cfg(built)
    runner._resume = start.resumes
    if start.file or not training:  # else, the config's load_from stays
        runner._load_from = start.file
    if cfg.launcher == "none" and isinstance(runner.model, nn.Module):
        runner.model = revert_sync_batchnorm(runner.model)
    added = [check, summary, ranks.AgreementHook(training.cfg if training else cfg)]
    added += [hooks.LoadCheckpointHook(fine_tune=training is not None, allow_partial=allow_partial)]
    if training is not None:
        added += [WorkDirHook(training), hooks.ResumeHook()]
    for hook in filter(None, added):
        runner.register_hook(hook)
    # hide warnings about deprecated names in mmengine's own hooks, gradient accumulation and frozen weights
    unwanted = ('"FileClient"', '"HardDiskBackend"', "Gradient accumulative may", "its requires_grad=False")
    runner.logger.addFilter(lambda log: not any(text in str(log.msg) for text in unwanted))
    return runner


def _with_changes(kind: Any, cfg: Config, quiet: bool) -> Any:
    """Return a class of MMEngine's runners with dcnzoo's changes.

    Args:
        cfg: the config for ``runner.cfg``. The dictionaries that are built have more; see :func:`with_paths`.
        quiet: whether only warnings are printed; the log file is complete.
    """

    class Run(kind):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "cfg": cfg})

        def build_logger(self, *args: Any, **settings: Any) -> MMLogger:
            logger = super().build_logger(*args, **settings)  # FlexibleRunner's strategy builds it
            for handler in logger.handlers:
                if quiet and type(handler) is logging.StreamHandler:
                    handler.setLevel(max(logging.WARNING, handler.level))  # mmengine: ERROR on other ranks
            return logger

        def dump_config(self) -> None:
            """Write nothing: WorkDirHook writes the config."""

    Run.__name__ = kind.__name__
    return Run


class _CheckHook(Hook):
    """Before the training loop: predict one picture (``sanity``); end a dry run after one step."""

    priority = "HIGHEST"

    def __init__(self, sanity: bool, dry_run: bool) -> None:
        self._sanity, self._dry_run = sanity, dry_run

    def before_train(self, runner: Runner) -> None:
        if self._sanity and runner.val_loop:
            predict_one(runner)
        if self._dry_run:
            _train_one(runner)
            raise _DryRunEnds


@contextmanager
def _interruption_hint(recipe: Recipe):
    """Context that adds to a KeyboardInterrupt how to resume the training, and raises it at SIGTERM, too.

    Slurm and containers send SIGTERM before they kill a process.
    """
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    is_used = is_free and threading.current_thread() is threading.main_thread()
    if is_used:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        if recipe.saved.can_resume:
            raise KeyboardInterrupt(f"{recipe.work_dir}: the option resume=True continues it") from None
        raise
    finally:
        if is_used:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
