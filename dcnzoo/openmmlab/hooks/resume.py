"""Continue a training as if it had not been interrupted: the hook, and the map of all steps in their order.

======================================================== ===================================================
step                                                     where
======================================================== ===================================================
choose the checkpoint, the last undamaged one            ``runs/start.py``: ``choose_start``
tell the runner, which then reads it                     ``runs/runner.py``: ``RunnerMethods.set_start``
load the weights                                         ``hooks/load_checkpoint.py``: ``LoadCheckpointHook``
require all that a training needs to continue            here, ``after_load_checkpoint``
set epoch, iteration and the state of early stopping     here, ``after_load_checkpoint``
step the schedules to this position                      ``hooks/schedules.py``: ``replay_schedules``
load counters, seed, optimizer and logged values         MMEngine's ``Runner.resume``
give the samplers the seed                               ``hooks/seeds.py``: ``EpochSeedHook``
continue the lists of all files and of the best ones     ``hooks/checkpoint.py``: ``AtomicCheckpointHook``
repeat the validation that followed the checkpoint       here, ``before_train``
skip the used batches                                    ``EpochSeedHook``, ``before_train_epoch``
======================================================== ===================================================

A new hook that has a state writes it into the checkpoint in ``before_save_checkpoint``, under a key of its
own, and reads it in ``after_load_checkpoint``, as ``_STOPPING`` here. MMEngine's ``runtime_info`` is not the
place for it unless the hook keeps it up to date while it trains, as ``AtomicCheckpointHook`` does: a
checkpoint's copy is made before ``before_save_checkpoint``, and ``Runner.resume`` loads it only after
``after_load_checkpoint``. A quiet terminal shows warnings of ``runner.logger``, but no infos.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from dcnzoo.openmmlab.history import BEGAN, VALIDATED
from dcnzoo.openmmlab.hooks.schedules import replay_schedules
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.text import few

_STOPPING = "early_stopping"  # key in a checkpoint: monitor → best score, validations since


class ResumeHook(Hook):
    """Give a resumed training the state that an uninterrupted training with the same config has.

    The settings of the config count, not those in the checkpoint, except ``randomness.seed``: MMEngine takes
    the checkpoint's seed, and warns if it is another one. The config's schedules are stepped to the
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
        _require_resumable(runner, checkpoint)
        self._set_position(runner, checkpoint)
        scores = checkpoint.get(_STOPPING, {})
        for hook in _stopping_hooks(runner):
            hook.best_score, hook.wait_count = scores.get(hook.monitor, (hook.best_score, 0))
        replay_schedules(runner, checkpoint)

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


def _require_resumable(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Raise UserError for a file that lacks something that a training needs to continue.

    Best checkpoints lack the optimizer's state, and files of weights lack the whole state of a training.
    mmengine would train on without the optimizer's state, and begin the warm-up again.
    """
    meta = checkpoint.get("meta") or {}
    lacking = [key for key in ("epoch", "iter") if type(meta.get(key)) is not int or meta[key] < 0]
    parts = {"message_hub": True}
    if isinstance(runner, Runner):  # FlexibleRunner's strategies have other file formats
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), CheckpointHook())
        parts["optimizer"] = hook.save_optimizer
        parts["param_schedulers"] = bool(runner.param_schedulers) and hook.save_param_scheduler
    if lacking := lacking + [key for key, is_saved in parts.items() if is_saved and key not in checkpoint]:
        raise UserError(
            f"resume: expected a checkpoint of an interrupted training, got {runner._load_from} without "
            f"{few(lacking)}: the setting load_from={runner._load_from} starts a training from its weights"
        )
