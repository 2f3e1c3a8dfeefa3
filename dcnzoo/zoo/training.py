"""``dcnzoo.train``: train a model of the zoo, a config or your own pictures."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from dcnzoo.data.dataset import ReadOptions
from dcnzoo.data.preparation import read_data
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.device import use_device
from dcnzoo.openmmlab.runs.ranks import is_first
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe
from dcnzoo.openmmlab.runs.start import Start, begin, choose_start
from dcnzoo.ops.flops import register_with_torch
from dcnzoo.utils.errors import UserError, show, user_errors
from dcnzoo.utils.memory import return_memory
from dcnzoo.zoo.own_data import require_data, write_data
from dcnzoo.zoo.source import Source, resolve


def train(
    model: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    resume: bool | str | os.PathLike[str] | None = False,
    force: bool = False,
    cfg_options: Mapping[str, object] | None = None,
    outputs: Iterable[str] = (),
    zero_based: bool = False,
    clip: bool = False,
    skip_invalid: bool = False,
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
        outputs: files that the caller then writes to the work directory.
        zero_based, clip, skip_invalid: see :class:`dcnzoo.data.dataset.ReadOptions`.
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
    reading = ReadOptions(zero_based, clip, skip_invalid)
    of_run, start = TrainOptions(**options), None
    with contextlib.ExitStack() as stack:
        stack.enter_context(use_device(of_run.device, of_run.launcher))
        stack.enter_context(user_errors())
        require_data(reading, data)
        if data is not None:
            if resume:
                raise UserError("resume: expected no data=PATH; model=WORK_DIR continues its training")
            path = Path(data).expanduser()
            source, of_run, start = _begin_with_data(stack, path, model, reading, of_run, force, dry_run)
            return_memory()  # of the pictures and objects
        elif model is not None:
            source = resolve(model)
            if source.weights == Path(source.name).expanduser():
                raise UserError(
                    f"model: expected a name, a config or a work directory, got the checkpoint {model}; "
                    f"resume={model} continues its training, the setting load_from starts from its weights"
                )
        else:
            raise UserError("model: expected one, or data=PATH, got neither")
        register_with_torch()  # FLOPs of the operators
        folder = execute.train(
            source.recipe(cfg_options, TRAINING), of_run, resume=resume, force=force, outputs=outputs,
            start=start, dry_run=dry_run, sanity=sanity,
        )  # fmt: skip
        if dry_run and is_first():
            print("dry run: one step was trained, and nothing is kept")
        return folder


def _begin_with_data(
    stack: contextlib.ExitStack, data: Path, model: object, reading: ReadOptions, options: TrainOptions,
    force: bool, dry_run: bool,
) -> tuple[Source, TrainOptions, Start]:  # fmt: skip
    """Read annotated pictures, then take the work directory and write their config to it."""
    if options.launcher != "none":
        raise UserError(f"data: expected one process, got launcher={options.launcher}; train its config")
    name = (data.parent if data.is_file() else data).resolve().name
    work_dir = Path(options.work_dir or Path("work_dirs", name)).expanduser()
    recipe = Recipe(Config({"work_dir": str(work_dir), "launcher": "none"}))
    choose_start(recipe, force=force)  # a used folder is refused before the data are read
    splits, decisions = read_data(data, reading)
    start = begin(stack, recipe, force=force, dry_run=dry_run, files=[data])
    config, epochs, chosen = write_data(splits, work_dir, None if model is None else str(model))
    show(*decisions, f"model     {chosen}", f"config    {config}")
    options = replace(options, work_dir=work_dir, epochs=options.epochs or epochs)
    return Source(str(config), config), options, start
