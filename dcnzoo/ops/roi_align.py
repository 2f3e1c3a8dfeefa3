"""RoIAlign: pools the maps inside boxes, also rotated ones, to a fixed size, without rounding the boxes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from . import checks, choose, flops, reference
from ._arguments import Int2, check_tensors, pair, shape_text
from ._autograd import in_forward_mode
from .operator import COMPILED, FUSED, REFERENCE, TORCHVISION, Operator
from .register import register

_MAX = 0  # the pool_mode of the operator; the average is 1


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

    Mask R-CNN (He et al. 2017, sec. 3). Same arguments as ``mmcv.ops.roi_align``, and the same
    results except for RoIs without samples and NaN with ``"max"`` (docs/ops/boxes.md).

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
        TypeError: an argument is not a tensor.
    """
    if pool_mode != "avg" and pool_mode != "max":
        raise RuntimeError(f"roi_align: pool_mode: expected 'avg' or 'max', got '{pool_mode}'")
    if not torch.jit.is_scripting():
        check_tensors("roi_align", input=input, rois=rois)
    height, width = bins(output_size)
    mode = 0 if pool_mode == "max" else 1
    return torch.ops.dcnzoo.roi_align(
        input, rois, height, width, float(spatial_scale), sampling_ratio, mode, aligned
    )[0]


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
        RuntimeError, TypeError: as in :func:`roi_align`.
    """
    if not torch.jit.is_scripting():
        check_tensors("roi_align_rotated", input=input, rois=rois)
    height, width = bins(output_size)
    return torch.ops.dcnzoo.roi_align_rotated(
        input, rois, height, width, float(spatial_scale), sampling_ratio, aligned, clockwise
    )


def bins(output_size: Int2) -> tuple[int, int]:
    """Height and width of a RoI pooling's output.

    Raises:
        RuntimeError: ``output_size`` is not an integer or two integers.
    """
    size = pair(output_size, "output_size")
    if len(size) != 2:
        raise RuntimeError(f"output_size: expected an integer or 2 integers, got {shape_text(size)}")
    return size[0], size[1]


def _fake(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned):
    size = (rois.shape[0], input.shape[1], output_h, output_w)
    wide = torch.promote_types(input.dtype, torch.float32)
    argmax_size = size if pool_mode == _MAX else (0,)
    output = input.new_empty(size)
    return output, *(input.new_empty(argmax_size, dtype=wide) for _ in range(2))


def _fake_backward(grad_output, rois, *arguments):
    input_size = next(argument for argument in arguments if not isinstance(argument, Tensor))
    return grad_output.new_empty(input_size)


def _check_backward(forward: Operator, call: Any) -> None:
    grad = call.grad_output
    checks.require(grad.dim() == 4, f"{forward.name}: grad_output", "4 dimensions", grad.dim())
    shared = {name: getattr(call, name) for name in forward.call._fields if name in call._fields}
    bins = dict(zip(("output_h", "output_w"), grad.shape[2:], strict=True))
    forward.check(forward.call(input=grad.new_empty(()).expand(call.input_size), **bins, **shared))
    expected = (len(call.rois), *call.input_size[1:2], *grad.shape[2:])
    checks.require_gradient(forward.name, grad, torch.empty(expected, device="meta"), grad)


def _with_backward(
    forward: Operator, pool: Callable, reference_pool: Callable, backward_flops: Callable
) -> tuple[Operator, Operator]:
    """The record of a RoI pooling with its derivative, and that of its backward.

    Each is linear in its first argument.

    Args:
        pool: the pooling of the backward's tensors ``(maps, rois, *maxima)``, then numbers of bins and
            options. It reads the maps where the forward found maxima of other maps.
        reference_pool: ``pool`` in plain PyTorch.
    """
    backward = getattr(torch.ops.dcnzoo, f"_{forward.name}_backward")

    def setup_context(ctx, inputs, output):
        input, rois, _, _, *ctx.options = inputs
        maxima = output[1:] if isinstance(output, tuple) else ()
        ctx.input_size = input.shape
        ctx.mark_non_differentiable(*maxima)
        ctx.save_for_backward(rois, *maxima)

    def first_backward(ctx, grad_output, *_):
        # the kernel adds atomically, and has no forward mode
        in_order = choose.is_deterministic(grad_output) or in_forward_mode(grad_output)
        compute = backward_in_order if in_order else backward
        gradient = compute(grad_output, *ctx.saved_tensors, ctx.input_size, *ctx.options)
        return gradient, *[None] * (3 + len(ctx.options))

    def setup_backward_context(ctx, inputs, output):
        ctx.size = inputs[0].shape[2:]
        tensors = [argument for argument in inputs[1:] if isinstance(argument, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.options = inputs[2 + len(tensors) :]

    def second_backward(ctx, grad):
        tensors = ctx.saved_tensors  # torch.utils.checkpoint allows to read it only once
        pooled = pool(grad, *tensors, *ctx.size, *ctx.options)
        return pooled, *[None] * (1 + len(tensors) + len(ctx.options))

    def split(grad_output, arguments):
        """Return the pooling of maps and tensors, the size of the maps, and the tensors."""
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        input_size, *options = arguments[len(tensors) :]
        numbers = (*grad_output.shape[2:], *options)
        return lambda maps, *tensors: reference_pool(maps, *tensors, *numbers), input_size, tensors

    def backward_in_order(grad_output, *arguments):
        pool_maps, input_size, tensors = split(grad_output, arguments)
        return pooling_grad_input_in_order(pool_maps, grad_output, input_size, *tensors)

    def reference_backward(grad_output, *arguments):
        pool_maps, input_size, tensors = split(grad_output, arguments)
        maps = grad_output.new_zeros(input_size)
        pull = torch.func.vjp(lambda maps: pool_maps(maps, *tensors), maps)[1]
        return pull(grad_output)[0].contiguous()

    record = Operator(
        f"_{forward.name}_backward",
        reference=reference_backward,
        fake=_fake_backward,
        check=partial(_check_backward, forward),
        setup_context=setup_backward_context,
        backward=second_backward,
        flops=backward_flops,
        kernels=forward.kernels,
    )
    return replace(forward, setup_context=setup_context, backward=first_backward), record


def pooling_grad_input_in_order(
    pool: Callable,  # of (maps, rois, *per_roi), linear in the maps, in plain PyTorch
    grad_output: Tensor,  # [K, C, oH, oW]
    input_size: Sequence[int],  # (N, C, H, W)
    rois: Tensor,  # [K, 5 or 6]
    *per_roi: Tensor,  # [K, …]
) -> Tensor:  # [N, C, H, W]
    """The gradient of the input of a RoI pooling, bitwise identical at every call.

    Differentiates ``pool``, whose derivative is torch's ``index_put_``, one RoI at a time, which bounds the
    memory.
    """
    wide = torch.promote_types(grad_output.dtype, torch.float32)
    total = grad_output.new_zeros(input_size, dtype=wide)
    for roi in range(len(rois)):
        one = [tensor[roi : roi + 1] for tensor in (rois, *per_roi)]
        pull = torch.func.vjp(lambda maps, one=one: pool(maps, *one), torch.zeros_like(total))[1]
        total = total + pull(grad_output[roi : roi + 1].to(wide))[0]
    return total.to(grad_output.dtype)


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


def _reference(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned):
    mode = "max" if pool_mode == _MAX else "avg"
    sampling = (spatial_scale, sampling_ratio, mode, aligned)
    rois = unpack_dual(rois).primal  # they have no derivative
    output = reference.roi_align(input, rois, (output_h, output_w), *sampling)
    where = torch.empty(0, dtype=torch.promote_types(input.dtype, torch.float32), device=input.device)
    return output, where, where.clone()  # autograd does not use the positions of the maxima


def _pool_by(average: Callable) -> Callable:
    def pool(maps, rois, y, x, *sizes_and_options):
        if sizes_and_options[-2] == _MAX:
            return _at_maxima(maps, rois, y, x)
        return average(maps, rois, *sizes_and_options)[0]

    return pool


_reference_pool = _pool_by(_reference)


def _forward_mode(input, rois, *arguments):
    _, *maxima = torch.ops.dcnzoo.roi_align(unpack_dual(input).primal, unpack_dual(rois).primal, *arguments)
    return _reference_pool(input, rois, *maxima, *arguments), *maxima


OPERATOR = Operator(
    "roi_align",
    reference=_reference,
    fake=_fake,
    check=checks.roi_align,
    check_numbers=checks.image_numbers,
    forward_mode=_forward_mode,
    flops=flops.roi_align,
    kernels=(COMPILED, TORCHVISION, FUSED, REFERENCE),
)
_pool = _pool_by(torch.ops.dcnzoo.roi_align)
register(*_with_backward(OPERATOR, _pool, _reference_pool, flops.roi_align_backward))


def _fake_rotated(input, rois, output_h, output_w, *options):
    return input.new_empty((rois.shape[0], input.shape[1], output_h, output_w))


def _reference_rotated(input, rois, output_h, output_w, *options):
    rois = unpack_dual(rois).primal  # they have no derivative
    return reference.roi_align_rotated(input, rois, (output_h, output_w), *options)


ROTATED = Operator(
    "roi_align_rotated",
    reference=_reference_rotated,
    fake=_fake_rotated,
    check=checks.roi_align_rotated,
    check_numbers=checks.image_numbers,
    flops=flops.pooling,
)
_pool = torch.ops.dcnzoo.roi_align_rotated
register(*_with_backward(ROTATED, _pool, _reference_rotated, flops.roi_align_backward))
