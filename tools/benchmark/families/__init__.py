"""The measured operators, one module per family. New files are loaded automatically.

A module defines
    CASES        the cases, in display order
    CONTESTANTS  name -> prepare(case, tensors, threads), which returns a :class:`Call` or raises
                 :class:`Unsupported`; the first word of a name is its package
    FLOORS       contestants that do less (a plain convolution): the faster one is the unit of time
and a case has
    name, group  its name (unique in its family) and its heading
    op           the variant of the operator: v1, v2, …
    main         whether it counts in the summary
    optional     whether it runs only with --all
    shape        its sizes, as text
    out_shape    of the output, if it has gradients
    tensors(dtype, device)  seeded inputs by name
    small()      a small case of the same kind, for warm-up
    work(item)   arithmetic and memory traffic of a forward pass, or None
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

OURS = "dcnzoo"


class Unsupported(Exception):
    """A contestant does not support a case; the text gives the reason."""


@dataclass(frozen=True)
class Call:
    """A contestant that is ready to run.

    Attributes:
        forward: computes the output from stored tensors.
        leaves: the stored tensors that get gradients; empty if there is no backward.
    """

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Work:
    """The minimum work of a forward pass.

    Attributes:
        flops: of the matrix product; a multiplication and an addition count as two.
        gathered: bytes read at sampled positions.
    """

    flops: float
    gathered: float


def leaves(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return tensors with the same memory that require gradients."""
    return tuple(None if t is None else t.detach().requires_grad_() for t in tensors)


def load() -> dict[str, ModuleType]:
    names = [info.name for info in pkgutil.iter_modules(__path__)]
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}
