"""The kernels that run each operator on each device, in order of preference, and their registration.

``DCNZOO_BACKEND`` is the preference of the user.

The choice is made below the dispatcher, so callers and ``torch.compile`` always see the same operator. Where
the compiled kernels support every call and no other may be faster, they stay registered as they are: no
Python runs before them.
"""

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, cast

import torch
from torch import Tensor

from . import _library, _torchvision, checks
from ._arguments import arguments_of
from .fused import available

Result = Tensor | tuple[Tensor, ...]
DEVICES = ("CPU", "CUDA", "XPU", "MPS", "PrivateUse1")  # dispatch keys; ROCm's is CUDA
BACKENDS = ("auto", "fused", "compiled", "reference")
COMPILED, FUSED, TORCHVISION, REFERENCE = "compiled", "fused", "torchvision", "plain PyTorch"
# compiled: ops/, for the CPU and CUDA. fused: Triton. torchvision: where it is installed. plain PyTorch: the
# reference, which supports every device and call, and is many times slower.
KERNELS = {
    "deform_conv": (COMPILED, FUSED, TORCHVISION, REFERENCE),
    "dcnv3": (COMPILED, FUSED, REFERENCE),
    "dcnv4": (COMPILED, FUSED, REFERENCE),
    "ms_deform_attn": (COMPILED, FUSED, REFERENCE),
    "deform_roi_pool": (COMPILED, FUSED, REFERENCE),
    "nms": (COMPILED, TORCHVISION, FUSED, REFERENCE),
    "roi_align": (COMPILED, TORCHVISION, FUSED, REFERENCE),
}
OTHERS = (COMPILED, REFERENCE)


def _valid(name: str) -> str:
    if name not in BACKENDS:
        expected = f"{', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}"
        raise RuntimeError(f"DCNZOO_BACKEND: expected {expected}, got {name!r}")
    return name


backend = _valid(os.environ.get("DCNZOO_BACKEND", "auto"))


def use(name: str) -> None:
    """Switch the GPU operators to another backend, for benchmarks and tests, but not to ``reference``."""
    global backend
    backend = _valid(name)
    if backend == "fused" and "cuda" in _library.loaded:
        for operator in _operators.values():
            if operator.forward_name in KERNELS:
                choose_at_every_call(operator.name, "CUDA")


@dataclass(frozen=True)
class Operator:
    """An operator, or the backward of one.

    Attributes:
        reference: computes it in plain PyTorch.
        check: raises an error for invalid arguments. Needs the CPU library.
        node: computes it as a node of autograd's graph, for kernels that autograd cannot differentiate.
        may_fuse: whether Triton may run it.
        grad_input_in_order: of a backward whose first gradient is deterministic if torch requires that.
    """

    name: str
    reference: Callable[..., Result]
    check: Callable[..., None]
    node: Callable[..., Result] | None = None
    may_fuse: bool = True
    grad_input_in_order: Callable[..., Tensor] | None = None

    @cached_property
    def forward_name(self) -> str:
        return self.name.strip("_").removesuffix("_backward")


_operators: dict[str, Operator] = {}
_failed: set[str] = set()  # operators whose Triton kernel did not run


@cache
def order(name: str, key: str, backend: str) -> tuple[str, ...]:
    """The kernels that may run an operator on a device, in order of preference."""
    if backend == "reference":
        return (REFERENCE,)
    kernels = list(KERNELS.get(name, OTHERS))
    preferred = backend == "fused" and FUSED in kernels
    if key.lower() in _library.loaded:
        may_be_faster = backend == "auto" and name == "deform_conv" and key == "CUDA"
        return (FUSED, COMPILED) if preferred or may_be_faster else (COMPILED,)
    kernels.remove(COMPILED)
    if FUSED in kernels and (key != "CUDA" or backend == "compiled" or not _library.has_ops()):
        kernels.remove(FUSED)
    elif preferred:
        kernels.sort(key=lambda kernel: kernel != FUSED)
    return tuple(kernels)


def choose(operator: Operator, key: str, call: Any) -> str:
    """The first kernel that supports a call, which is a named tuple (:func:`arguments_of`)."""
    kernels = order(operator.forward_name, key, backend)
    fits = (
        k for k in kernels if k != FUSED and (k != TORCHVISION or _torchvision.fits(operator.name, key, call))
    )
    other = next(fits)
    if FUSED in kernels[: kernels.index(other)] and _is_fused(operator, call, other):
        return FUSED
    return other


def _is_fused(operator: Operator, call: Any, other: str) -> bool:
    """Whether Triton runs a call in place of the kernel ``other``. Then its arguments are valid."""
    prefers = backend == "fused" or other == REFERENCE
    if not operator.may_fuse or operator.forward_name in _failed:
        return False
    if not prefers and other == COMPILED and not available.is_faster(operator.name, call):
        return False  # first, because it costs little
    if not available.triton_works(call[0].device):
        return False
    from .fused import operators

    if not operators.fits(operator.name, call):
        return False
    if _sizes_are_numbers(call):
        operator.check(*call)  # the sizes are used from here on
    # a kernel without measurements is preferred only to plain PyTorch
    return prefers or operators.is_measured(operator.name, call)


def _run(operator: Operator, key: str, compiled: Any, keyset: object, call: Any) -> Result:
    kernel = choose(operator, key, call)
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
    if compiled is not None:  # DCNZOO_BACKEND=reference: the compiled kernel checks the arguments
        with torch.no_grad():
            _run_compiled(compiled, keyset, call)
    else:
        _warn(key)
        if _sizes_are_numbers(call):
            operator.check(*call)
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
    """Whether C++ can read the sizes: ``torch.compile`` and ``torch.export`` may trace them as symbols."""
    tensors = [a for a in call if isinstance(a, Tensor)]
    return all(type(size) is int for tensor in tensors for size in tensor.shape)


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


def table(key: str) -> dict[str, tuple[str, ...]]:
    """The kernels that may run each operator on a device here, in order of preference."""
    device = torch.device(key.lower()) if key in ("CPU", "CUDA") else None
    rows = {}
    for name in (name for name in _library.names() if name[0] != "_"):
        kernels = order(name, key, backend)
        rows[name] = tuple(
            kernel
            for kernel in kernels
            if (kernel != TORCHVISION or _torchvision.has(name, key))
            and (kernel != FUSED or (name not in _failed and available.triton_works(device)))
        )
    return rows


def register(
    name: str,
    reference: Callable,
    *,
    check: Callable | None = None,
    differentiable: bool = True,
    **options: Any,
) -> None:
    """Register the kernels of an operator on the devices where it has a choice.

    Args:
        reference, check, options: attributes of :class:`Operator`. Default of ``check``: :func:`check_of`.
        differentiable: whether autograd differentiates ``reference``.
    """
    operator = _operators[name] = Operator(name, reference, check or check_of(name), **options)
    for key in DEVICES:
        is_loaded = key.lower() in _library.loaded
        if backend == "reference":
            has_choice = not operator.name.endswith("_backward")
        else:
            has_choice = not is_loaded or _may_run_fused(operator, key)
        if has_choice:
            choose_at_every_call(operator.name, key)
        if has_choice and differentiable and (not is_loaded or backend == "reference"):
            override(operator.name, _above(operator, key), f"Autograd{key}")


def check_of(name: str) -> Callable:
    """The function that checks the arguments of ``dcnzoo::name``: the library's, or without it Python's."""
    if _library.has_ops():
        return getattr(torch.ops.dcnzoo, f"_check_{name.lstrip('_')}")
    check, named = getattr(checks, name, None), arguments_of(name)
    return lambda *arguments: check and check(named(*arguments[: len(named._fields)]))


def override(name: str, kernel: Callable, key: str) -> None:
    """Register a kernel without torch's warning that it replaces another one, which is intended here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        _library.implementations.impl(name, kernel, key, with_keyset=True)


def _may_run_fused(operator: Operator, key: str) -> bool:
    """Whether a device with compiled kernels needs a choice.

    It costs time in every call, so the forward operators choose only if a fused kernel may run. The backward
    of deform_conv always does, because the user may require deterministic algorithms at any time.
    """
    interprets = backend == "fused" and os.environ.get("TRITON_INTERPRET")
    if operator.forward_name not in KERNELS or (key == "CPU" and not interprets):
        return False
    if operator.forward_name == "deform_conv" and key == "CUDA":
        return operator.grad_input_in_order is not None or backend == "fused" or available.any_listed()
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
    override(name, kernel_of(_operators[name], key), key)


def kernel_of(operator: Operator, key: str) -> Callable:
    """A kernel that chooses at every call."""
    compiled, named = compiled_kernel(operator.name, key), arguments_of(operator.name)

    def kernel(keyset: object, *arguments: object) -> Result:
        return _run(operator, key, compiled, keyset, named(*arguments))

    return kernel if operator.grad_input_in_order is None else _in_order(operator, kernel)


def _in_order(operator: Operator, kernel: Callable) -> Callable:
    """A kernel of a backward, whose first gradient is computed in order if torch requires that."""
    named, grad_input_in_order = arguments_of(operator.name), cast(Callable, operator.grad_input_in_order)

    def backward(keyset: object, *arguments: object) -> Result:
        call = named(*arguments)
        if not call.output_mask[0] or not is_deterministic(call.grad_output):
            return kernel(keyset, *call)
        operator.check(*call)
        _, *others = kernel(keyset, *call._replace(output_mask=[False, *call.output_mask[1:]]))
        return grad_input_in_order(call), *others

    return backward


def is_deterministic(tensor: Tensor) -> bool:
    """Whether torch requires deterministic algorithms on a device whose kernels add atomically."""
    return tensor.device.type not in ("cpu", "meta") and torch.are_deterministic_algorithms_enabled()


def _above(operator: Operator, key: str) -> Callable:
    """The kernel above autograd: fused kernels are a node of its graph, the others it differentiates."""
    node, named = operator.node, arguments_of(operator.name)
    differentiated = kernel_of(replace(operator, may_fuse=False), key)
    if node is None:
        return differentiated

    def above(keyset: object, *arguments: object) -> Result:
        run = node if choose(operator, key, named(*arguments)) == FUSED else differentiated
        return run(keyset, *arguments)

    return above
