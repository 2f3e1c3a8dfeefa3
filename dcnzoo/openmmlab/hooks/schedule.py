"""Resume a training with another number of processes, batch size or number of images."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.runner import EpochBasedTrainLoop, Runner

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import counted, few

# entries of a schedule's state that its steps change
_POSITION = {"last_step", "_global_step", "_last_value"}


class ScheduleHook(Hook):
    """Require an iteration per epoch; give a resumed training the learning rate of an uninterrupted one.

    Checkpoints record the images per optimizer step and the iterations per epoch. If one of them or a setting
    of the schedules differs, the schedules that the runner has built are stepped to the position of the
    checkpoint. mmengine would load the old ones: their learning rate, end and length of epochs.
    """

    priority = "LOWEST"

    def before_run(self, runner: Runner) -> None:
        """Raise UserError for a loader without batches: mmengine would save the initial weights."""
        loader = runner.train_dataloader
        if len(loader) == 0:
            raise UserError(
                f"train_dataloader: expected at least 1 batch, got "
                f"{counted(len(loader.dataset), 'pictures')} with batch_size={loader.batch_size} and "
                f"drop_last={loader.drop_last}; reduce batch_size, or set drop_last=False"
            )
        for finding in beyond_end(runner, has_data=True):
            runner.logger.warning(str(finding))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"].update(_sizes(runner))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if not runner._resume:
            return
        meta, now = checkpoint["meta"], _sizes(runner)
        for name in now:
            if not (type(meta.get(name)) is int and meta[name] > 0):  # a file may contain anything
                meta.pop(name, None)
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if by_epoch and meta["epoch"]:  # checkpoints of other versions do not record it
            meta.setdefault("iterations_per_epoch", meta["iter"] // meta["epoch"])
        changes = [
            f"{name.replace('_', ' ')} {meta[name]} → {value}"
            for name, value in now.items()
            if meta.get(name, value) != value
        ]
        schedules, optimizer = runner.param_schedulers or [], checkpoint.get("optimizer", {})
        is_single = isinstance(schedules, list) and "param_groups" in optimizer  # not of several optimizers
        if is_single:
            new = _settings([each.state_dict() for each in schedules], runner.optim_wrapper.param_groups)
            if new != _settings(checkpoint.get("param_schedulers") or (), optimizer["param_groups"]):
                changes.append("other schedules")
        if not changes:
            return
        if by_epoch:
            length = now["iterations_per_epoch"]
            meta["iter"] = round(meta["iter"] * length / meta.get("iterations_per_epoch", length))
            ends = range(length, length * meta["epoch"] + 1, length)
        else:
            ends = range(0)
        if is_single:
            before = optimizer["param_groups"][0]["lr"]
            _convert(schedules, runner.optim_wrapper.param_groups, meta["iter"], ends, checkpoint)
            changes.append(f"learning rate {before:.3g} → {optimizer['param_groups'][0]['lr']:.3g}")
        runner.logger.warning(f"resume: {', '.join(changes)}")


def beyond_end(runner: Runner, has_data: bool = False) -> Iterator[Finding]:
    """Yield the numbers of built schedules, of hooks and of validations that a training does not reach.

    Args:
        has_data: the loop knows the iterations of an epoch: schedules by iterations, in place of the others.
    """
    loop, schedules = runner.train_loop, runner.param_schedulers
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    end = loop.max_iters if has_data or not by_epoch else loop.max_epochs
    if has_data and not by_epoch:
        return
    unit = "epoch" if by_epoch and not has_data else "iter"
    parts = {"train_cfg": runner.cfg.get("train_cfg") if runner.val_loop is not None else {}}
    parts |= {f"default_hooks.{key}": hook for key, hook in (runner.cfg.get("default_hooks") or {}).items()}
    parts |= {f"custom_hooks.{n}": hook for n, hook in enumerate(runner.cfg.get("custom_hooks") or ())}
    for path, node in parts.items() if not has_data else ():
        for key, value in node.items() if isinstance(node, Mapping) else ():
            begins = key.endswith("begin") or key.startswith("begin")
            if key == "dynamic_intervals":
                value = max((begin for begin, _ in value or ()), default=0)
            elif not (begins or unit in key) or key.startswith("max_"):
                continue
            if type(value) is int and value >= end + begins:
                text = f"expected a number below {end + begins}, of the {unit}s of the training, got {value}"
                yield Finding(f"{path}.{key}", text, stops=False)
    for hook in () if by_epoch else runner.hooks:
        if getattr(hook, "by_epoch", False):
            text = "expected False in a training that counts iterations, which has one epoch, got True"
            yield Finding(f"{type(hook).__name__}.by_epoch", text, stops=False)
    settings = runner.cfg.get("param_scheduler") or []
    settings = settings if isinstance(settings, list) else [settings]
    for index, schedule in enumerate(schedules if isinstance(schedules, list) else ()):
        steps_by_epoch = getattr(schedule, "by_epoch", by_epoch)
        if by_epoch and steps_by_epoch == has_data:
            continue
        last = end if by_epoch or not steps_by_epoch else 1  # a loop that counts iterations has one epoch
        own = settings[index].keys() if index < len(settings) else ()  # not what the class derives from them
        for name, value in ((name, value) for name, value in vars(schedule).items() if name in own):
            values = value if isinstance(value, list | tuple | dict) else [value]
            if late := [number for number in values if type(number) is int and last < number < INF]:
                steps = counted(last, "epochs" if steps_by_epoch else "iterations")
                text = f"expected at most {steps}, the end of the training, got {few(late)}"
                yield Finding(f"param_scheduler.{index}.{name}", text, stops=False)


def images_per_step(runner: Runner) -> int:
    """Return the number of images of an optimizer step, of all processes."""
    loader = runner.train_dataloader
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", 1)
    return get_world_size() * batch_size * getattr(runner.optim_wrapper, "_accumulative_counts", 1)


def _sizes(runner: Runner) -> dict[str, int]:
    return {"images_per_step": images_per_step(runner), "iterations_per_epoch": len(runner.train_dataloader)}


def _settings(schedules: Sequence[dict], groups: Sequence[dict]) -> list[object]:
    """Return what the states of schedules have before the first step; nothing of those that use metrics."""
    rates = [group.get("initial_lr", group["lr"]) for group in groups]
    clocked = (state for state in schedules if "num_bad_epochs" not in state)
    return [rates, *({key: state[key] for key in state if key not in _POSITION} for state in clocked)]


def _convert(
    schedules: Sequence[Any], groups: Sequence[dict], iterations: int, ends: range, checkpoint: dict
) -> None:
    """Step new schedules; replace the states of the old ones in a checkpoint, and the values that they set.

    Args:
        groups: the parameter groups of the new optimizer.
        iterations: number of steps.
        ends: the iterations after which an epoch ended.
    """
    clocked = [schedule for schedule in schedules if not getattr(schedule, "need_val_args", False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of schedules that are stepped without the optimizer
        for iteration in range(1, iterations + 1):
            for by_epoch in (False, True) if iteration in ends else (False,):
                for schedule in clocked:
                    if schedule.by_epoch == by_epoch:
                        schedule.step()
    optimizer = checkpoint["optimizer"]
    names = {schedule.param_name for schedule in clocked} | {"lr"}
    saved = list(optimizer["param_groups"])
    if "base_param_settings" in optimizer:
        saved.append(optimizer["base_param_settings"])
    for old, new in zip(saved, groups, strict=True):
        if len(clocked) < len(schedules):  # the others depend on a metric: what they have reached stays
            new["lr"] = old["lr"] * new["initial_lr"] / old["initial_lr"]
        old.update({key: new[key] for name in names for key in new if f"_{key}".endswith(f"_{name}")})
    states = dict(enumerate(checkpoint.get("param_schedulers") or ()))
    checkpoint["param_schedulers"] = [
        schedule.state_dict() if schedule in clocked else states.get(number, schedule.state_dict())
        for number, schedule in enumerate(schedules)
    ]
