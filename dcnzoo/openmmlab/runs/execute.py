"""Train or test the model of a recipe: the steps, each of which another module of this folder does.

``build.py`` builds the model alone.
"""

import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from dcnzoo.detect.metric_names import named
from dcnzoo.openmmlab import hooks
from dcnzoo.openmmlab.checkpoints import unsafe_loading
from dcnzoo.openmmlab.config.errors import config_errors
from dcnzoo.openmmlab.options import TestOptions, TrainOptions
from dcnzoo.openmmlab.runs import ranks
from dcnzoo.openmmlab.runs.build import build_runner
from dcnzoo.openmmlab.runs.device import use_device
from dcnzoo.openmmlab.runs.dry_run import DryRunHook, without_files
from dcnzoo.openmmlab.runs.interruption import interruption_hint
from dcnzoo.openmmlab.runs.loading import loader_errors
from dcnzoo.openmmlab.runs.recipe import Recipe, RunConfig
from dcnzoo.openmmlab.runs.sanity import SanityHook
from dcnzoo.openmmlab.runs.separate_run import separate_run
from dcnzoo.openmmlab.runs.start import Start, claim, require_new_config
from dcnzoo.utils.errors import UserError, user_errors
from dcnzoo.utils.files import require_new
from dcnzoo.utils.text import few


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
        dry_run, sanity: see :func:`train_locked`.

    Raises:
        UserError: as :func:`train_locked`; or the folder is in use.
    """
    with ExitStack() as stack:
        with user_errors():
            stack.enter_context(use_device(options.device, options.launcher))
            run = recipe.with_options(options)
            stack.enter_context(ranks.joined(run.cfg))
            locks = stack.enter_context(ExitStack())

            def decide() -> Start:
                with claim(locks, run, dry_run, resume=resume, force=force) as start:
                    return start

            start = ranks.exchange(decide)
        return train_locked(run, options, start, dry_run=dry_run, sanity=sanity)


@separate_run()
def train_locked(
    run: RunConfig, options: TrainOptions, start: Start, *, dry_run: bool = False, sanity: bool = True
) -> Path:
    """Train a detector in a work directory that is locked; return the work directory.

    Args:
        options: those of ``run``.
        dry_run: build everything, train one step, and write nothing.
        sanity: predict one picture of the validation first; see :mod:`dcnzoo.openmmlab.runs.sanity`.

    Raises:
        UserError: the config has a mistake, or the weights cannot be downloaded or do not fit.
    """
    checks: list[Hook] = [SanityHook()] if sanity and not start.resumes else []
    with ExitStack() as stack:
        ranks.exchange(lambda: require_new_config(run, start))
        for context in (interruption_hint(run), config_errors(run.cfg), loader_errors()):
            stack.enter_context(context)
        cfg, changes = run.cfg, ", ".join(run.changes)
        if dry_run:
            cfg = stack.enter_context(without_files(cfg))  # innermost: config_errors converts exceptions
            checks.append(DryRunHook())
        runner = build_runner(
            cfg,
            start,
            training=run,
            summary=None if options.verbose else hooks.SummaryHook(run.saved, changes),
            allow_partial=options.allow_partial,
            checks=checks,
        )
        if changes:
            runner.logger.info(f"changed: {changes}")
        runner.train()
    return run.work_dir


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
            run = recipe.with_options(options)
            stack.enter_context(ranks.joined(run.cfg))
        for context in (config_errors(run.cfg), loader_errors(), unsafe_loading(options.unsafe_load)):
            stack.enter_context(context)
        runner = build_runner(
            run.cfg,
            Start(None if weights is None else str(weights)),
            summary=None if options.verbose else hooks.SummaryHook(),
            allow_partial=options.allow_partial,
        )
        if options.show_dir is not None and is_main_process():  # other processes may already draw
            _require_new_drawings(runner.test_dataloader.dataset, options.show_dir, force)
        metrics = runner.test()
    return {name: float(value) for name, value in named(metrics).items()}  # numpy's, of classes


def _require_new_drawings(dataset: Any, folder: str | os.PathLike, force: bool) -> None:
    """Raise UserError if two pictures have one name, or a drawing exists."""
    names = Counter(Path(dataset.get_data_info(n)["img_path"]).name for n in range(len(dataset)))
    if twice := [name for name, count in names.items() if count > 1]:
        text = f"expected pictures with different names, got {few(twice, 3)} in several folders"
        raise UserError(f"show_dir: {text}; dcnzoo infer draws the pictures of a folder")
    require_new("test", *(Path(folder, name) for name in sorted(names)), force=force)
