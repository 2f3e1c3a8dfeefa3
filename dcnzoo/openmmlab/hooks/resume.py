"""Continue a training as if it had not been interrupted, also with other settings or a part of the log."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook, ParamSchedulerHook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from dcnzoo.openmmlab.hooks.history import BEGAN, NUMBER, VALIDATED, History, next_number
from dcnzoo.openmmlab.hooks.resumed_settings import other_settings, set_values
from dcnzoo.openmmlab.saved import SavedCheckpoints
from dcnzoo.utils.text import counted, few

Metrics = Mapping[str, float]


class ResumeHook(Hook):
    """Give a resumed training the state that an uninterrupted one with its settings has; name other things.

    Checkpoints record the images per optimizer step and the iterations per epoch. If one of them or a setting
    of the optimizer or the schedules differs, the schedules that the runner has built are stepped to the
    position of the checkpoint, those that depend on a metric with the validations in the log. mmengine would
    load the old ones: their learning rate, end and length of epochs, and the old weight decay. An epoch that
    a checkpoint by iterations has cut begins again.

    A checkpoint is written before the validation that follows. Its effects (best score, learning rate on
    plateaus) are repeated: the metrics come from the log, or the validation runs if it was interrupted.

    Args:
        saved: the checkpoints of the training.
    """

    priority = "LOWEST"  # a validation calls all hooks, whose ``before_train`` comes first

    def __init__(self, saved: SavedCheckpoints) -> None:
        self._saved = saved
        self._validations: dict[int, Metrics] | None = None  # of the training that resumes

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        kind = type(getattr(runner.optim_wrapper, "optimizer", None)).__name__
        checkpoint["meta"].update(_sizes(runner), optimizer=kind)
        states = checkpoint.get("param_schedulers") or []
        for state in chain(*states.values()) if isinstance(states, dict) else states:
            for key in [key for key, value in state.items() if callable(value)]:
                del state[key]  # OneCycleLR has a function, which files of weights may not have

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if not runner._resume:
            return
        file = runner._load_from
        self._folder = self._saved.log_folder(file) if file else Path(runner.work_dir)
        message: list[Any] = [History.read(self._folder).validation if is_main_process() else {}]
        broadcast_object_list(message)
        self._validations = message[0]
        position = self._position = _set_position(runner, checkpoint)
        meta, seed = checkpoint["meta"], getattr(runner, "_randomness_cfg", {}).get("seed")
        groups, changes = checkpoint.get("optimizer", {}).get("param_groups", []), position.changes
        # FlexibleRunner may have other files
        is_one = isinstance(runner, Runner) and not isinstance(runner.optim_wrapper, OptimWrapperDict)
        if groups or is_one:
            changes += other_settings(runner, checkpoint, groups)
            if changes or position.is_late:
                changes += self._replay(runner, checkpoint, groups)
        elif changes or position.is_late:
            changes.append("the schedules stay those of the checkpoint")
        if seed is not None and meta.get("seed") not in (None, seed):
            changes.append(f"seed {meta['seed']} → {seed}")
            meta["seed"] = seed  # which the runner takes
        if lost := position.lost:
            changes.append(f"the gradients of {counted(lost, 'batches')} before the checkpoint are lost")
        if changes:
            runner.logger.warning(f"resume: {', '.join(changes)}")

    def _replay(self, runner: Runner, checkpoint: dict[str, Any], groups: Sequence[dict]) -> list[str]:
        """Step the runner's schedules to the position of a checkpoint, which gets their states and values.

        What an optimizer counts itself stays as in the checkpoint.

        Args:
            groups: of the optimizer in the checkpoint.

        Returns:
            A text for each thing that is not that of an uninterrupted training.
        """
        schedules, meta = runner.param_schedulers or [], checkpoint["meta"]
        by_epoch, changes = isinstance(runner.train_loop, EpochBasedTrainLoop), list[str]()
        length = len(runner.train_dataloader) if by_epoch else 1
        now = meta["epoch"] if by_epoch else meta["iter"]
        known = {step: each for step, each in (self._validations or {}).items() if step < now}
        of_metric = [each for each in schedules if depends_on_metric(each)]
        ends = range(length, length * meta["epoch"] + 1, length) if by_epoch else range(0)
        for iteration in stepped(schedules, meta["iter"], ends):
            if iteration % length == 0 and (metrics := known.get(iteration // length)):
                for each in (each for each in of_metric if getattr(each, "monitor", None) in metrics):
                    each.step(metrics)
        states = [state for state in checkpoint.get("param_schedulers") or () if "monitor" in state]
        seen = max((state.get("last_step", -1) + 1 for state in states), default=0)
        lacks = seen > len(known) + self._position.is_cut
        reduced = {each.param_name for each in of_metric if lacks}
        if reduced:
            names = few(sorted({type(each).__name__ for each in of_metric}))
            changes.append(f"{names} counts anew: the log in {self._folder} lacks validations")
        checkpoint["param_schedulers"] = [each.state_dict() for each in schedules]
        if groups:
            changes += set_values(runner, checkpoint["optimizer"], reduced)
        return changes

    def before_val_epoch(self, runner: Runner) -> None:
        """Forget the last validation's metrics, which LoggerHook would log again where one is missing now.

        Log the step as a metric, too: LoggerHook may write an epoch, though the training counts iterations.
        """
        scalars = runner.message_hub.log_scalars
        for name in [name for name in scalars if name.startswith("val/")]:
            del scalars[name]
        if isinstance(runner._train_loop, BaseLoop):
            runner.message_hub.update_scalar(f"val/{VALIDATED}", _done(runner))

    def before_train(self, runner: Runner) -> None:
        """Log where the training begins; if it resumes, repeat the effects of the validations before."""
        validations, self._validations = self._validations, None
        loop = runner.train_loop
        if is_main_process():
            number = next_number(Path(runner.work_dir))
            runner.visualizer.add_scalars({BEGAN: _done(runner), NUMBER: number}, step=runner.iter)
        if validations is None or runner.val_loop is None:
            return
        if isinstance(loop, EpochBasedTrainLoop | IterBasedTrainLoop):
            self._repeat(runner, validations)
        else:
            text = f"expected a loop of mmengine, got {type(loop).__name__}"
            runner.logger.warning(f"resume: the effects of validations are not repeated: {text}")

    def _repeat(self, runner: Runner, validations: Mapping[int, Metrics]) -> None:
        """Repeat the effects of the validation that followed the checkpoint, or run it if it was interrupted.

        Those of all validations on ``EarlyStoppingHook``, which has no state in the file.
        """
        loop: Any = runner.train_loop
        now = _done(runner)
        end = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
        known = {step: metrics for step, metrics in validations.items() if step <= now}
        if not _needed_metrics(runner) <= known.get(now, {}).keys():
            known.pop(now, None)  # it measured others
        stopping = [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]
        if stopping and len(loop.dynamic_milestones) == 1:
            due = {step for step in range(loop.val_begin, now) if step % loop.val_interval == 0}
            if not due <= known.keys():
                text = f"the log in {self._folder} lacks validations"
                runner.logger.warning(f"resume: EarlyStoppingHook counts anew: {text}")
        for metrics in known.values():
            loop.stop_training = False  # a later validation was better, or the patience was smaller
            for hook in stopping:
                hook.after_val_epoch(runner, metrics=metrics)
        if is_main_process():  # for the next resume: the log may be elsewhere, or have moved
            for step in sorted(known.keys() - History.read(Path(runner.work_dir)).validation.keys()):
                runner.visualizer.add_scalars({**known[step], VALIDATED: step}, step=step)
        if now in known:
            for hook in runner.hooks:
                if isinstance(hook, CheckpointHook | ParamSchedulerHook):
                    hook.after_val_epoch(runner, metrics=known[now])
        elif not self._position.is_cut:  # else it has ended
            loop._decide_current_val_interval()
            if now >= loop.val_begin and (now % loop.val_interval == 0 or now == end):
                runner.logger.info(f"Running the interrupted validation of {now} first")
                runner.val_loop.run()


@dataclass(frozen=True)
class _Position:
    """Where a training continues.

    Attributes:
        changes: a text for each difference from the training before.
        is_cut: the checkpoint was written within an epoch, which begins again.
        is_late: it was written before the schedules of its epoch were stepped, or after those of the next.
        lost: number of batches whose gradients mmengine had added up.
    """

    changes: list[str]
    is_cut: bool
    is_late: bool
    lost: int


def _set_position(runner: Runner, checkpoint: dict[str, Any]) -> _Position:
    """Set epoch and iteration in a checkpoint to those of an uninterrupted training."""
    meta, now, loop = checkpoint["meta"], _sizes(runner), runner.train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    before = {name: meta.get(name) for name in now}
    if by_epoch and meta["epoch"] and not _is_size(before["iterations_per_epoch"]):
        before["iterations_per_epoch"] = meta["iter"] // meta["epoch"]  # of another program
    before = {name: size if _is_size(size) else now[name] for name, size in before.items()}
    changes = [
        f"{name.replace('_', ' ')} {before[name]} → {size}"
        for name, size in now.items()
        if before[name] != size
    ]
    lost, epoch, rest = meta["iter"] % before["accumulative_counts"], meta["epoch"], 0
    if meta["iter"] == checkpoint.get("message_hub", {}).get("runtime_info", {}).get("max_iters"):
        lost = 0  # the last step of a training uses them
    if by_epoch:
        length = before["iterations_per_epoch"]
        if type(loop) is EpochBasedTrainLoop:
            epoch, rest = divmod(meta["iter"], length)
        meta["iter"] = round((meta["iter"] - rest) * now["iterations_per_epoch"] / length)
    if rest:  # the checkpoint counts iterations
        changes.append(f"epoch {epoch + 1} begins again")
        lost = 0  # mmengine adds up gradients across epochs
    position = _Position(changes, is_cut=rest > 0, is_late=rest > 0 or epoch != meta["epoch"], lost=lost)
    meta["epoch"] = epoch
    return position


def _done(runner: Runner) -> int:
    """Return the number of epochs that a training has done, or of iterations if it does not count epochs."""
    return runner.epoch if isinstance(runner.train_loop, EpochBasedTrainLoop) else runner.iter


def _needed_metrics(runner: Runner) -> set[str]:
    """Return the metrics that best checkpoints and schedules need, as far as they are known."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and hook.save_best]
    schedules = runner.param_schedulers if isinstance(runner.param_schedulers, list) else []
    monitors = {getattr(each, "monitor", "auto") for each in schedules}
    return monitors.union(*(hook.key_indicators for hook in hooks)) - {"auto"}


def depends_on_metric(schedule: Any) -> bool:
    return getattr(schedule, "need_val_args", False)


def stepped(schedules: Sequence[Any], iterations: int, ends: range) -> Iterator[int]:
    """Step schedules through iterations, and yield the number of each one.

    Args:
        ends: the iterations after which an epoch ended.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of schedules that are stepped without the optimizer
        for iteration in range(1, iterations + 1):
            for by_epoch in (False, True) if iteration in ends else (False,):
                for schedule in schedules:
                    if schedule.by_epoch == by_epoch:
                        schedule.step()
            yield iteration


def images_per_step(runner: Runner) -> int:
    """Return the number of images of an optimizer step, of all processes."""
    loader = runner.train_dataloader
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", 1)
    return get_world_size() * batch_size * getattr(runner.optim_wrapper, "_accumulative_counts", 1)


def _sizes(runner: Runner) -> dict[str, int]:
    sizes = {
        "images_per_step": images_per_step(runner),
        "accumulative_counts": getattr(runner.optim_wrapper, "_accumulative_counts", 1),
    }
    if isinstance(runner.train_loop, EpochBasedTrainLoop):  # a stream has no length
        sizes["iterations_per_epoch"] = len(runner.train_dataloader)
    return sizes


def _is_size(value: object) -> bool:
    """Whether a value of a checkpoint, which may contain anything, is a number above 0."""
    return type(value) is int and value > 0
