"""How a training starts: from random weights, from those of a file, or where another one has ended."""

import os
from dataclasses import dataclass

from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.openmmlab.saved import LAST
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import require_file
from dcnzoo.utils.text import few


@dataclass(frozen=True)
class Start:
    """How a training or a test starts.

    Attributes:
        file: a checkpoint; None: random weights, or those that :func:`~dcnzoo.openmmlab.runs.prepare.prepare`
            adds.
        resumes: continue the training of the checkpoint; else take only its weights.
        replaces: move the files of the training in the work directory to another folder.
    """

    file: str | None = None
    resumes: bool = False
    replaces: bool = False


def choose_start(
    recipe: Recipe, resume: bool | str | os.PathLike | None = None, force: bool = False
) -> Start:
    """Decide whether a training continues another one, and from which file. No file is searched later.

    ============  ==================  ==================  ====================
    ``resume``    no checkpoints      with checkpoints    those, and ``force``
    ============  ==================  ==================  ====================
    not set       starts              is refused          replaces them
    True          is refused          continues           is refused
    a file        continues from it   only if it is one   replaces them
                                      of them
    ============  ==================  ==================  ====================

    In a distributed training, whose launcher repeats the command after a failure, ``resume=True`` starts one
    where there is none.

    Args:
        resume: a checkpoint to resume from; True: the latest undamaged one in the work directory. If neither
            argument is set, the config's ``resume`` is used, with which there may be none.
        force: replace the training in the work directory, of which nothing is deleted.

    Raises:
        UserError: the checkpoint does not exist, all are damaged, or the start is refused.
    """
    cfg, saved, what = recipe.cfg, recipe.saved, "resume"
    optional = cfg.launcher != "none"
    if resume in (None, False) and cfg.get("resume") and not force:
        resume, optional = True, True
        if cfg.get("load_from"):
            resume, what = cfg.load_from, "load_from"
    if resume is True:
        if force:
            text = "expected resume=True, which continues a training, or force=True, got both"
            raise UserError(f"force: {text}")
        if last := saved.undamaged():
            return Start(str(last), resumes=True)
        if saved.exist or not optional:
            others = few([path.name for path in saved.files()] or [LAST], 3) if saved.exist else "none"
            hint = "; force=True replaces the training there" if saved.exist else ""
            raise UserError(f"resume: expected a checkpoint in {cfg.work_dir}, found {others}{hint}")
        print(f"resume: found no checkpoint in {cfg.work_dir}; a new training starts")
    file, resumes = None, not isinstance(resume, bool | None)
    if resumes:
        require_file(str(resume), what)
        file = os.path.expanduser(str(resume))
    is_own = file is not None and not force and (saved.has(file) or not saved.is_local)
    if is_own or not saved.exist:
        return Start(file, resumes)
    if force and saved.is_local:
        return Start(file, resumes, replaces=True)
    if force:
        text = f"expected a new work_dir with out_dir={saved.out_dir}, got {cfg.work_dir}"
        raise UserError(f"force: {text}")
    remedy = "resume=True continues its training, " if saved.can_resume else ""
    if resumes:
        raise UserError(
            f"{what}: expected a checkpoint in {saved.folder}, which has a training of its own, got {file}; "
            f"{remedy}force=True replaces it. Or use another work_dir"
        )
    raise UserError(
        f"work_dir: expected a folder without checkpoints, got {cfg.work_dir}; {remedy}force=True replaces it"
    )
