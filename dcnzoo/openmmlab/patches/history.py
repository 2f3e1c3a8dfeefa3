"""The history of logged values: constant time for each value, and memory for the values that are used.

MMEngine copies all earlier values when it appends one, and saves them in each checkpoint. After a million
iterations, that takes milliseconds per iteration and hundreds of megabytes per checkpoint:
https://github.com/open-mmlab/mmengine/issues/1446
"""

import contextlib
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from mmengine.runner import BaseLoop, LogProcessor, Runner

from dcnzoo.compat.patches import Changes

UNLIMITED = 1_000_000  # MMEngine's default of ``max_length``; a smaller one is set by a caller
# of the values that were removed: their totals, and how to add those of others
_TOTALS: dict[str, Callable] = {
    "number": operator.add,
    "sum": operator.add,
    "count": operator.add,
    "max": np.maximum,
    "min": np.minimum,
}

Buffer = Any  # a HistoryBuffer with the attributes ``_totals`` and those in _SPACE
# for each array, an array with space for more values, and its first part, which is the attribute
_SPACE = {"_log_history": "_log_space", "_count_history": "_count_space"}


def short_histories(changes: Changes) -> None:
    """Keep the last values, at least those of an epoch, and totals of the others.

    The numbers in the log are the same: before a training, the length of an epoch and each ``window_size`` of
    the log processor are known, and the mean, maximum and minimum of all values are computed from the totals
    and the last values. They include values that are older than a million iterations, which MMEngine's do
    not. If a program asks for a longer window, it gets the values that are left; later, there are more.

    The arrays have MMEngine's names: without this patch, a checkpoint is read as one with a short history.
    """
    HistoryBuffer()  # fills the table of methods
    methods: dict[str, Callable] = {"mean": _mean, "max": _max, "min": _min}
    for name, method in methods.items():
        changes.wrap(HistoryBuffer, name, method)
        changes.set_item(HistoryBuffer._statistics_methods, name, getattr(HistoryBuffer, name))
    changes.wrap(HistoryBuffer, "update", _update)
    changes.wrap(HistoryBuffer, "__getstate__", _state)
    for name in ("build_train_loop", "build_val_loop", "build_test_loop"):
        changes.wrap(Runner, name, _build_loop)


class Length:
    """The number of values of each name that stay: at least those of an epoch and of each known window."""

    values = 1000

    @classmethod
    def require(cls, values: int) -> None:
        cls.values = max(cls.values, values)


def _build_loop(original: Callable, self: Runner, loop: object) -> BaseLoop:
    built = original(self, loop)
    with contextlib.suppress(AttributeError, TypeError):  # a data set may have no length
        Length.require(len(built.dataloader))
    # dcnzoo's rows of a training by iterations are means since the last validation, if there is any
    intervals = getattr(built, "val_interval", 0), *getattr(built, "dynamic_intervals", ())
    during = [interval for interval in intervals if interval < getattr(built, "max_iters", 0)]
    Length.require(max([*during, *_windows(self.log_processor)]))
    return built


def _windows(processor: LogProcessor) -> list[int]:
    """Return the windows in the config of a log processor, in iterations, other than epochs."""
    windows = [getattr(processor, "window_size", 0)]
    for item in getattr(processor, "custom_cfg", ()):
        if isinstance(item.get("window_size"), int):
            windows.append(item["window_size"])
        elif item.get("method_name") not in ("mean", "max", "min", "current"):
            windows.append(UNLIMITED)  # a method that a program registered reads the arrays
    return windows


def _update(original: Callable, self: Buffer, log_val: float, count: int = 1) -> None:
    valid = isinstance(log_val, int | float) and isinstance(count, int | float)
    if not valid or self.max_length < UNLIMITED:
        original(self, log_val, count)
        return
    _append(self, "_log_history", log_val)
    _append(self, "_count_history", count)
    if len(self._log_history) > 2 * Length.values:
        _shorten(self)


def _append(self: Buffer, name: str, value: float) -> None:
    """Append a value as ``np.append``, but copy the array only when its space is used up."""
    values = getattr(self, name)
    space, first = vars(self).get(_SPACE[name], (None, None))
    number, dtype = len(values), values.dtype
    if dtype != np.float64:  # that of a new history: then no type is computed in each iteration
        dtype = np.result_type(values, np.asarray(value))
    if first is not values or number == len(space) or dtype != space.dtype:
        space = np.empty(2 * number + 16, dtype)
        space[:number] = values
    space[number] = value
    first = space[: number + 1]
    setattr(self, name, first)
    setattr(self, _SPACE[name], (space, first))


def _shorten(self: Buffer) -> None:
    """Remove all values but the last ones, and add them to the totals."""
    excess = len(self._log_history) - Length.values
    if excess <= 0 or self.max_length < UNLIMITED:
        return
    log, count = self._log_history[:excess], self._count_history[:excess]
    totals = {"number": excess, "sum": log.sum(), "count": count.sum(), "max": log.max(), "min": log.min()}
    if before := vars(self).get("_totals"):
        totals = {key: add(before[key], totals[key]) for key, add in _TOTALS.items()}
    # Python's numbers: a checkpoint is read without code of other packages
    self._totals = {key: np.asarray(value).tolist() for key, value in totals.items()}
    self._log_history, self._count_history = (
        self._log_history[excess:].copy(),
        self._count_history[excess:].copy(),
    )


def _state(original: Callable, self: Buffer) -> dict:
    _shorten(self)
    return {key: value for key, value in original(self).items() if key not in _SPACE.values()}


def _totals(self: Buffer, window_size: object) -> dict | None:
    """Return the totals of the removed values if a window contains all of them."""
    totals, number = vars(self).get("_totals"), len(self._log_history)
    if totals is None or not isinstance(window_size, int | None):
        return None
    if not window_size or window_size >= number + totals["number"]:  # MMEngine's 0 is all, too
        return totals
    if window_size > number:
        Length.require(2 * window_size)
    return None


def _mean(original: Callable, self: Buffer, window_size: int | None = None) -> np.ndarray:
    if totals := _totals(self, window_size):
        return (totals["sum"] + self._log_history.sum()) / (totals["count"] + self._count_history.sum())
    return original(self, window_size)


def _max(original: Callable, self: Buffer, window_size: int | None = None) -> np.ndarray:
    totals = _totals(self, window_size)
    return np.maximum(totals["max"], self._log_history.max()) if totals else original(self, window_size)


def _min(original: Callable, self: Buffer, window_size: int | None = None) -> np.ndarray:
    totals = _totals(self, window_size)
    return np.minimum(totals["min"], self._log_history.min()) if totals else original(self, window_size)
