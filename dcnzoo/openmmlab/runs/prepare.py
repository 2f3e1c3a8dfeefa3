"""What is required of the files of a training before it begins: once, by rank 0."""

import os
from dataclasses import replace
from pathlib import Path

from dcnzoo.openmmlab.hooks.history import History
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.openmmlab.runs.start import Start
from dcnzoo.openmmlab.runs.work_dir import config_file, is_own_config
from dcnzoo.openmmlab.saved import checkpoint_hook
from dcnzoo.utils.files import require_file, require_new


def prepare(recipe: Recipe, start: Start, force: bool = False) -> Start | None:
    """Return the start with its weights; None, with a line that says so, if the training is complete.

    Args:
        start: as :func:`~dcnzoo.openmmlab.runs.start.choose_start` returns it.
        force: replace another file with the config's name.

    Raises:
        UserError: ``load_from`` does not exist, or a file would be replaced.
    """
    cfg = recipe.cfg
    if cfg.get("load_from") and not start.resumes:
        require_file(str(cfg.load_from), "load_from")
        start = replace(start, file=os.path.expanduser(str(cfg.load_from)))
    if line := nothing_left(recipe, start):
        print(line)
        return None
    file = config_file(recipe)
    if not (recipe.saved.exist or is_own_config(file)):
        require_new("train", file, force=force)
    return start


def nothing_left(recipe: Recipe, start: Start) -> str | None:
    """Return a line that says so if the checkpoint to resume from is the end of the training."""
    cfg, saved, loop = recipe.cfg, recipe.saved, recipe.cfg.train_cfg
    units, end = "epochs", loop.get("max_epochs")
    if not end:
        units, end = "iterations", loop.get("max_iters")
    if not (start.resumes and start.file and end):
        return None
    done, folder = saved.step(Path(start.file)), saved.log_folder(start.file)
    if done is None or done < end or (units == "epochs") != saved.by_epoch:
        return None
    is_due = cfg.get("val_cfg") and loop.get("val_begin", 1) <= done == end
    lacks_best = checkpoint_hook(cfg).get("save_best") and saved.is_local and saved.best() is None
    if is_due and (lacks_best or done not in History.read(folder).validation):  # it runs now
        return None
    return f"{folder}: {done} of {end} {units} are done; set a larger number to train on"
