"""Softmax over the taps of a modulation mask, in plain PyTorch: a kernel would not be faster."""

import torch
from torch import Tensor

from ._arguments import Int1, Int2, Int3, pair, shape_text, single, triple
from .tracing import exporting, is_traced


def mask_softmax1d(mask: Tensor, kernel_size: Int1) -> Tensor:
    """:func:`mask_softmax2d` for ``(N, mask_groups · k, oL)``."""
    return _mask_softmax("mask_softmax1d", mask, single("mask_softmax1d", "kernel_size", kernel_size), 1)


def mask_softmax2d(
    mask: Tensor,  # [N, M·kH·kW, oH, oW]
    kernel_size: Int2,
) -> Tensor:  # [N, M·kH·kW, oH, oW]
    """Softmax over the taps of each mask group, at every output pixel.

    The activation of the mask in InternImage (Wang et al. 2023, DCNv3). Same arguments and results as in
    tvdcn.

    Args:
        mask: ``(N, mask_groups · kH · kW, oH, oW)``.
        kernel_size: ``(kH, kW)``.

    Raises:
        RuntimeError: ``kernel_size`` is invalid, or the shape of ``mask`` does not match it.
    """
    return _mask_softmax("mask_softmax2d", mask, pair("mask_softmax2d", "kernel_size", kernel_size), 2)


def mask_softmax3d(mask: Tensor, kernel_size: Int3) -> Tensor:
    """:func:`mask_softmax2d` for ``(N, mask_groups · kD · kH · kW, oD, oH, oW)``."""
    return _mask_softmax("mask_softmax3d", mask, triple("mask_softmax3d", "kernel_size", kernel_size), 3)


def _mask_softmax(name: str, mask: Tensor, kernel_size: list[int], rank: int) -> Tensor:
    taps = 1
    for size in kernel_size:
        taps *= size
        if size < 1:
            raise RuntimeError(f"{name}: kernel_size: expected at least 1, got {shape_text(kernel_size)}")
    traced = False
    if not torch.jit.is_scripting():
        traced = is_traced(mask)
    if not traced and mask.dim() != rank + 2:
        raise RuntimeError(
            f"{name}: mask: expected {rank + 2} dimensions, got shape {shape_text(list(mask.shape))}"
        )
    return softmax_of_taps(name, mask, taps)


def softmax_of_taps(name: str, mask: Tensor, taps: int) -> Tensor:  # [N, M·taps, *out]
    if not torch.jit.is_scripting():
        if is_traced(mask):
            return mask.unflatten(1, (-1, taps)).softmax(2).flatten(1, 2)
        if exporting():  # a view of several groups does not export with a dynamic image size
            return torch.cat([group.softmax(1) for group in mask.split(taps, dim=1)], dim=1)
    if mask.shape[1] == 0 or mask.shape[1] % taps != 0:
        raise RuntimeError(
            f"{name}: mask: expected a multiple of the {taps} taps, {taps} channels per group, "
            f"got {mask.shape[1]}"
        )
    return mask.unflatten(1, [mask.shape[1] // taps, taps]).softmax(2).flatten(1, 2)
