"""Arguments that are a number, or one per axis; and what their checks say. All of it scripts."""

from __future__ import annotations

from torch import Tensor

# torch.jit.script wants each tuple's length, so there is one of these per rank.
Int1 = int | tuple[int] | list[int]
Int2 = int | tuple[int, int] | list[int]
Int3 = int | tuple[int, int, int] | list[int]


def single(value: Int1) -> list[int]:
    if isinstance(value, int):
        return [value]
    if isinstance(value, tuple):
        return list(value)
    return value


def pair(value: Int2) -> list[int]:
    if isinstance(value, int):
        return [value, value]
    if isinstance(value, tuple):
        return list(value)
    return value


def triple(value: Int3) -> list[int]:
    if isinstance(value, int):
        return [value, value, value]
    if isinstance(value, tuple):
        return list(value)
    return value


def check_arguments(name: str, layout: str, weight: Tensor, dimensions: int, im2col_step: int | None) -> None:
    """What the operator beneath cannot know (the rank asked for), or is not asked (a plain convolution)."""
    if weight.dim() != dimensions:
        shape = ", ".join([str(size) for size in weight.shape])
        raise RuntimeError(
            f"{name}: weight: expected {dimensions} dimensions ({layout}, *kernel), got shape ({shape})"
        )
    if im2col_step is not None and im2col_step < 1:
        raise RuntimeError(f"{name}: im2col_step: expected at least 1, got {im2col_step}")
