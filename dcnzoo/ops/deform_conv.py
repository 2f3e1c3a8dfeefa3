"""Deformable convolution, v1 and v2: function, fake kernel, autograd (twice), autocast rule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _library, reference  # noqa: F401  (_library registers the operators)
from ._deterministic import alert_not_deterministic

_forward = torch.ops.dcnzoo.deform_conv.default
_backward = torch.ops.dcnzoo._deform_conv_backward.default
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [O, C / groups, kH, kW]
    offset: Tensor | None = None,  # [N, G·2·kH·kW, oH, oW], (y, x) pairs, in input pixels
    mask: Tensor | None = None,  # [N, M·kH·kW, oH, oW]
    bias: Tensor | None = None,  # [O]
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    im2col_step: int | None = None,
) -> Tensor:  # [N, O, oH, oW]
    """Deformable 2-D convolution: v1 with ``offset`` alone, v2 (modulated) with ``mask``.

    Deformable Convolutional Networks (Dai et al. 2017, eq. 2) and Deformable ConvNets v2
    (Zhu et al. 2019, eq. 1); argument order of tvdcn.

    Args:
        input: ``(N, C, H, W)``, float64, float32, bfloat16 or float16.
        weight: ``(O, C / groups, kH, kW)``.
        offset: where each tap reads, relative to its place on the regular grid:
            ``(N, offset_groups · kH · kW · 2, oH, oW)``, (y, x) pairs in input pixels. Group g moves
            channels ``[g·C/offset_groups, (g+1)·C/offset_groups)``. ``None``: no displacement.
        mask: a factor on each tap's sample, ``(N, mask_groups · kH · kW, oH, oW)``, used as it is (apply
            the sigmoid yourself). ``None``: all ones. Offset and mask groups are read from the shapes
            and need not be equal.
        bias: ``(O,)``.
        stride, padding, dilation, groups: as in :func:`torch.nn.functional.conv2d`.
        im2col_step: how many images are lowered at a time. Bounds memory, never changes the result
            beyond rounding; any value >= 1 with any batch size. Default ``min(N, 64)``.

    Returns:
        ``(N, O, oH, oW)`` in the memory format of ``input``. Exactly ``F.conv2d`` when ``offset`` and
        ``mask`` are both ``None``.

    A sample whose coordinate is <= -1 or >= size (or NaN) is zero; otherwise it is bilinear on the map
    padded with zeros.

    Raises:
        RuntimeError: a shape, dtype, device or value that does not fit; the message names the
            argument, what was expected and what was given.
    """
    return _deform_conv(2, input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step)


def _deform_conv(
    rank: int,
    input: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: int | tuple[int, ...],
    padding: int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    groups: int,
    im2col_step: int | None,
) -> Tensor:
    if weight.dim() != rank + 2:
        raise RuntimeError(
            f"deform_conv{rank}d: weight: expected {rank + 2} dimensions (out, in / groups, *kernel), "
            f"got shape {tuple(weight.shape)}"
        )
    stride, padding, dilation = (_per_axis(v, rank) for v in (stride, padding, dilation))
    if offset is None and mask is None:
        if im2col_step is not None and im2col_step < 1:
            raise RuntimeError(f"deform_conv{rank}d: im2col_step: expected at least 1, got {im2col_step}")
        return _CONVOLUTIONS[rank](input, weight, bias, stride, padding, dilation, groups)
    return _forward(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step)


def _per_axis(value: int | tuple[int, ...], rank: int) -> list[int]:
    return [value] * rank if isinstance(value, int) else list(value)


@torch.library.register_fake("dcnzoo::deform_conv")
def _(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step):
    size = [
        (input.shape[2 + a] + 2 * padding[a] - dilation[a] * (weight.shape[2 + a] - 1) - 1) // stride[a] + 1
        for a in range(len(stride))
    ]
    shape = (input.shape[0], weight.shape[0], *size)
    return input.new_empty(shape).to(memory_format=_memory_format(input))


@torch.library.register_fake("dcnzoo::_deform_conv_backward")
def _(
    grad_output,
    input,
    weight,
    offset,
    mask,
    stride,
    padding,
    dilation,
    groups,
    im2col_step,
    output_mask,
):
    def gradient(index: int, like: Tensor | None) -> Tensor:
        if not output_mask[index]:
            return input.new_empty(0)
        return torch.empty_like(like, memory_format=torch.contiguous_format)

    bias = weight.new_empty(weight.shape[0])
    grad_input = gradient(0, input)
    if output_mask[0]:
        grad_input = grad_input.to(memory_format=_memory_format(input))
    return (
        grad_input,
        gradient(1, weight),
        gradient(2, offset),
        gradient(3, mask),
        gradient(4, bias),
    )


def _memory_format(tensor: Tensor) -> torch.memory_format:
    """The format in which kernels return maps: channels_last where ``tensor`` is so, else contiguous."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(tensor.dim())
    if last is not None and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous():
        return last
    return torch.contiguous_format


def _setup_context(ctx, inputs, output):
    input, weight, offset, mask, _bias, *arguments = inputs
    ctx.save_for_backward(input, weight, offset, mask)
    ctx.arguments = arguments


def _first_backward(ctx, grad_output):
    input, weight, offset, mask = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:5])
    if grad_output.is_cuda and wanted[0]:  # its atomic additions come in any order
        alert_not_deterministic("deform_conv_backward_cuda")
    gradients = _backward(grad_output, input, weight, offset, mask, *ctx.arguments, wanted)
    gradients = [g if w else None for g, w in zip(gradients, wanted, strict=True)]
    return (*gradients, *[None] * len(ctx.arguments))


torch.library.register_autograd("dcnzoo::deform_conv", _first_backward, setup_context=_setup_context)


def _setup_backward_context(ctx, inputs, output):
    grad_output, input, weight, offset, mask, *arguments, output_mask = inputs
    ctx.save_for_backward(grad_output, input, weight, offset, mask)
    ctx.arguments, ctx.output_mask = arguments, output_mask


def _second_backward(ctx, *grads):
    """Gradients of the gradients, by differentiating the reference twice: exact, not fast."""
    *arguments, _ = ctx.arguments  # all but im2col_step
    with torch.enable_grad():
        tensors = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        grad_output, *inputs = tensors
        bias = grad_output.new_zeros(grad_output.shape[1]).requires_grad_()
        output = reference.deform_conv(*inputs, bias, *arguments)
        wanted = [t for t, w in zip((*inputs, bias), ctx.output_mask, strict=True) if w]
        first = torch.autograd.grad(output, wanted, grad_output, create_graph=True)
        given = [g for g, w in zip(grads, ctx.output_mask, strict=True) if w]
        sources = [t for t in tensors if t is not None]
        # the bias's gradient does not depend on the inputs, nor does it need to
        second = iter(torch.autograd.grad(first, sources, given, allow_unused=True))
    second = [None if t is None else next(second) for t in tensors]
    return (*second, *[None] * (len(ctx.arguments) + 1))


torch.library.register_autograd(
    "dcnzoo::_deform_conv_backward", _second_backward, setup_context=_setup_backward_context
)


def _register_autocast(device_type: str, key: str) -> None:
    def autocast(input, weight, offset, mask, bias, *arguments):
        dtype = torch.get_autocast_dtype(device_type)

        def cast(tensor: Tensor | None, keep_float32: bool = False) -> Tensor | None:
            if tensor is None or tensor.dtype == torch.float64 or not tensor.is_floating_point():
                return tensor
            # Offsets are coordinates: bfloat16 would round 100.3 to 100.5.
            if keep_float32 and tensor.dtype == torch.float32:
                return tensor
            return tensor.to(dtype)

        with torch._C._ExcludeDispatchKeyGuard(keys):
            return _forward(
                cast(input),
                cast(weight),
                cast(offset, keep_float32=True),
                cast(mask, keep_float32=True),
                cast(bias),
                *arguments,
            )

    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    _autocast_library.impl("deform_conv", autocast, key)


# Under autocast the op computes in autocast's dtype, except that float32 offsets and masks stay so.
_autocast_library = torch.library.Library("dcnzoo", "IMPL")
_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")
