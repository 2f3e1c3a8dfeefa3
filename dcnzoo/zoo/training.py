"""``dcnzoo.train``: train a model of the zoo, a config or your own pictures."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from dcnzoo.data.dataset import Dataset, ReadOptions
from dcnzoo.data.reading import describe, read
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.device import use_device
from dcnzoo.openmmlab.runs.ranks import is_first
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe, RunConfig
from dcnzoo.openmmlab.runs.start import Start, claim
from dcnzoo.utils.errors import UserError, show, user_errors
from dcnzoo.utils.files import expanded
from dcnzoo.utils.memory import return_memory
from dcnzoo.zoo.config_writer import scale_of, shorten_warm_up
from dcnzoo.zoo.own_data import lines_of, require_data, write_data
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
    size: int | None = None,
    flip: bool = True,
    zero_based: bool = False,
    clip: bool = False,
    skip_invalid: bool = False,
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
        size: with ``data``, the longer side of resized pictures in pixels (default: that of the model's
            config; for a small model, 320 to 800, so that nine of ten objects are larger than 24 pixels).
        flip: with ``data``, whether the training flips pictures; False for text and digits.
        zero_based, clip, skip_invalid: see :class:`dcnzoo.data.dataset.ReadOptions`.
        on_data: with ``data``, called before the model is built: with the splits, the work directory and the
            most pixels of a resized picture's longer and shorter side (None: pictures are not resized).
        dry_run: build everything, predict one picture, train one step, and write nothing but the
            folder ``data``, to which ``data`` is converted.
        sanity: before the first step, predict one picture of the validation and compute its metrics, so that
            mistakes in it appear early. The training is the same without it, bit for bit.
        options: those of :class:`dcnzoo.openmmlab.options.TrainOptions`: work_dir, epochs, batch_size, lr,
            patience, amp, auto_scale_lr, logger, seed, device, channels_last, allow_partial, verbose,
            launcher. With ``data``, ``work_dir`` is by default ``work_dirs/`` and the name of the folder.

    Raises:
        UserError: a mistake in an argument, the config or the data; or the folder is in use.
    """
    reading, of_run = ReadOptions(zero_based, clip, skip_invalid), TrainOptions(**options)
    if outputs:
        warnings.warn("dcnzoo.train: outputs: has no effect any more", DeprecationWarning, stacklevel=2)
    with user_errors(), ExitStack() as stack:
        require_data(reading, data, size, flip)
        if data is None:
            recipe = _recipe_of(model, cfg_options)
            folder = execute.train(recipe, of_run, resume=resume, force=force, dry_run=dry_run, sanity=sanity)
        else:
            if resume:
                raise UserError("resume: expected no data=PATH; model=WORK_DIR continues its training")
            path = expanded(data)
            of_run = _options_of(path, of_run, size)
            stack.enter_context(use_device(of_run.device))
            locks = stack.enter_context(ExitStack())
            start, splits, lines = _read(locks, path, of_run, reading, force, dry_run)
            name = None if model is None else str(model)
            run, choices = _write(splits, of_run, cfg_options, model=name, size=size, flip=flip)
            show(*lines, *choices)
            if on_data is not None:
                on_data(splits, run.work_dir, scale_of(run.cfg))
            del splits
            return_memory()  # of the pictures and objects
            folder = execute.train_locked(run, of_run, start, dry_run=dry_run, sanity=sanity)
        if dry_run and is_first():
            print("dry run: one step was trained; its weights are not kept")
        return folder


def _options_of(data: Path, options: TrainOptions, size: object) -> TrainOptions:
    """Check the options of a training on own pictures; return them with a work directory."""
    if size is not None and not (type(size) is int and size > 0):
        raise UserError(f"size: expected an integer ≥ 1, got {size!r}")
    if options.launcher != "none":
        raise UserError(f"data: expected one process, got launcher={options.launcher}; train its config")
    name = (data.parent if data.is_file() else data).resolve().name
    return replace(options, work_dir=str(expanded(options.work_dir or Path("work_dirs", name))))


def _read(
    locks: ExitStack, data: Path, options: TrainOptions, reading: ReadOptions, force: bool, dry_run: bool
) -> tuple[Start, dict[str, Dataset], list[str]]:
    """Lock the work directory, read the pictures, and only then rename a used folder.

    Returns:
        How the training starts, the splits, and lines about them.
    """
    run = RunConfig(Config({"work_dir": options.work_dir, "launcher": "none"}))
    with claim(locks, run, dry_run, force=force, files=[data]) as start:
        pictures = read(data, **vars(reading))
        splits = pictures.split()
    return start, splits, describe(pictures, splits)


def _write(
    splits: Mapping[str, Dataset],
    options: TrainOptions,
    cfg_options: Mapping[str, object] | None,
    **inputs: Any,
) -> tuple[RunConfig, list[str]]:
    """Write the data and a config to the work directory; return the run's config, and lines about it.

    Args:
        inputs: ``model``, ``size`` and ``flip``; see :func:`write_data`.
    """
    config, chosen = write_data(splits, Path(options.work_dir or ""), **inputs)
    run = Source(str(config), config).recipe(cfg_options, TRAINING).with_options(options)
    if not any(key.startswith("param_scheduler") for key in cfg_options or ()):
        shorten_warm_up(run.cfg, len(splits["train"].pictures))  # again, with the options
    lines = lines_of(run.cfg, splits["train"], inputs["size"] is None)
    return run, [f"model     {chosen}", *lines, f"config    {config}"]


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
