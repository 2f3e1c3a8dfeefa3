"""Resume a training with another number of processes, batch size or number of images."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise
from types import SimpleNamespace
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, Hook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.runner import EpochBasedTrainLoop, Runner

from dcnzoo.openmmlab.config.deformable import arguments
from dcnzoo.openmmlab.config.packages import is_published
from dcnzoo.openmmlab.hooks.seeds import random_states
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import counted, few

# entries of a schedule's state that its steps change; the last three, of one that depends on a metric
_POSITION = {"last_step", "_global_step", "_last_value", "best", "num_bad_epochs", "cooldown_counter"}
_SKIPPED = ("Mosaic", "RandomAffine", "MixUp")  # by default; a pipeline need not have all
_MOST_STEPS = 500_000  # about a second


class ScheduleHook(Hook):
    """Require an iteration per epoch; give a resumed training the learning rate of an uninterrupted one.

    Checkpoints record the images per optimizer step and the iterations per epoch. If one of them or a setting
    of the optimizer or the schedules differs, the schedules that the runner has built are stepped to the
    position of the checkpoint. mmengine would load the old ones: their learning rate, end and length of
    epochs, and the old weight decay. An epoch that a checkpoint by iterations has cut begins again.
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
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and is_published(type(sampler)):
            with random_states():
                number = sum(1 for _ in islice(sampler, len(sampler) + 1))
            if number > len(sampler):
                text = f"expected one with an end in a training by epochs, got {type(sampler).__name__}"
                raise UserError(f"train_dataloader.sampler: {text}")
        for finding in without_effect(runner):
            runner.logger.warning(str(finding))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"].update(_sizes(runner))
        states = checkpoint.get("param_schedulers") or []
        for state in chain(*states.values()) if isinstance(states, dict) else states:
            for key in [key for key, value in state.items() if callable(value)]:
                del state[key]  # OneCycleLR has a function, which files of weights may not have

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
        lost, rest = meta["iter"] % getattr(runner.optim_wrapper, "_accumulative_counts", 1), 0
        if meta["iter"] == checkpoint.get("message_hub", {}).get("runtime_info", {}).get("max_iters"):
            lost = 0  # the last step of a training uses them
        if type(runner.train_loop) is EpochBasedTrainLoop and (length := meta.get("iterations_per_epoch")):
            meta["epoch"], rest = divmod(meta["iter"], length)
            if rest:  # the checkpoint counts iterations
                changes.append(f"epoch {meta['epoch'] + 1} begins again")
                meta["iter"] -= rest
        schedules, optimizer = runner.param_schedulers or [], checkpoint.get("optimizer", {})
        is_single = isinstance(schedules, list) and "param_groups" in optimizer  # not of several optimizers
        if is_single:
            before = _settings(checkpoint.get("param_schedulers") or ())
            if before != _settings([each.state_dict() for each in schedules]):
                changes.append("other schedules")
            number, own = len(optimizer["param_groups"]), len(runner.optim_wrapper.optimizer.param_groups)
            if number != own:
                text = f"expected {number} groups of parameters, as in the checkpoint, got {own}"
                raise UserError(
                    f"resume: optim_wrapper: {text}; load_from starts a training from its weights"
                )
            changes += dict.fromkeys(_differences(optimizer["param_groups"], runner.optim_wrapper))
        ends = range(0)
        if changes and by_epoch:
            length = now["iterations_per_epoch"]
            meta["iter"] = round(meta["iter"] * length / meta.get("iterations_per_epoch", length))
            ends = range(length, length * meta["epoch"] + 1, length)
        if changes and is_single:
            rate = optimizer["param_groups"][0]["lr"]
            _convert(schedules, runner.optim_wrapper, meta["iter"], ends, checkpoint)
            changes.append(f"learning rate {rate:.3g} → {optimizer['param_groups'][0]['lr']:.3g}")
        if lost and not rest:  # mmengine adds up gradients across epochs
            changes.append(f"the gradients of {counted(lost, 'batches')} before the checkpoint are lost")
        if changes:
            runner.logger.warning(f"resume: {', '.join(changes)}")


def without_effect(runner: Runner) -> Iterator[Finding]:
    """Yield settings that a training of this length does not reach, and learning rates that train nothing.

    Args:
        runner: whose loop, optimizer and schedules are built.
    """
    loop = runner.train_loop
    by_epoch, iterations = isinstance(loop, EpochBasedTrainLoop), loop.max_iters
    epochs = loop.max_epochs if by_epoch else 1  # a loop that counts iterations has one epoch
    augments = getattr(getattr(runner.model, "data_preprocessor", None), "batch_augments", None) or ()
    for owner in (runner.optim_wrapper, loop, *runner.hooks, *augments):
        length = epochs if getattr(owner, "by_epoch", by_epoch) else iterations
        validations = (epochs if by_epoch else iterations) // (getattr(loop, "val_interval", 1) or 1)
        # part of the name of an argument → the last number with an effect
        lasts = {"accumulative": iterations, "patience": validations, "milestones": length - 1}
        lasts |= {"epoch": epochs - 1, "iter": iterations - 1, "begin": length - 1}
        acts = not isinstance(owner, Hook) or type(owner).after_train_iter is not Hook.after_train_iter
        ends = isinstance(owner, CheckpointHook | LoggerHook)  # these act at the end, too
        if owner is not loop and acts and not ends:
            lasts["interval"] = iterations
        known = arguments(owner.__class__)[0]
        for name in sorted({*known, "dynamic_milestones"}):
            value = getattr(owner, name, getattr(owner, f"_{name}", 0))
            last = next((number for part, number in lasts.items() if part in name), 0)
            last += "begin" in name  # from this one on
            number = max(_whole(value), default=0)
            is_default = name in known and known[name].default == value
            if 0 < last < number and not (name.startswith("max_") or is_default):
                text = f"expected at most {last} in this training, got {number}"
                yield Finding(f"{type(owner).__name__}.{name}", text, stops=False)
        if not by_epoch and getattr(owner, "by_epoch", False):
            text = "expected False in a training that counts iterations, which has one epoch, got True"
            yield Finding(f"{type(owner).__name__}.by_epoch", text, stops=False)
    yield from _idle_hooks(runner, epochs, iterations)
    schedules = runner.param_schedulers if isinstance(runner.param_schedulers, list) else []
    late = [*_beyond_the_end(schedules, by_epoch, epochs, iterations)]
    of_rates = [each for each in _clocked(schedules) if each.param_name == "lr"]
    yield from late or _rates(runner, of_rates, epochs)


def _idle_hooks(runner: Runner, epochs: int, iterations: int) -> Iterator[Finding]:
    """Yield hooks and data sets that change nothing, and that no checkpoint is saved."""
    data = runner.train_loop.dataloader.dataset
    if hasattr(data, "repeat_indices") and len(data) == len(data.dataset):
        yield Finding("train_dataloader.dataset", f"{type(data).__name__} repeats no picture", stops=False)
    types = getattr(data, "pipeline_types", ())
    saves = list[bool]()
    for hook in runner.hooks:
        keys, name = getattr(hook, "skip_type_keys", ()) or (), type(hook).__name__
        if types and "skip_type_keys" in arguments(hook.__class__)[0] and not {*keys} <= {*types, *_SKIPPED}:
            text = f"expected steps of the pipeline, {few(types)}, got {few(keys)}"
            yield Finding(f"{name}.skip_type_keys", text, stops=False)
        if max(_whole((getattr(hook, "ema_cfg", None) or {}).get("interval")), default=0) > iterations:
            yield Finding(f"{name}.interval", f"expected at most {iterations} iterations", stops=False)
        if not hook.get_triggered_stages():
            yield Finding(name, "expected methods of mmengine's Hook, got none", stops=False)
        if isinstance(hook, CheckpointHook):
            is_due = 0 < hook.interval <= (epochs if hook.by_epoch else iterations)
            saves.append(bool(hook.save_best or hook.save_last or is_due))
    if saves and not any(saves):
        yield Finding("default_hooks.checkpoint", "expected a checkpoint, got none", stops=False)


def _beyond_the_end(
    schedules: Sequence[Any], by_epoch: bool, epochs: int, iterations: int
) -> Iterator[Finding]:
    """Yield the numbers of schedules that lie beyond the end of a training."""
    for index, schedule in enumerate(schedules):
        steps_by_epoch = getattr(schedule, "by_epoch", by_epoch)
        last = epochs if steps_by_epoch else iterations
        names = {*arguments(schedule.__class__)[0], "cumulative_periods"}
        for name in sorted(names & vars(schedule).keys()):
            # INF: an end that is not set, from which others are derived
            if late := [n for n in _whole(getattr(schedule, name)) if last < n < INF // 2]:
                steps = counted(last, "epochs" if steps_by_epoch else "iterations")
                text = f"expected at most {steps}, the end of the training, got {few(late)}"
                yield Finding(f"param_scheduler.{index}.{name}", text, stops=False)


def _rates(runner: Runner, schedules: Sequence[Any], epochs: int) -> Iterator[Finding]:
    """Yield what is wrong with the learning rates of the group that has the largest one.

    In the first half of the training they reach the group's own rate, in the second half they still change
    while they are above a thousandth of it, and the last one is no higher. Each schedule changes them.
    """
    iterations, groups = runner.train_loop.max_iters, runner.optim_wrapper.param_groups
    if not schedules or iterations > _MOST_STEPS or not all(is_published(type(each)) for each in schedules):
        return
    largest = max(range(len(groups)), key=lambda number: groups[number]["initial_lr"])
    first = groups[largest]["initial_lr"]

    def replayed(chosen: Sequence[Any]) -> list[float]:
        group = {key: value for key, value in groups[largest].items() if key != "params"}
        chosen, rates = [copy.copy(each) for each in chosen], [group["lr"]]
        for each in chosen:
            each.optimizer, each.verbose = SimpleNamespace(param_groups=[group], step=None), False
            each.base_values = [each.base_values[largest]]
        ends = range(0, iterations + 1, iterations // epochs)
        rates += [group["lr"] for _ in _stepped(chosen, iterations, ends)]
        return rates

    try:
        rates = replayed(schedules)
    except ValueError as error:  # OneCycleLR has an end of its own
        raise UserError(f"param_scheduler: {error}") from error
    changes = [n for n, (old, new) in enumerate(pairwise(rates), 1) if old != new and old > first / 1000]
    last, highest, rate = max(changes, default=0), max(rates[:-1]), rates[-1]
    peak, text = rates.index(highest), f"{rate:.3g} from iteration {last} of {iterations} on"
    if rate < 0.99 * first and last < iterations / 2:
        yield Finding("param_scheduler", f"expected a rate that falls later, got {text}", stops=False)
    elif rate > 1.01 * first:
        yield Finding("param_scheduler", f"expected a last rate below {first:.3g}, got {text}", stops=False)
    elif highest < 0.9 * first or peak > iterations / 2:
        got = f"at most {highest:.3g}, in iteration {peak} of {iterations}"
        yield Finding("param_scheduler", f"expected {first:.3g} in the first half, got {got}", stops=False)
    for index, each in enumerate(schedules):
        others = [*schedules[:index], *schedules[index + 1 :]]
        if getattr(each, "factor", 0) != 1 and replayed(others) == rates:
            yield Finding(f"param_scheduler.{index}", "does not change the learning rate", stops=False)


def _whole(value: object) -> list[int]:
    """Return the integers of a setting."""
    values = value if isinstance(value, list | tuple | dict) else [value]
    return [each for each in values if type(each) is int]


def _clocked(schedules: Sequence[Any]) -> list[Any]:
    """Return the schedules that do not depend on a metric."""
    return [schedule for schedule in schedules if not getattr(schedule, "need_val_args", False)]


def images_per_step(runner: Runner) -> int:
    """Return the number of images of an optimizer step, of all processes."""
    loader = runner.train_dataloader
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", 1)
    return get_world_size() * batch_size * getattr(runner.optim_wrapper, "_accumulative_counts", 1)


def _sizes(runner: Runner) -> dict[str, int]:
    return {"images_per_step": images_per_step(runner), "iterations_per_epoch": len(runner.train_dataloader)}


def _settings(schedules: Sequence[dict]) -> list[dict]:
    """Return what the states of schedules have before the first step."""
    return [
        {key: value for key, value in state.items() if key not in _POSITION and not callable(value)}
        for state in schedules
    ]


def _differences(before: Sequence[dict], wrapper: OptimWrapper) -> Iterator[str]:
    """Yield a text for each setting of an optimizer that differs, and that no schedule changes."""
    for old, new in zip(before, wrapper.param_groups, strict=False):
        initial = [key for key in {**old, **new} if key.startswith("initial_")]
        moving = {"params", *(key.removeprefix("initial_") for key in initial)}
        moving |= {"betas"} if "momentum" in moving else set()
        moving |= {key for key in new.keys() - old.keys() if isinstance(new[key], bool | None)}  # newer torch
        for key in (*arguments(wrapper.optimizer.__class__)[0], *initial):
            if key in new and key not in moving and old.get(key) != new[key]:
                yield f"{key} {old.get(key)} → {new[key]}"


def _stepped(schedules: Sequence[Any], iterations: int, ends: range) -> Iterator[int]:
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


def _convert(
    schedules: Sequence[Any], wrapper: OptimWrapper, iterations: int, ends: range, checkpoint: dict
) -> None:
    """Step new schedules; replace the states of the old ones in a checkpoint, and the values that they set.

    Args:
        wrapper: of the new optimizer. What an optimizer counts itself stays as in the checkpoint.
        iterations, ends: see :func:`_stepped`.
    """
    clocked = _clocked(schedules)
    for _ in _stepped(clocked, iterations, ends):
        pass
    # of those that depend on a metric, what they have reached stays
    stays = {"params", *(each.param_name for each in schedules if each not in clocked)}
    settings = {*arguments(wrapper.optimizer.__class__)[0], *(each.param_name for each in clocked)} - stays
    saved = list(checkpoint["optimizer"]["param_groups"])
    if "base_param_settings" in checkpoint["optimizer"]:
        saved.append(checkpoint["optimizer"]["base_param_settings"])
    for old, new in zip(saved, wrapper.param_groups, strict=True):
        if "lr" in stays:
            old["lr"] *= new["initial_lr"] / old.get("initial_lr", old["lr"])
        kept = old.keys() - settings - {key for key in new if key.startswith("initial_")}
        old.update({key: new[key] for key in new.keys() - kept - stays})
    reached = {_metric_of(state): state for state in checkpoint.get("param_schedulers") or ()}
    checkpoint["param_schedulers"] = states = [schedule.state_dict() for schedule in schedules]
    for schedule, state in zip(schedules, states, strict=True):
        old = {} if schedule in clocked else reached.get(_metric_of(state), {})
        state.update({key: old[key] for key in _POSITION & old.keys()})


def _metric_of(state: dict) -> tuple:
    return tuple(state.get(key) for key in ("monitor", "rule", "param_name"))
