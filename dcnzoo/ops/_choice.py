"""The kernels that run each operator on each device, in order of preference, and their registration.

The choice is made below the dispatcher, so callers and ``torch.compile`` always see the same operator. Where
the compiled kernels support every call and no other may be faster, they stay registered as they are: no
Python runs before them.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from . import _backend, _deterministic, _library, _torchvision

Result = Tensor | tuple[Tensor, ...]
COMPILED, FUSED, TORCHVISION, PLAIN = "compiled", "fused", "torchvision", "plain PyTorch"
# compiled: ops/, for the CPU and CUDA. fused: Triton. torchvision: where it is installed. plain PyTorch: the
# reference, which supports every device and call, and is many times slower.
KERNELS = {
    "deform_conv": (COMPILED, FUSED, TORCHVISION, PLAIN),
    "dcnv3": (COMPILED, FUSED, PLAIN),
    "dcnv4": (COMPILED, FUSED, PLAIN),
    "ms_deform_attn": (COMPILED, FUSED, PLAIN),
    "deform_roi_pool": (COMPILED, FUSED, PLAIN),
    "nms": (COMPILED, TORCHVISION, FUSED, PLAIN),
    "roi_align": (COMPILED, TORCHVISION, FUSED, PLAIN),
}
OTHERS = (COMPILED, PLAIN)


@dataclass(frozen=True)
class Operator:
    """An operator, or the backward of one.

    Attributes:
        plain: computes it in plain PyTorch.
        check: raises an error for invalid arguments. Needs the CPU library.
        node: computes it as a node of autograd's graph, for kernels that autograd cannot differentiate.
        may_fuse: whether Triton may run it.
    """

    name: str
    plain: Callable[..., Result]
    check: Callable[..., None]
    node: Callable[..., Result] | None = None
    may_fuse: bool = True

    @cached_property
    def forward_name(self) -> str:
        return self.name.strip("_").removesuffix("_backward")


_operators: dict[str, Operator] = {}
_failed: set[str] = set()  # operators whose Triton kernel did not run


@cache
def order(name: str, key: str, backend: str) -> tuple[str, ...]:
    """The kernels that may run an operator on a device, in order of preference."""
    if backend == "reference":
        return (PLAIN,)
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


def choose(operator: Operator, key: str, arguments: tuple) -> str:
    """The first kernel that supports a call."""
    kernels = order(operator.forward_name, key, _backend.backend)
    for kernel in kernels[:-1]:
        if kernel == FUSED and _fused_fits(operator, key, arguments, kernels):
            return FUSED
        if kernel == TORCHVISION and _torchvision.fits(operator.name, key, arguments):
            return TORCHVISION
    return kernels[-1]


def _fused_fits(operator: Operator, key: str, arguments: tuple, kernels: tuple[str, ...]) -> bool:
    device = arguments[0].device
    compared = _backend.backend == "auto" and COMPILED in kernels
    if not operator.may_fuse or operator.forward_name in _failed:
        return False
    if (compared and not _backend.listed(device)) or not _backend.triton_works(device):
        return False
    from .fused import operators

    if not operators.fits(operator.name, arguments):
        return False
    # a kernel without measurements is preferred only to plain PyTorch
    unless_measured = _backend.backend == "auto" and TORCHVISION in kernels[kernels.index(FUSED) :]
    if not compared and not (unless_measured and _torchvision.fits(operator.name, key, arguments)):
        return True
    operator.check(*arguments)  # the sizes are used
    is_better = operators.measured_faster if compared else operators.is_measured
    return is_better(operator.name, arguments)


def _run(operator: Operator, key: str, compiled: Any, keyset: object, arguments: tuple) -> Result:
    kernel = choose(operator, key, arguments)
    if kernel == FUSED:
        from .fused import operators

        if _backend.backend != "auto" or key.lower() not in _library.loaded:  # else the choice has checked
            operator.check(*arguments)
        try:
            return operators.run(operator.name, arguments)
        except (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)):
            raise
        except Exception as error:  # of any type: Triton compiles, loads and launches
            _failed.add(operator.forward_name)
            _backend.warn_of_triton(operator.forward_name, error)
            return _run(operator, key, compiled, keyset, arguments)
    if kernel == TORCHVISION:
        return _torchvision.run(operator.name, arguments)
    if kernel == COMPILED:
        return _call(compiled, keyset, arguments)
    if compiled is not None:  # DCNZOO_BACKEND=reference: the compiled kernel checks the arguments
        with torch.no_grad():
            _call(compiled, keyset, arguments)
    else:
        _warn(key)
        if _library.has_ops() and _sizes_are_numbers(arguments):
            operator.check(*arguments)
    return operator.plain(*arguments)


def _call(compiled: Any, keyset: object, arguments: tuple) -> Result:
    try:
        return compiled.call_boxed(keyset, *arguments)
    except RuntimeError as error:
        _backend.raise_out_of_memory(error)
        raise


def _sizes_are_numbers(arguments: tuple) -> bool:
    """Whether C++ can read the sizes: ``torch.compile`` and ``torch.export`` may trace them as symbols."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    return all(type(size) is int for tensor in tensors for size in tensor.shape)


@cache
def _warn(key: str) -> None:
    problems = _library.problems
    why = problems.get(key.lower(), problems.get("cpu", "dcnzoo has them only for CPU and CUDA"))
    only_plain = [name for name, kernels in table(key).items() if kernels == (PLAIN,)]
    rest = ", and the others for float64" if len(only_plain) < len(table(key)) else ""
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
        kernels = order(name, key, _backend.backend)
        rows[name] = tuple(
            kernel
            for kernel in kernels
            if (kernel != TORCHVISION or _torchvision.has(name, key))
            and (kernel != FUSED or (name not in _failed and _backend.triton_works(device)))
        )
    return rows


def register(
    name: str, plain: Callable, *, node: Callable | None = None, differentiable: bool = True
) -> None:
    """Register the kernels of an operator on the devices where it has a choice.

    Args:
        plain, node: as in :class:`Operator`.
        differentiable: whether autograd differentiates ``plain``.
    """
    _register(Operator(name, plain, check_of(name), node), differentiable)


def register_backward(name: str, plain: Callable, check: Callable) -> None:
    _register(Operator(f"_{name}_backward", plain, check), False)


def check_of(name: str) -> Callable:
    """The operator that checks the arguments of ``dcnzoo::name``."""
    return getattr(torch.ops.dcnzoo, f"_check_{name}", lambda *arguments: None)


def _register(operator: Operator, differentiable: bool) -> None:
    _operators[operator.name] = operator
    for key in _backend.DEVICES:
        is_loaded = key.lower() in _library.loaded
        if _backend.backend == "reference":
            has_choice = not operator.name.endswith("_backward")
        else:
            has_choice = not is_loaded or _may_run_fused(operator, key)
        if has_choice:
            choose_at_every_call(operator.name, key)
        if has_choice and differentiable and (not is_loaded or _backend.backend == "reference"):
            _backend.override(operator.name, _above(operator, key), f"Autograd{key}", with_keyset=True)


def _may_run_fused(operator: Operator, key: str) -> bool:
    """Whether a device with compiled kernels needs a choice.

    It costs time in every call, so the forward operators choose only if a fused kernel may run. The backward
    of deform_conv always does, because the user may require deterministic algorithms at any time.
    """
    if operator.forward_name not in KERNELS or (key == "CPU" and not _backend.interprets()):
        return False
    if operator.forward_name == "deform_conv" and key == "CUDA":
        return operator.name != "deform_conv" or _backend.backend == "fused" or _backend.any_listed()
    return _backend.backend == "fused"


def offer_fused(key: str) -> None:
    """Choose at every call of an operator that has fused kernels, on a device with compiled ones."""
    for operator in _operators.values():
        if operator.forward_name in KERNELS:
            choose_at_every_call(operator.name, key)


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
    _backend.override(name, kernel_of(_operators[name], key), key, with_keyset=True)


def kernel_of(operator: Operator, key: str) -> Callable:
    """A kernel that chooses at every call."""
    compiled = compiled_kernel(operator.name, key)

    def kernel(keyset: object, *arguments: object) -> Result:
        return _run(operator, key, compiled, keyset, arguments)

    return _deterministic_backward(kernel) if operator.name == "_deform_conv_backward" else kernel


def _deterministic_backward(kernel: Callable) -> Callable:
    """The backward of deform_conv, bitwise identical at every call if torch requires that."""

    def backward(keyset: object, grad_output: Tensor, *arguments: Any) -> Result:
        *inputs, needed = arguments
        if not needed[0] or not _deterministic.deterministic(grad_output):
            return kernel(keyset, grad_output, *arguments)
        # all kernels add the gradient of the input atomically
        if _library.has_ops():
            torch.ops.dcnzoo._check_deform_conv(*inputs[:4], None, *inputs[4:], grad_output)
        _, *others = kernel(keyset, grad_output, *inputs, [False, *needed[1:]])
        return _deterministic.grad_input_in_order(grad_output, *inputs[:-1]), *others

    return backward


def _above(operator: Operator, key: str) -> Callable:
    """The kernel above autograd: fused kernels are a node of its graph, the others it differentiates."""
    node, kernel = operator.node, kernel_of(operator, key)
    if node is None:
        return kernel_of(replace(operator, may_fuse=False), key)

    def above(keyset: object, *arguments: object) -> Result:
        run = node if choose(operator, key, arguments) == FUSED else kernel
        return run(keyset, *arguments)

    return above
