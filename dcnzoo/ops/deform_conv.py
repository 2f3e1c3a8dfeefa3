"""Deformable convolution v1 and v2, 1-D to 3-D: functions and record."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks, flops, plain, reference
from ._arguments import Int1, Int2, Int3, check_arguments, memory_format, pair, single, triple
from ._autograd import with_backward
from .geometry import output_size, transposed_size
from .operator import Operator
from .register import register


def deform_conv1d(
    input: Tensor,  # [N, C, L]
    weight: Tensor,  # [O, C / groups, k]
    offset: Tensor | None = None,  # [N, G·k, oL], in input pixels
    mask: Tensor | None = None,  # [N, M·k, oL]
    bias: Tensor | None = None,  # [O]
    stride: Int1 = 1,
    padding: Int1 | str = 0,
    dilation: Int1 = 1,
    groups: int = 1,
    im2col_step: int | None = None,
) -> Tensor:  # [N, O, oL]
    """Deformable 1-D convolution: :func:`deform_conv2d` with one axis.

    ``offset`` is ``(N, offset_groups · k, oL)``, ``mask`` is ``(N, mask_groups · k, oL)``. If both are
    ``None``, the function is ``F.conv1d``.
    """
    name = "deform_conv1d"
    mode, sides = "numbers", [0]
    if isinstance(padding, str):  # not two expressions: TorchScript saves these in a form that does not load
        mode = padding
    else:
        sides = single(name, "padding", padding)
    geometry = (single(name, "stride", stride), sides, single(name, "dilation", dilation))
    return _deform_conv(1, mode, input, weight, offset, mask, bias, *geometry, groups, im2col_step)


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [O, C / groups, kH, kW]
    offset: Tensor | None = None,  # [N, G·2·kH·kW, oH, oW], (y, x) pairs, in input pixels
    mask: Tensor | None = None,  # [N, M·kH·kW, oH, oW]
    bias: Tensor | None = None,  # [O]
    stride: Int2 = 1,
    padding: Int2 | str = 0,
    dilation: Int2 = 1,
    groups: int = 1,
    im2col_step: int | None = None,
) -> Tensor:  # [N, O, oH, oW]
    """Deformable 2-D convolution: v1 with only ``offset``, v2 (modulated) with ``mask``.

    Deformable Convolutional Networks (Dai et al. 2017, eq. 2) and Deformable ConvNets v2
    (Zhu et al. 2019, eq. 1). The argument order is tvdcn's.

    Args:
        input: ``(N, C, H, W)``, float64, float32, bfloat16 or float16. As in torch, the batch axis of
            ``input``, ``offset``, ``mask`` and the result may be absent.
        weight: ``(O, C / groups, kH, kW)``.
        offset: displacement of each tap from the regular grid:
            ``(N, offset_groups · kH · kW · 2, oH, oW)``, (y, x) pairs in input pixels. Group g applies to
            channels ``[g·C/offset_groups, (g+1)·C/offset_groups)``. ``None``: no displacement.
        mask: factor for each tap's sample, ``(N, mask_groups · kH · kW, oH, oW)``, used without an activation
            (apply the sigmoid yourself). ``None``: all ones. The shapes determine the numbers of offset
            groups and mask groups, which may differ.
        bias: ``(O,)``.
        stride, padding, dilation, groups: as in :func:`torch.nn.functional.conv2d`; also ``padding="same"``.
        im2col_step: maximum number of images processed at a time, to bound memory. It changes the result
            only by rounding. Any value >= 1 works with any batch size. Default: at most 64, and
            on CUDA at most 256 MiB of columns. The fused kernels ignore it.

    Returns:
        ``(N, O, oH, oW)`` in the memory format of ``input``. If ``offset`` and ``mask`` are both ``None``,
        the result of ``F.conv2d``.

    A sample with a coordinate <= -1, >= size or NaN is zero. Any other sample is bilinear on the map padded
    with zeros.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid.
    """
    name = "deform_conv2d"
    mode, sides = "numbers", [0]
    if isinstance(padding, str):
        mode = padding
    else:
        sides = pair(name, "padding", padding)
    geometry = (pair(name, "stride", stride), sides, pair(name, "dilation", dilation))
    return _deform_conv(2, mode, input, weight, offset, mask, bias, *geometry, groups, im2col_step)


def deform_conv3d(
    input: Tensor,  # [N, C, D, H, W]
    weight: Tensor,  # [O, C / groups, kD, kH, kW]
    offset: Tensor | None = None,  # [N, G·3·kD·kH·kW, oD, oH, oW], (z, y, x) triples, in input pixels
    mask: Tensor | None = None,  # [N, M·kD·kH·kW, oD, oH, oW]
    bias: Tensor | None = None,  # [O]
    stride: Int3 = 1,
    padding: Int3 | str = 0,
    dilation: Int3 = 1,
    groups: int = 1,
    im2col_step: int | None = None,
) -> Tensor:  # [N, O, oD, oH, oW]
    """Deformable 3-D convolution: :func:`deform_conv2d` with three axes.

    ``offset`` is ``(N, offset_groups · kD · kH · kW · 3, oD, oH, oW)``, (z, y, x) triples; ``mask`` is
    ``(N, mask_groups · kD · kH · kW, oD, oH, oW)``. If both are ``None``, the function is ``F.conv3d``.
    """
    name = "deform_conv3d"
    mode, sides = "numbers", [0]
    if isinstance(padding, str):
        mode = padding
    else:
        sides = triple(name, "padding", padding)
    geometry = (triple(name, "stride", stride), sides, triple(name, "dilation", dilation))
    return _deform_conv(3, mode, input, weight, offset, mask, bias, *geometry, groups, im2col_step)


def _deform_conv(
    rank: int,
    mode: str,
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
    unbatched = check_arguments(name, "out, in / groups", input, weight, offset, mask, bias, groups, rank)
    if mode != "numbers":
        input, padding = _pad(name, mode, input, weight, stride, dilation)
    if offset is None and mask is None:
        if rank == 1:
            return F.conv1d(input, weight, bias, stride, padding, dilation, groups)
        if rank == 2:
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        return F.conv3d(input, weight, bias, stride, padding, dilation, groups)
    if unbatched:
        input = input.unsqueeze(0)
        offset = offset.unsqueeze(0) if offset is not None else None
        mask = mask.unsqueeze(0) if mask is not None else None
    output = torch.ops.dcnzoo.deform_conv(
        input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step
    )
    return output.squeeze(0) if unbatched else output


def _pad(
    name: str, mode: str, input: Tensor, weight: Tensor, stride: list[int], dilation: list[int]
) -> tuple[Tensor, list[int]]:
    """Return the input and the padding of both sides of each axis, for ``'valid'`` or ``'same'``.

    If ``'same'`` needs an odd number of pixels, the input gets one behind its last, as in torch.
    """
    if mode not in ("same", "valid") or (mode == "same" and max(stride) > 1):
        expected = "'valid', 'same' with stride 1, or numbers"
        raise RuntimeError(f"{name}: padding: expected {expected}, got '{mode}' with stride {stride}")
    sides, behind = [0] * len(stride), [0] * (2 * len(stride))
    for axis in range(len(stride)):
        pixels = dilation[axis] * (weight.shape[2 + axis] - 1) if mode == "same" else 0
        sides[axis], behind[-1 - 2 * axis] = pixels // 2, pixels % 2
    return F.pad(input, behind) if any(behind) else input, sides


def _fake(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step):
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    shape = (input.shape[0], weight.shape[0], *size)
    return input.new_empty(shape).to(memory_format=memory_format(input))


def grad_input_in_order(arguments: Any) -> Tensor:  # [N, C, *in]
    """Return the gradient of the input, which is bitwise identical at every call.

    It is the transposed convolution of ``grad_output``, one image at a time, which needs twice the memory of
    the image's columns: 2 · C · taps · pixels values.

    Args:
        arguments: those of ``dcnzoo::_deform_conv_backward``, by name.
    """
    input, grad_output, weight = arguments.input, arguments.grad_output, arguments.weight
    stride, padding, dilation = arguments.stride, arguments.padding, arguments.dilation
    sizes = (grad_output.shape[2:], weight.shape[2:], stride, padding, [0] * len(stride), dilation)
    pairs = zip(input.shape[2:], transposed_size(*sizes), strict=True)
    output_padding = [size - least for size, least in pairs]
    gradient = torch.empty_like(input, memory_format=memory_format(input))
    for image in range(input.shape[0]):
        fields = (arguments.offset, arguments.mask)
        shift, factor = (None if t is None else t[image : image + 1] for t in fields)
        tensors = (grad_output[image : image + 1], weight, shift, factor, None)
        geometry = (stride, padding, output_padding, dilation, arguments.groups)
        gradient[image] = reference.deform_conv_transpose(*tensors, *geometry)[0]
    return gradient


OPERATOR = Operator(
    "deform_conv",
    reference=reference.deform_conv,
    plain=plain.deform_conv,
    fake=_fake,
    check=checks.deform_conv,
    float32=("offset", "mask"),
    batched="mwmmw->m",
    flops=flops.deform_conv,
    fused=True,
    fused_may_be_faster=True,
)
register(
    *with_backward(
        OPERATOR,
        ("input", "weight", "offset", "mask", "bias"),
        # no gradient depends on the values of the bias
        recompute=lambda call: {"bias": call.grad_output.new_empty(call.grad_output.shape[1])},
        in_order=grad_input_in_order,
        keeps_format=True,
        flops=flops.deform_conv_backward,
    )
)
