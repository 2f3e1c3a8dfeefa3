"""``dcnzoo.train``: train a model of the zoo, a config or your own pictures."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from dcnzoo.data.dataset import Dataset
from dcnzoo.data.reading import describe, read
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.device import use_device
from dcnzoo.openmmlab.runs.ranks import is_first
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe, RunConfig
from dcnzoo.openmmlab.runs.start import claim
from dcnzoo.utils.errors import UserError, show, user_errors
from dcnzoo.utils.files import expanded
from dcnzoo.utils.memory import return_memory
from dcnzoo.zoo.config_reader import scale_of
from dcnzoo.zoo.config_writer import schedules_for
from dcnzoo.zoo.own_data import DataOptions, choose, lines_of, require_data, write_data
from dcnzoo.zoo.source import Source, resolve

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
            skip_invalid.

    Raises:
        UserError: a mistake in an argument, the config or the data; or the folder is in use.
    """
    names = {field.name for field in fields(DataOptions)} & options.keys()
    of_data = DataOptions(**{name: options.pop(name) for name in names})
    of_run = TrainOptions(**options)
    if outputs:
        warnings.warn("dcnzoo.train: outputs: has no effect any more", DeprecationWarning, stacklevel=2)
    with user_errors(), ExitStack() as stack:
        require_data(of_data, data)
        if data is None:
            recipe = _recipe_of(model, cfg_options)
            folder = execute.train(recipe, of_run, resume=resume, force=force, dry_run=dry_run, sanity=sanity)
        else:
            if resume:
                raise UserError("resume: expected no data=PATH; model=WORK_DIR continues its training")
            path = expanded(data)
            of_run = _with_work_dir(of_run, path)
            stack.enter_context(use_device(of_run.device))
            locks = stack.enter_context(ExitStack())
            in_folder = RunConfig(Config({"work_dir": of_run.work_dir, "launcher": "none"}))
            with claim(locks, in_folder, dry_run, force=force, files=[path]) as start:
                pictures = read(path, **vars(of_data.reading))
                splits = pictures.split()
            choice = choose(splits, model, of_data)
            config = write_data(splits, Path(str(of_run.work_dir)), choice)
            run = _run_on(config, len(splits["train"].pictures), of_run, cfg_options)
            # only now: a mistake in an option ends in one line
            show(*describe(pictures, splits), f"model     {choice.model}")
            show(*lines_of(run.cfg, splits["train"]), f"config    {config}")
            if on_data is not None:
                on_data(splits, run.work_dir, scale_of(run.cfg))
            del pictures, splits
            return_memory()  # of the pictures and objects
            folder = execute.train_locked(run, of_run, start, dry_run=dry_run, sanity=sanity)
        if dry_run and is_first():
            print("dry run: one step was trained; its weights are not kept")
        return folder


def _with_work_dir(options: TrainOptions, data: Path) -> TrainOptions:
    """Return the options of a training on own data with its work directory, by default named as the data."""
    if options.launcher != "none":
        raise UserError(f"data: expected one process, got launcher={options.launcher}; train its config")
    name = (data.parent if data.is_file() else data).resolve().name
    return replace(options, work_dir=str(expanded(options.work_dir or Path("work_dirs", name))))


def _run_on(
    config: Path, pictures: int, options: TrainOptions, cfg_options: Mapping[str, object] | None
) -> RunConfig:
    """Read a config that was written for a number of pictures; the options may change its iterations."""
    run = Source(str(config), config).recipe(cfg_options, TRAINING).with_options(options)
    if not any(key.startswith("param_scheduler") for key in cfg_options or ()):
        run.cfg.param_scheduler = schedules_for(run.cfg, pictures)
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
