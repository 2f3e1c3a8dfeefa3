"""Runners that share nothing in one process, and parts that are tried before a training."""

import contextlib
import gc
import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed
from mmengine.utils import ManagerMixin
from mmengine.visualization import Visualizer

from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.hooks.seeds import random_states


@contextlib.contextmanager
def separate_run() -> Iterator[None]:
    """Context of a runner that shares nothing with other runners of the process. Also usable as a decorator.

    mmengine keeps its scopes, loggers, message hubs and visualizers by name. All visualizers of MMDetection's
    configs have the same name: without this context, the curves of a second training are written to the work
    directory of the first one.
    """
    managers: list[Any] = [ManagerMixin]
    for manager in managers:
        managers += manager.__subclasses__()
    cudnn: Any = torch.backends.cudnn
    with Changes() as changes:
        changes.callback(gc.unfreeze)
        changes.callback(gc.collect)  # runner and hooks refer to each other
        gc.freeze()  # older objects need not be searched
        changes.callback(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        for flag in ("benchmark", "deterministic"):
            changes.callback(setattr, cudnn, flag, getattr(cudnn, flag))
        for manager in managers:
            changes.set(manager, "_instance_dict", OrderedDict())
        try:
            yield
        except BaseException:  # otherwise, LoggerHook closes them
            for visualizer in Visualizer._instance_dict.values():
                visualizer.close()
            raise
        finally:
            for logger in MMLogger._instance_dict.values():
                for handler in logger.handlers:
                    if isinstance(handler, logging.FileHandler):
                        handler.close()


@contextlib.contextmanager
def trial(cfg: Config, level: int = logging.CRITICAL) -> Iterator[Changes]:
    """Context of parts of a training that are built and run before it, then thrown away.

    They share nothing with it, draw other random numbers, and write no messages. Yields the changes, which
    are undone at its end.

    Args:
        level: of messages that are not logged, with those below it.
    """

    def forget_levels() -> None:  # logging does not do it: a level that was disabled would stay so
        for logger in MMLogger._instance_dict.values():
            logger._cache.clear()

    with Changes() as changes:
        changes.callback(forget_levels)  # called last
        changes.callback(logging.disable, logging.root.manager.disable)
        logging.disable(level)
        changes.enter_context(separate_run())
        changes.enter_context(DefaultScope.overwrite_default_scope(cfg.get("default_scope")))
        changes.enter_context(torch.random.fork_rng())  # of GPUs
        changes.enter_context(random_states())
        set_random_seed(0)  # the same findings each time
        changes.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the training shows them
        yield changes
