"""Deformable convolution v1 and v2, 1-D to 3-D: functions, fake kernel, autograd (twice), autocast, vmap."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from ._arguments import Int1, Int2, Int3, check_arguments, check_devices, memory_format, pair, single, triple
from ._autocast import register_autocast
from ._autograd import register_derivatives
from ._vmap import register_vmap


def deform_conv1d(
    input: Tensor,  # [N, C, L]
    weight: Tensor,  # [O, C / groups, k]
    offset: Tensor | None = None,  # [N, G·k, oL], in input pixels
    mask: Tensor | None = None,  # [N, M·k, oL]
    bias: Tensor | None = None,  # [O]
    stride: Int1 = 1,
    padding: Int1 = 0,
    dilation: Int1 = 1,
    groups: int = 1,
    im2col_step: int | None = None,
) -> Tensor:  # [N, O, oL]
    """Deformable 1-D convolution: :func:`deform_conv2d` with one axis.

    ``offset`` is ``(N, offset_groups · k, oL)``, ``mask`` is ``(N, mask_groups · k, oL)``. If both are
    ``None``, the function is ``F.conv1d``.
    """
    geometry = (single(stride, "stride"), single(padding, "padding"), single(dilation, "dilation"))
    return _deform_conv(1, input, weight, offset, mask, bias, *geometry, groups, im2col_step)


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [O, C / groups, kH, kW]
    offset: Tensor | None = None,  # [N, G·2·kH·kW, oH, oW], (y, x) pairs, in input pixels
    mask: Tensor | None = None,  # [N, M·kH·kW, oH, oW]
    bias: Tensor | None = None,  # [O]
    stride: Int2 = 1,
    padding: Int2 = 0,
    dilation: Int2 = 1,
    groups: int = 1,
    im2col_step: int | None = None,
) -> Tensor:  # [N, O, oH, oW]
    """Deformable 2-D convolution: v1 with only ``offset``, v2 (modulated) with ``mask``.

    Deformable Convolutional Networks (Dai et al. 2017, eq. 2) and Deformable ConvNets v2
    (Zhu et al. 2019, eq. 1). The argument order is tvdcn's.

    Args:
        input: ``(N, C, H, W)``, float64, float32, bfloat16 or float16.
        weight: ``(O, C / groups, kH, kW)``.
        offset: displacement of each tap from the regular grid:
            ``(N, offset_groups · kH · kW · 2, oH, oW)``, (y, x) pairs in input pixels. Group g applies to
            channels ``[g·C/offset_groups, (g+1)·C/offset_groups)``. ``None``: no displacement.
        mask: factor for each tap's sample, ``(N, mask_groups · kH · kW, oH, oW)``, used without an activation
            (apply the sigmoid yourself). ``None``: all ones. The shapes determine the numbers of offset
            groups and mask groups, which may differ.
        bias: ``(O,)``.
        stride, padding, dilation, groups: as in :func:`torch.nn.functional.conv2d`.
        im2col_step: maximum number of images processed at a time, to bound memory. It changes the result
            only by rounding. Any value >= 1 works with any batch size. Default: ``min(N, 64)``.

    Returns:
        ``(N, O, oH, oW)`` in the memory format of ``input``. If ``offset`` and ``mask`` are both ``None``,
        the result of ``F.conv2d``.

    A sample with a coordinate <= -1, >= size or NaN is zero. Any other sample is bilinear on the map padded
    with zeros.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid.
    """
    geometry = (pair(stride, "stride"), pair(padding, "padding"), pair(dilation, "dilation"))
    return _deform_conv(2, input, weight, offset, mask, bias, *geometry, groups, im2col_step)


def deform_conv3d(
    input: Tensor,  # [N, C, D, H, W]
    weight: Tensor,  # [O, C / groups, kD, kH, kW]
    offset: Tensor | None = None,  # [N, G·3·kD·kH·kW, oD, oH, oW], (z, y, x) triples, in input pixels
    mask: Tensor | None = None,  # [N, M·kD·kH·kW, oD, oH, oW]
    bias: Tensor | None = None,  # [O]
    stride: Int3 = 1,
    padding: Int3 = 0,
    dilation: Int3 = 1,
    groups: int = 1,
    im2col_step: int | None = None,
) -> Tensor:  # [N, O, oD, oH, oW]
    """Deformable 3-D convolution: :func:`deform_conv2d` with three axes.

    ``offset`` is ``(N, offset_groups · kD · kH · kW · 3, oD, oH, oW)``, (z, y, x) triples; ``mask`` is
    ``(N, mask_groups · kD · kH · kW, oD, oH, oW)``. If both are ``None``, the function is ``F.conv3d``.
    """
    geometry = (triple(stride, "stride"), triple(padding, "padding"), triple(dilation, "dilation"))
    return _deform_conv(3, input, weight, offset, mask, bias, *geometry, groups, im2col_step)


def _deform_conv(
    rank: int,
    input: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    im2col_step: int | None,
) -> Tensor:
    name = f"deform_conv{rank}d"
    check_arguments(name, "out, in / groups", input, weight, offset, mask, bias, rank, im2col_step)
    if offset is not None or mask is not None:
        return torch.ops.dcnzoo.deform_conv(
            input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step
        )
    if rank == 1:
        return F.conv1d(input, weight, bias, stride, padding, dilation, groups)
    if rank == 2:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return F.conv3d(input, weight, bias, stride, padding, dilation, groups)


@torch.library.register_fake("dcnzoo::deform_conv")
def _(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step):
    name = f"deform_conv{len(stride)}d"
    check_devices(name, input, weight=weight, offset=offset, mask=mask, bias=bias)
    size = [
        (input.shape[2 + a] + 2 * padding[a] - dilation[a] * (weight.shape[2 + a] - 1) - 1) // stride[a] + 1
        for a in range(len(stride))
    ]
    shape = (input.shape[0], weight.shape[0], *size)
    return input.new_empty(shape).to(memory_format=memory_format(input))


def _reference(*arguments):
    *arguments, _im2col_step = arguments
    return reference.deform_conv(*arguments)


def _with_bias(grad_output, input, weight, offset, mask, *geometry):
    """The operator's arguments with any bias: no gradient depends on its values."""
    return input, weight, offset, mask, grad_output.new_empty(grad_output.shape[1]), *geometry


register_derivatives(
    "deform_conv",
    4,
    (0, 1, 2, 3, 4),
    _reference,
    recomputed=(4,),
    restore=_with_bias,
    has_order=True,  # _choice.py makes grad_input deterministic
    keeps_format=True,
)
register_vmap("deform_conv", "mwmmw", "m", groups=8)
register_vmap("_deform_conv_backward", "mmwmm", "mwmmw", groups=8)
register_autocast("deform_conv")
