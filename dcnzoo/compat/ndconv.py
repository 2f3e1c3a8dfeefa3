"""Functions of "Pytorch-Implmentation-of-Deformable-Convolution-Nd" (``torch.ops.custom_op.deform_conv2d``).

They have the same arguments in the same order. Only the import differs::

    from dcnzoo.compat import ndconv
    output = ndconv.deform_conv2d(input, weight, offset_field, attn_mask, kernel_size, …)

With ``dcnzoo.compat.provide("custom_op")``, the original import works too, and your code stays unchanged.

The layout is that of the original's CUDA kernels, in the version whose README has these arguments. ``G`` is
``groups · offset_field_channels_per_groups`` and ``K`` is the number of taps:

- ``offset_field`` ``(N, rank, G · K, *out)``: the axis comes first, with the slowest axis (depth or height)
  at index 0, then group, deformable group and tap, in this order. As in later versions of the module,
  ``(N, G · K · rank, *out)`` works too: group, deformable group, tap, axis, the layout of :mod:`dcnzoo.ops`.
- ``attn_mask`` ``(N, 1, G · K, *out)``, or ``(N, G · K, *out)``: the mask, used without an activation.
- ``weight`` ``(O, C / groups, *kernel)``, as in torch.
- Each group of ``c = C / groups`` channels has ``d = offset_field_channels_per_groups`` deformable groups of
  its own. The group's channel ``i`` belongs to deformable group ``⌊i · d / c⌋``; ``d`` need not divide ``c``.
  This argument's later names, ``deformable_groups_per_groups`` and ``deformable_groups``, work too.
- A corner outside the map counts as zero: the border rule of :mod:`dcnzoo.ops`.

``docs/migration.md`` lists the differences from the original.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dcnzoo import ops
from dcnzoo.compat.signatures import renames
from dcnzoo.ops.checks import require

__all__ = ["deform_conv1d", "deform_conv2d", "deform_conv3d"]


PER_GROUP = "offset_field_channels_per_groups"


def _of_rank(rank: int) -> Callable[..., Tensor]:
    operator = getattr(ops, f"deform_conv{rank}d")

    @renames(deformable_groups_per_groups=PER_GROUP, deformable_groups=PER_GROUP)  # of later versions
    def deform_conv(
        input: Tensor,  # [N, C, *size]
        weight: Tensor,  # [O, C / groups, *kernel]
        offset_field: Tensor,  # [N, rank, G·K, *out], in input pixels
        attn_mask: Tensor,  # [N, 1, G·K, *out]
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
        offset_field_channels_per_groups: int,
        bias: Tensor | None,  # [O]
    ) -> Tensor:  # [N, O, *out]
        """Deformable convolution with the arguments and the layout of the module's docstring.

        Raises:
            RuntimeError: ``kernel_size`` differs from the weight's, or ``offset_field``, ``attn_mask``,
                ``offset_field_channels_per_groups`` or an argument of :func:`dcnzoo.ops.deform_conv2d` is
                invalid.
        """
        per_group = offset_field_channels_per_groups
        _check_groups(rank, input, weight, kernel_size, groups, per_group)
        in_group, taps = input.shape[1] // groups, math.prod(weight.shape[2:])
        _check_fields(rank, offset_field, attn_mask, groups, per_group, taps)
        if offset_field.dim() == rank + 2:
            offset_field = offset_field.unflatten(1, (-1, rank)).transpose(1, 2)
        if attn_mask.dim() == rank + 2:
            attn_mask = attn_mask.unsqueeze(1)
        if in_group % per_group:  # the operator needs equal groups: make each channel its own group
            member = torch.arange(in_group, device=input.device) * per_group // in_group
            offset_field, attn_mask = (
                tensor.unflatten(2, (groups, per_group, taps)).index_select(3, member).flatten(2, 4)
                for tensor in (offset_field, attn_mask)
            )
        offset = offset_field.transpose(1, 2).flatten(1, 2)  # [N, G·K·rank, *out]
        geometry = (stride, padding, dilation, groups)
        return operator(input, weight, offset, attn_mask[:, 0], bias, *geometry)

    deform_conv.__name__ = deform_conv.__qualname__ = f"deform_conv{rank}d"
    return deform_conv


def _check_groups(
    rank: int,
    input: Tensor,
    weight: Tensor,
    kernel_size: int | Sequence[int],
    groups: int,
    per_group: int,
) -> None:
    op = f"deform_conv{rank}d"
    for argument, tensor in (("input", input), ("weight", weight)):
        got = f"shape {tuple(tensor.shape)}"
        require(tensor.dim() == rank + 2, f"{op}: {argument}", f"{rank + 2} dimensions", got)
    channels, kernel = input.shape[1], tuple(weight.shape[2:])
    sizes = (kernel_size,) * rank if isinstance(kernel_size, int) else tuple(kernel_size)
    require(sizes == kernel, f"{op}: kernel_size", f"{kernel}, that of weight", sizes)
    divides = groups >= 1 and channels % groups == 0
    require(divides, f"{op}: groups", f"a divisor of the {channels} input channels", groups)
    most = channels // groups
    expected = f"1 to {most}, the channels of a group"
    require(1 <= per_group <= most, f"{op}: {PER_GROUP}", expected, per_group)


def _check_fields(
    rank: int, offset_field: Tensor, attn_mask: Tensor, groups: int, per_group: int, taps: int
) -> None:
    total = groups * per_group * taps
    meaning = f"{total} = {groups} groups · {per_group} per group · {taps} taps"
    for field, tensor, axes in (("offset_field", offset_field, rank), ("attn_mask", attn_mask, 1)):
        apart = tensor.dim() == rank + 3 and tensor.shape[1:3] == (axes, total)
        flat = tensor.dim() == rank + 2 and tensor.shape[1] == total * axes
        expected = f"shape (batch, {axes}, {total}, *out) or (batch, {total * axes}, *out) ({meaning})"
        require(apart or flat, f"deform_conv{rank}d: {field}", expected, tuple(tensor.shape))


deform_conv1d, deform_conv2d, deform_conv3d = map(_of_rank, (1, 2, 3))
