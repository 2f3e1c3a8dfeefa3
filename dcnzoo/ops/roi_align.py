"""RoIAlign: pools the feature maps inside boxes to a fixed size, without rounding the boxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.forward_ad import make_dual

from . import _deterministic, reference
from ._arguments import Int2, pair, shape_text
from ._autograd import linear_forward_mode, primal, register_autograd, tangent

_MAX, _AVG = 0, 1


def roi_align(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5], (image, x1, y1, x2, y2)
    output_size: Int2,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:  # [K, C, oH, oW]
    """Pools bilinear samples of each region of interest to ``output_size`` bins.

    Mask R-CNN (He et al. 2017, sec. 3). Same arguments and results as ``mmcv.ops.roi_align``.

    Args:
        input: ``(N, C, H, W)``, float64, float32, bfloat16 or float16 (summed in float32).
        rois: ``(K, 5)``: the image number, then ``(x1, y1, x2, y2)``. ``spatial_scale`` converts the
            coordinates to pixels of ``input``. Any floating type; gets no gradient.
        output_size: number of bins, ``(oH, oW)`` or one number for both.
        spatial_scale: pixels of ``input`` per unit of ``rois``, ``1 / stride`` of the feature map.
        sampling_ratio: samples per bin along each axis. 0 or less: the bin's length in pixels, rounded up.
        pool_mode: ``"avg"`` or ``"max"`` over the samples of a bin.
        aligned: shift the RoIs by half a pixel, so that pixel i has its centre at i + 0.5 (correct).
            ``False``: no shift, and sides shorter than a pixel count as one pixel (the original RoIAlign).

    Returns:
        ``(K, C, oH, oW)``. A sample more than one pixel outside the map counts as zero; up to one pixel
        outside, it reads the border pixel. A RoI without samples gives zeros: it is not finite, or its size
        is not positive while ``sampling_ratio`` is 0.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid. On the CPU this includes an image number
            outside ``[0, N)``. On CUDA, where this check would stall the device, such a RoI gives zeros.
    """
    if pool_mode != "avg" and pool_mode != "max":
        raise RuntimeError(f"roi_align: pool_mode: expected 'avg' or 'max', got '{pool_mode}'")
    height, width = bins(output_size)
    mode = 0 if pool_mode == "max" else 1
    return torch.ops.dcnzoo.roi_align(
        input, rois, height, width, float(spatial_scale), sampling_ratio, mode, aligned
    )[0]


def bins(output_size: Int2) -> tuple[int, int]:
    """Height and width of a RoI pooling's output.

    Raises:
        RuntimeError: ``output_size`` is not an integer or two integers.
    """
    size = pair(output_size, "output_size")
    if len(size) != 2:
        raise RuntimeError(f"output_size: expected an integer or 2 integers, got {shape_text(size)}")
    return size[0], size[1]


@torch.library.register_fake("dcnzoo::roi_align")
def _(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned):
    size = (rois.shape[0], input.shape[1], output_h, output_w)
    wide = torch.promote_types(input.dtype, torch.float32)
    argmax_size = size if pool_mode == _MAX else (0,)
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
    backward = torch.ops.dcnzoo._roi_align_backward
    if _deterministic.deterministic(grad_output):  # the kernel adds atomically
        backward = _grad_input_in_order
    return backward(grad_output, *ctx.saved_tensors, ctx.input_size, *ctx.arguments), *[None] * 7


def _grad_input_in_order(grad_output, rois, argmax_y, argmax_x, input_size, *sampling):
    *sampling, pool_mode, aligned = sampling

    def average(maps, rois):
        return reference.roi_align(maps, rois, grad_output.shape[2:], *sampling, aligned=aligned)

    in_order = _deterministic.pooling_grad_input_in_order
    if pool_mode == _MAX:
        return in_order(_at_maxima, grad_output, input_size, rois, argmax_y, argmax_x)
    return in_order(average, grad_output, input_size, rois)


def _forward_mode(input, rois, *arguments):
    """The output is linear in ``input``, so its tangent is the pooled tangent of ``input``."""
    output, argmax_y, argmax_x = torch.ops.dcnzoo.roi_align(primal(input), primal(rois), *arguments)
    moving = tangent(input)
    if moving is not None:
        output = make_dual(output, _read(moving, primal(rois), argmax_y, argmax_x, *arguments))
    return output, argmax_y, argmax_x


def _read(maps, rois, argmax_y, argmax_x, output_h, output_w, *arguments):
    """Pool ``maps``. In max mode, read them where the maxima of other maps were found."""
    if arguments[2] == _MAX:
        return _at_maxima(maps, rois, argmax_y, argmax_x)
    return torch.ops.dcnzoo.roi_align(maps, rois, output_h, output_w, *arguments)[0]


def _reference(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned):
    mode = "max" if pool_mode == _MAX else "avg"
    sampling = (spatial_scale, sampling_ratio, mode, aligned)
    output = reference.roi_align(input, rois, (output_h, output_w), *sampling)
    where = torch.empty(0, dtype=torch.promote_types(input.dtype, torch.float32), device=input.device)
    return output, where, where.clone()  # autograd does not use the positions of the maxima


register_autograd("roi_align", _setup_context, _autograd_backward, _reference, forward_mode=_forward_mode)


def _setup_backward_context(ctx, inputs, output):
    grad_output, *tensors, _input_size = inputs[:5]
    ctx.arguments = inputs[5:]
    ctx.output_size = grad_output.shape[2:]
    ctx.save_for_backward(*tensors)


def _second_backward(ctx, grad):
    """The backward is linear in ``grad_output``, and its adjoint reads the forward's sampling points."""
    return _read(grad, *ctx.saved_tensors, *ctx.output_size, *ctx.arguments), *[None] * 8


def _at_maxima(
    maps: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5]
    y: Tensor,  # [K, C, oH, oW], and so is x
    x: Tensor,
) -> Tensor:  # [K, C, oH, oW]
    """Sample each RoI's image bilinearly at the positions of its maxima; zero outside the map."""
    image = rois[:, 0].long().clamp(0, len(maps) - 1).view(-1, 1, 1, 1)
    channel = torch.arange(maps.shape[1], device=maps.device).view(-1, 1, 1)
    values = reference.interpolate_clamped(
        lambda row, column: maps[image, channel, row, column], maps.shape[2:], y, x
    )
    return values.to(maps.dtype)


register_autograd(
    "_roi_align_backward",
    _setup_backward_context,
    _second_backward,
    forward_mode=linear_forward_mode("_roi_align_backward"),
)
