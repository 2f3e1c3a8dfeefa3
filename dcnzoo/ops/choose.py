"""Plans: the kernel that runs a call of an operator, and its reason.

The first call of a shape is checked, and gets the first kernel that no rule of :data:`RULES` excludes. Later
calls look up its plan: :func:`plan_for`. ``DCNZOO_BACKEND`` is the preference of the user.

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
from ._torch_private import has_weighted_sums, in_dual_level
from .fused import available
from .operator import OPERATORS, Operator, Result
from .tracing import can_read

BACKENDS = ("auto", "fused", "compiled", "plain")
COMPILED, FUSED, PLAIN, REFERENCE = "compiled", "fused", "plain PyTorch", "the reference in plain PyTorch"
EVERY_KEY = "CompositeExplicitAutograd"  # runs on each device whose own dispatch key has no kernel


def _valid(name: str) -> str:
    name = {"reference": "plain"}.get(name, name)  # its name until 0.2.0
    if name not in BACKENDS:
        raise RuntimeError(f"DCNZOO_BACKEND: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


backend = _valid(os.environ.get("DCNZOO_BACKEND", "auto"))
_failed: set[str] = set()  # operators whose Triton kernel failed
MOST_PLANS = 1024  # a training with many sizes of images makes a few hundred
_lock = threading.Lock()  # of a change of the plans


class Plan(NamedTuple):
    """What runs all calls with one key, whose sizes and numbers are checked, and why nothing else does.

    Attributes:
        launches: runs a call by Triton's kernels; None for other kernels.
    """

    kernel: str
    reason: str
    launches: Callable[[Any], Result] | None = None


_plans: dict[tuple, Plan] = {}  # from the oldest to the newest


def plan_for(operator: Operator, device: str, call: Any) -> Plan:
    """Return the plan of a call: of an earlier call with the same key, or a new one.

    Raises:
        RuntimeError: the call is invalid.
    """
    key = key_of(operator, device, call)
    plan = _plans.get(key)
    if plan is None:
        operator.check(call)
        kernels, reason = kernels_for(Query(operator, device, call))
        plan = Plan(kernels[0], reason)
        if plan.kernel == FUSED:
            from .fused import operators

            plan = plan._replace(launches=operators.plan(operator.name, call))
        with _lock:
            if len(_plans) >= MOST_PLANS:
                del _plans[next(iter(_plans))]
            _plans[key] = plan
    return plan


def key_of(operator: Operator, device: str, call: Any) -> tuple:
    """Return all that a plan depends on.

    Values of tensors have no part in it, nor has the number of regions, which differs at every call; whether
    all tensors have the same number has.
    """
    precision = call[0].dtype == torch.float32 and available.tf32()
    key = [operator.name, device, backend, precision]
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


# Choose


class Query(NamedTuple):
    """A call of an operator on a type of device, or without ``call`` any call.

    Attributes:
        may_try: whether Triton may compile a kernel for a trial.
    """

    operator: Operator
    device: str
    call: Any = None
    may_try: bool = True


def _has_no_triton(query: Query) -> bool:
    return not (query.operator.fused and _triton_runs_on(query.device))


def _triton_runs_on(device: str) -> bool:
    is_interpreted = backend == "fused" and os.environ.get("TRITON_INTERPRET")
    return device == "cuda" or bool(device == "cpu" and is_interpreted)


def _must_be_faster(query: Query) -> bool:
    """Return whether a Triton kernel runs only if it is known to be faster than the compiled one."""
    return backend != "fused" and query.device in _library.loaded


def _is_not_listed(query: Query) -> bool:
    operator, call = query.operator, query.call
    is_listed = operator.fused_may_be_faster and available.is_faster(operator.name, call)
    return _must_be_faster(query) and not is_listed


def _fails_a_trial(query: Query) -> bool:
    device = torch.device(query.device) if query.call is None else query.call[0].device
    return query.may_try and not available.triton_works(device)


def _unsupported(query: Query) -> str:
    if query.call is None:
        return ""
    from .fused import operators

    return operators.unsupported(query.operator.name, query.call)


def _is_not_measured(query: Query) -> bool:
    if query.call is None or not _must_be_faster(query):
        return False
    from .fused import operators

    return not operators.is_measured(query.call)


# A kernel, when it does not run a call, and why. Kernels are in order of preference; REFERENCE runs any call.
# A rule may read only what key_of returns, so not the number of regions. A query may have no call.
RULES: tuple[tuple[str, Callable[[Query], object], str], ...] = (
    (FUSED, _has_no_triton, ""),
    (FUSED, lambda query: backend in ("compiled", "plain"), "DCNZOO_BACKEND={backend}"),
    (FUSED, lambda query: query.operator.forward_name in _failed, "Triton's kernel failed before"),
    (FUSED, _is_not_listed, "Triton is not listed as faster"),
    (FUSED, _fails_a_trial, "Triton does not work here"),
    (FUSED, _unsupported, "Triton's kernel does not support {cause}"),
    (FUSED, _is_not_measured, "Triton's kernel has no measurements"),
    (COMPILED, lambda query: backend == "plain", "DCNZOO_BACKEND={backend}"),
    (COMPILED, lambda query: query.device not in _library.loaded, "no compiled kernels for {device}"),
    (
        PLAIN,
        lambda query: not has_weighted_sums(query.device),
        "torch has no embedding_bag with its gradients for {device}",
    ),
)


def kernels_for(query: Query) -> tuple[tuple[str, ...], str]:
    """Return the kernels that may run a call, in order of preference, and why no others do.

    The last one runs every call.
    """
    kernels, reasons = [], []
    for kernel in (FUSED, COMPILED, PLAIN, REFERENCE):
        reason = _why_not(kernel, query)
        if reason is None:
            kernels.append(kernel)
            if kernel != FUSED:
                break
        elif reason and reason not in reasons:
            reasons.append(reason)
    return tuple(kernels), "; ".join(reasons)


def _why_not(kernel: str, query: Query) -> str | None:
    for name, excludes, text in RULES:
        if name == kernel and (cause := excludes(query)):
            return text.format(backend=backend, device=query.device, cause=cause)
    return None


def table(device: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return :func:`kernels_for` any call of each forward operator."""
    operators = (operator for operator in OPERATORS.values() if not operator.is_backward)
    return {operator.name: kernels_for(Query(operator, device)) for operator in operators}


def sizes_are_numbers(call: Any) -> bool:
    """Return whether sizes are numbers, not symbols of ``torch.compile`` or ``torch.export``."""
    symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)
    sizes = (a.shape if isinstance(a, Tensor) else a if isinstance(a, list) else [a] for a in call)
    return not any(isinstance(size, symbols) for size in itertools.chain(*sizes))


def has_tangents(call: Sequence[Any]) -> bool:
    """Return whether an argument has a forward-mode tangent. Below autograd, torch hides tangents."""
    return in_dual_level() and any(isinstance(a, Tensor) and unpack_dual(a).tangent is not None for a in call)


# Run


def _run(operator: Operator, device: str, compiled: Any, keyset: object, call: Any) -> Result:
    plan = plan_for(operator, device, call)
    if plan.launches is not None:
        try:
            return run_fused(operator, plan.launches, call)
        except (torch.OutOfMemoryError, torch.AcceleratorError, TypeError, LookupError):
            raise  # Triton does not cause them: no memory, an earlier kernel, a mistake in a launch
        except Exception as error:  # errors can have many types: Triton compiles and loads code
            _failed.add(operator.forward_name)
            with _lock:
                _plans.clear()
            available.warn(operator.forward_name, error)
            return _run(operator, device, compiled, keyset, call)
    if plan.kernel == COMPILED:
        return _run_compiled(compiled, keyset, call)
    if backend != "plain":
        _warn(device, plan.kernel)
    return run_in_torch(operator, operator.plain if plan.kernel == PLAIN else operator.reference, call)


def run_fused(operator: Operator, launches: Callable[[Any], Result], call: Any) -> Result:
    return _no_views(launches(call))


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
    if isinstance(results, Tensor):
        return results.clone() if results._is_view() else results
    return tuple([result.clone() if result._is_view() else result for result in results])


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
def _warn(device: str, kernel: str) -> None:
    problems, rows = _library.problems, table(device)
    why = problems.get(device, problems.get("cpu", "dcnzoo has them only for CPU and CUDA")).rstrip(".")
    only = [name for name, (kernels, _) in rows.items() if kernels == (kernel,)]
    rest = ", and the others in float64 and 3-D" if len(only) < len(rows) else ""
    times = "several" if kernel == PLAIN else "tens of"
    warnings.warn(
        f"dcnzoo: {rows[only[0]][1]} ({why}). Instead, {kernel} runs and takes {times} times as long: "
        f"{', '.join(only)}{rest}",
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
        if may_order or kernels_for(Query(operator, device, may_try=False))[0] != (COMPILED,):
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
    compiled, Call = compiled_kernel(operator.name, key), operator.Call

    def kernel(keyset: object, *arguments: object) -> Result:
        call = Call(*arguments)
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
