"""Named arguments of operators, their checks, and sizes given as one integer or one per axis.

Operators must stay scriptable: code that ``torch.jit.script`` cannot compile is guarded by
``torch.jit.is_scripting()``.
"""

from collections import namedtuple
from functools import cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .tracing import is_traced

# torch.jit.script needs the length of each tuple, hence one alias per rank.
Int1 = int | tuple[int] | list[int]
Int2 = int | tuple[int, int] | list[int]
Int3 = int | tuple[int, int, int] | list[int]


@cache
def arguments_of(name: str) -> Any:
    """Return the class of the calls of ``dcnzoo::name``: a named tuple of the arguments in the schema.

    Kernels in Python need its defaults: torch does not pass them trailing arguments that equal their
    defaults.
    """
    arguments = getattr(torch.ops.dcnzoo, name).default._schema.arguments
    defaults = [argument.default_value for argument in arguments if argument.has_default_value()]
    return namedtuple(f"{name.strip('_')}_arguments", [a.name for a in arguments], defaults=defaults)


def single(name: str, argument: str, value: Int1) -> list[int]:
    return _per_axis(name, argument, list(value) if isinstance(value, tuple) else value, 1)


def pair(name: str, argument: str, value: Int2) -> list[int]:
    return _per_axis(name, argument, list(value) if isinstance(value, tuple) else value, 2)


def triple(name: str, argument: str, value: Int3) -> list[int]:
    return _per_axis(name, argument, list(value) if isinstance(value, tuple) else value, 3)


def _per_axis(name: str, argument: str, value: int | list[int], rank: int) -> list[int]:
    if isinstance(value, int):
        return [value] * rank
    if not torch.jit.is_scripting():
        value = _as_list(name, argument, value, rank)
    if len(value) == 1:
        return value * rank
    if len(value) != rank:
        raise RuntimeError(f"{name}: {argument}: expected {rank} values, got {len(value)}")
    return value


_NO_INTEGERS = (float, str, list, tuple, type(None))  # others may be symbols of a traced program


def _as_list(name: str, argument: str, value: Any, count: int) -> list[int]:
    if not isinstance(value, list):
        if isinstance(value, Integral):  # NumPy's
            return [int(value)] * count
        text = repr(value) if value is None or isinstance(value, str | float) else type(value).__name__
    elif any(isinstance(number, _NO_INTEGERS) for number in value):
        text = repr(value)
    else:
        return value
    expected = f"an integer, or a list or tuple of {count} integers"
    raise TypeError(f"{name}: {argument}: expected {expected}, got {text}")


def check_integers(name: str, **arguments: object) -> None:
    """Raise TypeError for an argument that is certainly no integer: the dispatcher's has many lines."""
    for argument, value in arguments.items():
        if isinstance(value, _NO_INTEGERS):
            raise TypeError(f"{name}: {argument}: expected an integer, got {value!r}")


def check_tensors(name: str, **arguments: object) -> None:
    """Raise TypeError unless every argument is a tensor.

    Runs before the dispatcher, which converts None to an undefined tensor and prints whole arrays in its
    error messages.
    """
    for argument, value in arguments.items():
        if not isinstance(value, Tensor) and not is_traced(value):
            raise TypeError(f"{name}: {argument}: expected a tensor, got {type(value).__name__}")


def shape_text(sizes: list[int]) -> str:
    return "(" + ", ".join([str(size) for size in sizes]) + ("," if len(sizes) == 1 else "") + ")"


def check_arguments(
    name: str,
    layout: str,
    input: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    groups: int,
    rank: int,
) -> bool:
    """Check the types of the tensors and the rank of ``weight``. Return whether ``input`` has no batch axis.

    The operator cannot check the rank, because it serves all ranks. Without offset and mask it is not called
    at all: torch's convolution runs.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript skips the block only for a lone condition)
        if _check_kinds(name, groups, input, weight, offset, mask, bias):
            return False
    if weight.dim() != rank + 2:
        raise RuntimeError(
            f"{name}: weight: expected {rank + 2} dimensions ({layout}, *kernel), "
            f"got shape {shape_text(list(weight.shape))}"
        )
    return input.dim() == rank + 1


def _check_kinds(name: str, groups: object, input: object, weight: object, *optional: object) -> bool:
    """Check that the arguments of a convolution are tensors. Return whether one is a proxy."""
    check_integers(name, groups=groups)
    check_tensors(name, input=input, weight=weight)
    for argument, value in zip(("offset", "mask", "bias"), optional, strict=True):
        if value is not None and not isinstance(value, Tensor) and not is_traced(value):
            raise TypeError(
                f"{name}: {argument}: expected a tensor or None, got {type(value).__name__} "
                "(the order is input, weight, offset, mask, bias)"
            )
    offset, mask, _ = optional
    if mask is not None and mask is offset:
        raise RuntimeError(f"{name}: mask: expected factors of the samples, got the tensor of offset")
    return is_traced(weight) or is_traced(input)


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Return the memory format of an output: channels_last if ``tensor`` has it, else contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if last is not None and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous():
        return last
    return torch.contiguous_format
