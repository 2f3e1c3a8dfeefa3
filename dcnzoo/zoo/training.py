"""``dcnzoo.train``: train a model of the zoo, a config or your own pictures."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from dcnzoo.data.splits import ReadOptions
from dcnzoo.openmmlab import execute
from dcnzoo.openmmlab.device import use_device
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.recipe import TRAINING, Recipe
from dcnzoo.openmmlab.work_dir import is_trained, next_replaced
from dcnzoo.utils.errors import UserError, require_flags, user_errors
from dcnzoo.utils.lock import lock_work_dir
from dcnzoo.zoo.own_data import prepare
from dcnzoo.zoo.source import resolve


def train(
    model: str | os.PathLike | None = None,
    *,
    data: str | os.PathLike | None = None,
    work_dir: str | os.PathLike | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    patience: int | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    resume: bool | str | None = False,
    force: bool = False,
    logger: str | None = None,
    seed: int | None = None,
    device: str = "auto",
    cfg_options: dict | None = None,
    allow_partial: bool = False,
    channels_last: bool = True,
    launcher: str = "none",
    local_rank: int = 0,
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
        device, channels_last, allow_partial, verbose, launcher, local_rank: see
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
    require_flags(force=force, **only_data)
    options = TrainOptions(
        work_dir=work_dir, device=device, channels_last=channels_last, allow_partial=allow_partial,
        verbose=verbose, launcher=launcher, local_rank=local_rank, epochs=epochs, batch_size=batch_size,
        lr=lr, patience=patience, amp=amp, auto_scale_lr=auto_scale_lr, logger=logger, seed=seed,
    )  # fmt: skip
    with use_device(device, launcher), user_errors():
        resumes = resume not in (False, None)
        config, folder, chosen = _find_config(model, data, work_dir, launcher, resumes, force, only_data)
        if dry_run:
            return Path(str(folder))
        recipe = Recipe.read(config, cfg_options, TRAINING)
    options = replace(options, work_dir=folder, epochs=chosen if epochs is None else epochs)
    return execute.train(recipe, options, resume=resume, force=force, outputs=outputs)


def _find_config(
    model: str | os.PathLike | None,
    data: str | os.PathLike | None,
    work_dir: str | os.PathLike | None,
    launcher: str,
    resume: bool,
    force: bool,
    only_data: dict[str, bool],
) -> tuple[Path, str | os.PathLike | None, int | None]:
    """Return the config, the work directory, and the number of epochs if it is not that of the config."""
    work_dir = None if work_dir is None else os.path.expanduser(work_dir)
    if data is None:
        if model is None:
            raise UserError("model: expected a name, a config or a work directory, or data, got none")
        for name, value in only_data.items():
            if value:
                raise UserError(f"{name}: expected data, got a training without it")
        trained = resolve(model)
        return trained.config, trained.work_dir if work_dir is None else work_dir, None
    if launcher != "none":
        raise UserError(f"data: expected one process, got launcher={launcher}; train its config instead")
    if model == "":
        raise UserError("model: expected a name, a config or a work directory, got an empty text")
    source = Path(data).expanduser()
    options = ReadOptions(only_data["zero_based"], only_data["clip"], only_data["skip_invalid"])
    folder = Path("work_dirs", source.resolve().stem) if work_dir is None else Path(work_dir)
    if not is_trained(folder):
        return _prepare(source, folder, model, force, options)
    if resume:
        return resolve(folder).config, folder, None
    if not force:
        raise UserError(execute.TRAINED.format(folder))
    with lock_work_dir(folder), _data_set_aside(folder / "data", next_replaced(folder)):
        return _prepare(source, folder, model, force, options)


def _prepare(
    source: Path, folder: Path, model: str | os.PathLike | None, force: bool, options: ReadOptions
) -> tuple[Path, Path, int | None]:
    own = prepare(source, folder, None if model is None else str(model), force, options)
    print(*own.decisions, sep="\n")
    return own.config, folder, own.epochs


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
