"""Train, test or build the model of a recipe."""

import copy
import functools
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger, print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import CheckpointLoader, Runner
from torch import nn

import dcnzoo.openmmlab.export.test_loop  # noqa: F401  for tests of exported files
from dcnzoo.compat.patches import Changes
from dcnzoo.detect.metrics import metric_name
from dcnzoo.openmmlab.checkpoints import content_digest, load_file
from dcnzoo.openmmlab.classes import names_of_model
from dcnzoo.openmmlab.config.errors import config_errors
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.hooks import LoadCheckpointHook, ProgressHook, ResumeHook, SummaryHook
from dcnzoo.openmmlab.options import TestOptions, TrainOptions
from dcnzoo.openmmlab.runs import ranks
from dcnzoo.openmmlab.runs.device import require_device, use_device
from dcnzoo.openmmlab.runs.loading import loader_errors
from dcnzoo.openmmlab.runs.prepare import prepare
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.openmmlab.runs.separate_run import separate_run
from dcnzoo.openmmlab.runs.start import Start, choose_start
from dcnzoo.openmmlab.runs.work_dir import WorkDirHook
from dcnzoo.openmmlab.weights import load_weights
from dcnzoo.utils.errors import UserError, user_errors
from dcnzoo.utils.fetch import DownloadError
from dcnzoo.utils.files import require_new, require_writable
from dcnzoo.utils.lock import lock_work_dir
from dcnzoo.utils.text import few


def _stop_bars(runner: Runner) -> None:
    """Stop the progress bars of a runner: mmengine calls no hook after an error."""
    for hook in runner.hooks:
        if isinstance(hook, ProgressHook):
            hook.stop()


@separate_run()
def train(
    recipe: Recipe,
    options: TrainOptions,
    *,
    resume: bool | str | os.PathLike | None = False,
    force: bool = False,
    outputs: Iterable[str] = (),
    start: Start | None = None,
    only_checks: bool = False,
) -> Path:
    """Train a detector; return the work directory.

    Args:
        resume, force: see :func:`~dcnzoo.openmmlab.runs.start.choose_start`.
        outputs: files that the caller then writes to the work directory.
        start: that the caller has chosen, who holds the lock of the work directory.
        only_checks: check options and folder, and do not train.

    Raises:
        UserError: a mistake in the config, the folder is in use, or weights that cannot be downloaded or do
            not fit.
    """
    with ExitStack() as stack:
        with user_errors():
            recipe = recipe.with_options(options)
            cfg, work_dir, saved = recipe.cfg, recipe.work_dir, recipe.saved
            stack.enter_context(ranks.joined(cfg))

            def decide() -> Start | None:
                if start is None and not only_checks:  # first: another training may end meanwhile
                    stack.enter_context(lock_work_dir(work_dir))
                if saved.is_apart and only_checks:
                    require_writable(saved.folder)
                elif saved.is_apart:  # out_dir may be that of two work directories
                    stack.enter_context(lock_work_dir(saved.folder))
                return prepare(recipe, start or choose_start(recipe, resume, force), force)

            prepared = ranks.exchange(decide)
        if prepared is None:
            return work_dir
        # an error passes them from the last to the first
        stack.enter_context(_training_hints(recipe))  # how to go on
        stack.enter_context(config_errors(cfg))  # the file and the key
        stack.enter_context(loader_errors())
        ranks.agree_on_config(cfg)
        changes = ", ".join(recipe.changes)
        runner = build_runner(
            cfg,
            prepared,
            work_dir=stack.enter_context(tempfile.TemporaryDirectory()) if only_checks else None,
            training=recipe,
            summary=None if options.verbose else SummaryHook(saved, changes, is_last=not outputs),
            allow_partial=options.allow_partial,
        )
        if only_checks:
            if isinstance(runner, Runner):  # FlexibleRunner builds its parts in the strategy
                _build_parts(runner)
            return work_dir
        if changes:
            runner.logger.info(f"changed: {changes}")
        stack.callback(_stop_bars, runner)
        runner.train()
    return work_dir


def _build_parts(runner: Runner) -> None:
    """Build what a training builds, by mmengine's own methods and with its data, and compute nothing."""
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    if runner._val_loop is not None:
        runner._val_loop = runner.build_val_loop(runner._val_loop)


@separate_run()
def test(recipe: Recipe, options: TestOptions, weights: Path | None, force: bool = False) -> dict[str, float]:
    """Evaluate a model on the test set; return its metrics by the names of :mod:`dcnzoo.detect.metrics`.

    Args:
        weights: a checkpoint; None: those of ``options.exported``.
        force: replace drawings that exist.

    Raises:
        UserError: a mistake in the config, or weights that do not fit.
    """
    with ExitStack() as stack:
        device = "auto" if options.exported else options.device
        stack.enter_context(use_device(device, options.launcher))
        with user_errors():
            recipe = recipe.with_options(options)
            stack.enter_context(ranks.joined(recipe.cfg))
        for context in (config_errors(recipe.cfg), loader_errors()):
            stack.enter_context(context)
        changes = stack.enter_context(Changes())
        if options.unsafe_load:
            load = functools.partial(load_file, unsafe_load=True)
            changes.set_item(
                CheckpointLoader._schemes, "", lambda file, where=None: load(file, map_location=where)
            )
        ranks.agree_on_config(recipe.cfg)
        if options.exported:
            ranks.agree({"exported file": content_digest(options.exported)})
        runner = build_runner(
            recipe.cfg,
            Start(None if weights is None else str(weights)),
            summary=None if options.verbose else SummaryHook(),
            allow_partial=options.allow_partial,
        )
        dataset = runner.test_dataloader.dataset
        if options.show_dir is not None and is_main_process():  # another process may have started to draw
            names = Counter(Path(dataset.get_data_info(n)["img_path"]).name for n in range(len(dataset)))
            if twice := [name for name, count in names.items() if count > 1]:
                text = f"expected pictures with different names, got {few(twice, 3)} in several folders"
                raise UserError(f"show_dir: {text}; dcnzoo infer draws the pictures of a folder")
            files = [Path(options.show_dir, name) for name in sorted(names)]
            require_new("test", *files, force=force)
        stack.callback(_stop_bars, runner)
        metrics = runner.test()
    return {metric_name(key): float(value) for key, value in metrics.items()}  # numpy's, of classes


def build(
    recipe: Recipe,
    weights: Path | str | None = None,
    *,
    device: str | torch.device = "cpu",
    unsafe_load: bool = False,
    allow_partial: bool = False,
) -> nn.Module:
    """Build the model in evaluation mode. Everything but MMEngine's runners uses this function.

    Args:
        weights: a checkpoint; None: random weights.
        device, unsafe_load, allow_partial: see :func:`dcnzoo.load`.

    Returns:
        The model, with the attributes ``cfg`` and, if it has weights, ``dataset_meta``: the names and colours
        of its classes.
    """
    target, cfg = require_device(device), copy.deepcopy(recipe.cfg)
    if "model" not in cfg:
        raise UserError(f"{cfg.filename}: expected a config with a model, found none")
    for _, node in dicts(cfg.model):
        node.pop("teacher_ckpt", None)  # the teacher is used only in training
    imports = cfg.get("custom_imports") or {}
    modules = imports.get("imports") or []  # mmengine also accepts one name
    modules = [modules] if isinstance(modules, str) else modules
    if "dcnzoo.models" not in modules:  # for programs that read a dump of the config
        cfg.custom_imports = {**imports, "imports": [*modules, "dcnzoo.models"]}
    with config_errors(cfg):
        init_default_scope(cfg.get("default_scope", "mmdet"))  # stays: inference_detector needs it too
        # a copy: detectors such as DINO add settings to those of their heads, which refuse them the next time
        model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))
        if weights is not None:
            meta, report = load_weights(model, weights, unsafe_load, allow_partial, cfg.model)
            if report:
                print_log(f"{weights}: {report}", logger="current")
            model.dataset_meta = names_of_model(cfg, meta)
        model.cfg = cfg
        model.eval()  # returns None in detectors with a teacher
        return model.to(target)


def build_runner(
    cfg: Config,
    start: Start,
    *,
    work_dir: str | None = None,
    training: Recipe | None = None,
    summary: SummaryHook | None = None,
    allow_partial: bool = False,
) -> Runner:
    """Build mmengine's runner; it loads checkpoints by :func:`dcnzoo.openmmlab.weights.load_state`.

    The start is no setting of the config, so that the config in the work directory is the same for each.

    Args:
        work_dir: of the runner's files, which nobody reads (default: that of the config).
        training: its recipe; it fine-tunes from a start that does not resume. Otherwise, the config in the
            work directory stays: it belongs to the checkpoints there.
        summary: prints in place of mmengine's log, of which the terminal then shows only warnings. The file
            has the whole log.
        allow_partial: see :func:`dcnzoo.openmmlab.weights.load_state`.

    Raises:
        UserError: there is no such runner, or the work directory cannot be written.
    """
    name = cfg.get("runner_type", "Runner")
    kind: Any = name if isinstance(name, type) else RUNNERS.get(name)
    if kind is None:
        raise UserError(f"runner_type: expected the name of a runner, got {name}")
    cfg = copy.deepcopy(cfg)  # the caller's stays as it is
    cfg.work_dir = work_dir or cfg.work_dir
    require_writable(cfg.work_dir)
    cfg.pop("resume", None)
    scaling = cfg.get("auto_scale_lr") or {}
    if training and scaling.get("enable"):  # mmengine counts images per iteration, not per step
        scaling["base_batch_size"] /= cfg.optim_wrapper.get("accumulative_counts", 1)
    changes: dict[str, object] = {
        "dump_config": lambda self: None,  # WorkDirHook writes it
        "build_evaluator": functools.partialmethod(ranks.build_evaluator, kind.build_evaluator),
    }
    if work_dir and hasattr(kind, "_log_env"):  # which imports torchvision, for its version
        changes["_log_env"] = lambda self, settings: None
    if summary is not None and hasattr(kind, "build_logger"):  # the strategy of FlexibleRunner builds it
        changes["build_logger"] = functools.partialmethod(_log_to_file, kind.build_logger)
    subclass: Any = type(kind.__name__, (kind,), changes)
    runner = subclass.from_cfg(cfg)
    runner._load_from, runner._resume = start.file, start.resumes
    if cfg.launcher == "none" and isinstance(runner.model, nn.Module):
        runner.model = revert_sync_batchnorm(runner.model)
    hooks = [summary, ranks.AgreementHook()]
    if training is not None:
        hooks += [WorkDirHook(training, start), ResumeHook()]
    for hook in filter(None, hooks):
        runner.register_hook(hook)
    # warnings about deprecated names that mmengine's own hooks use
    runner.logger.addFilter(lambda log: not str(log.msg).startswith(('"FileClient"', '"HardDiskBackend"')))
    runner.register_hook(LoadCheckpointHook(fine_tune=training is not None, allow_partial=allow_partial))
    return runner


def _log_to_file(runner: Runner, build_logger: Callable[..., MMLogger], **kwargs: object) -> MMLogger:
    """Build the logger of a runner; it prints only warnings."""
    logger = build_logger(runner, **kwargs)
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setLevel(max(logging.WARNING, handler.level))  # mmengine: errors only, of other ranks
    return logger


@contextmanager
def _training_hints(recipe: Recipe):
    """Context that adds to an interruption and to a failed download how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if recipe.saved.can_resume:
            raise KeyboardInterrupt(f"resume=True continues the training in {recipe.work_dir}") from None
        raise
    except DownloadError as error:
        hint = "to train without them, write the config with dcnzoo data config --no-weights"
        raise UserError(f"{error}; {hint}") from error
