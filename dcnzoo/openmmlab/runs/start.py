"""How a training starts: from random weights, from those of a file, or where another one has ended."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from dcnzoo.openmmlab.checkpoints import CheckpointError, load_file
from dcnzoo.openmmlab.runs.work_dir import has_checkpoints, is_trained
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import last_checkpoint, output_files, require_file

TRAINED = (
    "work_dir: expected a folder without checkpoints, got {}; resume=True continues its training, "
    "force=True replaces it"
)


@dataclass(frozen=True)
class Start:
    """How a training or a test starts.

    Attributes:
        file: a checkpoint; None: random weights, or with ``resumes`` the latest one in the work directory.
        resumes: continue the training of the checkpoint; else take only its weights.
    """

    file: str | None = None
    resumes: bool = False


def choose_start(cfg: Config, resume: bool | str | os.PathLike | None, force: bool) -> Start:
    """Decide how a training starts.

    Args:
        resume: a checkpoint to resume from; True: the latest one in the work directory. In a distributed
            training, whose launcher repeats the command after a failure, there may be none.
        force: train in a work directory that has checkpoints.

    Raises:
        UserError: the checkpoint does not exist; or the work directory has checkpoints, although ``resume``
            and ``force`` are not set.
    """
    start = Start(cfg.get("load_from"))
    if resume is True:
        resumable = has_checkpoints(cfg.work_dir)
        if not resumable and cfg.launcher == "none":
            raise UserError(f"resume: expected a checkpoint in {cfg.work_dir}, found none")
        if resumable or start.file is None:
            return Start(resumes=True)
    elif not (resume is None or resume is False):
        require_file(str(resume), "resume")
        return Start(str(resume), resumes=True)
    elif cfg.get("resume") and not force:
        start = Start(start.file, resumes=True)
    elif is_trained(cfg.work_dir) and not force:
        raise UserError(TRAINED.format(cfg.work_dir))
    if start.file:
        require_file(start.file, "checkpoint")
    return start


def nothing_left(cfg: Config, start: Start) -> str | None:
    """Return a line that says so if the checkpoint to resume from is the end of the training."""
    path = Path(start.file) if start.file else last_checkpoint(Path(cfg.work_dir))
    unit, end = "epoch", cfg.train_cfg.get("max_epochs")
    if not end:
        unit, end = "iter", cfg.train_cfg.get("max_iters")
    if not (start.resumes and end and path and path.is_file()):
        return None
    name = re.fullmatch(rf"{unit}_(\d+)\.pth", path.name)
    if name and int(name[1]) < end:  # without reading the file
        return None
    try:
        meta = load_file(path, map_location="meta").get("meta") or {}
    except CheckpointError:  # training resumes from an older one
        return None
    done = meta.get(unit)
    unvalidated = bool(cfg.get("val_cfg")) and meta.get("validated") is False
    if type(done) is not int or done < end + unvalidated:
        return None
    units = "epochs" if unit == "epoch" else "iterations"
    return f"{cfg.work_dir}: {done} of {end} {units} are done; set a larger number to train on"


def decide(
    cfg: Config, resume: bool | str | os.PathLike | None, force: bool, outputs: Iterable[str]
) -> Start | None:
    """Return how a training starts; None, with a line that says so, if it is complete.

    Args:
        outputs: files that are then written to the work directory; also checked.
    """
    start = choose_start(cfg, resume, force)
    if line := nothing_left(cfg, start):
        print(line)
        return None
    with output_files("report", force=force) as claim:
        for number, name in enumerate(outputs):
            claim(Path(cfg.work_dir, name), beside=number > 0)
    return start
