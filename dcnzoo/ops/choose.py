"""Which kernel runs a call of an operator, and why: :func:`kernel_for`.

``DCNZOO_BACKEND`` is the preference of the user.

The choice is made below the dispatcher, so callers and ``torch.compile`` always see the same operator. Where
the compiled kernels support every call and no other may be faster, they stay registered as they are: no
Python runs before them.
"""

import itertools
import os
import re
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import _library
from ._arguments import can_read
from .fused import available
from .operator import KEYS, OPERATORS, Operator, Result

DEVICES = (*KEYS.values(), "PrivateUse1")
BACKENDS = ("auto", "fused", "compiled", "reference")
COMPILED, FUSED, REFERENCE = "compiled", "fused", "plain PyTorch"


class Choice(NamedTuple):
    kernel: str
    reason: str


def _valid(name: str) -> str:
    if name not in BACKENDS:
        expected = f"{', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}"
        raise RuntimeError(f"DCNZOO_BACKEND: expected {expected}, got {name!r}")
    return name


backend = _valid(os.environ.get("DCNZOO_BACKEND", "auto"))
_failed: set[str] = set()  # operators whose Triton kernel did not run


def kernel_for(operator: Operator, key: str, call: Any) -> Choice:
    """The kernel that runs a call on a device, and why those before it do not."""
    problems = _problems(operator, key, call[0].device, call)
    kernel = next(kernel for kernel, problem in problems.items() if not problem)
    return Choice(kernel, "; ".join(filter(None, problems.values())) or "is preferred")


def _problems(operator: Operator, key: str, device: torch.device, call: Any = None) -> dict[str, str]:
    """The kernels in order of preference, each with the reason why it does not run the call, or "".

    Without a call: why it runs none on this device.
    """
    if backend == "reference":
        return {COMPILED: "DCNZOO_BACKEND=reference", REFERENCE: ""}
    fused = {}
    if operator.fused and _triton_runs_on(key):
        fused[FUSED] = _why_not_fused(operator, key, device, call)
    if key.lower() in _library.loaded:
        return {**fused, COMPILED: ""}
    return {COMPILED: f"no compiled kernels for {key}", **fused, REFERENCE: ""}


def _why_not_fused(operator: Operator, key: str, device: torch.device, call: Any) -> str:
    is_preferred = backend == "fused" or key.lower() not in _library.loaded
    if backend == "compiled":
        return "DCNZOO_BACKEND=compiled"
    if operator.forward_name in _failed:
        return "Triton's kernel failed before"
    if not is_preferred and operator.forward_name != "deform_conv":
        return "compiled kernels are preferred"
    if not is_preferred and call is not None and not available.is_faster(operator.name, call):
        return "Triton is not listed as faster for this call"
    if not available.triton_works(device):
        return "Triton does not work here"
    if call is None:
        return ""
    from .fused import operators

    if not operators.fits(operator.name, call):
        return "Triton's kernel does not support the call"
    if sizes_are_numbers(call):
        operator.check(call)  # the sizes are used from here on
    if not is_preferred and not operators.is_measured(operator.name, call):
        return "Triton's kernel has no measurements"
    return ""


def _triton_runs_on(key: str) -> bool:
    return key == "CUDA" or bool(key == "CPU" and backend == "fused" and os.environ.get("TRITON_INTERPRET"))


def table(key: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """The kernels that may run each operator on a device here, in order of preference, and why no others."""
    rows = {}
    for operator in (operator for operator in OPERATORS.values() if not operator.is_backward):
        problems = _problems(operator, key, torch.device(key.lower()))
        kernels = tuple(kernel for kernel, problem in problems.items() if not problem)
        rows[operator.name] = kernels, "; ".join(dict.fromkeys(filter(None, problems.values())))
    return rows


def explain(function: Callable, *args: Any, **kwargs: Any) -> list[str]:
    """Call a function, such as a model, and return which kernel runs each operator of its forward, and why.

    The answer to "why is this slow?"::

        print(*dcnzoo.ops.explain(model, images), sep="\n")
        # deform_conv (1, 256, 50, 84) float32 cuda: compiled (Triton is not listed as faster for this call)
    """
    lines = []

    def note(operator: Operator, call: Any, output: object) -> None:
        device, dtype = call[0].device.type, str(call[0].dtype).removeprefix("torch.")
        kernel, reason = kernel_for(operator, KEYS.get(device, "PrivateUse1"), call)
        lines.append(f"{operator.name} {tuple(call[0].shape)} {dtype} {device}: {kernel} ({reason})")

    with CallsOfOperators(note):
        function(*args, **kwargs)
    return lines


class CallsOfOperators(TorchFunctionMode):
    """A context that passes each operator, its call and its output to a function."""

    def __init__(self, note: Callable[[Operator, Any, Any], None]) -> None:
        super().__init__()
        self.note = note
        forms = ((o, (o.overload, o.overload.overloadpacket)) for o in OPERATORS.values())
        self.operators = {form: operator for operator, both in forms for form in both}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if operator := self.operators.get(function):
            self.note(operator, operator.call(*args, **(kwargs or {})), output)
        return output


def _run(operator: Operator, key: str, compiled: Any, keyset: object, call: Any) -> Result:
    kernel = kernel_for(operator, key, call).kernel
    if kernel == FUSED:
        from .fused import operators

        try:
            return _no_views(operators.run(operator.name, call))
        except (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)):
            raise
        except Exception as error:  # of any type: Triton compiles, loads and launches
            _failed.add(operator.forward_name)
            available.warn(operator.forward_name, error)
            return _run(operator, key, compiled, keyset, call)
    if kernel == COMPILED:
        return _run_compiled(compiled, keyset, call)
    return run_plain(operator, key, call)


def has_kernels(operator: Operator, key: str) -> bool:
    """Whether a call on a device may run more than plain PyTorch."""
    is_loaded = key.lower() in _library.loaded
    return backend != "reference" and (is_loaded or (operator.fused and _triton_runs_on(key)))


def run_plain(operator: Operator, key: str, call: Any) -> Result:
    if backend != "reference" and key.lower() not in _library.loaded:
        _warn(key)
    check(operator, call)
    return _no_views(operator.reference(*call))


def check(operator: Operator, call: Any) -> None:
    """Raise an error for an invalid call, as the compiled kernels do."""
    if sizes_are_numbers(call):
        operator.check(call)
    if call[0].device.type == "cpu" and can_read(call[0]):  # on a GPU, the numbers would have to arrive
        operator.check_numbers(call)


def _no_views(results: Result) -> Result:
    """Tensors of their own: autograd forbids in-place operations on a view that a function returns."""
    tensors = (results,) if isinstance(results, Tensor) else results
    own = tuple(tensor.clone() if tensor._is_view() else tensor for tensor in tensors)
    return own[0] if isinstance(results, Tensor) else own


def raise_out_of_memory(error: RuntimeError) -> None:
    """Raise ``torch.OutOfMemoryError`` if ``error`` reports that; C++ code on the stable ABI cannot."""
    if re.search(r"(CUDA|HIP|XPU) out of memory", str(error)) and not isinstance(
        error, torch.OutOfMemoryError
    ):
        raise torch.OutOfMemoryError(str(error)) from None


def _run_compiled(compiled: Any, keyset: object, call: Any) -> Result:
    try:
        return compiled.call_boxed(keyset, *call)
    except RuntimeError as error:
        raise_out_of_memory(error)
        raise


def sizes_are_numbers(call: Any) -> bool:
    """Whether a call can be checked: ``torch.compile`` and ``torch.export`` may trace symbols."""
    symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)
    sizes = (a.shape if isinstance(a, Tensor) else a if isinstance(a, list) else [a] for a in call)
    return not any(isinstance(size, symbols) for size in itertools.chain(*sizes))


@cache
def _warn(key: str) -> None:
    problems = _library.problems
    why = problems.get(key.lower(), problems.get("cpu", "dcnzoo has them only for CPU and CUDA"))
    only_plain = [name for name, (kernels, _) in table(key).items() if kernels == (REFERENCE,)]
    rest = ", and the others in float64 and 3-D" if len(only_plain) < len(table(key)) else ""
    warnings.warn(
        f"dcnzoo: no compiled kernels for {key}: {why.rstrip('.')}. Plain PyTorch runs instead, which "
        f"is many times slower: {', '.join(only_plain)}{rest}",
        stacklevel=2,
    )


def register(operator: Operator) -> None:
    """Register the choice of a kernel on the devices where an operator has one.

    Beside compiled kernels, a choice costs time in every call, so forward operators choose only if a fused
    kernel may run. Backwards on a GPU always do, because the user may require deterministic algorithms at
    any time.
    """
    is_listed = operator.forward_name == "deform_conv" and available.any_listed()
    for key in DEVICES:
        has_choice = (
            backend == "reference"
            or key.lower() not in _library.loaded
            or (operator.in_order is not None and key == "CUDA")
            or (operator.fused and _triton_runs_on(key) and (backend == "fused" or is_listed))
        )
        if has_choice:
            choose_at_every_call(operator, key)


def choose_at_every_call(operator: Operator, key: str) -> None:
    with warnings.catch_warnings():  # it may replace the compiled kernel
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        _library.implementations.impl(operator.name, kernel_of(operator, key), key, with_keyset=True)


@cache
def compiled_kernel(name: str, key: str) -> Any:
    """The compiled kernel of an operator, or None. Cached, because a choice replaces it in torch's table."""
    if key.lower() not in _library.loaded:
        return None
    try:
        return torch.library.get_kernel(f"dcnzoo::{name}", key)
    except RuntimeError:  # the operator has none for this device
        return None


def kernel_of(operator: Operator, key: str) -> Callable:
    """A kernel that chooses at every call, and computes a first gradient in order if torch requires that."""
    compiled, named = compiled_kernel(operator.name, key), operator.call

    def kernel(keyset: object, *arguments: object) -> Result:
        call = named(*arguments)
        mask = getattr(call, "output_mask", (True,))
        if operator.in_order is None or not mask[0] or not is_deterministic(call.grad_output):
            return _run(operator, key, compiled, keyset, call)
        operator.check(call)
        if len(mask) == 1:
            return operator.in_order(call)
        others = call._replace(output_mask=[False, *mask[1:]])
        return operator.in_order(call), *_run(operator, key, compiled, keyset, others)[1:]

    return kernel


def is_deterministic(tensor: Tensor) -> bool:
    """Whether torch requires deterministic algorithms on a device whose kernels add atomically."""
    return tensor.device.type not in ("cpu", "meta") and torch.are_deterministic_algorithms_enabled()
