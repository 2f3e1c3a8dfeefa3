"""Which kernels may run a call of an operator, and why others may not: one table, :data:`RULES`.

:mod:`.plans` reads it once per shape of call, :mod:`.run` to find the operators that have a choice at all,
and ``dcnzoo doctor`` to print the kernels of every operator. ``DCNZOO_BACKEND`` is the user's preference.
"""

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from . import _library
from ._torch_private import has_weighted_sums
from .fused import available
from .operator import OPERATORS, Operator

FUSED, COMPILED = "fused", "compiled"
PLAIN, REFERENCE = "plain PyTorch", "the reference in plain PyTorch"
KERNELS = (FUSED, COMPILED, PLAIN, REFERENCE)  # in order of preference; the last one runs every call
BACKENDS = ("auto", "fused", "compiled", "plain")


def valid_backend(name: str) -> str:
    name = {"reference": "plain"}.get(name, name)  # its name until 0.2.0
    if name not in BACKENDS:
        raise RuntimeError(f"DCNZOO_BACKEND: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


backend = valid_backend(os.environ.get("DCNZOO_BACKEND") or "auto")  # run.set_backend changes it
if backend == "fused" and find_spec("triton") is None:
    warnings.warn("DCNZOO_BACKEND=fused: no Triton; run pip install triton", stacklevel=2)
failed: set[str] = set()  # forward operators whose Triton kernel failed, or that of their backward


class Query(NamedTuple):
    """A call of an operator on a type of device, or without ``call`` any call.

    Attributes:
        may_try: whether Triton may compile a kernel for a trial.
    """

    operator: Operator
    device: str
    call: Any = None
    may_try: bool = True


Predicate = Callable[[Query], object]


def of_call(predicate: Predicate) -> Predicate:
    """A rule that reads the call, and so does not exclude a kernel for all calls."""
    return lambda query: query.call is not None and predicate(query)


def of_deform_conv(predicate: Predicate) -> Predicate:
    """A rule for calls of the operator whose Triton kernels do not support every shape, but may be faster."""
    return of_call(lambda query: is_deform_conv(query) and predicate(query))


def is_deform_conv(query: Query) -> bool:
    return query.operator.forward_name == "deform_conv"


def has_no_triton_kernel(query: Query) -> bool:
    return not (query.operator.fused and triton_runs_on(query.device))


def triton_runs_on(device: str) -> bool:
    is_interpreted = backend == "fused" and os.environ.get("TRITON_INTERPRET")
    return device == "cuda" or bool(device == "cpu" and is_interpreted)


def must_be_faster(query: Query) -> bool:
    """Return whether a Triton kernel runs only if it is known to be faster than the compiled one."""
    return backend != "fused" and not has_no_compiled_kernel(query)


@of_call
def unsupported_type(query: Query) -> str:
    dtype = query.call[0].dtype  # of the input, or of the gradient of the output, which has its rank, too
    return "" if dtype in available.DTYPES else str(dtype)


@of_deform_conv
def has_three_dimensions(query: Query) -> bool:
    return query.call[0].dim() == 5


@of_deform_conv
def has_empty_weight(query: Query) -> bool:
    return query.call.weight.numel() == 0


def where_deform_conv_must_be_faster(predicate: Predicate) -> Predicate:
    return of_deform_conv(lambda query: must_be_faster(query) and predicate(query))


def is_not_faster(query: Query) -> bool:
    if not must_be_faster(query):
        return False
    if not is_deform_conv(query):
        return True
    return query.call is not None and not available.is_faster(query.operator.name, query.call)


@where_deform_conv_must_be_faster
def has_one_dimension(query: Query) -> bool:
    return query.call[0].dim() == 3


@where_deform_conv_must_be_faster
def is_float32_without_tf32(query: Query) -> bool:
    return query.call[0].dtype == torch.float32 and not available.tf32()


def fails_a_trial(query: Query) -> bool:
    device = torch.device(query.device) if query.call is None else query.call[0].device
    return query.may_try and not available.triton_works(device)


@where_deform_conv_must_be_faster
def has_narrow_groups(query: Query) -> bool:
    from .fused.deform_conv import Sizes  # imports Triton, which works here: the trial ran

    return not Sizes(query.call).is_wide


def has_no_compiled_kernel(query: Query) -> bool:
    return query.operator.name not in _library.kernels.get(query.device, ())


# A kernel, when it does not run a call, and the reason to print, if any. The rules of a kernel run in order,
# up to the first that excludes it. A rule may read only what plans.key_of returns: not the number of regions.
RULES: tuple[tuple[str, Predicate, str], ...] = (
    (FUSED, has_no_triton_kernel, ""),
    (FUSED, lambda query: backend in ("compiled", "plain"), "DCNZOO_BACKEND={backend}"),
    (FUSED, lambda query: query.operator.forward_name in failed, "Triton's kernel failed before"),
    (FUSED, unsupported_type, "Triton's kernel does not support {cause}"),
    (FUSED, has_three_dimensions, "Triton's kernel does not support three dimensions"),
    (FUSED, has_empty_weight, "Triton's kernel does not support an empty weight"),
    (FUSED, is_not_faster, "Triton is not listed as faster"),
    (FUSED, has_one_dimension, "Triton's kernel was not measured in one dimension"),
    (FUSED, is_float32_without_tf32, "Triton is faster in float32 only with TF32"),
    (FUSED, fails_a_trial, "Triton does not work here"),
    (FUSED, has_narrow_groups, "Triton's kernel was not measured with such groups"),
    (COMPILED, lambda query: backend == "plain", "DCNZOO_BACKEND={backend}"),
    (COMPILED, has_no_compiled_kernel, "no compiled kernels for {device}"),
    (
        PLAIN,
        lambda query: not has_weighted_sums(query.device),
        "torch has no embedding_bag with its gradients for {device}",
    ),
)


def kernels_for(query: Query) -> tuple[tuple[str, ...], str]:
    """Return the kernels that may run a call, in order of preference, and why no others do.

    The last one runs every call. If there are two, the first is Triton's, which may fail.
    """
    kernels, reasons = [], []
    for kernel in KERNELS:
        reason = _why_not(kernel, query)
        if reason is None:
            kernels.append(kernel)
            if kernel != FUSED:
                break
        elif reason and reason not in reasons:
            reasons.append(reason)
    return tuple(kernels), "; ".join(reasons)


def _why_not(kernel: str, query: Query) -> str | None:
    """Return the reason of the first rule that excludes a kernel, or None if none does."""
    for name, excludes, reason in RULES:
        if name == kernel and (cause := excludes(query)):
            return reason.format(backend=backend, device=query.device, cause=cause)
    return None


def kernels_by_operator(device: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return :func:`kernels_for` any call of each forward operator."""
    operators = (operator for operator in OPERATORS.values() if not operator.is_backward)
    return {operator.name: kernels_for(Query(operator, device)) for operator in operators}
