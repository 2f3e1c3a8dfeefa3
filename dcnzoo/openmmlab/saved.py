"""The checkpoints of a training: their names, and which one is the last, the best or undamaged."""

import itertools
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from dcnzoo.openmmlab.checkpoints import CheckpointError, read_ahead
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import files_beside, read_beside

LAST = "last_checkpoint"  # in a work directory: the file whose text is the path of the last checkpoint


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint of a work directory, which may have been moved after it was written."""
    return read_beside(folder / LAST, lambda text: _named_in(folder, text))


def best_files(info: Mapping[str, object]) -> list[str]:
    """Return the paths of the best checkpoints, one for each metric, in mmengine's runtime information."""
    return [str(path) for key, path in info.items() if key.startswith("best_ckpt")]


def _named_in(folder: Path, text: str) -> Path:
    path = Path(text.strip())
    if not path.name or not path.name.isprintable():
        raise ValueError("expected the path of a checkpoint")
    beside = folder / path.name
    # the checkpoint is in out_dir, which is not a work directory itself
    is_elsewhere = not beside.exists() and path.is_file() and not (path.parent / LAST).exists()
    return path if is_elsewhere else beside


@dataclass(frozen=True)
class SavedCheckpoints:
    """The checkpoints of the trainings in a work directory.

    Attributes:
        template: pattern of the names that the training writes.
        out_dir: setting of the checkpoint hook; checkpoints are in its subfolder named like ``work_dir``.
        by_epoch: whether the number in a name is that of an epoch, not of an iteration.

    Raises:
        UserError: ``template`` has not one place for the number, or ``out_dir`` is no local folder.
    """

    work_dir: Path
    template: str = "epoch_{}.pth"
    out_dir: str | os.PathLike[str] | None = None
    by_epoch: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/{}]*{[^/{}]*}[^/{}]*", self.template):
            raise UserError(
                "default_hooks.checkpoint.filename_tmpl: expected a name with one {} for the number, such as "
                f"epoch_{{}}.pth, got {self.template}"
            )
        if "://" in str(self.out_dir):
            raise UserError(f"default_hooks.checkpoint.out_dir: expected a local folder, got {self.out_dir}")

    @classmethod
    def of(cls, cfg: Config) -> "SavedCheckpoints":
        """Return the checkpoints of a training with this config."""
        hook: Any = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
        by_epoch = hook.get("by_epoch", True)
        template = hook.get("filename_tmpl") or ("epoch_{}.pth" if by_epoch else "iter_{}.pth")
        return cls(Path(cfg.work_dir), template, hook.get("out_dir"), by_epoch)

    @property
    def folder(self) -> Path:
        work_dir = Path(os.path.abspath(self.work_dir))
        if self.out_dir is None or str(self.out_dir) == str(work_dir):
            return self.work_dir
        return Path(self.out_dir, work_dir.name)

    @property
    def is_apart(self) -> bool:
        """Whether the checkpoints are in another folder than the work directory."""
        return os.path.realpath(self.folder) != os.path.realpath(self.work_dir)

    def has(self, file: str | os.PathLike) -> bool:
        """Return whether a file is in the folder of the checkpoints."""
        return os.path.realpath(os.path.dirname(file)) == os.path.realpath(self.folder)

    def number(self, name: str) -> int | None:
        """Return the epoch or iteration in the name of a checkpoint; None if no training gives this name.

        Names follow the template, ``epoch_{}.pth`` or ``iter_{}.pth``. The name of a best checkpoint begins
        with ``best_`` and the metric (``best_coco_bbox_mAP_epoch_3.pth``). If ``published_keys`` is set,
        mmengine's hook adds a checksum (``epoch_3-1a2b3c4d.pth``).
        """
        templates = self.template, "epoch_{}.pth", "iter_{}.pth"
        for template, digits in itertools.product(templates, re.findall(r"\d+", name)):
            stem, ending = map(re.escape, os.path.splitext(template.format(int(digits))))
            if re.fullmatch(rf"(best_(.*_)?)?{stem}(-[0-9a-f]{{8}})?{ending}", name):
                return int(digits)
        return None

    def is_best_by(self, metric: str, name: str) -> bool:
        """Return whether this is a name of a best checkpoint by this metric; ``auto``: by any metric."""
        number = self.number(name)
        if number is None:
            return False
        if metric == "auto":
            return name.startswith("best_")
        return name == f"best_{metric}_{self.template.format(number)}".replace("/", "_")

    def step(self, path: Path) -> int | None:
        """Return the epoch or iteration of a checkpoint; None if its name is not one to resume from."""
        number = self.number(path.name)
        return number if number is not None and path.name == self.template.format(number) else None

    def numbered(self) -> dict[int, Path]:
        """Return the checkpoints of the training by their epoch or iteration."""
        paths = ((self.step(path), path) for path in self.folder.glob("*"))
        return {step: path for step, path in paths if step is not None and path.is_file()}

    def undamaged(self) -> Path | None:
        """Return the latest undamaged checkpoint, to resume from; None if there is none.

        If its name follows the template, its content is kept for the runner (:func:`read_ahead`). A warning
        names the later, damaged ones. If the names follow another config's template, the checkpoint
        that ``last_checkpoint`` names is returned.

        Raises:
            UserError: all are damaged.
        """
        last = last_checkpoint(self.work_dir)
        if last and self.has(last) and self.step(last) is None and last.is_file():
            return last
        damaged = 0
        for _, path in sorted(self.numbered().items(), reverse=True):
            try:
                read_ahead(path)
                return path
            except CheckpointError as error:
                damaged += 1
                print_log(f"checkpoint: {error}; using the previous one", "current", logging.WARNING)
        if damaged:
            raise UserError(f"resume: expected an undamaged checkpoint, found {damaged} damaged ones")
        return None

    def files(self) -> list[Path]:
        """List all checkpoints, also those of the best validation."""
        return [path for path in self.folder.glob("*") if self.number(path.name) is not None]

    def after(self, file: Path) -> set[Path]:
        """Return all checkpoints later than this one, also those of the best validation."""
        step = self.step(file)
        return {path for path in self.files() if step is not None and (self.number(path.name) or 0) > step}

    def best(self) -> Path | None:
        """Return the checkpoint of the best validation; if several metrics have one, the latest.

        Commands that get a work directory use this checkpoint or, if there is none, the last one.
        """
        last = last_checkpoint(self.work_dir)  # also finds out_dir if the config is not known
        paths = files_beside(self.folder if last is None else last.parent, "best_*")
        numbers = {path: number for path in paths if (number := self.number(path.name)) is not None}
        return max(numbers, key=lambda path: (numbers[path], path.name), default=None)

    @property
    def can_resume(self) -> bool:
        """Whether there is a checkpoint to resume from; a killed process may not have written ``LAST``."""
        return bool(self.numbered())

    @property
    def exist(self) -> bool:
        """Whether a training has written checkpoints, even if only the best one is left."""
        return os.path.lexists(self.work_dir / LAST) or bool(self.files())
