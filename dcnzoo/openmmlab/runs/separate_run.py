"""Separate the runners in one process from each other."""

import contextlib
import gc
import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from mmengine.logging import MMLogger
from mmengine.utils import ManagerMixin
from mmengine.visualization import Visualizer

from dcnzoo.compat.patches import Changes


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
    with Changes() as changes:
        changes.callback(gc.collect)  # runner and hooks refer to each other
        for manager in managers:
            changes.set(manager, "_instance_dict", OrderedDict())
        try:
            yield
        except BaseException:  # without an error, LoggerHook closes them
            for visualizer in Visualizer._instance_dict.values():
                visualizer.close()
            raise
        finally:
            for logger in MMLogger._instance_dict.values():
                for handler in logger.handlers:
                    if isinstance(handler, logging.FileHandler):
                        handler.close()
