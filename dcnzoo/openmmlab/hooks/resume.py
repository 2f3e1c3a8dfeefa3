"""Continue a training as if it had not been interrupted."""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from types import SimpleNamespace
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from dcnzoo.openmmlab.history import BEGAN, VALIDATED
from dcnzoo.utils.errors import UserError

_VALUES = ("base_values", "_last_value")  # a schedule's lists with a value for each parameter group
_STOPPING = "early_stopping"  # key in a checkpoint: monitor → best score, validations since


class ResumeHook(Hook):
    """Give a resumed training the state that an uninterrupted training with the same config has.

    The settings of the config count, not those in the checkpoint: the config's schedules are stepped to the
    checkpoint's position. If one depends on a metric, schedules and optimizer take the checkpoint's state.

    A checkpoint is written before the validation that follows. The resumed training repeats this validation,
    because it updates the best score, the patience and the learning rate on plateaus.

    Besides MMEngine's state, a checkpoint keeps the state of early stopping, which this hook writes, and the
    list of the training's files, which :class:`AtomicCheckpointHook` keeps in MMEngine's ``runtime_info``.
    """

    priority = "LOWEST"  # before_train runs a validation: all other hooks' before_train must come first
    _is_cut = _had_ended = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("param_schedulers") or []
        for state in chain(*states.values()) if isinstance(states, dict) else states:
            for key in [key for key, value in state.items() if callable(value)]:
                del state[key]  # OneCycleLR's state has a function, which load_file refuses
        checkpoint[_STOPPING] = {
            hook.monitor: (float(hook.best_score), hook.wait_count) for hook in _stopping_hooks(runner)
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Change the checkpoint of a resumed training before the runner reads its state."""
        if not runner._resume:
            return
        self._set_position(runner, checkpoint)
        scores = checkpoint.get(_STOPPING, {})
        for hook in _stopping_hooks(runner):
            hook.best_score, hook.wait_count = scores.get(hook.monitor, (hook.best_score, 0))
        _replay_schedules(runner, checkpoint)

    def _set_position(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Set epoch and iteration: epochs may have another length now, and an interrupted one is repeated."""
        meta, info = checkpoint["meta"], checkpoint.get("message_hub", {}).get("runtime_info", {})
        self._had_ended = meta["iter"] == info.get("max_iters")  # a training ends with a validation
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        if info.get("max_epochs"):
            length = info["max_iters"] // info["max_epochs"]
            meta["epoch"], rest = divmod(meta["iter"], length)
            self._is_cut = rest > 0  # a checkpoint by iterations
        meta["iter"] = meta["epoch"] * len(runner.train_dataloader)

    def before_val_epoch(self, runner: Runner) -> None:
        """Remove the last validation's metrics: LoggerHook would log them again if this one lacks a metric.

        Log the step as a metric, too: LoggerHook may log the epoch even if the training counts iterations.
        """
        scalars = runner.message_hub.log_scalars
        for name in [name for name in scalars if name.startswith("val/")]:
            del scalars[name]
        if isinstance(runner._train_loop, BaseLoop):
            runner.message_hub.update_scalar(f"val/{VALIDATED}", _done(runner))

    def before_train(self, runner: Runner) -> None:
        """Log where the training begins; if it resumes, run the validation that followed the checkpoint."""
        loop, now = runner.train_loop, _done(runner)
        if is_main_process():
            runner.visualizer.add_scalars({BEGAN: now}, step=runner.iter)
        known = isinstance(loop, EpochBasedTrainLoop | IterBasedTrainLoop)
        if self._is_cut or not (runner._resume and now and known and runner.val_loop):
            return
        loop._decide_current_val_interval()
        if now >= loop.val_begin and (now % loop.val_interval == 0 or self._had_ended):
            runner.logger.info(f"Running the validation of {now} first")
            runner.val_loop.run()


def _stopping_hooks(runner: Runner) -> Iterator[EarlyStoppingHook]:
    return (hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook))


def _done(runner: Runner) -> int:
    """Return the number of epochs that a training has done, or of iterations if it does not count epochs."""
    return runner.epoch if isinstance(runner.train_loop, EpochBasedTrainLoop) else runner.iter


def _replay_schedules(runner: Runner, checkpoint: dict[str, Any]) -> None:
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
