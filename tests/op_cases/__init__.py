"""What tests/test_ops.py runs through every operator.

A module is an operator: it offers ``NAME`` and the rest of what :class:`Operator` asks for. A module of
several offers them as ``OPERATORS``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """A call: the tensors, in the order of the function's arguments, and the other arguments.

    ``constant``: the places of tensors that have no gradient, such as RoIs.
    """

    name: str
    tensors: tuple[Tensor | None, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    constant: tuple[int, ...] = ()

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        tensors = tuple(None if t is None else function(t) for t in self.tensors)
        return replace(self, tensors=tensors)

    def to(self, dtype: torch.dtype) -> Sample:
        return self.map(lambda t: t.to(dtype))

    def leaves(self) -> Sample:
        """Copies that require gradients, but for the constant ones, in the same memory format."""
        return self.with_given([t.detach().clone().requires_grad_() for t in self.given])

    @property
    def places(self) -> list[int]:
        """Of the tensors that are given and have a gradient."""
        return [i for i, t in enumerate(self.tensors) if t is not None and i not in self.constant]

    @property
    def given(self) -> list[Tensor]:
        return [self.tensors[i] for i in self.places]

    def with_given(self, tensors: Iterable[Tensor]) -> Sample:
        """The same call with other tensors in these places."""
        changed = dict(zip(self.places, tensors, strict=True))
        return replace(self, tensors=tuple(changed.get(i, t) for i, t in enumerate(self.tensors)))


@dataclass(frozen=True)
class Operator:
    """A public function and what to ask of it.

    Attributes:
        name: in dcnzoo.ops.
        call: the function on a sample.
        reference: the oracle on a sample, in plain PyTorch.
        samples: in float64, small and asymmetric; the first four show its forms, and are asked more.
        invalid: samples with what the error must say.
        overload_calls: the registered operators with a sample's arguments, for opcheck.
        resized_samples: one call in several batch and spatial sizes, for torch.compile.
        autocasts: whether it computes in autocast's dtype; otherwise autocast changes nothing.
    """

    name: str
    call: Callable[[Sample], Tensor]
    reference: Callable[[Sample], Tensor]
    samples: Callable[[], Iterable[Sample]]
    invalid: Callable[[], Iterable[tuple[Sample, str]]]
    overload_calls: Callable[[Sample], Iterator[tuple[torch._ops.OpOverload, tuple]]]
    resized_samples: Callable[[], Iterable[Sample]]
    autocasts: bool = True

    def forms(self) -> list[Sample]:
        return list(self.samples())[:4]


def operators() -> list[Operator]:
    found = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        asked = [attribute.name for attribute in fields(Operator)[1:]]
        found += getattr(module, "OPERATORS", None) or [
            Operator(module.NAME, **{name: getattr(module, name) for name in asked if hasattr(module, name)})
        ]
    return found
