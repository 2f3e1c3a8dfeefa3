"""``dcnzoo.train``: train a model of the zoo, a config or your own pictures."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dcnzoo.data.dataset import Dataset
from dcnzoo.data.reading import describe, read
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.device import require_device, use_device
from dcnzoo.openmmlab.runs.ranks import is_first
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe, RunConfig
from dcnzoo.openmmlab.runs.start import claim, require_movable
from dcnzoo.utils.errors import UserError, show, user_errors
from dcnzoo.utils.files import expanded, require_file
from dcnzoo.utils.memory import return_memory
from dcnzoo.zoo.config_reader import scale_of
from dcnzoo.zoo.config_writer import plan, schedules_for
from dcnzoo.zoo.own_data import DataOptions, choose, lines_of, require_data, write
from dcnzoo.zoo.source import resolve

OnData = Callable[[Mapping[str, Dataset], Path, tuple[int, int] | None], object]


def train(
    model: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    resume: bool | str | os.PathLike[str] | None = False,
    force: bool = False,
    cfg_options: Mapping[str, object] | None = None,
    outputs: Iterable[str] = (),
    on_data: OnData | None = None,
    dry_run: bool = False,
    sanity: bool = True,
    **options: Any,
) -> Path:
    """Train a detector; return the work directory, which :func:`dcnzoo.load` takes::

        work_dir = dcnzoo.train(data="fruits/", work_dir="work_dirs/fruits", epochs=20)

    Args:
        model: a name in the zoo, a config file or a work directory. Optional with ``data``: a published model
            on a GPU, a small one on a CPU.
        data: a folder or file with annotated pictures, as docs/train_your_data.md describes. Their
            annotations and a config are written to the folder ``data`` in the work directory; to ``data_2``,
            …, if ``data`` has other content. To continue, set ``model`` to the work directory and ``resume``.
        resume: continue the training in the work directory, or from this checkpoint.
        force: also train in a work directory that has checkpoints: the folder is renamed to ``NAME.1``.
        cfg_options: settings to override, ``{"model.backbone.dcn": True}``.
        outputs: ignored; it will be removed.
        on_data: with ``data``, called before the model is built: with the splits, the work directory and the
            most pixels of a resized picture's longer and shorter side (None: pictures are not resized).
        dry_run: build everything, predict one picture, train one step, and write nothing but the
            folder ``data``, to which ``data`` is converted.
        sanity: before the first step, predict one picture of the validation and compute its metrics, so that
            mistakes in it appear early. The training is the same without it, bit for bit.
        options: those of :class:`dcnzoo.openmmlab.options.TrainOptions`: work_dir, epochs, batch_size, lr,
            patience, amp, auto_scale_lr, logger, seed, device, channels_last, allow_partial, verbose,
            launcher. With ``data``, ``work_dir`` is by default ``work_dirs/`` and the name of the folder, and
            there are those of :class:`dcnzoo.zoo.own_data.DataOptions`: size, flip, zero_based, clip,
            skip_invalid, classes.

    Raises:
        UserError: a mistake in an argument, the config or the data; or the folder is in use.
    """
    names = {field.name for field in fields(DataOptions)} & options.keys()
    of_data = DataOptions(**{name: options.pop(name) for name in names})
    of_run = TrainOptions(**options)
    if outputs:
        warnings.warn("dcnzoo.train: outputs: has no effect any more", DeprecationWarning, stacklevel=2)
    with user_errors():
        require_data(of_data, data)
        if data is None:
            recipe = _recipe_of(model, cfg_options)
            folder = execute.train(recipe, of_run, resume=resume, force=force, dry_run=dry_run, sanity=sanity)
        else:
            if resume:
                raise UserError("resume: expected no data=PATH; model=WORK_DIR continues its training")
            folder = _train_on_data(
                expanded(data), model, of_data, of_run, cfg_options, on_data,
                force=force, dry_run=dry_run, sanity=sanity,
            )  # fmt: skip
        if dry_run and is_first():
            print("dry run: one step was trained; its weights are not kept")
        return folder


def _train_on_data(
    data: Path,
    model: str | os.PathLike[str] | None,
    of_data: DataOptions,
    of_run: TrainOptions,
    cfg_options: Mapping[str, object] | None,
    on_data: OnData | None,
    *,
    force: bool,
    dry_run: bool,
    sanity: bool,
) -> Path:
    """Train on annotated pictures; return the work directory.

    Everything that can be refused is refused before a used work directory is renamed, and that is before
    anything is written.
    """
    of_run = _with_work_dir(of_run, data)
    work_dir = Path(str(of_run.work_dir))
    in_folder = RunConfig.in_folder(work_dir)
    with use_device(of_run.device), ExitStack() as locks:
        with claim(locks, in_folder, dry_run, force=force, files=[data]) as start:
            dataset = read(data, **vars(of_data.reading))
            splits = dataset.split()
            on_gpu = require_device(of_run.device).type != "cpu"
            sets_rate = of_run.lr is not None or "optim_wrapper.optimizer.lr" in (cfg_options or {})
            choice = choose(splits, model, of_data, on_gpu=on_gpu, scale_lr=not sets_rate)
            planned, count = plan(splits, choice, work_dir), len(splits["train"].pictures)
            weights = _run_on(planned.recipe(cfg_options), count, of_run).cfg.get("load_from")
            if weights:
                require_file(str(weights), "load_from")
            if start.replaces:
                require_movable(in_folder, [planned.source, weights])
        config = write(planned)
        run = _run_on(Recipe.read(config, cfg_options, TRAINING), count, of_run)
        # only now: a mistake in an option ends in one line
        show(*describe(dataset, splits), f"model     {choice.model}")
        show(*lines_of(run.cfg, splits["train"]), f"config    {config}")
        if on_data is not None:
            on_data(splits, run.work_dir, scale_of(run.cfg))
        del dataset, splits, planned
        return_memory()  # of the pictures and objects
        return execute.train_locked(run, of_run, start, dry_run=dry_run, sanity=sanity)


def _with_work_dir(options: TrainOptions, data: Path) -> TrainOptions:
    """Return the options of a training on own data with its work directory, by default named as the data."""
    if options.launcher != "none":
        raise UserError(f"data: expected one process, got launcher={options.launcher}; train its config")
    name = (data.parent if data.is_file() else data).resolve().name
    return replace(options, work_dir=str(expanded(options.work_dir or Path("work_dirs", name))))


def _run_on(recipe: Recipe, count: int, options: TrainOptions) -> RunConfig:
    """Return the run of a config for this number of pictures; the options may change its iterations."""
    run = recipe.with_options(options)
    if not any(key.startswith("param_scheduler") for key in recipe.cfg_options):
        run.cfg.param_scheduler = schedules_for(run.cfg, count)
    return run


def _recipe_of(model: str | os.PathLike[str] | None, cfg_options: Mapping[str, object] | None) -> Recipe:
    if model is None:
        raise UserError("model: expected one, or data=PATH, got neither")
    source = resolve(model)
    if source.weights == expanded(source.name):
        raise UserError(
            f"model: expected a name, a config or a work directory, got the checkpoint {model}; "
            f"resume={model} continues its training, the setting load_from starts from its weights"
        )
    return source.recipe(cfg_options, TRAINING)
