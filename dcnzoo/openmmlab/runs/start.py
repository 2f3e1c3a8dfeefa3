"""How a training starts, and its work directory: what may be there, and what is written to it."""

import itertools
import os
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from dcnzoo.openmmlab.config.tree import LOADERS, datasets
from dcnzoo.openmmlab.hooks.history import History
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.openmmlab.saved import LAST, SavedCheckpoints, checkpoint_hook
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.files import read_beside, require_file, require_writable, write_text
from dcnzoo.utils.folders import is_work_dir
from dcnzoo.utils.lock import lock_work_dir
from dcnzoo.utils.text import few

REPORT = "report.html"


@dataclass(frozen=True)
class Start:
    """How a training or a test starts.

    Attributes:
        file: a checkpoint; None: random weights, or those that :func:`begin` adds.
        resumes: continue the training of the checkpoint; else take only its weights.
        replaces: first rename the work directory, which is used.
    """

    file: str | None = None
    resumes: bool = False
    replaces: bool = False


def begin(
    stack: ExitStack,
    recipe: Recipe,
    resume: bool | str | os.PathLike | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Start | None:
    """Lock the work directory, decide how a training starts, and check what it would replace.

    Returns:
        The start; None, with a line that says so, if the training is complete.

    Args:
        stack: holds the locks.
        resume, force: see :func:`choose_start`.
        dry_run: only check; lock and rename nothing.

    Raises:
        UserError: the start is refused, or a file would be replaced.
    """
    saved, rename = recipe.saved, None
    if not dry_run:  # first: another training may end meanwhile
        rename = stack.enter_context(lock_work_dir(recipe.work_dir))
        if saved.is_apart:  # out_dir may be that of two work directories
            stack.enter_context(lock_work_dir(saved.folder))
    elif saved.is_apart:
        require_writable(saved.folder)
    start = choose_start(recipe, resume, force)
    if recipe.cfg.get("load_from") and not start.resumes:
        require_file(str(recipe.cfg.load_from), "load_from")
        start = replace(start, file=os.path.expanduser(str(recipe.cfg.load_from)))
    if line := nothing_left(recipe, start):
        print(line)
        return None
    if start.replaces:
        files = [recipe.cfg.filename, start.file, *annotation_files(recipe)]
        require_movable(recipe.work_dir, filter(None, files))
        if rename is not None:
            set_aside(stack, rename, recipe.work_dir)
    else:
        _require_new(recipe, start)
    return start


def choose_start(
    recipe: Recipe, resume: bool | str | os.PathLike | None = None, force: bool = False
) -> Start:
    """Decide whether a training continues another one, and from which file. No file is searched later.

    A work directory with a checkpoint is used.

    ============  ==================  =======================  ===================
    ``resume``    not used            used                     used, and ``force``
    ============  ==================  =======================  ===================
    not set       starts              is refused               renames it, starts
    True          is refused          continues                is refused
    a file        continues from it   continues from it, if    renames it,
                                      it is its last one       continues from it
    ============  ==================  =======================  ===================

    In a distributed training, whose launcher repeats the command after a failure, ``resume=True`` starts one
    where there is none.

    Args:
        resume: a checkpoint to resume from; True: the latest undamaged one in the work directory. If neither
            argument is set, the config's ``resume`` is used, with which there may be none.
        force: rename a used work directory.

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
            hint = "; force=True renames the folder and starts a new training" if saved.exist else ""
            raise UserError(f"resume: expected a checkpoint in {cfg.work_dir}, found {others}{hint}")
        print(f"resume: found no checkpoint in {cfg.work_dir}; a new training starts")
    file, resumes = None, not isinstance(resume, bool | None)
    if resumes:
        require_file(str(resume), what)
        file = os.path.expanduser(str(resume))
    if not saved.exist:
        return Start(file, resumes)
    if force and (saved.is_apart or not saved.is_local):
        text = f"expected checkpoints in the work_dir, got out_dir={saved.out_dir}; use another work_dir"
        raise UserError(f"force: {text}")
    if force:
        return Start(file, resumes, replaces=True)
    folder, remedy = cfg.work_dir, "resume=True continues its training, " if saved.can_resume else ""
    remedy += f"force=True renames it to {free_name(folder).name}. Or use another work_dir"
    if file is None:
        raise UserError(f"work_dir: expected a folder without checkpoints, got {folder}; {remedy}")
    if saved.is_local and not saved.has(file):
        text = f"expected a checkpoint in {saved.folder}, which has a training of its own, got {file}"
        raise UserError(f"{what}: {text}; {remedy}")
    if later := saved.is_local and saved.after(Path(file)):
        names = few(sorted(path.name for path in later), 3)
        raise UserError(f"{what}: expected the last checkpoint in {saved.folder}, got {file} before {names}; "
                        "use another work_dir")  # fmt: skip
    return Start(file, resumes)


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


# The work directory


def config_file(recipe: Recipe) -> Path:
    """Return the path of the config that a training writes; also of one in JSON or YAML."""
    return recipe.work_dir / Path(recipe.cfg.filename or "config").with_suffix(".py").name


def annotation_files(recipe: Recipe) -> Iterable[str]:
    """Yield the paths of the annotations of all data sets."""
    for loader in LOADERS:
        outer = (recipe.cfg.get(loader) or {}).get("dataset") or {}
        for dataset in datasets(outer):
            if isinstance(file := dataset.get("ann_file"), str):
                yield os.path.join(str(dataset.get("data_root") or ""), file)


def _require_new(recipe: Recipe, start: Start) -> None:
    """Raise UserError if the training's config would replace a file that no training before it wrote."""
    folder, file, source = recipe.work_dir, config_file(recipe), recipe.cfg.filename or ""
    if start.resumes or not os.path.lexists(file):
        return
    is_source = os.path.exists(source) and file.exists() and file.samefile(source)
    # MMEngine writes neither bases nor comments
    by_hand = is_source and re.search(r"^(_base_\b|\s*#)", read_beside(file) or "", re.MULTILINE)
    if by_hand or not (recipe.saved.exist or is_work_dir(folder)):
        text = f"expected a folder without {file.name}, which the training writes, got {folder}"
        raise UserError(f"work_dir: {text}; use another work_dir")


def free_name(folder: str | os.PathLike) -> Path:
    """Return the first of ``FOLDER.1``, ``FOLDER.2``, … that does not exist."""
    path = Path(os.path.abspath(folder))
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def require_movable(folder: Path, files: Iterable[str | os.PathLike]) -> None:
    """Raise UserError unless a work directory can be renamed, and has none of the new training's files."""
    real = os.path.realpath(folder)
    inside = [file for file in (*files, os.getcwd()) if Path(os.path.realpath(file)).is_relative_to(real)]
    problem = ""
    if os.path.islink(os.path.abspath(folder)) or os.path.ismount(folder):
        problem = "which is a link or a mount point"
    elif inside:
        problem = f"which has {inside[0]}, used by the new training"
    if problem:
        raise UserError(
            f"force: expected a work_dir that can be renamed, got {folder}, {problem}; use another work_dir"
        )


def set_aside(stack: ExitStack, rename: Callable[[Path], None], folder: Path) -> None:
    """Rename a used work directory to :func:`free_name` under its lock, and lock the new one."""
    target = free_name(folder)
    try:
        rename(target)
    except OSError as error:
        text = f"{folder} cannot be renamed: {error.strerror or error}; use another work_dir"
        raise UserError(f"force: {text}") from error
    print(printable(f"renamed {folder} to {target}"))
    stack.enter_context(lock_work_dir(folder))


def claim(stack: ExitStack, folder: Path, force: bool, files: Iterable[str | os.PathLike]) -> None:
    """Lock a work directory, before the config of own data is written; see :func:`choose_start`.

    Args:
        files: of the new training.
    """
    rename = stack.enter_context(lock_work_dir(folder))
    if not SavedCheckpoints(folder).exist:
        return
    if not force:
        text = f"force=True renames it to {free_name(folder).name}. Or use another work_dir"
        raise UserError(f"work_dir: expected a folder without checkpoints, got {folder}; {text}")
    require_movable(folder, files)
    set_aside(stack, rename, folder)


class WorkDirHook(Hook):
    """Write the config to the work directory when a training begins: all has been built and loaded then."""

    priority = "VERY_HIGH"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def before_train(self, runner: Runner) -> None:
        if is_main_process():
            write_text(config_file(self.recipe), self.recipe.text())
