"""``dcnzoo.train``: train a model of the zoo, a config or your own pictures."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from dcnzoo.data.dataset import ReadOptions
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.device import use_device
from dcnzoo.openmmlab.runs.ranks import is_first
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe
from dcnzoo.openmmlab.runs.start import begin
from dcnzoo.ops.flops import register_with_torch
from dcnzoo.utils.errors import UserError, printable, user_errors
from dcnzoo.zoo.own_data import prepare
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
            …, if ``data`` has another content. The work directory in place of a model continues the training.
        resume: continue the training in the work directory, or from this checkpoint.
        force: also train in a work directory that has checkpoints: the folder is renamed to ``NAME.1``.
        cfg_options: settings to override, ``{"model.backbone.dcn": True}``.
        outputs: files that the caller then writes to the work directory.
        zero_based, clip, skip_invalid: see :class:`dcnzoo.data.dataset.ReadOptions`.
        dry_run: build everything, predict one picture, train one step, and write nothing. ``data`` is
            converted to the folder ``data``.
        sanity: before the first step, predict one picture of the validation and compute its metrics, so that
            a mistake there is named then. The training has the same bits without it.
        options: those of :class:`dcnzoo.openmmlab.options.TrainOptions`: work_dir, epochs, batch_size, lr,
            patience, amp, auto_scale_lr, logger, seed, device, channels_last, allow_partial, verbose,
            launcher. With ``data``, ``work_dir`` is by default ``work_dirs/`` and the name of the data.

    Raises:
        UserError: a mistake in an argument, the config or the data; or the folder is in use.
    """
    reading = ReadOptions(zero_based, clip, skip_invalid)
    of_run, start = TrainOptions(**options), None
    with contextlib.ExitStack() as stack:
        stack.enter_context(use_device(of_run.device, of_run.launcher))
        stack.enter_context(user_errors())
        reading.require_data(data)
        if data is None:
            if model is None:
                raise UserError("model: expected one, or data=…, got neither")
            source = resolve(model)
            _refuse_checkpoint(source)
        else:
            if of_run.launcher != "none":
                raise UserError(
                    f"data: expected one process, got launcher={of_run.launcher}; train its config"
                )
            path = Path(data).expanduser()
            name = path.resolve().stem if path.is_file() else path.resolve().name
            work_dir = Path(of_run.work_dir or Path("work_dirs", name)).expanduser()
            if resume:
                raise UserError(
                    f"resume: expected no data; the model {work_dir} in place of data continues its training"
                )
            recipe = Recipe(Config({"work_dir": str(work_dir), "launcher": "none"}))
            start = begin(stack, recipe, force=force, dry_run=dry_run, files=[path])
            own = prepare(path, work_dir, None if model is None else str(model), reading)
            print(*map(printable, own.decisions), sep="\n")
            of_run = replace(of_run, work_dir=work_dir, epochs=of_run.epochs or own.epochs)
            source = Source(str(own.config), own.config)
        register_with_torch()  # FLOPs of the operators
        folder = execute.train(
            source.recipe(cfg_options, TRAINING), of_run, resume=resume, force=force, outputs=outputs,
            start=start, dry_run=dry_run, sanity=sanity,
        )  # fmt: skip
        if dry_run and is_first():
            print("dry run: one step was trained, and nothing is kept")
        return folder


def _refuse_checkpoint(source: Source) -> None:
    if source.weights == Path(source.name).expanduser():
        raise UserError(
            f"model: expected a name, a config or a work directory, got the checkpoint {source.name}; "
            f"resume={source.name} continues its training, the setting load_from starts from its weights"
        )
