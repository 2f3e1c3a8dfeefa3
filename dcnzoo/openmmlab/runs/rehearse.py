"""Build every part of a training by mmengine's own methods before it starts, with two entries as data."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.runner import Runner

from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.config.errors import config_errors, frames_of
from dcnzoo.openmmlab.datasets import coco
from dcnzoo.utils.errors import UserError

_BUILDERS = (
    "mmengine.runner",
    "mmengine.registry",
    "torch.utils.data",
)  # have the data set and do not use it
_ENTRIES = [
    {
        **{"img_path": f"{number}.png", "img_id": number, "height": 64, "width": 96, "sample_idx": number},
        "instances": [{"bbox": [0.0, 0.0, 8.0, 9.0], "bbox_label": 0, "ignore_flag": 0, "mask": []}],
    }
    for number in range(2)
]


def require_parts(runner: Runner) -> None:
    """Raise UserError with a line for each part of a training that its class refuses.

    The runner, and the state of random generators, stay as they were.
    """
    if problems := rehearse(runner):
        raise UserError(*problems)


def rehearse(runner: Runner) -> list[str]:
    """Build the loops, the optimizer and the schedules of a training; return an error for each that fails.

    mmengine builds them in this way when the training starts, after it has read the data. Errors that may
    come from the entries in place of data are left out.
    """
    if not isinstance(runner, Runner):  # FlexibleRunner builds its parts in the strategy
        return []
    parts = {
        "_train_loop": runner.build_train_loop,
        "optim_wrapper": runner.build_optim_wrapper,
        "param_schedulers": runner.build_param_scheduler,
        "_val_loop": runner.build_val_loop,
    }
    settings = {name: getattr(runner, name) for name in parts}
    problems: list[str] = []
    with without_trace(), _without_data():
        for name, build in parts.items():
            if settings[name] is None or (name == "param_schedulers" and problems):
                continue  # schedules need the loop and the optimizer
            try:
                with config_errors(runner.cfg):
                    setattr(runner, name, build(settings[name]))
            except UserError as error:
                if not _of_data(error):
                    problems += error.args
    vars(runner).update(settings)
    return problems


@contextmanager
def without_trace() -> Iterator[None]:
    """Context in which nothing is logged, and random numbers are drawn that are drawn again after it."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        logging.disable(disabled)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def _without_data() -> Iterator[None]:
    """Context in which data sets have two entries, and metrics read no annotations."""

    def full_init(self: BaseDataset) -> None:
        if not self._fully_initialized:
            self.serialize_data, self.data_list, self._fully_initialized = False, [*_ENTRIES], True

    with Changes() as changes:
        for kind in _subclasses(BaseDataset):
            if "full_init" in vars(kind):
                changes.set(kind, "full_init", full_init)
        changes.set(coco, "CheckedCOCO", lambda *args, **kwargs: None)
        yield


def _subclasses(kind: Any) -> Iterator[Any]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _subclasses(subclass)


def _of_data(error: UserError) -> bool:
    """Whether an error arose in code that may use the entries of a data set."""
    return any(
        getattr(value, "_fully_initialized", False)
        for frame in frames_of(error.__cause__)
        if not frame.f_globals.get("__name__", "").startswith(_BUILDERS)
        for value in frame.f_locals.values()
    )
