"""``dcnzoo.train``: train a model of the zoo, a config or your own pictures."""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from dcnzoo.data.splits import AS_THEY_ARE, ReadOptions
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.device import use_device
from dcnzoo.openmmlab.runs.ranks import is_first
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe, read_config_file
from dcnzoo.openmmlab.runs.start import choose_start
from dcnzoo.openmmlab.saved import SavedCheckpoints
from dcnzoo.utils.errors import UserError, printable, typed, user_errors
from dcnzoo.utils.lock import OWNER, lock_work_dir
from dcnzoo.zoo.own_data import prepare
from dcnzoo.zoo.source import Source, resolve


@typed
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
    drop_scores: bool = False,
    layout: str | None = None,
    leave_out: Sequence[str] = (),
    dry_run: bool = False,
    **options: Any,
) -> Path:
    """Train a detector; return the work directory, which :func:`dcnzoo.load` takes::

        work_dir = dcnzoo.train(data="fruits/", work_dir="work_dirs/fruits", epochs=20)

    Args:
        model: a name in the zoo, a config file or a work directory. Optional with ``data``: a published model
            on a GPU, a small one on a CPU.
        data: a folder or file with annotated pictures, in any of the layouts of docs/train_your_data.md. They
            and a config are written to the folder ``data`` in the work directory; to ``data_2``, …,
            if ``data`` has another content. With ``resume``, they must be those of the training.
        resume: continue the training in the work directory, or from this checkpoint.
        force: also train in a work directory that has checkpoints: the files of the training before move to
            ``replaced_1/``. Replaces files that no training wrote.
        cfg_options: settings to override, ``{"model.backbone.dcn": True}``.
        outputs: files that the caller then writes to the work directory; checked before the training.
        zero_based, clip, skip_invalid, drop_scores, layout, leave_out: see
            :class:`dcnzoo.data.splits.ReadOptions`.
        dry_run: check the config and all options, and do not train. ``data`` is converted and checked.
        options: those of :class:`dcnzoo.openmmlab.options.TrainOptions`: work_dir, epochs, batch_size, lr,
            patience, amp, auto_scale_lr, logger, seed, device, channels_last, allow_partial, verbose,
            launcher. With ``data``, ``work_dir`` is by default ``work_dirs/`` and the name of the data.

    Raises:
        UserError: a mistake in an argument, the config or the data; or the folder is in use.
    """
    reading = ReadOptions(zero_based, clip, skip_invalid, drop_scores, layout or "", tuple(leave_out))
    of_run = TrainOptions(**options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(use_device(of_run.device, of_run.launcher))
        stack.enter_context(user_errors())
        if data is None:
            if model is None:
                raise UserError("model: expected one, or data=…, got neither")
            if unused := [key for key, value in vars(reading).items() if value != getattr(AS_THEY_ARE, key)]:
                raise UserError(f"{unused[0]}: expected data, got a training without it")
            source, start = resolve(model), None
            if source.weights == Path(source.name).expanduser():
                raise UserError(
                    f"model: expected a name, a config or a work directory, got the checkpoint {model}; "
                    f"resume={model} continues its training, the setting load_from starts from its weights"
                )
        else:
            recipe = _recipe_of_start(data, model, of_run, cfg_options, bool(resume) and not force)
            if not dry_run or Path(recipe.work_dir, OWNER).exists():
                stack.enter_context(lock_work_dir(recipe.work_dir))
            start = choose_start(recipe, resume, force)
            is_own = start.file is not None and recipe.saved.has(start.file)
            own = prepare(
                Path(data).expanduser(), recipe.work_dir, None if model is None else str(model), reading,
                is_own and not start.replaces,
            )  # fmt: skip
            print(*map(printable, own.decisions), sep="\n")
            of_run = replace(of_run, work_dir=recipe.work_dir, epochs=of_run.epochs or own.epochs)
            source = Source(str(own.config), own.config)
            cfg_options = {**own.moved, **(cfg_options or {})}
        folder = execute.train(
            source.recipe(cfg_options, TRAINING), of_run, resume=resume, force=force, outputs=outputs,
            start=start, only_checks=dry_run,
        )  # fmt: skip
        if dry_run and data is None and is_first():
            print("dry run: the config was checked; nothing was trained")
        return folder


def _recipe_of_start(
    data: str | os.PathLike[str],
    model: str | os.PathLike[str] | None,
    options: TrainOptions,
    cfg_options: Mapping[str, object] | None,
    resumes: bool,
) -> Recipe:
    """Return the settings on which the start depends, before the conversion of the data, which is slow."""
    if options.launcher != "none":
        raise UserError(f"data: expected one process, got launcher={options.launcher}; train its config")
    source = Path(data).resolve()
    name = source.stem if source.is_file() else source.name
    folder = Path(options.work_dir or Path("work_dirs", name)).expanduser()
    parts = ("resume", "load_from", "default_hooks")
    config = None if model is None else resolve(model).config
    if resumes and SavedCheckpoints(folder).exist:
        with contextlib.suppress(UserError):  # there is none: prepare says so
            config = resolve(folder).config
    cfg = Config() if config is None else read_config_file(config)
    cfg = Config({key: cfg[key] for key in parts if key in cfg})
    cfg.merge_from_dict({key: v for key, v in (cfg_options or {}).items() if key.partition(".")[0] in parts})
    cfg.merge_from_dict({"work_dir": str(folder), "launcher": options.launcher})
    return Recipe(cfg)
