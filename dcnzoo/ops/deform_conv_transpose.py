"""Transposed deformable convolution: functions and record.

It is the adjoint of :mod:`deform_conv` with respect to its input. The operator and the formulas here
therefore use ``deform_conv`` and its backward, with input and output exchanged.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks, flops, plain, reference
from ._arguments import Int1, Int2, Int3, arguments_of, check_arguments, memory_format, pair, single, triple
from ._autograd import in_forward_mode
from ._backward import reference_gradients
from .geometry import transposed_size
from .operator import Operator
from .register import register


def deform_conv_transpose1d(
    input: Tensor,  # [N, C, L]
    weight: Tensor,  # [C, O / groups, k]
    offset: Tensor | None = None,  # [N, G·k, L], in output pixels
    mask: Tensor | None = None,  # [N, M·k, L]
    bias: Tensor | None = None,  # [O]
    stride: Int1 = 1,
    padding: Int1 = 0,
    output_padding: Int1 = 0,
    dilation: Int1 = 1,
    groups: int = 1,
    im2col_step: int | None = None,
) -> Tensor:  # [N, O, oL]
    """Transposed deformable 1-D convolution: :func:`deform_conv_transpose2d` with one axis.

    ``offset`` is ``(N, offset_groups · k, L)``, ``mask`` is ``(N, mask_groups · k, L)``. If both are
    ``None``, the function is ``F.conv_transpose1d``.
    """
    name = "deform_conv_transpose1d"
    paddings = (single(name, "padding", padding), single(name, "output_padding", output_padding))
    steps = (single(name, "stride", stride), *paddings, single(name, "dilation", dilation))
    return _deform_conv_transpose(1, input, weight, offset, mask, bias, *steps, groups, im2col_step)


def deform_conv_transpose2d(
    input: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [C, O / groups, kH, kW]
    offset: Tensor | None = None,  # [N, G·2·kH·kW, H, W], (y, x) pairs, in output pixels
    mask: Tensor | None = None,  # [N, M·kH·kW, H, W]
    bias: Tensor | None = None,  # [O]
    stride: Int2 = 1,
    padding: Int2 = 0,
    output_padding: Int2 = 0,
    dilation: Int2 = 1,
    groups: int = 1,
    im2col_step: int | None = None,
) -> Tensor:  # [N, O, oH, oW]
    """Transposed deformable 2-D convolution: each input pixel is spread to displaced output pixels.

    The adjoint of :func:`deform_conv2d` with respect to its input, as ``F.conv_transpose2d`` is of
    ``F.conv2d``. The argument order is tvdcn's. Tap k of input pixel p adds bilinearly to the output at
    ``p · stride - padding + k · dilation + offset``.

    Args:
        input: ``(N, C, H, W)``, float64, float32, bfloat16 or float16. The batch axis may be absent, as in
            :func:`deform_conv2d`.
        weight: ``(C, O / groups, kH, kW)``.
        offset: displacement of each tap's target from the regular grid:
            ``(N, offset_groups · kH · kW · 2, H, W)``, (y, x) pairs in output pixels. Group g applies to
            output channels ``[g·O/offset_groups, (g+1)·O/offset_groups)``. ``None``: no displacement.
        mask: factor for the value that each tap adds, ``(N, mask_groups · kH · kW, H, W)``, used without an
            activation. ``None``: all ones. The shapes determine the numbers of offset groups and mask groups,
            which may differ.
        bias: ``(O,)``.
        stride, padding, output_padding, dilation, groups: as in
            :func:`torch.nn.functional.conv_transpose2d`.
        im2col_step: maximum number of images processed at a time, as in :func:`deform_conv2d`.

    Returns:
        ``(N, O, oH, oW)`` in the memory format of ``input``, with the size of the output of
        ``F.conv_transpose2d``. If ``offset`` and ``mask`` are both ``None``, the result of
        ``F.conv_transpose2d``.

    A tap with a coordinate <= -1, >= size or NaN writes nothing. Any other tap writes to those of the four
    pixels around it that lie on the output.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid.
    """
    name = "deform_conv_transpose2d"
    paddings = (pair(name, "padding", padding), pair(name, "output_padding", output_padding))
    steps = (pair(name, "stride", stride), *paddings, pair(name, "dilation", dilation))
    return _deform_conv_transpose(2, input, weight, offset, mask, bias, *steps, groups, im2col_step)


def deform_conv_transpose3d(
    input: Tensor,  # [N, C, D, H, W]
    weight: Tensor,  # [C, O / groups, kD, kH, kW]
    offset: Tensor | None = None,  # [N, G·3·kD·kH·kW, D, H, W], (z, y, x) triples, in output pixels
    mask: Tensor | None = None,  # [N, M·kD·kH·kW, D, H, W]
    bias: Tensor | None = None,  # [O]
    stride: Int3 = 1,
    padding: Int3 = 0,
    output_padding: Int3 = 0,
    dilation: Int3 = 1,
    groups: int = 1,
    im2col_step: int | None = None,
) -> Tensor:  # [N, O, oD, oH, oW]
    """Transposed deformable 3-D convolution: :func:`deform_conv_transpose2d` with three axes.

    ``offset`` is ``(N, offset_groups · kD · kH · kW · 3, D, H, W)``, (z, y, x) triples; ``mask`` is
    ``(N, mask_groups · kD · kH · kW, D, H, W)``. If both are ``None``, the function is
    ``F.conv_transpose3d``.
    """
    name = "deform_conv_transpose3d"
    paddings = (triple(name, "padding", padding), triple(name, "output_padding", output_padding))
    steps = (triple(name, "stride", stride), *paddings, triple(name, "dilation", dilation))
    return _deform_conv_transpose(3, input, weight, offset, mask, bias, *steps, groups, im2col_step)


def _deform_conv_transpose(
    rank: int,
    input: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    dilation: list[int],
    groups: int,
    im2col_step: int | None,
) -> Tensor:
    name = f"deform_conv_transpose{rank}d"
    unbatched = check_arguments(name, "in, out / groups", input, weight, offset, mask, bias, groups, rank)
    if offset is None and mask is None:
        if rank == 1:
            return F.conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups, dilation)
        if rank == 2:
            return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
        return F.conv_transpose3d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    if unbatched:
        input = input.unsqueeze(0)
        offset = offset.unsqueeze(0) if offset is not None else None
        mask = mask.unsqueeze(0) if mask is not None else None
    # torch allows output_padding >= stride if dilation is larger. The output then has the size of a longer
    # input's output. So extend the input by pixels that write nothing, because their offset is NaN.
    behind = [0] * (2 * len(stride))
    output_padding = output_padding[:]
    for axis in range(min(len(stride), len(output_padding), len(dilation))):
        if 1 <= stride[axis] <= output_padding[axis] < dilation[axis]:
            behind[-1 - 2 * axis] = output_padding[axis] // stride[axis]
            output_padding[axis] = output_padding[axis] % stride[axis]  # TorchScript has no %= for a list
    if any(behind):
        if offset is None:
            values = len(stride) * weight[:1, :1].numel()
            offset = input.new_zeros([input.shape[0], values] + list(input.shape[2:]))  # noqa: RUF005
        input = F.pad(input, behind)
        offset = F.pad(offset, behind, value=float("nan"))
        mask = F.pad(mask, behind) if mask is not None else None
    output = torch.ops.dcnzoo.deform_conv_transpose(
        input, weight, offset, mask, bias, stride, padding, output_padding, dilation, groups, im2col_step
    )
    return output.squeeze(0) if unbatched else output


def _fake(input, weight, offset, mask, bias, stride, padding, output_padding, dilation, groups, im2col_step):
    geometry = (stride, padding, output_padding, dilation)
    size = transposed_size(input.shape[2:], weight.shape[2:], *geometry)
    shape = (input.shape[0], weight.shape[1] * groups, *size)
    return input.new_empty(shape).to(memory_format=memory_format(input))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs.input, inputs.weight, inputs.offset, inputs.mask)
    ctx.arguments = (inputs.stride, inputs.padding, inputs.dilation, inputs.groups, inputs.im2col_step)


def _backward(ctx, grad_output):
    """Return the first derivative. It consists of operators that autograd can differentiate."""
    input, weight, offset, mask = ctx.saved_tensors  # torch.utils.checkpoint allows to read it only once
    needs_input, needs_weight, needs_offset, needs_mask, needs_bias, *_ = ctx.needs_input_grad
    grad_input = grad_weight = grad_offset = grad_mask = grad_bias = None
    if needs_input:
        grad_input = torch.ops.dcnzoo.deform_conv(grad_output, weight, offset, mask, None, *ctx.arguments)
    if needs_weight or needs_offset or needs_mask:
        if in_forward_mode(grad_output, input, weight, offset, mask):
            inputs = (grad_output, weight, offset, mask, None, *ctx.arguments)
            arguments = arguments_of("deform_conv")(*inputs)
            names = ("weight", "offset", "mask")
            gradients = reference_gradients(reference.deform_conv, input, arguments, names)
        else:
            needed = [False, needs_weight, needs_offset, needs_mask, False]
            _, *gradients, _ = torch.ops.dcnzoo._deform_conv_backward(
                input, grad_output, weight, offset, mask, *ctx.arguments, needed
            )
        of_weight, of_offset, of_mask = gradients
        grad_weight = of_weight if needs_weight else None
        grad_offset = of_offset if needs_offset else None
        grad_mask = of_mask if needs_mask else None
    if needs_bias:
        # torch splits a sum with a single result among threads, so its rounding depends on their number:
        # with one channel, sum two copies instead
        several = torch.cat([grad_output] * 2, 1) if grad_output.shape[1] == 1 else grad_output
        grad_bias = several.sum([0, *range(2, grad_output.dim())])
        if several is not grad_output:
            grad_bias = grad_bias[:1].clone()
    gradients = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    return *gradients, None, None, None, None, None, None  # the numbers


OPERATOR = Operator(
    "deform_conv_transpose",
    reference=reference.deform_conv_transpose,
    plain=plain.deform_conv_transpose,
    fake=_fake,
    check=checks.deform_conv_transpose,
    setup_context=_setup_context,
    backward=_backward,
    float32=("offset", "mask"),
    batched="mwmmw->m",
    flops=flops.deform_conv_transpose,
)
register(OPERATOR)
