"""Step the schedules of a resumed training to the position of its checkpoint, without training."""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from dcnzoo.utils.errors import UserError

_VALUES = ("base_values", "_last_value")  # a schedule's lists with a value for each parameter group


def replay_schedules(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Step the schedules to the position of a checkpoint, as ParamSchedulerHook does in a training.

    If one depends on a metric, or with several optimizers, all keep the checkpoint's state.
    """
    schedules, meta = runner.param_schedulers or [], checkpoint["meta"]
    is_one = isinstance(schedules, list) and isinstance(runner.optim_wrapper, OptimWrapper)
    if is_one and "optimizer" in checkpoint:
        groups = (runner.optim_wrapper.optimizer.param_groups, checkpoint["optimizer"]["param_groups"])
        expected, count = (sum(len(group["params"]) for group in each) for each in groups)
        if count != expected:
            text = f"a checkpoint of a training of {expected} parameters, as the model has, got {count}"
            why = "InternImage, for example, no longer builds the levels behind the last of out_indices"
            raise UserError(f"resume: expected {text}: {why}. Set load_from, which starts a new training")
    if not is_one or any(getattr(schedule, "need_val_args", False) for schedule in schedules):
        return
    by_epochs = meta["epoch"] and isinstance(runner.train_loop, EpochBasedTrainLoop)
    length = meta["iter"] // meta["epoch"] if by_epochs else meta["iter"] + 1  # of an epoch
    ordered = sorted(schedules, key=lambda schedule: schedule.by_epoch)  # those by iterations first
    with _distinct_groups(schedules), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of steps without the optimizer
        for iteration in range(1, meta["iter"] + 1):
            for schedule in ordered:
                if not schedule.by_epoch or iteration % length == 0:
                    schedule.step()
    checkpoint["param_schedulers"] = [schedule.state_dict() for schedule in schedules]
    if "optimizer" in checkpoint:
        _set_values(runner, checkpoint["optimizer"])


@contextmanager
def _distinct_groups(schedules: Sequence[Any]) -> Iterator[None]:
    """Context in which schedules step one parameter group for each set of equal settings.

    At its end, the other groups take the settings of the group that is like them. A detector may have
    hundreds of groups with two or three sets of settings. Schedules that are not MMEngine's step all groups:
    they may compute a group's value from more than its settings.
    """
    own = [schedule for schedule in schedules if not type(schedule).__module__.startswith("mmengine.")]
    if own or not schedules:
        yield
        return
    optimizer = schedules[0].optimizer
    groups = optimizer.param_groups
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    first_of = [settings.index(each) for each in settings]  # of each group, the first one with its settings
    distinct = sorted({*first_of})
    stepped = SimpleNamespace(param_groups=[groups[first] for first in distinct], step=None)
    for schedule in schedules:
        schedule.optimizer = stepped
        for name in _VALUES:
            values = getattr(schedule, name)
            setattr(schedule, name, [values[first] for first in distinct])
    try:
        yield
    finally:
        for group, first in zip(groups, first_of, strict=True):
            group.update({key: value for key, value in groups[first].items() if key != "params"})
        for schedule in schedules:
            schedule.optimizer = optimizer
            for name in _VALUES:
                values = dict(zip(distinct, getattr(schedule, name), strict=True))
                setattr(schedule, name, [values[first] for first in first_of])


def _set_values(runner: Runner, optimizer: dict[str, Any]) -> None:
    """Copy the settings of the runner's parameter groups to the optimizer in a checkpoint.

    Values that an optimizer counts itself stay.
    """
    wrapper = runner.optim_wrapper
    settings = {*inspect.signature(type(wrapper.optimizer)).parameters}
    settings |= {each.param_name for each in runner.param_schedulers or ()}
    groups = [*optimizer["param_groups"], optimizer.get("base_param_settings") or {}]
    for old, new in zip(groups, wrapper.param_groups, strict=False):
        keys = [key for key in new if key not in old or key in settings or key.startswith("initial_")]
        old.update({key: new[key] for key in keys if key != "params"})
