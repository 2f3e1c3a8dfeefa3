"""The runner class: one of MMEngine's, of which :class:`RunnerMethods` changes a few methods.

``build.py`` makes a runner of a config.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapperDict
from mmengine.registry import RUNNERS

from dcnzoo.openmmlab.hooks import ProgressHook
from dcnzoo.openmmlab.runs.start import Start
from dcnzoo.utils.errors import UserError

# parts of warnings about deprecated names in mmengine's own hooks, gradient accumulation and frozen weights
_UNWANTED = ('"FileClient"', '"HardDiskBackend"', "Gradient accumulative may", "its requires_grad=False")


def _is_wanted(log: logging.LogRecord) -> bool:
    return not any(text in str(log.msg) for text in _UNWANTED)


_Runner: Any = object  # runner_class adds the class of MMEngine


class RunnerMethods(_Runner):
    """The methods that replace those of MMEngine's ``Runner`` or ``FlexibleRunner``, and call them.

    ``build_logger`` and ``scale_lr`` act only in ``Runner``: ``FlexibleRunner`` leaves both to its strategy.

    Attributes:
        plain_cfg: the config for ``runner.cfg``. The dictionaries that are built have more; see
            :func:`dcnzoo.openmmlab.config.errors.with_paths`.
        is_quiet: whether only warnings are printed; the log file is complete.
    """

    plain_cfg: Config
    is_quiet: bool

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "cfg": self.plain_cfg})
        self.logger.addFilter(_is_wanted)

    def build_logger(self, *args: Any, **settings: Any) -> MMLogger:
        logger = super().build_logger(*args, **settings)
        logger.addFilter(_is_wanted)  # also while the runner is built
        for handler in logger.handlers:
            if self.is_quiet and type(handler) is logging.StreamHandler:
                handler.setLevel(max(logging.WARNING, handler.level))  # mmengine: ERROR on other ranks
        return logger

    def dump_config(self) -> None:
        """Write nothing: WorkDirHook writes the config."""

    def scale_lr(self, optim_wrapper: Any, auto_scale_lr: dict[str, Any] | None = None) -> None:
        """Also scale the base settings' rate, ``base_lr`` in the log: mmengine scales only the groups."""
        groups = [group for each in _wrappers(optim_wrapper) for group in each.optimizer.param_groups]
        before = [group["lr"] for group in groups]
        super().scale_lr(optim_wrapper, auto_scale_lr)
        ratio = next((group["lr"] / lr for group, lr in zip(groups, before, strict=True) if lr), 1)
        for each in _wrappers(optim_wrapper):
            if each.base_param_settings is not None:
                each.base_param_settings["lr"] *= ratio

    def set_start(self, start: Start, is_training: bool) -> None:
        """Set the checkpoint. A training whose start has none keeps the config's ``load_from``."""
        self._resume = start.resumes
        if start.file or not is_training:
            self._load_from = start.file

    def train(self) -> Any:
        with self._progress_bars():
            return super().train()

    def test(self) -> dict[str, float]:
        with self._progress_bars():
            return super().test()

    @contextmanager
    def _progress_bars(self) -> Iterator[None]:
        """Context that stops the progress bars at its end: mmengine calls no hook after an error."""
        try:
            yield
        finally:
            for hook in self.hooks:
                if isinstance(hook, ProgressHook):
                    hook.stop()


def _wrappers(optim_wrapper: Any) -> list[Any]:
    return [*optim_wrapper.values()] if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]


def runner_class(cfg: Config, is_quiet: bool) -> Any:
    """Return the class of the runner for a config, with :class:`RunnerMethods`.

    Raises:
        UserError: there is no runner of the config's ``runner_type``.
    """
    name = cfg.get("runner_type", "Runner")
    kind: Any = name if isinstance(name, type) else RUNNERS.get(name)
    if kind is None:
        raise UserError(f"runner_type: expected the name of a runner, got {name}")
    return type(kind.__name__, (RunnerMethods, kind), {"plain_cfg": cfg, "is_quiet": is_quiet})
