"""Plans: what runs all calls of an operator with the same shapes and numbers.

The first call of a kind is checked, and :mod:`.choose` chooses its kernel. Later calls look up its plan.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import choose
from .fused import available
from .operator import Operator, Result

MOST_PLANS = 1024  # a training with many sizes of images makes a few hundred
_plans: dict[tuple, "Plan"] = {}  # from the oldest to the newest
_lock = threading.Lock()  # of a change of _plans


class Plan(NamedTuple):
    """The kernel of all calls with one key, whose sizes and numbers are checked.

    Attributes:
        reason: why no preferred kernel runs.
        run_in_triton: runs a call by Triton's kernels; None for other kernels.
    """

    kernel: str
    reason: str
    run_in_triton: Callable[[Any], Result] | None


def plan_for(operator: Operator, device: str, call: Any) -> Plan:
    """Return the plan of a call: of an earlier call with the same key, or a new one.

    Raises:
        RuntimeError: the call is invalid.
    """
    key = key_of(operator, device, call)
    plan = _plans.get(key)
    if plan is None:
        plan = _new_plan(operator, device, call)
        with _lock:
            if len(_plans) >= MOST_PLANS:
                del _plans[next(iter(_plans))]
            _plans[key] = plan
    return plan


def _new_plan(operator: Operator, device: str, call: Any) -> Plan:
    operator.check(call)
    (kernel, *_), reason = choose.kernels_for(choose.Query(operator, device, call))
    if kernel != choose.FUSED:
        return Plan(kernel, reason, None)
    from .fused import dispatch

    return Plan(kernel, reason, dispatch.make_run(operator.name, call))


def key_of(operator: Operator, device: str, call: Any) -> tuple:
    """Return all that a plan depends on.

    If the preference or a setting of torch changes, or Triton fails, calls get other keys. So no plan has to
    be removed.

    Values of tensors have no part in it, nor has the number of regions, which differs at every call; whether
    all tensors have the same number has.
    """
    precision = call[0].dtype == torch.float32 and available.tf32()
    key = [operator.name, device, choose.backend, operator.forward_name in choose.failed, precision]
    rows = operator.rows
    number = getattr(call, rows[0]).shape[:1] if rows else ()
    for name, argument in zip(call._fields, call, strict=True):
        if isinstance(argument, Tensor):
            shape = argument.shape
            if name in rows:
                key.append(shape[:1] == number)
                shape = shape[1:]
            key += (argument.dtype, argument.device, shape, argument.stride())
        else:
            key.append(tuple(argument) if isinstance(argument, list) else argument)
    return tuple(key)
