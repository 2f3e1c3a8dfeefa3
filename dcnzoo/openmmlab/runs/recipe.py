"""A config as it was read and checked, and the config of a run, to which its options are added."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mmengine.config import Config

import dcnzoo.openmmlab.datasets
import dcnzoo.openmmlab.hooks  # noqa: F401  for configs
from dcnzoo.openmmlab.config.check import MODEL, TEST, TRAINING, Use, check_config  # noqa: F401  for callers
from dcnzoo.openmmlab.config.paths import DIRECTORY, below, text_of
from dcnzoo.openmmlab.config.read import read_config_file
from dcnzoo.openmmlab.config.tree import child, dicts
from dcnzoo.openmmlab.options import RunOptions
from dcnzoo.openmmlab.registration import setup
from dcnzoo.openmmlab.runs.options import write_options
from dcnzoo.openmmlab.saved import SavedCheckpoints

setup()  # any config may use dcn=True


@dataclass(frozen=True)
class Recipe:
    """A config that was read and checked.

    Attributes:
        roots: the folder of the config, if its paths are relative to it.
        cfg_options: the settings that were merged into it.
    """

    cfg: Config
    roots: tuple[str, ...] = ()
    cfg_options: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        path: str | os.PathLike,
        cfg_options: Mapping[str, object] | None = None,
        use: Use = MODEL,
    ) -> "Recipe":
        """Read a config by :func:`read_config_file` and check the parts that a command uses.

        Args:
            use: ``MODEL``, ``TRAINING`` or ``TEST``.

        Raises:
            UserError: see :func:`dcnzoo.openmmlab.config.check.check_config`.
        """
        cfg = read_config_file(path, cfg_options)
        check_config(cfg, path, use)
        source = Path(os.path.abspath(cfg.filename or ""))
        is_relative = source.is_file() and DIRECTORY in source.read_text(encoding="utf-8")
        return cls(cfg, roots=(str(source.parent),) if is_relative else (), cfg_options=cfg_options or {})

    def with_options(self, options: RunOptions) -> "RunConfig":
        """Return the config of a run with these options."""
        cfg = copy.deepcopy(self.cfg)
        given = {child(path, key) for path, node in dicts({**self.cfg_options}) for key in node}
        changes = write_options(cfg, options, given)
        return RunConfig(cfg, tuple(changes), self.roots)


@dataclass(frozen=True)
class RunConfig:
    """The config of a training or a test, with its options; ``launcher`` and ``work_dir`` are set.

    :class:`dcnzoo.openmmlab.runs.start.Start` describes how the run starts.

    Attributes:
        changes: a description of each change by the options, for the terminal and the log.
        roots: see :class:`Recipe`.
    """

    cfg: Config
    changes: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()

    @classmethod
    def in_folder(cls, work_dir: str | os.PathLike) -> "RunConfig":
        """Return a run of which only the work directory is known."""
        return cls(Config({"work_dir": str(work_dir), "launcher": "none"}))

    @property
    def work_dir(self) -> Path:
        return Path(self.cfg.work_dir)

    @cached_property
    def saved(self) -> SavedCheckpoints:
        """The checkpoints of the trainings in the work directory."""
        return SavedCheckpoints.of(self.cfg)

    def text(self) -> str:
        """Return the text of the config in the work directory; it does not depend on how the training starts.

        Paths inside the work directory are relative to it, so that it can be moved. Paths that were relative
        to the config that was read are relative to the work directory, too.
        """
        settings = self.cfg.to_dict()
        settings.pop("resume", None)
        roots = [str(self.work_dir), os.path.abspath(self.work_dir), os.path.realpath(self.work_dir)]
        return text_of(Config(below(settings, self.work_dir, [*roots, *self.roots])))
