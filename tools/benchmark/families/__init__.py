"""What is measured: one module per family of operators. Adding a family adds a file, nothing else.

A module offers
    CASES        the cases, in the order in which they are shown
    CONTESTANTS  name -> prepare(case, tensors, threads), which returns a :class:`Call` or raises
                 :class:`Unsupported`; the first word of a name is the package that it comes from
    GPU_ONLY     contestants that are left out on the CPU (need not be there)
    FLOORS       contestants that do less (a plain convolution): the better one is the unit of time
and a case has
    name, group  what it is called (unique in its family) and the heading that it stands under
    op           which form of the operator: v1, v2, …
    main         whether it counts in the summary
    optional     whether it runs only with --all
    shape        its sizes, in words
    out_shape    of the output, where that has gradients
    tensors(dtype, device)  seeded inputs by name
    small()      the same kind of case in a size of no account, to warm up with
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
    """A contestant does not do a case; the text says why."""


@dataclass(frozen=True)
class Call:
    """A contestant ready to run.

    Attributes:
        forward: computes the output from tensors that it holds.
        leaves: those of them that get gradients; none where there is no backward.
    """

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Work:
    """What a forward pass cannot do without.

    Attributes:
        flops: of the matrix product, a multiplication and an addition counting as two.
        gathered: bytes read at sampled positions.
    """

    flops: float
    gathered: float


def leaves(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The same memory, as tensors that want gradients."""
    return tuple(None if t is None else t.detach().requires_grad_() for t in tensors)


def load() -> dict[str, ModuleType]:
    names = [info.name for info in pkgutil.iter_modules(__path__)]
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}
