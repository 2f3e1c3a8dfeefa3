"""``dcnzoo.train``: train a model of the zoo, a config or your own pictures."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from dcnzoo.data.splits import ReadOptions
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.device import use_device
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe
from dcnzoo.openmmlab.runs.start import TRAINED
from dcnzoo.openmmlab.runs.work_dir import is_trained, next_replaced
from dcnzoo.utils.errors import UserError, printable, typed, user_errors
from dcnzoo.utils.lock import OWNER, lock_work_dir
from dcnzoo.zoo.own_data import OwnData, prepare
from dcnzoo.zoo.source import resolve


@typed
def train(
    model: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    patience: int | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    resume: bool | str | os.PathLike[str] | None = False,
    force: bool = False,
    logger: str | None = None,
    seed: int | None = None,
    device: str | torch.device = "auto",
    cfg_options: Mapping[str, object] | None = None,
    allow_partial: bool = False,
    channels_last: bool = True,
    launcher: str = "none",
    verbose: bool = False,
    outputs: Iterable[str] = (),
    zero_based: bool = False,
    clip: bool = False,
    skip_invalid: bool = False,
    dry_run: bool = False,
) -> Path:
    """Train a detector; return the work directory, which :func:`dcnzoo.load` takes::

        work_dir = dcnzoo.train(data="fruits/", work_dir="work_dirs/fruits", epochs=20)
        result = dcnzoo.load(work_dir)("street.jpg")

    Args:
        model: a name in the zoo, a config file or a work directory. Optional with ``data``: a published model
            on a GPU, a small one on a CPU.
        data: a folder or file with annotated pictures, in any of :data:`dcnzoo.data.layouts.LAYOUTS`. They
            and a config are written to the folder ``data`` in the work directory.
        work_dir: folder of logs and checkpoints (default: ``work_dirs/`` and the name of the config or data).
        epochs, batch_size, lr, patience, amp, auto_scale_lr, logger, seed: see
            :class:`dcnzoo.openmmlab.options.TrainOptions`.
        device, channels_last, allow_partial, verbose, launcher: see
            :class:`dcnzoo.openmmlab.options.RunOptions`.
        resume: continue the training in the work directory, or from this checkpoint.
        force: also train in a work directory that has checkpoints: the files of the training before move to
            ``replaced_1/``. Replaces files that no training wrote.
        cfg_options: settings to override, ``{"model.backbone.dcn": True}``.
        outputs: files that the caller then writes to the work directory; checked before the training.
        zero_based, clip, skip_invalid: see :class:`dcnzoo.data.splits.ReadOptions`.
        dry_run: convert and check ``data``, write the config, and do not train.

    Raises:
        UserError: a mistake in an argument, the config or the data; or the folder is in use.
    """
    only_data = {"zero_based": zero_based, "clip": clip, "skip_invalid": skip_invalid, "dry_run": dry_run}
    options = TrainOptions(
        work_dir=work_dir, epochs=epochs, batch_size=batch_size, lr=lr, patience=patience, amp=amp,
        auto_scale_lr=auto_scale_lr, logger=logger, seed=seed, device=device, allow_partial=allow_partial,
        channels_last=channels_last, launcher=launcher, verbose=verbose,
    )  # fmt: skip
    with use_device(device, launcher), user_errors():
        if data is None:
            for name in filter(only_data.get, only_data):
                raise UserError(f"{name}: expected data, got a training without it")
            source = resolve(model)
            config, folder = source.config, source.work_dir if work_dir is None else work_dir
        else:
            resumes, reading = resume not in (False, None), ReadOptions(zero_based, clip, skip_invalid)
            folder, own = _own_data(
                Path(data).expanduser(), work_dir, model, resumes, force, launcher, reading
            )
            if dry_run:
                return folder
            config, options = own.config, replace(options, epochs=own.epochs if epochs is None else epochs)
        recipe = Recipe.read(config, cfg_options, TRAINING)
    return execute.train(
        recipe, replace(options, work_dir=folder), resume=resume, force=force, outputs=outputs
    )


def _own_data(
    data: Path,
    work_dir: str | os.PathLike[str] | None,
    model: str | os.PathLike[str] | None,
    resume: bool,
    force: bool,
    launcher: str,
    options: ReadOptions,
) -> tuple[Path, OwnData]:
    """Prepare data for a training, unless it is resumed; return the work directory."""
    if launcher != "none":
        raise UserError(f"data: expected one process, got launcher={launcher}; train its config instead")
    if model == "":
        raise UserError("model: expected a name, a config or a work directory, got an empty text")
    folder = Path("work_dirs", data.resolve().stem) if work_dir is None else Path(work_dir).expanduser()
    replaces = is_trained(folder)
    if replaces and resume:
        return folder, OwnData(resolve(folder).config)
    if replaces and not force:
        raise UserError(TRAINED.format(folder))
    with contextlib.ExitStack() as stack:
        if replaces or (folder / OWNER).exists():  # of a training that may not have a checkpoint yet
            stack.enter_context(lock_work_dir(folder))
        if replaces:
            stack.enter_context(_data_set_aside(folder / "data", next_replaced(folder)))
        own = prepare(data, folder, None if model is None else str(model), force, options)
    print(*map(printable, own.decisions), sep="\n")
    return folder, own


@contextlib.contextmanager
def _data_set_aside(data: Path, replaced: Path) -> Iterator[None]:
    """Move the data of the training that is replaced; move it back if the new data has a mistake."""
    if not data.is_dir() or (replaced / "data").exists():  # it was moved by a training that did not begin
        yield
        return
    replaced.mkdir()
    data.rename(replaced / "data")
    try:
        yield
    except BaseException:
        shutil.rmtree(data, ignore_errors=True)
        (replaced / "data").rename(data)
        replaced.rmdir()
        raise
