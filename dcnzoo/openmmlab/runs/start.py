"""Decide how a training starts; check, lock and rename its work directory, and write the config to it."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from dcnzoo.openmmlab.classes import data_sets
from dcnzoo.openmmlab.config.tree import annotation_file
from dcnzoo.openmmlab.runs.recipe import RunConfig
from dcnzoo.openmmlab.saved import SavedCheckpoints
from dcnzoo.utils.errors import UserError, show
from dcnzoo.utils.files import read_beside, require_file, write_text
from dcnzoo.utils.folders import is_work_dir
from dcnzoo.utils.lock import lock_work_dir, rename_locked


@dataclass(frozen=True)
class Start:
    """How a training or a test starts.

    Attributes:
        file: a checkpoint; None: the config's ``load_from``, or random weights.
        resumes: continue the training of the checkpoint; else take only its weights.
        replaces: first rename the work directory, which has checkpoints.
    """

    file: str | None = None
    resumes: bool = False
    replaces: bool = False


@contextmanager
def claim(
    locks: ExitStack,
    run: RunConfig,
    dry_run: bool = False,
    *,
    resume: bool | str | os.PathLike | None = None,
    force: bool = False,
    files: Iterable[str | os.PathLike] = (),
) -> Iterator[Start]:
    """Context with the start of a training: locks the work directory, and at its end renames a used one.

    The lock stays in ``locks`` after the context.
    What the training reads before it begins is read in the context: an error then leaves the folder as it is.

    Args:
        locks: holds the locks, and nothing else.
        dry_run: only decide; lock and rename nothing.
        resume, force, files: see :func:`choose_start`.

    Raises:
        UserError: the start is refused, another training runs in the folder, or it cannot be renamed.
    """
    folder = run.work_dir
    if not dry_run:
        if run.saved.is_apart:  # two work directories may share out_dir
            locks.enter_context(lock_work_dir(run.saved.folder))
        locks.enter_context(lock_work_dir(folder))  # first, as another training may be ending
    start = choose_start(run, resume, force, files)
    yield start
    if start.replaces and not dry_run:
        rename_locked(locks, folder, target := free_name(folder))
        locks.close()
        show(f"renamed {folder} to {target}")
        locks.enter_context(lock_work_dir(folder))


def choose_start(
    run: RunConfig,
    resume: bool | str | os.PathLike | None = None,
    force: bool = False,
    files: Iterable[str | os.PathLike] = (),
) -> Start:
    """Decide whether a training continues another one, and from which file. Later code does not search.

    A work directory is called used if it has a checkpoint.

    ============  ==================  =======================  ===================
    ``resume``    not used            used                     used, and ``force``
    ============  ==================  =======================  ===================
    not set       starts              is refused               renames it, starts
    True          is refused          continues                is refused
    a file        continues from it   continues from it, if    renames it,
                                      it is its last one       continues from it
    ============  ==================  =======================  ===================

    In a distributed training, the launcher repeats the command after a failure: if there is no checkpoint,
    ``resume=True`` starts a new training.

    Args:
        resume: a checkpoint to resume from; True: the latest undamaged one in the work directory. Without
            ``resume`` and ``force``, the config's ``resume`` counts, which needs no checkpoint.
        force: rename a used work directory.
        files: other files that the training reads, besides those that the config names.

    Raises:
        UserError: a checkpoint does not exist, all are damaged, or the start is refused.
    """
    cfg, saved, what = run.cfg, run.saved, "resume"
    may_start = cfg.launcher != "none"  # a new training, if there is no checkpoint
    if resume in (None, False) and cfg.get("resume") and not force:
        resume, may_start = True, True
        if cfg.get("load_from"):
            resume, what = cfg.load_from, "load_from"
    if resume is True and force:
        raise UserError("force: expected resume=True, which continues a training, or force=True, got both")
    if resume is True and (last := saved.undamaged()):
        return Start(str(last), resumes=True)
    folder, remedy = cfg.work_dir, f"force=True renames it to {free_name(cfg.work_dir).name}"
    if resume is True:
        if saved.exist or not may_start:
            hint = f"; {remedy}" if saved.exist else ""
            raise UserError(f"resume: expected a checkpoint in {folder}, found none to continue from{hint}")
        show(f"no checkpoint to resume from in {folder}: a new training starts")
    file, resumes = None, not isinstance(resume, bool | None)
    if resumes:
        require_file(str(resume), what)
        file = os.path.expanduser(str(resume))
    elif weights := cfg.get("load_from"):
        require_file(str(weights), "load_from")
    if not saved.exist:
        return Start(file, resumes)
    if force:
        require_movable(run, [*files, file])
    else:
        _require_last(saved, file, what, remedy)
    return Start(file, resumes, replaces=force)


def _require_last(saved: SavedCheckpoints, file: str | None, what: str, remedy: str) -> None:
    """Raise UserError unless the file that ``what`` names is the last checkpoint of a used work directory."""
    remedy = "resume=True continues its training, " * saved.can_resume + f"{remedy}. Or use another work_dir"
    if file is None:
        raise UserError(f"work_dir: expected a folder without checkpoints, got {saved.work_dir}; {remedy}")
    if not saved.has(file):
        text = f"expected a checkpoint in {saved.folder}, which has a training of its own, got {file}"
        raise UserError(f"{what}: {text}; {remedy}")
    if later := saved.after(Path(file)):
        last = max(later, key=lambda path: saved.number(path.name) or 0)
        text = f"expected the last checkpoint in {saved.folder}, got {file} before {last.name}"
        raise UserError(f"{what}: {text}; use another work_dir")


def config_file(run: RunConfig) -> Path:
    """Return the path of the .py config that a training writes, even if the original is JSON or YAML."""
    return run.work_dir / Path(run.cfg.filename or "config").with_suffix(".py").name


def require_new_config(run: RunConfig, start: Start) -> None:
    """Raise UserError if the training's config would replace a file that no earlier training wrote."""
    if start.replaces or (start.resumes and run.saved.exist):  # the folder is new, or the training's own
        return
    file, source = config_file(run), run.cfg.filename or ""
    is_source = os.path.exists(source) and file.exists() and file.samefile(source)
    # MMEngine writes neither bases nor comments, so a file with them was written by hand
    by_hand = is_source and re.search(r"^(_base_\b|\s*#)", read_beside(file) or "", re.MULTILINE)
    if os.path.lexists(file) and (by_hand or not is_work_dir(run.work_dir)):
        text = f"expected a folder without {file.name}, which the training writes, got {run.work_dir}"
        raise UserError(f"work_dir: {text}; use another work_dir")


def free_name(folder: str | os.PathLike) -> Path:
    """Return the first of ``FOLDER.1``, ``FOLDER.2``, … that does not exist."""
    names = (Path(f"{os.path.abspath(folder)}.{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def require_movable(run: RunConfig, files: Iterable[str | os.PathLike | None]) -> None:
    """Raise UserError unless a work directory can be renamed, and the new training reads no file in it."""
    folder, cfg, saved = run.work_dir, run.cfg, run.saved
    data = [annotation_file(dataset) for _, dataset, _ in data_sets(cfg)]
    paths = [*files, *data, cfg.filename, cfg.get("load_from"), os.getcwd()]
    real = os.path.realpath(folder)
    inside = [path for path in paths if path and Path(os.path.realpath(path)).is_relative_to(real)]
    problem = f"which has {inside[0]}, used by the new training" if inside else ""
    if os.path.islink(os.path.abspath(folder)) or os.path.ismount(folder):
        problem = "which is a link or a mount point"
    if saved.is_apart:
        problem = f"whose checkpoints are in out_dir={saved.out_dir}"
    if problem:
        text = f"expected a work_dir that can be renamed, got {folder}, {problem}"
        raise UserError(f"force: {text}; use another work_dir")


class WorkDirHook(Hook):
    """Write the config to the work directory when a training begins, after everything is built and loaded."""

    priority = "VERY_HIGH"

    def __init__(self, run: RunConfig) -> None:
        self.run = run

    def before_train(self, runner: Runner) -> None:
        if runner.iter >= runner.max_iters:
            done = f"all {runner.max_iters} iterations are done"
            runner.logger.warning(f"resume: {done}; set more epochs or iterations to train on")
        if is_main_process():
            write_text(config_file(self.run), self.run.text())
