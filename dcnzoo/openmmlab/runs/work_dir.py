"""The work directory of a training: the config that it writes, and what it moves to another folder before."""

import itertools
import os
import re
from pathlib import Path

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from dcnzoo.openmmlab.config.paths import keep_paths
from dcnzoo.openmmlab.runs.recipe import Recipe, real_name
from dcnzoo.openmmlab.runs.start import Start
from dcnzoo.openmmlab.saved import LAST
from dcnzoo.utils.errors import printable
from dcnzoo.utils.files import read_beside, write_text
from dcnzoo.utils.folders import is_work_dir
from dcnzoo.utils.text import few

REPORT = "report.html"
_LOGS = re.compile(r"\d{8}_\d{6}")  # folders that are named after the time


def config_file(recipe: Recipe) -> Path:
    """Return the path of the config that a training writes; also of one in JSON or YAML."""
    return recipe.work_dir / Path(recipe.cfg.filename or "config").with_suffix(".py").name


def is_own_config(file: Path) -> bool:
    """Whether a file with the config's name may be replaced: it is in the work directory of a training."""
    return is_work_dir(file.parent)


class WorkDirHook(Hook):
    """Write the config to the work directory when a training begins; first move what it replaces.

    Everything is built and loaded then, so that a mistake in the config leaves the folder as it was.
    ``replaced_1``, ``replaced_2``, … have the checkpoints, logs, report and configs of the trainings before,
    and a file with the config's name that no training wrote. Data stay: the configs use them. If a training
    resumes from an earlier checkpoint, the later ones move: the last one is always the one to resume from.
    """

    priority = "VERY_HIGH"

    def __init__(self, recipe: Recipe, start: Start) -> None:
        self.recipe, self._start = recipe, start
        self._file = config_file(recipe)

    def before_train(self, runner: Runner) -> None:
        barrier()  # all ranks have read the checkpoint, which may move
        if not is_main_process():
            return
        moved = self._move(self._replaced(Path(runner.log_dir).name))
        write_text(self._file, self.recipe.text(moved))

    def _replaced(self, log: str) -> set[Path]:
        """Return the files that the training replaces.

        Args:
            log: folder of its own log.
        """
        folder, saved, files = self.recipe.work_dir, self.recipe.saved, set[Path]()
        if os.path.lexists(self._file) and not is_own_config(self._file):
            files.add(self._file)
        source = Path(self._start.file or "") if self._start.resumes else Path()
        if saved.has(source):
            files |= saved.after(source)
        if self._start.replaces:
            own = {path.name for path in (*folder.glob("*.py"), *folder.glob("report*.html"))}
            own |= {path.name for path in folder.glob("*") if _LOGS.fullmatch(path.name)}
            files |= {folder / name for name in own - {log}} | {folder / LAST, *saved.files()}
        return {file for file in files if os.path.lexists(file) and real_name(file) != real_name(source)}

    def _move(self, files: set[Path]) -> dict[str, str]:
        """Move files to a new folder; return their new paths by the old ones."""
        folder, saved = self.recipe.work_dir, self.recipe.saved
        if not files:
            return {}
        used = {path.name for path in (*folder.glob("*"), *saved.folder.glob("*"))}
        name = next(name for name in map("replaced_{}".format, itertools.count(1)) if name not in used)
        moved = {}
        # checkpoints and the name of the last one at the end: until then, the folder counts as trained, up to
        # the same epoch
        for file in sorted(files, key=lambda file: (file.name == LAST, saved.step(file) or 0)):
            target = file.parent / name / file.name
            target.parent.mkdir(exist_ok=True)
            file.rename(target)
            moved[real_name(file)] = os.path.abspath(target)
            if file.suffix == ".py":
                keep_paths(target, folder)
            if file.name == LAST and (named := moved.get(real_name((read_beside(target) or "").strip()))):
                write_text(target, named)
        print(printable(f"moved to {folder / name}: {few(sorted(file.name for file in files))}"))
        return moved
