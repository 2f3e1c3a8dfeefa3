"""The settings of the optimizer and the schedules of a resumed training, beside those in its checkpoint."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.optim import Optimizer

from dcnzoo.openmmlab.config.deformable import arguments
from dcnzoo.utils.errors import UserError

# entries of a schedule's state that its steps change; the last three, of one that depends on a metric
_POSITION = {"last_step", "_global_step", "_last_value", "best", "num_bad_epochs", "cooldown_counter"}


def other_settings(runner: Runner, checkpoint: dict[str, Any], groups: Sequence[dict]) -> list[str]:
    """Return a text for each setting of the optimizer that differs, and one for those of the schedules."""
    wrapper, changes = runner.optim_wrapper, list[str]()
    own = [each.state_dict() for each in runner.param_schedulers or ()]
    if _settings(checkpoint.get("param_schedulers") or ()) != _settings(own):
        changes.append("other schedules")
    number = len(wrapper.optimizer.param_groups)
    hint = "load_from starts a training from its weights"
    if groups and len(groups) != number:
        text = f"expected {len(groups)} groups of parameters, as in the checkpoint, got {number}"
        raise UserError(f"resume: optim_wrapper: {text}; {hint}")
    if groups and (key := _lacking(wrapper.optimizer, checkpoint["optimizer"])):
        before = checkpoint["meta"].get("optimizer") or "another one"
        text = f"expected the state of {type(wrapper.optimizer).__name__}, got that of {before} without {key}"
        raise UserError(f"resume: optim_wrapper.optimizer: {text}; {hint}")
    if not groups:  # save_optimizer=False
        changes.append("the optimizer begins anew")
    return [*changes, *dict.fromkeys(_differences(groups, wrapper))]


def _lacking(optimizer: Optimizer, saved: Mapping[str, Any]) -> str | None:
    """Try a step with a saved state; return the key that the optimizer does not find in it, if any."""
    numbers = chain(*(group["params"] for group in saved["param_groups"]))
    own = ((group, parameter) for group in optimizer.param_groups for parameter in group["params"])
    pairs = [(*pair, saved.get("state", {}).get(number)) for pair, number in zip(own, numbers, strict=False)]
    if not (pairs := [pair for pair in pairs if pair[2]]):
        return None
    group, parameter, state = min(pairs, key=lambda pair: pair[1].numel())

    def first_error(state: Any) -> Exception | None:
        one = torch.zeros_like(parameter, requires_grad=True)
        one.grad = torch.zeros_like(one)
        try:
            trial = copy.copy(optimizer)
            trial.param_groups = [{**group, "params": [one]}]
            trial.state = defaultdict(dict, {one: copy.deepcopy(state)})
            trial.step()
        except Exception as error:
            return error
        return None

    if first_error(optimizer.state.get(parameter, {})):
        return None  # it needs more than one parameter
    error = first_error(state)
    return str(error.args[0]) if isinstance(error, KeyError) else None


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


def set_values(runner: Runner, optimizer: dict[str, Any], reduced: set[str]) -> list[str]:
    """Give the groups of an optimizer in a checkpoint the values of those of the runner.

    Args:
        reduced: values that a metric has reduced, the runner's not.

    Returns:
        A text if the learning rate differs.
    """
    wrapper, schedules = runner.optim_wrapper, runner.param_schedulers or []
    settings = {*arguments(wrapper.optimizer.__class__)[0], *(each.param_name for each in schedules)}
    groups = list(optimizer["param_groups"])
    if "base_param_settings" in optimizer:
        groups.append(optimizer["base_param_settings"])
    rates = [group["lr"] for group in groups]
    for old, new in zip(groups, wrapper.param_groups, strict=False):  # base_param_settings: perhaps of one
        for name in reduced:
            first = new[f"initial_{name}"]
            new[name] = min(new[name], old[name] * first / old.get(f"initial_{name}", first))
        is_set = {key for key in new if key not in old or key in settings or key.startswith("initial_")}
        old.update({key: new[key] for key in is_set - {"params"}})
    highest = max(range(len(groups)), key=lambda number: groups[number]["lr"])
    before, rate = rates[highest], groups[highest]["lr"]
    return [f"learning rate {before:.3g} → {rate:.3g}"] if before != rate else []


def _settings(schedules: Sequence[dict]) -> list[dict]:
    """Return the states of schedules without what their steps change."""
    return [
        {key: value for key, value in state.items() if key not in _POSITION and not callable(value)}
        for state in schedules
    ]
