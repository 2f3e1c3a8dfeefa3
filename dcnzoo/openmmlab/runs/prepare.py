"""What is decided about a training before it begins: once, by rank 0."""

import functools
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config

from dcnzoo.openmmlab.checkpoints import CheckpointError, SavedCheckpoints, load_file
from dcnzoo.openmmlab.hooks.history import History
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.openmmlab.runs.start import Start, choose_start
from dcnzoo.openmmlab.runs.work_dir import config_file, is_own_config
from dcnzoo.utils.files import last_checkpoint, require_new
from dcnzoo.utils.marks import mark


def prepare(
    recipe: Recipe,
    resume: bool | str | os.PathLike | None = False,
    force: bool = False,
    outputs: Iterable[str] = (),
) -> Start | None:
    """Return how a training starts; None, with a line that says so, if it is complete.

    Args:
        resume, force: see :func:`choose_start`. ``force`` also replaces another file with the config's name.
        outputs: files that are then written to the work directory; also checked.

    Raises:
        UserError: the start is refused, all checkpoints are damaged, or a file would be replaced.
    """
    cfg = recipe.cfg
    start, saved = choose_start(cfg, resume, force), SavedCheckpoints.of(cfg)
    if line := nothing_left(cfg, start):
        print(line)
        return None
    if cfg.get("resume") and not (start.resumes or start.replaces):
        print(f"resume: found no checkpoint in {cfg.work_dir}; a new training starts")
    file = config_file(recipe)
    if not (force or saved.can_resume):
        require_new("train", file, own=functools.partial(is_own_config, recipe))
    if files := [Path(cfg.work_dir, name) for name in outputs]:
        require_new("report", files[0], mark=mark("report", "."), force=force, beside=files[1:])
    if start.resumes and start.file is None and (last := saved.undamaged()):
        return replace(start, file=str(last))
    return start


def nothing_left(cfg: Config, start: Start) -> str | None:
    """Return a line that says so if the checkpoint to resume from is the end of the training."""
    path = Path(start.file) if start.file else last_checkpoint(Path(cfg.work_dir))
    unit, end = "epoch", cfg.train_cfg.get("max_epochs")
    if not end:
        unit, end = "iter", cfg.train_cfg.get("max_iters")
    if not (start.resumes and end and path and path.is_file()):
        return None
    name = SavedCheckpoints.of(cfg).pattern.fullmatch(path.name)
    if name and int(name[1]) < end:  # without reading the file
        return None
    try:
        meta = load_file(path, map_location="meta").get("meta") or {}
    except CheckpointError:  # training resumes from an older one
        return None
    done = meta.get(unit)
    if type(done) is not int or done < end:
        return None
    is_due = cfg.get("val_cfg") and done == end and cfg.train_cfg.get("val_begin", 1) <= end
    # files of older versions have the entry; what is not in the log runs again
    was_validated = meta.get("validated") is True or done in History.read(Path(cfg.work_dir)).validation
    if is_due and not was_validated:
        return None
    units = "epochs" if unit == "epoch" else "iterations"
    return f"{cfg.work_dir}: {done} of {end} {units} are done; set a larger number to train on"
