"""One module per operator: what tests/test_ops.py runs through every op.

A module offers
    NAME                 the public function's name in dcnzoo.ops
    call(sample)         the public function on a sample
    reference(sample)    the oracle on a sample, in plain PyTorch
    samples()            named samples in float64, small and asymmetric
    invalid()            (sample, message) with what the error must say
    overload_calls(s)    the registered operators with a sample's arguments, for opcheck
    resized_samples()    one call in several batch and spatial sizes, for torch.compile
and a ``Sample`` holds the tensors, in order, and the other arguments.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    name: str
    tensors: tuple[Tensor | None, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        tensors = tuple(None if t is None else function(t) for t in self.tensors)
        return replace(self, tensors=tensors)

    def to(self, dtype: torch.dtype) -> Sample:
        return self.map(lambda t: t.to(dtype))

    def leaves(self) -> Sample:
        """Copies that want gradients, in the same memory format."""
        return self.map(lambda t: t.detach().clone().requires_grad_())

    @property
    def given(self) -> list[Tensor]:
        return [t for t in self.tensors if t is not None]


def modules() -> list[ModuleType]:
    return [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
