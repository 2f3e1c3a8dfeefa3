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


def _valid(name: str) -> str:
    name = {"reference": "plain"}.get(name, name)  # its name until 0.2.0
    if name not in BACKENDS:
        raise RuntimeError(f"DCNZOO_BACKEND: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


backend = _valid(os.environ.get("DCNZOO_BACKEND", "auto"))
if backend == "fused" and find_spec("triton") is None:
    warnings.warn("DCNZOO_BACKEND=fused: no Triton; run pip install triton", stacklevel=2)
failed: set[str] = set()  # forward operators whose Triton kernel failed; a change invalidates all plans


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


def has_no_triton_kernel(query: Query) -> bool:
    return not (query.operator.fused and triton_runs_on(query.device))


def triton_runs_on(device: str) -> bool:
    is_interpreted = backend == "fused" and os.environ.get("TRITON_INTERPRET")
    return device == "cuda" or bool(device == "cpu" and is_interpreted)


def must_be_faster(query: Query) -> bool:
    """Return whether a Triton kernel runs only if it is known to be faster than the compiled one."""
    return backend != "fused" and not has_no_compiled_kernel(query)


def is_never_faster(query: Query) -> bool:
    return must_be_faster(query) and not query.operator.fused_may_be_faster


@of_call
def is_not_faster(query: Query) -> bool:
    return must_be_faster(query) and not available.is_faster(query.operator.name, query.call)


def fails_a_trial(query: Query) -> bool:
    device = torch.device(query.device) if query.call is None else query.call[0].device
    return query.may_try and not available.triton_works(device)


@of_call
def unsupported_feature(query: Query) -> str:
    from .fused import operators  # imports Triton, which works here: the trial ran

    return operators.unsupported(query.operator.name, query.call)


@of_call
def is_not_measured(query: Query) -> bool:
    from .fused import operators

    return must_be_faster(query) and not operators.is_measured(query.call)


def has_no_compiled_kernel(query: Query) -> bool:
    return query.operator.name not in _library.kernels.get(query.device, ())


# A kernel, when it does not run a call, and the reason to print, if any. The rules of a kernel run in order,
# up to the first that excludes it. A rule may read only what plans.key_of returns: not the number of regions.
RULES: tuple[tuple[str, Predicate, str], ...] = (
    (FUSED, has_no_triton_kernel, ""),
    (FUSED, lambda query: backend in ("compiled", "plain"), "DCNZOO_BACKEND={backend}"),
    (FUSED, lambda query: query.operator.forward_name in failed, "Triton's kernel failed before"),
    (FUSED, is_never_faster, "Triton is not listed as faster"),
    (FUSED, is_not_faster, "Triton is not listed as faster"),
    (FUSED, fails_a_trial, "Triton does not work here"),
    (FUSED, unsupported_feature, "Triton's kernel does not support {cause}"),
    (FUSED, is_not_measured, "Triton's kernel has no measurements"),
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

    The last one runs every call. Before it comes Triton's kernel, which may fail, if no rule excludes it.
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


def table(device: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return :func:`kernels_for` any call of each forward operator."""
    operators = (operator for operator in OPERATORS.values() if not operator.is_backward)
    return {operator.name: kernels_for(Query(operator, device)) for operator in operators}
