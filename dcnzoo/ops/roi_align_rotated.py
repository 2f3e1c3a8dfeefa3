"""RoIAlign of rotated regions."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _deterministic, reference
from ._arguments import Int2
from ._autograd import linear_forward_mode, register_autograd
from .roi_align import bins


def roi_align_rotated(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 6], (image, x, y, width, height, angle), x and y of the centre
    output_size: Int2,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    clockwise: bool = False,
) -> Tensor:  # [K, C, oH, oW]
    """Pools each rotated region of interest to ``output_size`` bins: the average of bilinear samples.

    Same arguments and results as ``mmcv.ops.roi_align_rotated``.

    Args:
        input, spatial_scale, sampling_ratio, aligned: as in :func:`roi_align`.
        rois: ``(K, 6)``: the image number, then ``(x, y, width, height, angle)``. ``spatial_scale`` converts
            centre and size to pixels of ``input``; the angle is in radians. Any floating type; gets no
            gradient.
        output_size: number of bins along the region's height and width, ``(oH, oW)`` or one number for both.
        clockwise: whether a positive angle rotates the x axis towards the y axis, which points down. The
            default, False, is mmcv's; :func:`box_iou_rotated` defaults to True.

    Returns:
        ``(K, C, oH, oW)``, with the border rule of :func:`roi_align`.

    Raises:
        RuntimeError: as in :func:`roi_align`.
    """
    height, width = bins(output_size)
    return torch.ops.dcnzoo.roi_align_rotated(
        input, rois, height, width, float(spatial_scale), sampling_ratio, aligned, clockwise
    )


@torch.library.register_fake("dcnzoo::roi_align_rotated")
def _(input, rois, output_h, output_w, spatial_scale, sampling_ratio, aligned, clockwise):
    return input.new_empty((rois.shape[0], input.shape[1], output_h, output_w))


@torch.library.register_fake("dcnzoo::_roi_align_rotated_backward")
def _(grad_output, rois, input_size, spatial_scale, sampling_ratio, aligned, clockwise):
    return grad_output.new_empty(input_size)


# Both operators are linear in their first argument, and each is the adjoint of the other. So the derivative
# of one is the other, and each maps the tangent of its first argument to the tangent of its result.


def _reference(input, rois, output_h, output_w, *sampling):
    return reference.roi_align_rotated(input, rois, (output_h, output_w), *sampling)


def _setup_context(ctx, inputs, output):
    input, rois, _, _, *ctx.sampling = inputs
    ctx.input_size = input.shape
    ctx.save_for_backward(rois)


def _autograd_backward(ctx, grad_output):
    backward = torch.ops.dcnzoo._roi_align_rotated_backward
    if _deterministic.deterministic(grad_output):  # the kernel adds atomically
        backward = _grad_input_in_order
    return backward(grad_output, *ctx.saved_tensors, ctx.input_size, *ctx.sampling), *[None] * 7


def _grad_input_in_order(grad_output, rois, input_size, *sampling):
    def pool(maps, rois):
        return reference.roi_align_rotated(maps, rois, grad_output.shape[2:], *sampling)

    return _deterministic.pooling_grad_input_in_order(pool, grad_output, input_size, rois)


register_autograd(
    "roi_align_rotated",
    _setup_context,
    _autograd_backward,
    _reference,
    forward_mode=linear_forward_mode("roi_align_rotated"),
)


def _setup_backward_context(ctx, inputs, output):
    grad_output, rois, _input_size, *ctx.sampling = inputs
    ctx.output_size = grad_output.shape[2:]
    ctx.save_for_backward(rois)


def _second_backward(ctx, grad):
    pooled = torch.ops.dcnzoo.roi_align_rotated(grad, *ctx.saved_tensors, *ctx.output_size, *ctx.sampling)
    return pooled, *[None] * 6


register_autograd(
    "_roi_align_rotated_backward",
    _setup_backward_context,
    _second_backward,
    forward_mode=linear_forward_mode("_roi_align_rotated_backward"),
)
