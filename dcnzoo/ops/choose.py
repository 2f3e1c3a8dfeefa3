"""The choice of the kernel that runs a call of an operator, and its reason: :func:`kernel_for`.

``DCNZOO_BACKEND`` is the preference of the user. The first call of a shape is checked and its kernel chosen;
later ones look up its plan: :func:`plan_for`.

The choice is made below the dispatcher, so callers and ``torch.compile`` always see the same operator. Where
the compiled kernels support every call and no others may be faster, they stay registered as they are, and the
choice takes no time. The rules above it, such as the derivative, are Python in every call.
"""

import itertools
import os
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from . import _library
from ._arguments import can_read
from ._torch_private import has_weighted_sums, in_dual_level
from .fused import available
from .operator import OPERATORS, Operator, Result

BACKENDS = ("auto", "fused", "compiled", "plain")
COMPILED, FUSED, PLAIN, REFERENCE = "compiled", "fused", "plain PyTorch", "the reference in plain PyTorch"
EVERY_KEY = "CompositeExplicitAutograd"  # runs on each device whose own dispatch key has no kernel


class Plan(NamedTuple):
    """The kernel of all calls with one key, whose sizes and numbers it has checked, and why no other runs."""

    kernel: str
    reason: str


def _valid(name: str) -> str:
    name = {"reference": "plain"}.get(name, name)  # its name until 0.2.0
    if name not in BACKENDS:
        raise RuntimeError(f"DCNZOO_BACKEND: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


backend = _valid(os.environ.get("DCNZOO_BACKEND", "auto"))
_failed: set[str] = set()  # operators whose Triton kernel failed
MOST_PLANS = 1024  # a training with many sizes of images makes a few hundred
_plans: dict[tuple, Plan] = {}  # from the oldest to the newest
_lock = threading.Lock()  # of a change of the plans


def plan_for(operator: Operator, device: str, call: Any) -> Plan:
    """Return the plan of a call: of an earlier call with the same key, or a new one.

    Raises:
        RuntimeError: the call is invalid. The compiled kernels raise their errors themselves.
    """
    key = key_of(operator, device, call)
    try:
        plan = _plans.get(key)
    except TypeError:  # symbols of sizes have no hash
        plan = None
    if plan is not None:
        return plan
    plan = kernel_for(operator, device, call)
    if not sizes_are_numbers(call):
        return plan
    if plan.kernel != COMPILED:
        operator.check(call)
    with _lock:
        if len(_plans) >= MOST_PLANS:
            del _plans[next(iter(_plans))]
        _plans[key] = plan
    return plan


def key_of(operator: Operator, device: str, call: Any) -> tuple:
    """Return all that a plan depends on.

    Strides and values of tensors have no part in it, nor has the number of regions, which differs at every
    call; whether all tensors have the same number has.
    """
    key = [operator.name, device, backend, available.tf32()]
    rows = operator.rows
    number = getattr(call, rows[0]).shape[:1] if rows else ()
    for name, argument in zip(call._fields, call, strict=True):
        if isinstance(argument, Tensor):
            key += (argument.dtype, argument.device)
            if name in rows:
                key += (argument.shape[:1] == number, argument.shape[1:])
            else:
                key.append(argument.shape)
        else:
            key.append(tuple(argument) if isinstance(argument, list) else argument)
    return tuple(key)


def kernel_for(operator: Operator, device: str, call: Any) -> Plan:
    """Return the kernel that runs a call on a type of device, and why no preferred kernel runs it."""
    kernels, reason = kernels_on(operator, device)
    if kernels[0] == FUSED:
        problem = _why_not_fused(operator, device, call)
        if not problem:
            return Plan(FUSED, reason or "is preferred")
        kernels, reason = kernels[1:], _joined(reason, problem)
    return Plan(kernels[0], reason or "is preferred")


def kernels_on(operator: Operator, device: str) -> tuple[tuple[str, ...], str]:
    """Return the kernels that may run calls on a device, in order of preference, and why no others may.

    The last one runs every call.
    """
    last, reason = COMPILED, ""
    if backend == "plain":
        last, reason = _in_torch(device, "DCNZOO_BACKEND=plain")
    elif device not in _library.loaded:
        last, reason = _in_torch(device, f"no compiled kernels for {device}")
    if backend == "plain" or not (operator.fused and _triton_runs_on(device)):
        return (last,), reason
    if backend == "compiled":
        return (last,), _joined(reason, "DCNZOO_BACKEND=compiled")
    if operator.forward_name in _failed:
        return (last,), _joined(reason, "Triton's kernel failed before")
    if _must_be_faster(device) and not (operator.fused_may_be_faster and available.any_listed()):
        return (last,), _joined(reason, "compiled kernels are preferred")
    return (FUSED, last), reason


@cache
def _in_torch(device: str, reason: str) -> tuple[str, str]:
    """Return the form of operators in plain PyTorch that runs on a device, and why no others do."""
    if has_weighted_sums(device):
        return PLAIN, reason
    return REFERENCE, _joined(reason, f"torch has no embedding_bag with its gradients for {device}")


def has_tangents(call: Sequence[Any]) -> bool:
    """Return whether an argument has a forward-mode tangent. Below autograd, torch hides tangents."""
    return in_dual_level() and any(isinstance(a, Tensor) and unpack_dual(a).tangent is not None for a in call)


def _why_not_fused(operator: Operator, device: str, call: Any) -> str:
    if _must_be_faster(device) and not available.is_faster(operator.name, call):
        return "Triton is not listed as faster for this call"
    if not available.triton_works(call[0].device):
        return "Triton does not work here"
    from .fused import operators

    if what := operators.unsupported(operator.name, call):
        return f"Triton's kernel does not support {what}"
    if sizes_are_numbers(call):
        operator.check(call)  # from here on, code relies on valid sizes
    if _must_be_faster(device) and not operators.is_measured(call):
        return "Triton's kernel has no measurements"
    return ""


def _triton_runs_on(device: str) -> bool:
    return device == "cuda" or bool(
        device == "cpu" and backend == "fused" and os.environ.get("TRITON_INTERPRET")
    )


def _must_be_faster(device: str) -> bool:
    """Return whether a Triton kernel runs only if it is known to be faster than the compiled one."""
    return backend != "fused" and device in _library.loaded


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def sizes_are_numbers(call: Any) -> bool:
    """Return whether sizes are numbers, not symbols of ``torch.compile`` or ``torch.export``."""
    symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)
    sizes = (a.shape if isinstance(a, Tensor) else a if isinstance(a, list) else [a] for a in call)
    return not any(isinstance(size, symbols) for size in itertools.chain(*sizes))


def table(device: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return :func:`kernels_on` of each forward operator, without Triton if Triton does not work here."""
    rows = {}
    for operator in filter(lambda operator: not operator.is_backward, OPERATORS.values()):
        kernels, reason = kernels_on(operator, device)
        if kernels[0] == FUSED and not available.triton_works(torch.device(device)):
            kernels, reason = kernels[1:], _joined(reason, "Triton does not work here")
        rows[operator.name] = kernels, reason
    return rows


# Run


def _run(operator: Operator, device: str, compiled: Any, keyset: object, call: Any) -> Result:
    kernel = plan_for(operator, device, call).kernel
    if kernel == FUSED:
        from .fused import operators

        try:
            return _no_views(operators.run(operator.name, call))
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # errors can have any type: Triton compiles and loads code
            _failed.add(operator.forward_name)
            with _lock:
                _plans.clear()
            available.warn(operator.forward_name, error)
            return _run(operator, device, compiled, keyset, call)
    if kernel == COMPILED:
        return _run_compiled(compiled, keyset, call)
    if backend != "plain":
        _warn(device)
    return run_in_torch(operator, operator.plain if kernel == PLAIN else operator.reference, call)


def run_reference(operator: Operator, call: Any) -> Result:
    """Check a call that has no plan, and run the reference."""
    if sizes_are_numbers(call):
        operator.check(call)
    return run_in_torch(operator, operator.reference, call)


def run_in_torch(operator: Operator, compute: Callable[..., Result], call: Any) -> Result:
    """Run ``plain`` or ``reference`` of an operator for a call whose sizes are checked."""
    if call[0].device.type == "cpu" and can_read(call[0]):  # on a GPU, this would block
        operator.check_numbers(call)
    return _no_views(compute(*call))


def _no_views(results: Result) -> Result:
    """Copy views: autograd forbids in-place operations on a view that a function returns."""
    tensors = (results,) if isinstance(results, Tensor) else results
    own = tuple(tensor.clone() if tensor._is_view() else tensor for tensor in tensors)
    return own[0] if isinstance(results, Tensor) else own


def raise_out_of_memory(error: RuntimeError) -> None:
    """Raise ``torch.OutOfMemoryError`` if memory ran out; C++ code on the stable ABI cannot raise it."""
    has_type = isinstance(error, torch.OutOfMemoryError)
    if not has_type and re.search(r"(CUDA|HIP|XPU) out of memory", str(error)):
        raise torch.OutOfMemoryError(str(error)) from None


def _run_compiled(compiled: Any, keyset: object, call: Any) -> Result:
    try:
        return compiled.call_boxed(keyset, *call)
    except RuntimeError as error:
        raise_out_of_memory(error)
        raise


@cache
def _warn(device: str) -> None:
    problems = _library.problems
    why = problems.get(device, problems.get("cpu", "dcnzoo has them only for CPU and CUDA")).rstrip(".")
    kernel, reason = _in_torch(device, f"no compiled kernels for {device}: {why}")
    rows = table(device)
    only = [name for name, (kernels, _) in rows.items() if kernels == (kernel,)]
    rest = ", and the others in float64 and 3-D" if len(only) < len(rows) else ""
    times = "several" if kernel == PLAIN else "tens of"
    warnings.warn(
        f"dcnzoo: {reason}. Instead, {kernel} runs and takes {times} times as long: {', '.join(only)}{rest}",
        stacklevel=2,
    )


# Register


def register(operator: Operator) -> None:
    """Register the choice of a kernel on the devices where an operator has one.

    A choice costs time in every call. If compiled kernels exist, forward operators choose only if a fused
    kernel may run. Backwards on a GPU always do, because the user may require deterministic algorithms at
    any time.
    """
    choose_at_every_call(operator, EVERY_KEY)
    for device in _library.loaded:
        may_order = operator.in_order is not None and device == "cuda"
        if may_order or kernels_on(operator, device)[0] != (COMPILED,):
            choose_at_every_call(operator, device.upper())


def choose_at_every_call(operator: Operator, key: str) -> None:
    with warnings.catch_warnings():  # it may replace the compiled kernel
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        _library.implementations.impl(operator.name, kernel_of(operator, key), key, with_keyset=True)


@cache
def compiled_kernel(name: str, key: str) -> Any:
    """Return the compiled kernel, or None. Cached, because a choice replaces it in torch's table."""
    if key.lower() not in _library.loaded:
        return None
    try:
        return torch.library.get_kernel(f"dcnzoo::{name}", key)
    except RuntimeError:  # the operator has none for this device
        return None


def kernel_of(operator: Operator, key: str) -> Callable:
    """Return a kernel that chooses at every call, and if required computes the first gradient in order."""
    compiled, named = compiled_kernel(operator.name, key), operator.call

    def kernel(keyset: object, *arguments: object) -> Result:
        call = named(*arguments)
        device = call[0].device.type if key == EVERY_KEY else key.lower()
        needs_first, *others = getattr(call, "output_mask", [True])
        if operator.in_order is None or not needs_first or not is_deterministic(call.grad_output):
            return _run(operator, device, compiled, keyset, call)
        operator.check(call)
        first = operator.in_order(call)
        if not others:
            return first
        rest = call._replace(output_mask=[False, *others])
        return first, *_run(operator, device, compiled, keyset, rest)[1:]

    return kernel


def is_deterministic(tensor: Tensor) -> bool:
    """Return whether torch requires deterministic algorithms on a device whose kernels add atomically."""
    return tensor.device.type not in ("cpu", "meta") and torch.are_deterministic_algorithms_enabled()
