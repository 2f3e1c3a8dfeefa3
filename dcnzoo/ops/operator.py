"""The record of an operator: what is registered with torch, its other kernels, and its FLOPs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ._arguments import arguments_of

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Operator:
    """``dcnzoo::name``, which :mod:`.register` registers. A *call* is the named tuple of its arguments.

    Attributes:
        reference: computes the result in a form that is easy to read: for tests, second derivatives, forward
            mode, and where torch lacks the kernels of ``plain``.
        plain: computes it faster by torch's kernels, with a first derivative; for devices without a kernel.
        fake: returns the result without values, for ``torch.compile``, from the operator's arguments.
        check, check_numbers: raise an error for an invalid call; the second one reads numbers in tensors.
        setup_context, backward: its derivative, as in ``torch.autograd.Function``; the first gets the call.
        in_order: for a backward: computes the first gradient of a call in a fixed order of additions.
        float32: arguments that stay float32 under autocast. None: autocast has no effect.
        batched: ``torch.vmap`` runs many calls as one: kinds of the first arguments and of the results, such
            as ``"mwmmw->m"``. m: a map, offset or mask ``[N, …]``. w: weight or bias ``[channels, …]``, in
            ``groups``. s: a tensor without a vmap axis. Default: a loop.
        flops: returns the FLOPs of a call with sizes in place of tensors, and the result's sizes. Default: 0,
            because torch does not count comparisons and geometry.
        rows: tensors with one row per region or box. Their number differs at every call.
        fused: whether it has a Triton kernel, in ``fused/dispatch.py``.
    """

    name: str
    reference: Callable[..., Result]
    plain: Callable[..., Result]
    fake: Callable[..., Result]
    check: Callable[[Any], None]
    check_numbers: Callable[[Any], None] = lambda call: None
    setup_context: Callable | None = None
    backward: Callable | None = None
    in_order: Callable[[Any], Tensor] | None = None
    float32: tuple[str, ...] | None = None
    batched: str = ""
    flops: Callable[[Any, Any], int] = lambda call, output: 0
    rows: tuple[str, ...] = ()
    fused: bool = False

    @cached_property
    def overload(self) -> torch._ops.OpOverload:
        return getattr(torch.ops.dcnzoo, self.name).default

    @cached_property
    def Call(self) -> Any:
        """Return the class of its calls."""
        return arguments_of(self.name)

    @cached_property
    def is_backward(self) -> bool:
        return self.name.endswith("_backward")

    @cached_property
    def forward_name(self) -> str:
        return self.name.strip("_").removesuffix("_backward")


OPERATORS: dict[str, Operator] = {}  # the registered ones, by name
