"""Which kernel runs a call of an operator, and why: :func:`kernel_for`.

``DCNZOO_BACKEND`` is the preference of the user.

The choice is made below the dispatcher, so callers and ``torch.compile`` always see the same operator. Where
the compiled kernels support every call and no other may be faster, they stay registered as they are: no
Python runs before them.
"""

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from . import _library, _torchvision
from ._torch_private import transforms_active
from .fused import available
from .operator import COMPILED, FUSED, OPERATORS, REFERENCE, TORCHVISION, Operator, Result

DEVICES = ("CPU", "CUDA", "XPU", "MPS", "PrivateUse1")  # dispatch keys; ROCm's is CUDA
BACKENDS = ("auto", "fused", "compiled", "reference")


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


def use(name: str) -> None:
    """Switch the GPU operators to another backend, for benchmarks and tests, but not to ``reference``."""
    global backend
    backend = _valid(name)
    if backend == "fused" and "cuda" in _library.loaded:
        for operator in OPERATORS.values():
            if FUSED in operator.kernels:
                choose_at_every_call(operator.name, "CUDA")


def kernel_for(operator: Operator, key: str, call: Any) -> Choice:
    """The kernel that runs a call on a device, and why the preferred ones do not. Read from top to bottom."""
    if backend == "reference":
        return Choice(REFERENCE, "DCNZOO_BACKEND=reference")
    is_loaded = key.lower() in _library.loaded
    if is_loaded:
        why_not_fused = _why_not_fused(operator, key, call, instead=COMPILED)
        return (
            Choice(COMPILED, why_not_fused)
            if why_not_fused
            else Choice(FUSED, "is faster, or DCNZOO_BACKEND")
        )
    reasons = [f"no compiled kernels for {key}"]
    others = sorted(operator.kernels, key=lambda kernel: backend == "fused" and kernel != FUSED)
    for kernel in others:
        if kernel == FUSED:
            instead = TORCHVISION if _torchvision.fits(operator.name, key, call) else REFERENCE
            problem = _why_not_fused(operator, key, call, instead)
        elif kernel == TORCHVISION:
            fits = _torchvision.fits(operator.name, key, call)
            problem = "" if fits else "torchvision has no kernel for the call"
        else:
            continue
        if not problem:
            return Choice(kernel, "; ".join(reasons))
        reasons.append(problem)
    return Choice(REFERENCE, "; ".join(reasons))


def _why_not_fused(operator: Operator, key: str, call: Any, instead: str) -> str:
    """Why Triton does not run a call in place of ``instead``; empty if it does, with valid arguments."""
    prefers = backend == "fused" or instead == REFERENCE
    if FUSED not in operator.kernels:
        return "no Triton kernel"
    if not _triton_runs_on(key):
        return f"Triton does not run on {key}"
    if backend == "compiled":
        return "DCNZOO_BACKEND=compiled"
    if operator.forward_name in _failed:
        return "Triton's kernel failed before"
    if not prefers and instead == COMPILED:
        if operator.forward_name != "deform_conv":
            return "compiled kernels are preferred"
        if not available.is_faster(operator.name, call):  # first, because it costs little
            return "Triton is not listed as faster for this call"
    if not available.triton_works(call[0].device):
        return "Triton does not work here"
    from .fused import operators

    if not operators.fits(operator.name, call):
        return "Triton's kernel does not support the call"
    if _sizes_are_numbers(call):
        operator.check(call)  # the sizes are used from here on
    if not prefers and not operators.is_measured(operator.name, call):
        return "Triton's kernel has no measurements"
    return ""


def _triton_runs_on(key: str) -> bool:
    return key == "CUDA" or bool(key == "CPU" and backend == "fused" and os.environ.get("TRITON_INTERPRET"))


def table(key: str) -> dict[str, tuple[str, ...]]:
    """The kernels that may run each operator on a device here, in order of preference."""
    device = torch.device(key.lower()) if key in ("CPU", "CUDA") else None
    is_loaded, rows = key.lower() in _library.loaded, cast(dict[str, tuple[str, ...]], {})
    for operator in (operator for operator in OPERATORS.values() if not operator.is_backward):
        if backend == "reference":
            rows[operator.name] = (REFERENCE,)
            continue
        fused = [FUSED] if FUSED in operator.kernels and _may_run_fused(operator, key, device) else []
        if is_loaded:
            rows[operator.name] = (*fused, COMPILED)
            continue
        has = {FUSED: bool(fused), TORCHVISION: _torchvision.has(operator.name, key), REFERENCE: True}
        kernels = [kernel for kernel in operator.kernels if has.get(kernel)]
        rows[operator.name] = tuple(sorted(kernels, key=lambda k: backend == "fused" and k != FUSED))
    return rows


def _run(operator: Operator, key: str, compiled: Any, keyset: object, call: Any) -> Result:
    kernel = kernel_for(operator, key, call).kernel
    if kernel == FUSED:
        from .fused import operators

        try:
            return operators.run(operator.name, call)
        except (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)):
            raise
        except Exception as error:  # of any type: Triton compiles, loads and launches
            _failed.add(operator.forward_name)
            available.warn(operator.forward_name, error)
            return _run(operator, key, compiled, keyset, call)
    if kernel == TORCHVISION:
        return _torchvision.run(operator.name, call)
    if kernel == COMPILED:
        return _run_compiled(compiled, keyset, call)
    if compiled is None:  # otherwise DCNZOO_BACKEND=reference, which is asked for
        _warn(key)
    if _sizes_are_numbers(call):
        operator.check(call)
    if _can_read(call):
        operator.check_numbers(call)
    return operator.reference(*call)


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


def _sizes_are_numbers(call: Any) -> bool:
    """Whether the sizes can be checked: ``torch.compile`` and ``torch.export`` may trace them as symbols."""
    tensors = [a for a in call if isinstance(a, Tensor)]
    return all(type(size) is int for tensor in tensors for size in tensor.shape)


def _can_read(call: Any) -> bool:
    """Whether to read numbers in tensors: of real ones on a CPU, where nothing has to wait for them."""
    return call[0].device.type == "cpu" and not hasattr(call[0], "fake_mode") and not transforms_active()


@cache
def _warn(key: str) -> None:
    problems = _library.problems
    why = problems.get(key.lower(), problems.get("cpu", "dcnzoo has them only for CPU and CUDA"))
    only_plain = [name for name, kernels in table(key).items() if kernels == (REFERENCE,)]
    rest = ", and the others in float64 and 3-D" if len(only_plain) < len(table(key)) else ""
    warnings.warn(
        f"dcnzoo: no compiled kernels for {key}: {why.rstrip('.')}. Plain PyTorch runs instead, which "
        f"is many times slower: {', '.join(only_plain)}{rest}",
        stacklevel=2,
    )


def register(operator: Operator, node: Callable | None) -> None:
    """Register the kernels of an operator on the devices where it has a choice.

    Args:
        node: the kernel that adds a node to autograd's graph, for kernels that autograd cannot differentiate.
    """
    for key in DEVICES:
        is_loaded = key.lower() in _library.loaded
        if backend == "reference":
            has_choice = not operator.is_backward
        else:
            has_choice = not is_loaded or _chooses_beside_compiled(operator, key)
        if has_choice:
            choose_at_every_call(operator.name, key)
        is_differentiable = operator.backward is not None and not operator.is_backward
        if has_choice and is_differentiable and (not is_loaded or backend == "reference"):
            override(operator.name, _above(operator, key, node), f"Autograd{key}")


def override(name: str, kernel: Callable, key: str) -> None:
    """Register a kernel without torch's warning that it replaces another one, which is intended here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        _library.implementations.impl(name, kernel, key, with_keyset=True)


def _may_run_fused(operator: Operator, key: str, device: torch.device | None) -> bool:
    """Whether Triton may run some calls on a device."""
    is_loaded = key.lower() in _library.loaded
    preferred = backend == "fused" or not is_loaded or operator.name == "deform_conv"
    runs = _triton_runs_on(key) and backend != "compiled" and operator.name not in _failed
    return preferred and runs and device is not None and available.triton_works(device)


def _chooses_beside_compiled(operator: Operator, key: str) -> bool:
    """Whether a device with compiled kernels needs a choice.

    It costs time in every call, so the forward operators choose only if a fused kernel may run. The backward
    of deform_conv always does, because the user may require deterministic algorithms at any time.
    """
    if FUSED not in operator.kernels or not _triton_runs_on(key):
        return False
    if operator.forward_name == "deform_conv" and key == "CUDA":
        return operator.in_order is not None or backend == "fused" or available.any_listed()
    return backend == "fused"


@cache
def compiled_kernel(name: str, key: str) -> Any:
    """The compiled kernel of an operator, or None. Cached, because a choice replaces it in torch's table."""
    if key.lower() not in _library.loaded:
        return None
    try:
        return torch.library.get_kernel(f"dcnzoo::{name}", key)
    except RuntimeError:  # the operator has none for this device
        return None


@cache
def choose_at_every_call(name: str, key: str) -> None:
    """Replace an operator's kernel for a device."""
    override(name, kernel_of(OPERATORS[name], key), key)


def kernel_of(operator: Operator, key: str) -> Callable:
    """A kernel that chooses at every call."""
    compiled, named = compiled_kernel(operator.name, key), operator.call

    def kernel(keyset: object, *arguments: object) -> Result:
        return _run(operator, key, compiled, keyset, named(*arguments))

    return kernel if operator.in_order is None else _in_order(operator, kernel)


def _in_order(operator: Operator, kernel: Callable) -> Callable:
    """A kernel of a backward, whose first gradient is computed in order if torch requires that."""
    named, in_order = operator.call, cast(Callable, operator.in_order)

    def backward(keyset: object, *arguments: object) -> Result:
        call = named(*arguments)
        if not call.output_mask[0] or not is_deterministic(call.grad_output):
            return kernel(keyset, *call)
        operator.check(call)
        _, *others = kernel(keyset, *call._replace(output_mask=[False, *call.output_mask[1:]]))
        return in_order(call), *others

    return backward


def is_deterministic(tensor: Tensor) -> bool:
    """Whether torch requires deterministic algorithms on a device whose kernels add atomically."""
    return tensor.device.type not in ("cpu", "meta") and torch.are_deterministic_algorithms_enabled()


def _above(operator: Operator, key: str, node: Callable | None) -> Callable:
    """The kernel above autograd: fused kernels are a node of its graph, the others it differentiates."""
    named = operator.call
    plain = replace(operator, kernels=tuple(kernel for kernel in operator.kernels if kernel != FUSED))
    differentiated = kernel_of(plain, key)
    if node is None:
        return differentiated

    def above(keyset: object, *arguments: object) -> Result:
        chosen = kernel_for(operator, key, named(*arguments)).kernel
        return (node if chosen == FUSED else differentiated)(keyset, *arguments)

    return above
