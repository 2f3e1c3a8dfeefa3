"""Set the number of epochs in a config, and scale the settings that count epochs or iterations with it."""

from collections.abc import Callable, Collection, Mapping

from mmengine.config import Config
from mmengine.optim.scheduler.param_scheduler import INF

from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.utils.errors import UserError


def set_value(node: dict, key: str, value: object, owner: str = "") -> str:
    """Set ``node[key]``; return a description of the change, empty if there is none."""
    before, node[key] = node.get(key), value
    return "" if before == value else f"{owner}{key} {before} → {value}"


Scaled = Callable[[float], float]  # a number of epochs or iterations → the number in the new training


def _position(node: Mapping, key: str, new: Mapping, scaled: Scaled) -> object:
    """Scale a position, a length or a list of them."""
    steps = node[key]
    return [*map(scaled, steps)] if isinstance(steps, list | tuple) else scaled(steps)


def _end(node: Mapping, key: str, new: Mapping, scaled: Scaled) -> object:
    """Scale the end of a schedule: mmengine's LinearLR of one iteration never leaves its first factor."""
    return max(scaled(node[key]), new.get("begin", 0) + (1 if node.get("by_epoch", True) else 2))


def _cosine(node: Mapping, key: str, new: Mapping, scaled: Scaled) -> object:
    """Scale the length of a cosine by its last epoch: the rounded half of an odd number is too short."""
    return max(1, scaled(node.get("begin", 0) + node[key]) - new.get("begin", 0))


def _interval(node: Mapping, key: str, new: Mapping, scaled: Scaled) -> object:
    """Scale an interval of epochs down, but not up: a longer training validates and saves more often."""
    return min(scaled(node[key]), node[key]) if node.get("by_epoch", True) else node[key]


def _pairs(node: Mapping, key: str, new: Mapping, scaled: Scaled) -> object:
    """Scale the first epoch in pairs of first epoch and validation interval."""
    return [(scaled(begin), interval) for begin, interval in node[key]]


# Part of the config → the settings that count epochs or iterations → the rule for the new value. A rule gets
# the part before the changes, the key, and the part with the changes so far, which are in this order.
STEPS: dict[str, dict[str, Callable[[Mapping, str, Mapping, Scaled], object]]] = {
    "param_scheduler": {
        **{"begin": _position, "end": _end, "T_max": _cosine, "milestones": _position},
        **dict.fromkeys(("step_size", "total_steps", "periods"), _position),
    },
    "train_cfg": {"val_begin": _position, "val_interval": _interval, "dynamic_intervals": _pairs},
    "custom_hooks": {"switch_epoch": _position, "num_last_epochs": _position},
    "default_hooks.checkpoint": {"interval": _interval},
}


def set_epochs(cfg: Config, epochs: int, fixed: Collection[str] = ()) -> list[str]:
    """Set the number of epochs, and change the settings in :data:`STEPS` with it, but not ``fixed`` ones.

    Returns:
        A description of each change.
    """
    before = cfg.train_cfg.get("max_epochs")
    if not before:
        raise UserError(f"epochs: expected a config with train_cfg.max_epochs, got {dict(cfg.train_cfg)}")
    changes = [set_value(cfg.train_cfg, "max_epochs", epochs)]

    def scaled(steps: float) -> float:
        return max(1, round(steps * epochs / before)) if 0 < steps < INF else steps

    if epochs == before:
        return changes
    saving = (cfg.get("default_hooks") or {}).get("checkpoint")
    for part, rules in STEPS.items():
        for path, node in dicts(saving if part == "default_hooks.checkpoint" else cfg.get(part), part):
            old, kind = dict(node), node.get("type", path)
            owner = f"{getattr(kind, '__name__', kind)}."
            for key, rule in rules.items():
                if old.get(key) and f"{path}.{key}" not in fixed:
                    changes.append(set_value(node, key, rule(old, key, node, scaled), owner))
    return changes
