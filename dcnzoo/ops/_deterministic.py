"""What ``torch.use_deterministic_algorithms`` asks of kernels whose sums have no fixed order."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from ._arguments import memory_format


def needs_order(tensor: Tensor) -> bool:
    """Whether sums are to have one order, on a device where the kernels' have not."""
    return tensor.device.type not in ("cpu", "meta") and torch.are_deterministic_algorithms_enabled()


def grad_input_in_order(
    grad_output: Tensor,  # [N, O, *out]
    input: Tensor,  # [N, C, *in]
    weight: Tensor,  # [O, C / groups, *kernel]
    offset: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:  # [N, C, *in]
    """The gradient of deformable convolution's input, with the same bits at every call.

    In two passes: the places that points are spread to are sorted, once for all channels of an offset
    group, then each place's contributions are added up; both by torch's accumulating ``index_put_``. An
    image at a time, which takes twice the memory of its columns: 2 · C · taps · pixels values.
    """
    wide = torch.promote_types(input.dtype, torch.float32)
    channels, in_size = input.shape[1], input.shape[2:]
    taps, outputs = math.prod(weight.shape[2:]), weight.shape[0]
    matrices = weight.to(wide).reshape(groups, outputs // groups, channels // groups * taps)
    gradients = torch.empty(
        input.shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input)
    )
    for image in range(input.shape[0]):
        grad = grad_output[image].to(wide).reshape(groups, outputs // groups, -1)
        columns = (matrices.transpose(1, 2) @ grad).reshape(channels, -1)  # [C, taps · pixels]
        if mask is not None:
            factors = mask[image].to(wide).reshape(mask.shape[1] // taps, 1, columns.shape[1])
            columns = (columns.unflatten(0, (len(factors), -1)) * factors).flatten(0, 1)
        shifts = None if offset is None else offset[image : image + 1]
        points = reference.sampling_points(
            shifts, weight.shape[2:], grad_output.shape[2:], stride, padding, dilation, columns
        )[0]  # [G, taps, rank, *out]
        points = points.transpose(1, 2).flatten(3).flatten(2)  # [G, rank, taps · pixels]
        rows = columns.unflatten(0, (len(points), -1)).transpose(1, 2)  # [G, taps · pixels, C / G]
        sums = rows.new_zeros(len(points) * math.prod(in_size), rows.shape[2])
        first = torch.arange(len(points), device=input.device)[:, None] * math.prod(in_size)
        for place, share, valid in reference.corners(points, in_size):
            parts = torch.where(valid[..., None], rows * share[..., None], rows.new_zeros(()))
            sums.index_put_(((first + place).flatten(),), parts.flatten(0, 1), accumulate=True)
        gradients[image] = sums.unflatten(0, (len(points), -1)).transpose(1, 2).reshape(input.shape[1:])
    return gradients


def alert_not_deterministic(name: str) -> None:
    """Raises (or warns) as torch's own operators do under ``torch.use_deterministic_algorithms``."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        f"{name} does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this "
        "operation, or you can use the 'warn_only=True' option, if that's acceptable for your "
        "application."
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)
