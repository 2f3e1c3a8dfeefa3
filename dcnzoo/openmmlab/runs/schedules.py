"""Settings without effect in a training of this length, and learning rates that train nothing."""

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config
from mmengine.hooks import (
    CheckpointHook,
    DistSamplerSeedHook,
    EMAHook,
    Hook,
    LoggerHook,
    ParamSchedulerHook,
)
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import nn

from dcnzoo.openmmlab.config.deformable import arguments
from dcnzoo.openmmlab.config.packages import is_published
from dcnzoo.openmmlab.config.read import files
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.config.type_names import use_names
from dcnzoo.openmmlab.hooks.resume import depends_on_metric, images_per_step, stepped
from dcnzoo.openmmlab.hooks.seeds import random_states
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import counted, few

_SKIPPED = ("Mosaic", "RandomAffine", "MixUp")  # by default; a pipeline need not have all
_LEAST_INTERVAL = 10  # iterations
_FEW_WARM_UPS = 10  # in a training
_MOST_STEPS = 500_000  # about a second
_MOST_OF_PUBLISHED = 4  # some scale by the square root: of 16 images, to one


class EffectHook(Hook):
    """Before a training, require batches that end; warn of :func:`without_effect`."""

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
        by_epoch, validation = isinstance(runner.train_loop, EpochBasedTrainLoop), runner._val_loop
        if by_epoch:
            _require_end("train_dataloader", loader)
        if isinstance(validation, BaseLoop):
            _require_end("val_dataloader", validation.dataloader)
        for finding in without_effect(runner):
            runner.logger.warning(str(finding))


def _require_end(subject: str, loader: Any) -> None:
    """Raise UserError if a loop over the batches would never end."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if is_published(type(sampler)):
        with random_states():
            number = sum(1 for _ in islice(sampler, len(sampler) + 1))
        if number > len(sampler):
            raise UserError(f"{subject}.sampler: expected one with an end, got {type(sampler).__name__}")


def without_effect(runner: Runner) -> Iterator[Finding]:
    """Yield settings that a training of this length does not reach, and learning rates that train nothing.

    Args:
        runner: whose loop, optimizer and schedules are built.
    """
    loop = runner.train_loop
    by_epoch, iterations = isinstance(loop, EpochBasedTrainLoop), loop.max_iters
    epochs = loop.max_epochs if by_epoch else 1  # a loop that counts iterations has one epoch
    augments = getattr(getattr(runner.model, "data_preprocessor", None), "batch_augments", None) or ()
    chosen = {(str(node.get("type")), key) for _, node in dicts(runner.cfg.to_dict()) for key in node}
    schedules = runner.param_schedulers if isinstance(runner.param_schedulers, list) else []
    owners = [(type(each).__name__, each) for each in (runner.optim_wrapper, loop, *runner.hooks, *augments)]
    owners += [(f"param_scheduler.{index}", each) for index, each in enumerate(schedules)]
    owners += [(f"model.{name}", each) for name, each in runner.model.named_modules() if name]
    length_of_rates: float = iterations  # longer if a warm-up does not fit into it
    counts = not by_epoch and isinstance(runner._val_loop, BaseLoop)
    batches = len(runner._val_loop.dataloader) if counts else 0
    for subject, owner in owners:
        if not by_epoch and getattr(owner, "by_epoch", False):
            text = "expected False in a training that counts iterations, which has one epoch, got True"
            yield Finding(f"{subject}.by_epoch", text, stops=False)
            length_of_rates = math.inf if owner in schedules else length_of_rates
            continue
        length = epochs if getattr(owner, "by_epoch", by_epoch) else iterations
        validations = (epochs if by_epoch else iterations) // (getattr(loop, "val_interval", 1) or 1)
        if owner is loop and validations * batches > 10 * iterations:
            text = f"expected validations that take less than the training, got {validations:,}"
            yield Finding("train_cfg.val_interval", text, stops=False)
        # part of the name of an argument → the last number with an effect
        lasts = {"begin": length, "accumulative": iterations, "patience": validations}
        lasts |= {"milestones": length - 1, "epoch": epochs - 1, "iter": iterations - 1}
        acts = not isinstance(owner, Hook) or type(owner).after_train_iter is not Hook.after_train_iter
        if owner is not loop and acts and not isinstance(owner, LoggerHook):  # which logs each epoch's end
            lasts["interval"] = length if hasattr(owner, "by_epoch") else iterations
        known = arguments(owner.__class__)[0]
        names = {*known, "dynamic_milestones", "cumulative_periods"}
        if isinstance(owner, nn.Module):  # it may have them from train_cfg
            lasts, names = {"_epoch": epochs - 1}, {*vars(owner)}
        elif owner in schedules:
            lasts = {"": length}
        for name in sorted(names):
            value = getattr(owner, name, getattr(owner, f"_{name}", 0))
            last = next((number for part, number in lasts.items() if part in name), 0)
            # INF: an end that is not set, from which others are derived
            number = max((each for each in _whole(value) if each < INF // 2), default=0)
            if not 0 < last < number or name.startswith("max_"):
                continue
            is_chosen = any(name == key and kind.endswith(type(owner).__name__) for kind, key in chosen)
            if is_chosen or name not in known or known[name].default != value:
                if owner in schedules:
                    needed = math.inf if owner.by_epoch or not by_epoch else _FEW_WARM_UPS * number
                    length_of_rates = max(length_of_rates, needed)
                text = f"expected at most {last:,} in this training, got {number:,}"
                yield Finding(f"{subject}.{name}", text, stops=False)
    yield from _idle_hooks(runner, iterations)
    yield from unusual_rate(runner)
    of_rates = [each for each in schedules if each.param_name == "lr" and not depends_on_metric(each)]
    settings = [node for _, node in dicts(runner.cfg.to_dict().get("param_scheduler"))]
    are_converted = any(node.get("convert_to_iter_based") for node in settings)  # to this number of batches
    if length_of_rates > iterations and (
        are_converted or any(not each.by_epoch and each.end <= iterations for each in of_rates)
    ):
        return  # those would end too early in a longer training
    yield from _rates(runner, of_rates, epochs, length_of_rates)


def _idle_hooks(runner: Runner, iterations: int) -> Iterator[Finding]:
    """Yield hooks and data sets that change nothing, and that no checkpoint is saved."""
    data = runner.train_loop.dataloader.dataset
    if hasattr(data, "repeat_indices") and len(data) == len(data.dataset):
        yield Finding("train_dataloader.dataset", f"{type(data).__name__} repeats no picture", stops=False)
    types = getattr(data, "pipeline_types", ())
    saves = list[bool]()
    loader: Any = runner.train_loop.dataloader
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    needs = {ParamSchedulerHook: runner.param_schedulers, DistSamplerSeedHook: hasattr(sampler, "set_epoch")}
    for kind in needs:
        if needs[kind] and not any(isinstance(hook, kind) for hook in runner.hooks):
            yield Finding("default_hooks", f"expected a {kind.__name__}, got None", stops=False)
    if sum(isinstance(hook, EMAHook) for hook in runner.hooks) > 1:
        text = "expected one EMAHook, got several: each exchanges the weights for a validation"
        yield Finding("custom_hooks", text, stops=False)
    for hook in runner.hooks:
        keys, name = getattr(hook, "skip_type_keys", ()) or (), type(hook).__name__
        if types and "skip_type_keys" in arguments(hook.__class__)[0] and not {*keys} <= {*types, *_SKIPPED}:
            text = f"expected steps of the pipeline, {few(types)}, got {few(keys)}"
            yield Finding(f"{name}.skip_type_keys", text, stops=False)
        if max(_whole((getattr(hook, "ema_cfg", None) or {}).get("interval")), default=0) > iterations:
            yield Finding(f"{name}.interval", f"expected at most {iterations} iterations", stops=False)
        if runner._val_loop is None and (getattr(hook, "save_best", None) or getattr(hook, "monitor", None)):
            yield Finding(name, "expected a validation, got none", stops=False)
        of_epochs = [key for key in arguments(hook.__class__)[0] if re.search(r"(?<!by)_epochs?$", key)]
        for key in of_epochs if not isinstance(runner.train_loop, EpochBasedTrainLoop) else ():
            if getattr(hook, key, 0):
                text = "expected a training that counts epochs, got one of iterations, which has one"
                yield Finding(f"{name}.{key}", text, stops=False)
        if not hook.get_triggered_stages():
            yield Finding(name, "expected methods of mmengine's Hook, got none", stops=False)
        if isinstance(hook, CheckpointHook):
            saves.append(bool(hook.save_best or hook.save_last or hook.interval > 0))
            if 0 < hook.interval < _LEAST_INTERVAL < iterations and not hook.by_epoch:
                text = f"expected more than {hook.interval} iterations per checkpoint in {iterations:,}"
                yield Finding(f"{name}.interval", text, stops=False)
    if not any(saves):
        yield Finding("default_hooks.checkpoint", "expected a checkpoint, got none", stops=False)


def unusual_rate(runner: Runner) -> Iterator[Finding]:
    """Yield a learning rate far above the published one per image, or published for another optimizer.

    The name of a published config has its batches: RTMDet's, ``8xb32``, set ``base_batch_size=16``.
    """
    sources = [file.path for file in files(runner.cfg.text) if file.is_published and "lr" in file.words]
    rate, kind = (_optimizer(runner.cfg).get(key) for key in ("lr", "type"))
    if not (sources and rate):
        return
    theirs = use_names(Config.fromfile(sources[-1], import_custom_modules=False))
    published, base = _optimizer(theirs), (theirs.get("auto_scale_lr") or {}).get("base_batch_size")
    sizes = re.findall(r"_(\d+)xb(\d+)", Path(sources[-1]).stem)
    size, images = math.prod(map(int, sizes[-1])) if sizes else base, images_per_step(runner)
    if not (published.get("lr") and size):
        return
    if kind != published.get("type"):
        if rate == published["lr"]:
            text = f"expected a rate for {kind}, got {rate:g}, published for {published.get('type')}"
            yield Finding("optim_wrapper.optimizer.lr", text, stops=False)
        return
    fitting = published["lr"] * images / size
    if (scaling := runner.cfg.get("auto_scale_lr") or {}).get("enable"):
        if images != size and math.isclose(rate, fitting, rel_tol=0.01):
            text = (
                f"expected {published['lr']:g}, which is scaled to {counted(images, 'images')}, got {rate:g}"
            )
            yield Finding("optim_wrapper.optimizer.lr", text, stops=False)
        steps = getattr(runner.optim_wrapper, "_accumulative_counts", 1)  # by which the base was divided
        if rate == published["lr"] and scaling["base_batch_size"] * steps not in (base, size):
            text = (
                f"expected {size}, for which the rate {rate:g} is published, got {scaling['base_batch_size']}"
            )
            yield Finding("auto_scale_lr.base_batch_size", text, stops=False)
        rate *= images / (scaling["base_batch_size"] * steps)
    if rate > _MOST_OF_PUBLISHED * fitting:
        text = f"expected about {fitting:.2g} for steps of {counted(images, 'images')}, got {rate:.2g}"
        hint = f"{published['lr']:g} is published for {size} images"
        yield Finding("optim_wrapper.optimizer.lr", f"{text}; {hint}", stops=False)


def _optimizer(cfg: Config) -> Mapping:
    """Return the settings of a config's optimizer; none if it has several, or none in this form."""
    wrapper = cfg.get("optim_wrapper")
    optimizer = wrapper.get("optimizer") if isinstance(wrapper, Mapping) else None
    return optimizer if isinstance(optimizer, Mapping) else {}


def _rates(runner: Runner, schedules: Sequence[Any], epochs: int, length: float) -> Iterator[Finding]:
    """Yield what is wrong with the learning rates of the group that has the largest one.

    In the first two thirds of the training they reach the group's own rate, in the second half they still
    change while they are above a thousandth of it, and the last one is no higher. They fall once. Each
    schedule changes them, and no two lower or raise them in the same iterations.

    Args:
        length: of the training in iterations; more than it has if a warm-up alone is longer.
    """
    are_known = all(is_published(type(each)) for each in schedules)
    if not schedules or length > _MOST_STEPS or not are_known:
        return
    iterations, groups = epochs * math.ceil(length / epochs), runner.optim_wrapper.param_groups
    largest = max(range(len(groups)), key=lambda number: groups[number]["initial_lr"])
    first = groups[largest]["initial_lr"]

    def replayed(chosen: Sequence[Any], **start: float) -> list[float]:
        group = {**{key: value for key, value in groups[largest].items() if key != "params"}, **start}
        chosen, rates = [copy.copy(each) for each in chosen], [group["lr"]]
        for each in chosen:
            each.optimizer, each.verbose = SimpleNamespace(param_groups=[group], step=None), False
            each.base_values = [each.base_values[largest]]
        ends = range(0, iterations + 1, iterations // epochs)
        rates += [group["lr"] for _ in stepped(chosen, iterations, ends)]
        return rates

    try:
        rates = replayed(schedules)
    except ValueError as error:  # OneCycleLR has an end of its own
        raise UserError(f"param_scheduler: {error}") from error
    changes = [n for n, (old, new) in enumerate(pairwise(rates), 1) if old != new and old > first / 1000]
    last, highest, rate = max(changes, default=0), max(rates[:-1]), rates[-1]
    peak = next((number for number, each in enumerate(rates) if each > 0.99 * highest), 0)
    low = next((number for number in range(peak, iterations) if rates[number] < highest / 2), iterations)
    restarts = any("Restart" in type(each).__name__ for each in schedules)
    text = f"{rate:.3g} from iteration {last} of {iterations} on"
    if rate < 0.99 * first and last < iterations / 2:
        yield Finding("param_scheduler", f"expected a rate that falls later, got {text}", stops=False)
    elif not rate <= 1.01 * first:  # nor is it nan
        yield Finding("param_scheduler", f"expected a last rate below {first:.3g}, got {text}", stops=False)
    elif highest < 0.8 * first or peak > iterations * 2 / 3:
        got = f"at most {highest:.3g}, in iteration {peak} of {iterations}"
        yield Finding("param_scheduler", f"expected {first:.3g} earlier, got {got}", stops=False)
    elif not restarts and low < iterations and max(rates[low:]) > 0.9 * highest:
        text = f"expected a rate that falls once, got one that rises after iteration {low} of {iterations}"
        yield Finding("param_scheduler", text, stops=False)
    spans = list[tuple[int, ...]]()  # of each schedule: number, direction, first and last change
    for index, each in enumerate(schedules):
        steps = [new - old for old, new in pairwise(replayed([each], lr=first))]  # without a warm-up's start
        if getattr(each, "factor", 0) != 1 and not any(steps):
            yield Finding(f"param_scheduler.{index}", "does not change the learning rate", stops=False)
        for sign, word in ((1, "raises"), (-1, "lowers")):
            moves = [number for number, step in enumerate(steps) if step * sign > 0]
            changed = abs(sum(steps[number] for number in moves))
            moves = moves if changed > first / 100 else [iterations, 0]
            for other, way, begin, end in spans:
                if other != index and way == sign and begin <= moves[-1] and moves[0] <= end:
                    text = f"{word} the learning rate in the same iterations as param_scheduler.{other}"
                    yield Finding(f"param_scheduler.{index}", text, stops=False)
            spans.append((index, sign, moves[0], moves[-1]))


def _whole(value: object) -> list[int]:
    """Return the integers of a setting."""
    values = value if isinstance(value, list | tuple | dict) else [value]
    return [each for each in values if type(each) is int]
