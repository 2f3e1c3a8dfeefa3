"""Arguments that are a number, or one per axis; and what their checks say. All of it scripts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Proxy

# torch.jit.script wants each tuple's length, so there is one of these per rank.
Int1 = int | tuple[int] | list[int]
Int2 = int | tuple[int, int] | list[int]
Int3 = int | tuple[int, int, int] | list[int]


def single(value: Int1, name: str) -> list[int]:
    if isinstance(value, int):
        return [value]
    if isinstance(value, tuple):
        return list(value)
    if not torch.jit.is_scripting():
        _check_list(value, name, 1)
    return value


def pair(value: Int2, name: str) -> list[int]:
    if isinstance(value, int):
        return [value, value]
    if isinstance(value, tuple):
        return list(value)
    if not torch.jit.is_scripting():
        _check_list(value, name, 2)
    return value


def triple(value: Int3, name: str) -> list[int]:
    if isinstance(value, int):
        return [value, value, value]
    if isinstance(value, tuple):
        return list(value)
    if not torch.jit.is_scripting():
        _check_list(value, name, 3)
    return value


def _check_list(value: object, name: str, count: int) -> None:
    if not isinstance(value, list):
        raise TypeError(f"{name}: expected an integer, or {count} in a list or tuple, got {value!r}")


def is_traced(value: object) -> bool:
    """Whether ``torch.fx.symbolic_trace`` is at work: there are no values to check."""
    return isinstance(value, Proxy)


def check_tensors(name: str, **arguments: object) -> None:
    """Before the dispatcher, which prints whole arrays, or takes None for a tensor of an unknown type."""
    for argument, value in arguments.items():
        if not isinstance(value, Tensor) and not is_traced(value):
            raise TypeError(f"{name}: {argument}: expected a tensor, got {type(value).__name__}")


def shape_text(sizes: list[int]) -> str:
    return "(" + ", ".join([str(size) for size in sizes]) + ("," if len(sizes) == 1 else "") + ")"


def check_arguments(name: str, layout: str, weight: Tensor, dimensions: int, im2col_step: int | None) -> None:
    """What the operator beneath cannot know (the rank asked for), or is not asked (a plain convolution)."""
    if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript skips the block for this alone)
        if is_traced(weight):
            return
    if weight.dim() != dimensions:
        raise RuntimeError(
            f"{name}: weight: expected {dimensions} dimensions ({layout}, *kernel), "
            f"got shape {shape_text(list(weight.shape))}"
        )
    if im2col_step is not None and im2col_step < 1:
        raise RuntimeError(f"{name}: im2col_step: expected at least 1, got {im2col_step}")


def check_devices(name: str, input: Tensor, **others: Tensor | None) -> None:
    """For fake kernels, which also answer where one tensor is on the meta device and another is not."""
    for argument, tensor in others.items():
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"{name}: {argument}: expected device {input.device} like input, got {tensor.device}"
            )


def memory_format(tensor: Tensor) -> torch.memory_format:
    """The format in which kernels return maps: channels_last where ``tensor`` is so, else contiguous."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(tensor.dim())
    if last is not None and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous():
        return last
    return torch.contiguous_format
