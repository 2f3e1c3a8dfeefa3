"""Choice of the kernels that an operator runs: fused, compiled or reference (``DCNZOO_BACKEND``).

The choice is made below the dispatcher, so callers and ``torch.compile`` always see the same operator.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from . import _deterministic, _library
from ._block_sizes import table

DEVICES = ("CPU", "CUDA", "XPU", "MPS", "PrivateUse1")  # dispatch keys; ROCm's is CUDA
BACKENDS = ("auto", "fused", "compiled", "reference")


def raise_out_of_memory(error: RuntimeError) -> None:
    """Raise ``torch.OutOfMemoryError`` if ``error`` reports that; C++ code on the stable ABI cannot."""
    if re.search(r"(CUDA|HIP|XPU) out of memory", str(error)) and not isinstance(
        error, torch.OutOfMemoryError
    ):
        raise torch.OutOfMemoryError(str(error)) from None


def _valid(name: str) -> str:
    if name not in BACKENDS:
        expected = f"{', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}"
        raise RuntimeError(f"DCNZOO_BACKEND: expected {expected}, got {name!r}")
    return name


backend = _valid(os.environ.get("DCNZOO_BACKEND", "auto"))


def use(name: str) -> None:
    """Switch the GPU operators to another backend, for benchmarks. Does not support ``reference``."""
    global backend
    backend = _valid(name)
    if backend == "fused" and "cuda" in _library.loaded:
        _replace(_FORWARD, "CUDA")


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Context in which :func:`use` applies, for tests."""
    before = backend
    use(name)
    try:
        yield
    finally:
        use(before)


@cache
def _fused():
    """The module of fused kernels, or None if Triton is not installed."""
    if find_spec("triton") is None:
        return None
    from .fused import deform_conv as fused

    return fused


@cache
def _listed(device: torch.device) -> bool:
    """Whether the table lists fused kernels as faster here. On other GPUs, Triton is not imported."""
    if device.type != "cuda" or torch.version.hip is not None:
        return True  # the module of fused kernels decides
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return bool(table().get(architecture, {}).get("auto"))


@cache
def _triton_works(device: torch.device) -> bool:
    """Whether Triton can compile here. It needs a C compiler; an image for deployment may have none."""
    try:
        _fused().target(device)
    except Exception as error:  # of any type: Triton runs the compiler and loads what it built
        text = " ".join(str(error).split())
        warnings.warn(f"dcnzoo: Triton does not work, so the compiled kernels run: {text}", stacklevel=2)
        return False
    return True


def _tf32() -> bool:
    # The compiled kernels multiply with torch's matmul, so the fused ones follow the same setting.
    return torch.version.hip is None and torch.backends.cuda.matmul.fp32_precision == "tf32"


def _problem(arguments: tuple):
    """The call in the form of the fused kernels, or None if another backend must run it.

    Args:
        arguments: those of ``dcnzoo::deform_conv``, then the output's gradient, or None in a forward pass.

    Raises:
        RuntimeError: the backend is ``fused`` and Triton is not installed, or an argument is invalid.
    """
    if backend not in ("auto", "fused") or (backend == "auto" and not _listed(arguments[0].device)):
        return None
    fused = _fused()
    if fused is None:
        if backend == "auto":
            return None
        raise RuntimeError(
            "DCNZOO_BACKEND=fused: expected an installed Triton, got none; run pip install triton"
        )
    input, weight, offset, mask, _bias, *geometry = arguments[:9]
    if input.device.type == "cpu" and not fused.INTERPRETED:
        return None
    if backend == "auto" and not _triton_works(input.device):
        return None
    problem = fused.Problem(input, weight, offset, mask, *geometry, _tf32())
    least_pixels: int | None = 0
    if backend == "auto":
        least_pixels = problem.least_pixels(arguments[-1] is not None)
        if least_pixels is None:
            return None
    torch.ops.dcnzoo._check_deform_conv(*arguments)
    return problem if problem.fits() and problem.pixels >= least_pixels else None


def _forward(fallback: Callable, *arguments) -> Tensor:
    problem = _problem((*arguments, None))
    if problem is None:
        return fallback(*arguments)
    return _fused().forward(problem, bias=arguments[4])


def _backward(fallback: Callable, grad_output: Tensor, *arguments) -> tuple[Tensor, ...]:
    *inputs, needed = arguments
    if needed[0] and _deterministic.deterministic(grad_output):  # all kernels add it atomically
        torch.ops.dcnzoo._check_deform_conv(*inputs[:4], None, *inputs[4:], grad_output)
        _, *others = _backward(fallback, grad_output, *inputs, [False, *needed[1:]])
        return _deterministic.grad_input_in_order(grad_output, *inputs[:-1]), *others
    problem = _problem((*inputs[:4], None, *inputs[4:], grad_output))
    if problem is None:
        return fallback(grad_output, *arguments)
    fused = _fused()
    results = [grad_output.new_empty(0) for _ in range(5)]  # an operator's results must not share memory
    if needed[1]:
        results[1] = fused.grad_weight(problem, grad_output)
    if needed[0] or needed[2] or needed[3]:
        gradients = fused.grad_samples(problem, grad_output, needed[0], needed[2], needed[3])
        for place, gradient in zip((0, 2, 3), gradients, strict=True):
            if gradient is not None:
                results[place] = gradient
    if needed[4]:
        results[4] = grad_output.sum((0, 2, 3))
    return tuple(results)


_FORWARD = "dcnzoo::deform_conv"
_CHOOSERS: dict[str, Callable] = {_FORWARD: _forward, "dcnzoo::_deform_conv_backward": _backward}
_implementations = torch.library.Library("dcnzoo", "IMPL")


def register(key: str) -> None:
    """Make the operators of a device choose the backend at every call.

    The choice costs time in every call, so the forward operator chooses only if a fused kernel may run. The
    backward operator always chooses, because the user may require deterministic algorithms at any time.
    """
    fused_may_run = backend == "fused" or any(entry["auto"] for entry in table().values())
    for name in _CHOOSERS:
        if name != _FORWARD or fused_may_run:
            _replace(name, key)


@cache
def _replace(name: str, key: str) -> None:
    """Replace an operator's kernel with one that chooses the backend."""
    kernel = _kernel(_CHOOSERS[name], compiled_kernel(name, key))
    override(name.removeprefix("dcnzoo::"), kernel, key, with_keyset=True)


def compiled_kernel(name: str, key: str):
    """The compiled kernel of an operator, or None."""
    try:
        return torch.library.get_kernel(name, key)
    except RuntimeError:  # the operator has no kernel for this device
        return None


def override(name: str, kernel: Callable, key: str, with_keyset: bool = False) -> None:
    """Register a kernel without torch's warning that it replaces another one, which is intended here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        _implementations.impl(name, kernel, key, with_keyset=with_keyset)


def _kernel(chooser: Callable, compiled) -> Callable:
    def kernel(keys, *arguments):
        def fallback(*arguments):
            if compiled is None:
                problem = _library.problems["cuda"].rstrip(".")
                raise RuntimeError(
                    f"DCNZOO_BACKEND=fused: no fused kernel fits, and no compiled ones: {problem}"
                )
            try:
                return compiled.call_boxed(keys, *arguments)
            except RuntimeError as error:
                raise_out_of_memory(error)
                raise

        return chooser(fallback, *arguments)

    return kernel


if _library.has_ops():
    if "cuda" in _library.loaded or backend == "fused":
        register("CUDA")
    if backend == "fused":  # on the CPU, fused kernels run only in Triton's interpreter
        register("CPU")
