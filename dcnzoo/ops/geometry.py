"""Sampling points of deformable operators, in pixels: for layers, plots and the reference."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Return the size of the output of a convolution."""
    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]


def transposed_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Return the size of the output of a transposed convolution."""
    axes = zip(size, kernel, stride, padding, output_padding, dilation, strict=True)
    return [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, o, d in axes]


def sampling_points(
    offset: Tensor | None,  # (N, G·K·rank, *out)
    kernel: Sequence[int],
    out_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    like: Tensor,
) -> Tensor:
    """Return each tap's sampling point at each output: ``(N or 1, G or 1, K, rank, *out)``, in pixels."""
    rank, axes = len(kernel), zip(out_size, stride, padding, strict=True)
    taps = torch.meshgrid(
        *(_steps(*axis, like) for axis in zip(kernel, dilation, strict=True)), indexing="ij"
    )
    starts = torch.meshgrid(*(_steps(n, s, like) - p for n, s, p in axes), indexing="ij")
    positions = [tap.reshape(-1, *[1] * rank) + start for tap, start in zip(taps, starts, strict=True)]
    grid = torch.stack(positions, dim=1)[None, None]  # (1, 1, K, rank, *out)
    if offset is None:
        return grid
    groups = offset.shape[1] // (math.prod(kernel) * rank)
    return grid + offset.reshape(offset.shape[0], groups, *grid.shape[2:]).to(like.dtype)


def _steps(count: int, step: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device, dtype=like.dtype) * step


def deform_attn_points(
    out_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_scale: float,
    remove_center: bool,
    like: Tensor,
) -> Tensor:
    """Return sampling points of :func:`dcnv3` without offsets: ``(oH, oW, 1, P, 2)``, (x, y), in pixels."""
    middle = [dilation[a] * (kernel_size[a] - 1) // 2 for a in (0, 1)]
    tap_x, tap_y = torch.meshgrid(
        *(_steps(kernel_size[a], dilation[a], like) - middle[a] for a in (1, 0)), indexing="ij"
    )
    taps = torch.stack([tap_x, tap_y], dim=-1).flatten(0, 1)  # (P, 2)
    if remove_center:
        taps = torch.cat([taps[: len(taps) // 2], taps[len(taps) // 2 + 1 :]])
    out_y, out_x = torch.meshgrid(
        *(_steps(out_size[a], stride[a], like) - padding[a] + middle[a] for a in (0, 1)), indexing="ij"
    )
    return torch.stack([out_x, out_y], dim=-1)[:, :, None, None] + taps * offset_scale
