"""RoIAlign: pools the feature maps inside boxes to a fixed size, without rounding the boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _library  # noqa: F401  (registers the operators)
from ._deterministic import needs_order, pooling_grad_input_in_order

_POOL_MODES = {"max": 0, "avg": 1}


def roi_align(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5], (image, x1, y1, x2, y2)
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:  # [K, C, oH, oW]
    """Pools each region of interest to ``output_size`` bins, from bilinear samples.

    Mask R-CNN (He et al. 2017, sec. 3); arguments and values of ``mmcv.ops.roi_align``.

    Args:
        input: ``(N, C, H, W)``, float64, float32, bfloat16 or float16 (summed in float32).
        rois: ``(K, 5)``: the number of the image, then ``(x1, y1, x2, y2)`` in the units that
            ``spatial_scale`` turns into pixels of ``input``. Any floating type; gets no gradient.
        output_size: bins, ``(oH, oW)`` or one number for both.
        spatial_scale: pixels of ``input`` per unit of ``rois``, ``1 / stride`` of the feature map.
        sampling_ratio: samples per bin along each axis; 0 (or less): as many as the bin is pixels
            long, rounded up.
        pool_mode: ``"avg"`` or ``"max"`` over the samples of a bin.
        aligned: shift by half a pixel, so that pixel centres are at whole coordinates plus a half
            (right). ``False``: without the shift, and RoIs shorter than a pixel count as one (as before
            the correction).

    Returns:
        ``(K, C, oH, oW)``. A sample more than one pixel outside the map is zero and counts in the
        average; up to one pixel outside, the border pixel is read. A RoI with nothing to sample (of no
        or negative size while ``sampling_ratio`` is 0, or not finite) gives zeros.

    Raises:
        RuntimeError: a shape, dtype, device or value that does not fit. On the CPU that includes an
            image number outside ``[0, N)``; on CUDA, where looking would stall the device, such a RoI
            gives zeros.
    """
    if pool_mode not in _POOL_MODES:
        raise RuntimeError(f"roi_align: pool_mode: expected 'avg' or 'max', got {pool_mode!r}")
    height, width = (output_size,) * 2 if isinstance(output_size, int) else output_size
    return torch.ops.dcnzoo.roi_align(
        input, rois, height, width, spatial_scale, sampling_ratio, _POOL_MODES[pool_mode], aligned
    )[0]


@torch.library.register_fake("dcnzoo::roi_align")
def _(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned):
    size = (rois.shape[0], input.shape[1], output_h, output_w)
    wide = torch.promote_types(input.dtype, torch.float32)
    argmax_size = size if pool_mode == _POOL_MODES["max"] else (0,)
    output = input.new_empty(size)
    return output, *(input.new_empty(argmax_size, dtype=wide) for _ in range(2))


@torch.library.register_fake("dcnzoo::_roi_align_backward")
def _(grad_output, rois, argmax_y, argmax_x, input_size, spatial_scale, sampling_ratio, pool_mode, aligned):
    return grad_output.new_empty(input_size)


def _setup_context(ctx, inputs, output):
    input, rois, _, _, *ctx.arguments = inputs
    _, argmax_y, argmax_x = output
    ctx.input_size = input.shape
    ctx.mark_non_differentiable(argmax_y, argmax_x)
    ctx.save_for_backward(rois, argmax_y, argmax_x)


def _autograd_backward(ctx, grad_output, _grad_argmax_y, _grad_argmax_x):
    # the kernel adds atomically
    backward = _grad_input_in_order if needs_order(grad_output) else torch.ops.dcnzoo._roi_align_backward
    return backward(grad_output, *ctx.saved_tensors, ctx.input_size, *ctx.arguments), *[None] * 7


def _grad_input_in_order(
    grad_output, rois, argmax_y, argmax_x, input_size, spatial_scale, sampling_ratio, pool_mode, aligned
):
    if pool_mode != _POOL_MODES["max"]:
        return pooling_grad_input_in_order(
            grad_output, input_size, rois, None, spatial_scale, sampling_ratio, aligned
        )
    maps = argmax_y.new_zeros(input_size)  # reading them turns into torch's index_put_, which has an order
    _, pull = torch.func.vjp(lambda maps: _at_maxima(maps, rois, argmax_y, argmax_x), maps)
    return pull(grad_output.to(maps.dtype))[0].to(grad_output.dtype)


torch.library.register_autograd("dcnzoo::roi_align", _autograd_backward, setup_context=_setup_context)


def _setup_backward_context(ctx, inputs, output):
    grad_output, *tensors, _input_size = inputs[:5]
    ctx.arguments = inputs[5:]
    ctx.output_size = grad_output.shape[2:]
    ctx.save_for_backward(*tensors)


def _second_backward(ctx, grad):
    """The backward is linear in ``grad_output``: its adjoint samples where the forward did."""
    rois, argmax_y, argmax_x = ctx.saved_tensors
    pool_mode = ctx.arguments[2]
    if pool_mode == _POOL_MODES["max"]:
        grad_grad_output = _at_maxima(grad, rois, argmax_y, argmax_x)
    else:
        grad_grad_output = torch.ops.dcnzoo.roi_align(grad, rois, *ctx.output_size, *ctx.arguments)[0]
    return grad_grad_output, *[None] * 8


def _at_maxima(
    maps: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5]
    y: Tensor,  # [K, C, oH, oW], and so is x
    x: Tensor,
) -> Tensor:  # [K, C, oH, oW]
    """Reads each RoI's image, bilinearly, where its maxima were sampled; zero outside the map."""
    batch, channels, height, width = maps.shape
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    image = rois[:, 0].long().clamp(0, batch - 1).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=maps.device).view(-1, 1, 1)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor(), x.floor()
    rows = ((top, 1 - (y - top)), ((top + 1).clamp(max=height - 1), y - top))
    columns = ((left, 1 - (x - left)), ((left + 1).clamp(max=width - 1), x - left))
    values = sum(
        maps[image, channel, row.long(), column.long()] * (row_weight * column_weight)
        for row, row_weight in rows
        for column, column_weight in columns
    )
    return torch.where(inside, values, torch.zeros_like(values)).to(maps.dtype)


torch.library.register_autograd(
    "dcnzoo::_roi_align_backward", _second_backward, setup_context=_setup_backward_context
)
