"""The work directory of a training: its checkpoints, its config, and what the next training replaces."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from dcnzoo.openmmlab.config.paths import is_config, keep_paths
from dcnzoo.openmmlab.runs import ranks
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.utils.files import LAST, files_beside, output_files, write_text

CHECKPOINT = re.compile(r"last_checkpoint|(epoch|iter)_\d+\.pth")
REPORT = ("report.html", "report.json", "report.csv")
# of a training and its report; logs are in folders that are named after the time
WRITTEN = re.compile(rf"{CHECKPOINT.pattern}|best_.+\.pth|\d{{8}}_\d{{6}}|{'|'.join(map(re.escape, REPORT))}")


def has_checkpoints(work_dir: str | os.PathLike) -> bool:
    """Whether a folder has a checkpoint from which its training can be resumed.

    A process that was killed may have left one without the file ``last_checkpoint``.
    """
    return any(CHECKPOINT.fullmatch(path.name) for path in Path(work_dir).glob("*"))


def is_trained(work_dir: str | os.PathLike) -> bool:
    """Whether a training has written checkpoints to a folder, even if only the best one is left."""
    return has_checkpoints(work_dir) or any(Path(work_dir).glob("best_*.pth"))


def next_replaced(work_dir: Path) -> Path:
    """Return the folder for the training that the next one replaces: ``replaced_1``, ``replaced_2``, …

    With ``data``, that of the training has moved there before.
    """
    numbers = [int(path.name[9:]) for path in work_dir.glob("replaced_*") if path.name[9:].isdecimal()]
    last = work_dir / f"replaced_{max(numbers, default=0)}"
    if [path.name for path in last.glob("*")] == ["data"]:
        return last
    return work_dir / f"replaced_{max(numbers, default=0) + 1}"


def set_aside(work_dir: Path, replaced: Path, stays: Iterable[str]) -> None:
    """Move the checkpoints, logs, reports and configs of a training to the folder ``replaced``.

    Args:
        stays: names that belong to the new training.
    """
    files = [path for path in work_dir.glob("*") if WRITTEN.fullmatch(path.name)]
    files += filter(is_config, files_beside(work_dir, "*.py"))
    names = {file.name for file in files}.difference(stays)
    replaced.mkdir(exist_ok=True)
    # checkpoints last: until then, the folder counts as trained
    for name in sorted(names, key=lambda name: (name.endswith(".pth"), name == LAST)):
        (work_dir / name).rename(replaced / name)
    for config in [*files_beside(replaced, "*.py"), *files_beside(replaced, "data/*.py")]:
        keep_paths(config, work_dir / config.parent.relative_to(replaced))


class WorkDirHook(Hook):
    """Write the config to the work directory when a training begins.

    Everything is built and loaded then, so that a mistake in the config leaves the folder as it was.

    Args:
        force: replace a file with the config's name that no training wrote.
        replaced: first move the files of the training before to this folder.

    Raises:
        UserError: the work directory has another file with the config's name and no checkpoint.
    """

    priority = "VERY_HIGH"

    def __init__(self, recipe: Recipe, force: bool = False, replaced: Path | None = None) -> None:
        self._recipe, self._replaced = recipe, replaced
        self._force = force or has_checkpoints(recipe.work_dir)  # the config there belongs to this training
        name = Path(recipe.cfg.filename or "config").with_suffix(".py").name  # also of JSON or YAML
        self._file = recipe.work_dir / name
        with output_files("train", force=self._force) as claim:
            ranks.from_rank_0(lambda: claim(self._file))

    def before_train(self, runner: Runner) -> None:
        if not is_main_process():
            return
        folder, cfg = self._recipe.work_dir, self._recipe.cfg
        if self._replaced is not None:
            set_aside(folder, self._replaced, stays=[Path(runner.log_dir).name])
            print(f"replaced: the files of the training before are now in {self._replaced}")
            weights = cfg.get("load_from") or ""
            if "://" not in weights and not Path(weights).expanduser().exists():
                cfg.load_from = str(self._replaced / Path(weights).name)
        with output_files("train", force=self._force) as claim:
            write_text(claim(self._file), self._recipe.text())
