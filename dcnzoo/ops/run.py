"""Runs calls by their plans. Callers and ``torch.compile`` always see the same operator, above the choice.

Where the compiled kernels support every call and no others may be faster, they stay registered as they are,
and no plans are made. The rules above them, such as the derivative, are Python in every call.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _library, choose
from .choose import COMPILED, PLAIN, Query, kernels_for
from .fused import available
from .operator import Operator, Result
from .plans import Plan, exclude_triton, plan_for
from .tracing import can_read, sizes_are_numbers

EVERY_KEY = "CompositeExplicitAutograd"  # runs on each device whose own dispatch key has no kernel
_warned: set[tuple[str, str]] = set()  # types of devices, and their slow kernels


def run(operator: Operator, device: str, keyset: object, call: Any) -> Result:
    plan = plan_for(operator, device, call)
    if plan.launches is not None:
        try:
            return run_fused(operator, plan.launches, call)
        except (torch.OutOfMemoryError, torch.AcceleratorError, TypeError, LookupError):
            raise  # Triton does not cause them: no memory, an earlier kernel, a mistake in a launch
        except Exception as error:  # errors can have many types: Triton compiles and loads code
            exclude_triton(operator)
            available.warn(operator.forward_name, error)
            return run(operator, device, keyset, call)
    if plan.kernel == COMPILED:
        return _run_compiled(_library.kernels[device][operator.name], keyset, call)
    if choose.backend != "plain":
        warn_of_slow_kernel(device, plan)
    return run_in_torch(operator, operator.plain if plan.kernel == PLAIN else operator.reference, call)


def run_fused(operator: Operator, launches: Callable[[Any], Result], call: Any) -> Result:
    return _no_views(launches(call))


def _run_compiled(compiled: Any, keyset: object, call: Any) -> Result:
    try:
        return compiled.call_boxed(keyset, *call)
    except RuntimeError as error:
        raise_out_of_memory(error)
        raise


def raise_out_of_memory(error: RuntimeError) -> None:
    """Raise ``torch.OutOfMemoryError`` if memory ran out; C++ code on the stable ABI cannot raise it."""
    has_type = isinstance(error, torch.OutOfMemoryError)
    if not has_type and re.search(r"(CUDA|HIP|XPU) out of memory", str(error)):
        raise torch.OutOfMemoryError(str(error)) from None


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


def warn_of_slow_kernel(device: str, plan: Plan) -> None:
    """Warn once per type of device and kernel, with the names of all operators that it runs."""
    if (device, plan.kernel) in _warned:
        return
    _warned.add((device, plan.kernel))
    rows = {name: kernels for name, (kernels, _) in choose.table(device).items() if plan.kernel in kernels}
    names = [name for name, kernels in rows.items() if kernels == (plan.kernel,)]
    if len(names) < len(rows):
        names.append("others in float64 and 3-D")
    problems = _library.problems
    why = problems.get(device, problems.get("cpu", "dcnzoo has them only for CPU and CUDA")).rstrip(".")
    times = "several" if plan.kernel == PLAIN else "tens of"
    warnings.warn(
        f"dcnzoo: {plan.reason} ({why}). Instead, {plan.kernel} runs and takes {times} times as long: "
        f"{', '.join(names)}",
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


def kernel_of(operator: Operator, key: str) -> Callable:
    """Return the kernel to register: it runs calls by their plans, and a gradient in order if it must."""
    Call = operator.Call

    def kernel(keyset: object, *arguments: object) -> Result:
        call = Call(*arguments)
        device = call[0].device.type if key == EVERY_KEY else key.lower()
        if operator.in_order is not None and is_deterministic(call.grad_output):
            return run_in_order(operator, operator.in_order, device, keyset, call)
        return run(operator, device, keyset, call)

    return kernel


def run_in_order(
    operator: Operator, in_order: Callable[[Any], Tensor], device: str, keyset: object, call: Any
) -> Result:
    """Run a backward whose first gradient, if it is needed, is computed in a fixed order of additions."""
    needs_first, *needs_others = getattr(call, "output_mask", [True])
    if not needs_first:
        return run(operator, device, keyset, call)
    operator.check(call)
    first = in_order(call)
    if not needs_others:
        return first
    rest = call._replace(output_mask=[False, *needs_others])
    return first, *run(operator, device, keyset, rest)[1:]


def is_deterministic(tensor: Tensor) -> bool:
    """Return whether torch requires deterministic algorithms on a device whose kernels add atomically."""
    return tensor.device.type not in ("cpu", "meta") and torch.are_deterministic_algorithms_enabled()
