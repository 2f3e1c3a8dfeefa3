"""Deformable RoI pooling: RoIAlign whose bins are moved."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _library, reference  # noqa: F401  (_library registers the operators)
from ._arguments import Int2
from ._autograd import differentiate_twice, gradients_in_plain_torch, in_forward_mode, register_autograd
from ._deterministic import needs_order, pooling_grad_input_in_order
from ._vmap import fold, fold_rois, unfold
from .roi_align import bins, roi_align


def deform_roi_pool(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5], (image, x1, y1, x2, y2)
    offset: Tensor | None,  # [K, 2, oH, oW], x and y, in sizes of the RoI / gamma
    output_size: Int2,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:  # [K, C, oH, oW]
    """Pools each region of interest to ``output_size`` bins, each moved by its ``offset``.

    Deformable Convolutional Networks (Dai et al. 2017, sec. 2.2); arguments and values of
    ``mmcv.ops.deform_roi_pool``. The modulated form of DCNv2 (Zhu et al. 2019, eq. 2) multiplies the result
    by a mask ``(K, 1, oH, oW)``.

    Args:
        input: ``(N, C, H, W)``, float64, float32, bfloat16 or float16 (summed in float32).
        rois: ``(K, 5)``: the number of the image, then ``(x1, y1, x2, y2)`` in the units that
            ``spatial_scale`` turns into pixels of ``input``. Any floating type; gets no gradient.
        offset: ``(K, 2, oH, oW)``: how far each bin moves, x first. An offset of 1 is ``gamma`` times the
            RoI's width or height. Any floating type. ``None``: no bin moves, which is
            :func:`~dcnzoo.ops.roi_align`.
        output_size: bins, ``(oH, oW)`` or one number for both.
        spatial_scale: pixels of ``input`` per unit of ``rois``, ``1 / stride`` of the feature map.
        sampling_ratio: samples per bin along each axis; 0 (or less): as many as the bin is pixels
            long, rounded up.
        gamma: scale of the offsets.

    Returns:
        ``(K, C, oH, oW)``: the average over each bin of bilinear samples, at the half-pixel coordinates of
        an aligned RoIAlign. A sample more than one pixel outside the map is zero and counts in the average;
        up to one pixel outside, the border pixel is read. A bin whose offset is not finite, and a RoI with
        nothing to sample (of no or negative size while ``sampling_ratio`` is 0, or not finite), give zeros.

    Raises:
        RuntimeError: a shape, dtype, device or value that does not fit. On the CPU that includes an
            image number outside ``[0, N)``; on CUDA, where looking would stall the device, such a RoI
            gives zeros.
    """
    height, width = bins(output_size)
    if offset is None:
        return roi_align(input, rois, (height, width), spatial_scale, sampling_ratio)
    return torch.ops.dcnzoo.deform_roi_pool(
        input, rois, offset, height, width, float(spatial_scale), sampling_ratio, float(gamma)
    )


@torch.library.register_fake("dcnzoo::deform_roi_pool")
def _(input, rois, offset, output_h, output_w, spatial_scale, sampling_ratio, gamma):
    return input.new_empty((rois.shape[0], input.shape[1], output_h, output_w))


@torch.library.register_fake("dcnzoo::_deform_roi_pool_backward")
def _(grad_output, input, rois, offset, spatial_scale, sampling_ratio, gamma, output_mask):
    sizes = (
        tensor.shape if wanted else 0 for tensor, wanted in zip((input, offset), output_mask, strict=True)
    )
    return tuple(tensor.new_empty(size) for tensor, size in zip((input, offset), sizes, strict=True))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.sampling = inputs[5:]


def _first_backward(ctx, grad_output):
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
    input, rois, offset = ctx.saved_tensors  # once: torch.utils.checkpoint refuses a second time
    if in_forward_mode(grad_output, input, rois, offset):
        forward = _of_input_and_offset(rois, grad_output.shape[2:], ctx.sampling)
        grad_input, grad_offset = gradients_in_plain_torch(forward, grad_output, (input, offset))
        return grad_input, None, grad_offset, *[None] * 5
    in_order = wanted[0] and needs_order(grad_output)  # the kernel adds atomically
    gradients = torch.ops.dcnzoo._deform_roi_pool_backward(
        grad_output, input, rois, offset, *ctx.sampling, [wanted[0] and not in_order, wanted[1]]
    )
    grad_input, grad_offset = (g if w else None for g, w in zip(gradients, wanted, strict=True))
    if in_order:
        spatial_scale, sampling_ratio, gamma = ctx.sampling
        grad_input = pooling_grad_input_in_order(
            grad_output, input.shape, rois, offset, spatial_scale, sampling_ratio, True, gamma
        )
    return grad_input, None, grad_offset, *[None] * 5


def _of_input_and_offset(rois, size, sampling):
    return lambda input, offset: reference.deform_roi_pool(input, rois, offset, size, *sampling)


def _in_plain_torch(input, rois, offset, output_h, output_w, *sampling):
    return reference.deform_roi_pool(input, rois, offset, (output_h, output_w), *sampling)


register_autograd("deform_roi_pool", _setup_context, _first_backward, _in_plain_torch)


def _setup_backward_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    *ctx.sampling, ctx.output_mask = inputs[4:]


def _second_backward(ctx, *grads):
    """Gradients of the gradients, by differentiating the reference twice: exact, not fast."""
    grad_output, input, rois, offset = ctx.saved_tensors
    forward = _of_input_and_offset(rois, grad_output.shape[2:], ctx.sampling)
    of_grad_output, of_input, of_offset = differentiate_twice(
        forward, grad_output, (input, offset), ctx.output_mask, grads
    )
    return of_grad_output, of_input, None, of_offset, *[None] * 4


register_autograd("_deform_roi_pool_backward", _setup_backward_context, _second_backward)


@torch.library.register_vmap("dcnzoo::deform_roi_pool")
def _(info, dims, input, rois, offset, *arguments):
    size = info.batch_size
    if dims[1] is None and dims[2] is None:  # the maps become channels
        output = torch.ops.dcnzoo.deform_roi_pool(fold(input, dims[0], size, 1), rois, offset, *arguments)
        return unfold(output, size, 1), 0
    images = None
    if dims[0] is not None:
        input = fold(input, dims[0], size, 0)
        images = input.shape[0] // size
    rois, offset = fold_rois(rois, dims[1], size, images), fold(offset, dims[2], size, 0)
    return unfold(torch.ops.dcnzoo.deform_roi_pool(input, rois, offset, *arguments), size, 0), 0


@torch.library.register_vmap("dcnzoo::_deform_roi_pool_backward")
def _(info, dims, grad_output, input, rois, offset, *arguments):
    size, wanted = info.batch_size, arguments[-1]
    input = fold(input, dims[1], size, 0)
    gradients = torch.ops.dcnzoo._deform_roi_pool_backward(
        fold(grad_output, dims[0], size, 0),
        input,
        fold_rois(rois, dims[2], size, input.shape[0] // size),
        fold(offset, dims[3], size, 0),
        *arguments,
    )
    return (
        tuple(unfold(g, size, 0) if w else g for g, w in zip(gradients, wanted, strict=True)),
        tuple(0 if w else None for w in wanted),
    )
