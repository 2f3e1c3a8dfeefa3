"""How a training starts: from random weights, from those of a file, or where another one has ended."""

import os
from dataclasses import dataclass

from mmengine.config import Config

from dcnzoo.openmmlab.checkpoints import SavedCheckpoints
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import require_file


@dataclass(frozen=True)
class Start:
    """How a training or a test starts.

    Attributes:
        file: a checkpoint; None: random weights, or with ``resumes`` the latest one in the work directory.
        resumes: continue the training of the checkpoint; else take only its weights.
        replaces: move the files of the training in the work directory to another folder.
    """

    file: str | None = None
    resumes: bool = False
    replaces: bool = False


def choose_start(cfg: Config, resume: bool | str | os.PathLike | None = None, force: bool = False) -> Start:
    """Decide how a training starts. Nothing else does; :func:`~dcnzoo.openmmlab.runs.prepare.prepare` asks.

    ============  ==================  ==================  ====================
    ``resume``    no checkpoints      with checkpoints    those, and ``force``
    ============  ==================  ==================  ====================
    not set       starts              is refused          replaces them
    True          is refused          continues           is refused
    a file        continues from it   only if it is one   replaces them
                                      of them
    ============  ==================  ==================  ====================

    Args:
        resume: a checkpoint to resume from; True: the latest one in the work directory. In a distributed
            training, whose launcher repeats the command after a failure, there may be none; so with the
            config's ``resume``, which is used if neither argument is set.
        force: replace the training in the work directory, of which nothing is deleted.

    Raises:
        UserError: the checkpoint does not exist, or the start is refused.
    """
    saved, file = SavedCheckpoints.of(cfg), cfg.get("load_from")
    optional = cfg.launcher != "none"
    if resume in (None, False) and cfg.get("resume") and not force:
        resume, optional = file or True, True
    if resume is True and force:
        raise UserError("force: expected resume=True, which continues a training, or force=True, got both")
    if resume is True and saved.can_resume:
        return Start(resumes=True)
    if resume is True and not optional:
        raise UserError(f"resume: expected a checkpoint in {cfg.work_dir}, found none")
    given = "load_from" if isinstance(resume, bool | None) or resume == file else "resume"
    resumes = not isinstance(resume, bool | None)
    if resumes:
        file = os.path.expanduser(str(resume))
    if resumes or file:
        require_file(str(file), given)
    if saved.exist and not (resumes or force):
        raise UserError(
            f"work_dir: expected a folder without checkpoints, got {cfg.work_dir}; resume=True continues its "
            "training, force=True replaces it"
        )
    elsewhere = os.path.realpath(os.path.dirname(str(file))) != os.path.realpath(saved.folder)
    if saved.exist and not force and saved.is_local and elsewhere:
        raise UserError(
            f"{given}: expected a checkpoint in {saved.folder}, which has some, got {file}; use another "
            "work_dir, or force=True to replace the training there"
        )
    if saved.exist and force and not saved.is_local:
        raise UserError(f"force: expected a new work_dir with out_dir={saved.out_dir}, got {cfg.work_dir}")
    return Start(file, resumes, replaces=saved.exist and force)
