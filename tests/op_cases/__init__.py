"""Samples of every operator, for tests/ops/test_ops.py, random calls (test_fuzz.py, soak.py) and other tests.

Each module describes an operator: it defines ``NAME`` and the other attributes of :class:`Operator`. A module
with several operators defines ``OPERATORS``.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dcnzoo.ops._arguments import arguments_of


@dataclass(frozen=True)
class Sample:
    """A call: the tensors in the order of the function's arguments, and its other arguments.

    ``constant``: the positions of tensors without a gradient, such as RoIs.
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
        """Copies that require gradients, except constant tensors, in the same memory format."""
        return self.with_given([t.detach().clone().requires_grad_() for t in self.given])

    @property
    def places(self) -> list[int]:
        """Positions of the given tensors that have a gradient."""
        return [i for i, t in enumerate(self.tensors) if t is not None and i not in self.constant]

    @property
    def given(self) -> list[Tensor]:
        return [self.tensors[i] for i in self.places]

    def with_given(self, tensors: Iterable[Tensor]) -> Sample:
        """Return the same call with ``tensors`` in the positions :attr:`places`."""
        changed = dict(zip(self.places, tensors, strict=True))
        return replace(self, tensors=tuple(changed.get(i, t) for i, t in enumerate(self.tensors)))


@dataclass(frozen=True)
class Operator:
    """A public function and how to test it.

    An operator without gradients (``differentiable``) needs only the attributes for random calls.

    Attributes:
        name: name of the function in dcnzoo.ops.
        call: calls the function on a sample.
        reference: calls the oracle, in plain PyTorch, on a sample.
        random_sample: takes a generator and one of ``can_be_zero``, or "".
        can_be_zero: sizes that ``random_sample`` can set to zero; the operator may reject them.
        absolute: the sample with absolute values of all factors, but not of coordinates: each result is then
            the sum of the absolute values of its terms.
        samples: small, asymmetric samples in float64; the first four are the forms, which more tests use.
        invalid: samples with a regular expression for the error; see :func:`wrong_calls`.
        operator: calls the registered operator, where the function does not always call it.
        resized_samples: one call with several batch and spatial sizes, for torch.compile.
        cuda: whether it has CUDA kernels; otherwise tests/cuda skips it.
        batched: whether it has a batching rule; otherwise ``torch.vmap`` is a loop, about which torch warns.
        autocasts: whether it computes in autocast's dtype; otherwise autocast has no effect.
        differentiable: whether it has gradients.
        continuous: whether a small change of a coordinate changes the result only slightly.
    """

    name: str
    call: Callable[[Sample], Tensor]
    reference: Callable[[Sample], Tensor]
    random_sample: Callable[[Random, str], Sample]
    can_be_zero: Sequence[str] = ()
    absolute: Callable[[Sample], Sample] | None = None
    samples: Callable[[], Iterable[Sample]] = tuple
    invalid: Callable[[], Iterable[tuple[Sample, str]]] = tuple
    operator: Callable[[Sample], Tensor] | None = None
    resized_samples: Callable[[], Iterable[Sample]] = tuple
    cuda: bool = True
    batched: bool = True
    autocasts: bool = True
    differentiable: bool = True
    continuous: bool = True

    def forms(self) -> list[Sample]:
        return list(islice(self.samples(), 4))

    def results(self, sample: Sample) -> list[Tensor]:
        """The output and, if the operator has them, the gradients."""
        return results(self.call, sample) if self.differentiable else [self.call(sample)]

    def overload_calls(self, sample: Sample) -> list[tuple[torch._ops.OpOverload, tuple]]:
        """The registered operators with a sample's arguments: forward, backward, backward of one gradient.

        The gradient of the output is one everywhere.
        """
        leaves = sample.leaves()
        with Recorder() as recorder:
            output = (self.operator or self.call)(leaves)
            torch.autograd.grad(output, leaves.given, torch.ones_like(output))
        calls = [recorder.calls[0]]
        forward = calls[0][0].name().removeprefix("dcnzoo::")
        for overload, arguments in recorder.calls[1:]:
            if overload.name() == f"dcnzoo::_{forward}_backward":
                call = arguments_of(overload._schema.name.removeprefix("dcnzoo::"))(
                    *(a.detach() if isinstance(a, Tensor) else a for a in arguments)
                )
                calls.append((overload, tuple(call)))
                if mask := getattr(call, "output_mask", ()):  # the gradients to compute
                    call = call._replace(output_mask=[i == 1 for i in range(len(mask))])
                    calls.append((overload, tuple(call)))
        return calls


class Recorder(TorchDispatchMode):
    """Records the calls of dcnzoo's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, tuple]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "dcnzoo":
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


def ramp(like: Tensor) -> Tensor:
    """A gradient for this output: values from -1 to 1."""
    return torch.linspace(-1, 1, like.numel(), dtype=torch.float64).view(like.shape).to(like)


def results(function: Callable[[Sample], Tensor], sample: Sample, grad: Tensor | None = None) -> list[Tensor]:
    """The output and the gradients of the sample's tensors; ``grad`` is the output's, by default a ramp."""
    leaves = sample.leaves()
    output = function(leaves)
    grad = ramp(output) if grad is None else grad
    return [output.detach(), *torch.autograd.grad(output, leaves.given, grad, materialize_grads=True)]


def operators(differentiable: bool = True) -> list[Operator]:
    """All operators, or only the differentiable ones."""
    found: list[Operator] = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        asked = [attribute.name for attribute in fields(Operator)[1:]]
        found += getattr(module, "OPERATORS", None) or [
            Operator(module.NAME, **{name: getattr(module, name) for name in asked if hasattr(module, name)})
        ]
    return [op for op in found if op.differentiable or not differentiable]


def call_function(function: Callable[..., Tensor], sample: Sample) -> Tensor:
    return function(*sample.tensors, **sample.kwargs)


def absolute_at(*places: int) -> Callable[[Sample], Sample]:
    """``Operator.absolute`` of an operator that multiplies the tensors at these positions."""

    def absolute(sample: Sample) -> Sample:
        tensors = enumerate(sample.tensors)
        return replace(
            sample, tensors=tuple(t.abs() if t is not None and i in places else t for i, t in tensors)
        )

    return absolute


def wrong_calls(
    operator: str, good: Sample, names: Sequence[str], rows: Iterable[tuple[str, str, dict[str, Any]]]
) -> Iterator[tuple[Sample, str]]:
    """``Operator.invalid`` from rows of: the argument that the error names, the value that it reports, and
    the changes to ``good`` (tensors by these names, and other arguments)."""
    for argument, got, changed in rows:
        tensors = tuple(changed.get(n, t) for n, t in zip(names, good.tensors, strict=True))
        kwargs = {name: value for name, value in changed.items() if name not in names}
        sample = replace(good, name=f"{argument} {got}", tensors=tensors, kwargs={**good.kwargs, **kwargs})
        yield sample, rf"^{operator}: {argument}: expected .*{re.escape(got)}"


# For random samples. CHANNELS: around the sizes of vectors, panels and channel blocks of the CPU kernels.
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 31, 32, 33, 64, 65)


def normal(rng: Random, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randint(0, 2**16))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def output_size(size: Sequence[int], *geometry: Sequence[int]) -> list[int]:
    """The size of a convolution's output; the geometry is kernel, stride, padding and dilation, per axis."""
    axes = zip(size, *geometry, strict=True)
    return [max((n + 2 * pad - dilation * (k - 1) - 1) // step + 1, 0) for n, k, step, pad, dilation in axes]


def per_axis(rng: Random, rank: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(rng.randint(low, high) for _ in range(rank))


def emptied(rng: Random, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Set one of the sizes, or all of them, to zero."""
    axis = rng.randint(0, len(sizes))
    return tuple(0 if axis in (a, len(sizes)) else size for a, size in enumerate(sizes))


def random_name(rng: Random, nothing: str) -> str:
    """Return a random name, which seeds the tensors' random numbers."""
    return f"zero {nothing}" if nothing else str(rng.randint(0, 2**16))


# Memory layouts of a tensor, with the same values


def strided(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() > 2 else tensor


def offset_by_one(tensor: Tensor) -> Tensor:
    """A tensor that does not start at the beginning of an allocation."""
    padded = torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])
    return padded[1:].view(tensor.shape)


LAYOUTS = (strided, transposed, channels_last, offset_by_one)


def is_plain_convolution(sample: Sample) -> bool:
    """Whether this is torch's convolution: no offset and no mask."""
    return len(sample.tensors) == 5 and sample.tensors[2] is None and sample.tensors[3] is None
