"""RoIAlign: pools the maps inside boxes, also rotated ones, to a fixed size, without rounding the boxes."""

from functools import partial

import torch
from torch import Tensor

from . import checks, flops, reference
from ._arguments import Int2, check_tensors, pair, shape_text
from ._autograd import with_backward
from .operator import Operator
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


def bins_and_input(call):
    """The arguments of a RoI pooling that its backward does not have."""
    bins = dict(zip(("output_h", "output_w"), call.grad_output.shape[2:], strict=True))
    if "input_size" in call._fields:  # the gradient does not depend on the values
        bins["input"] = call.grad_output.new_zeros(()).expand(call.input_size)
    return bins


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
    output, *maxima = reference.roi_align(input, rois.detach(), (output_h, output_w), *sampling)
    wide = torch.promote_types(input.dtype, torch.float32)
    return output, *(maxima or (input.new_empty(0, dtype=wide) for _ in "yx"))


def _pool(average, maxima, input, rois, *numbers):
    """The pooling of maps, of which each RoI has its maxima at given positions, or its average."""
    if numbers[-2] == _MAX:
        return _at_maxima(input, rois, *maxima)
    return average(input, rois, *numbers)[0]


OPERATOR = Operator(
    "roi_align",
    reference=_reference,
    fake=_fake,
    check=checks.roi_align,
    check_numbers=checks.image_numbers,
    flops=flops.roi_align,
    fused=True,
)
_INPUT_SIZE = {"input_size": lambda call, output: call.input.shape}
register(
    *with_backward(
        OPERATOR,
        ("input",),
        saves=_INPUT_SIZE
        | {"argmax_y": lambda call, output: output[1], "argmax_x": lambda call, output: output[2]},
        recompute=bins_and_input,
        linear=lambda call, average: partial(_pool, average, (call.argmax_y, call.argmax_x)),
        rows=("grad_output", "rois", "argmax_y", "argmax_x"),
        flops=flops.roi_align_backward,
    )
)


def fake(input, rois, output_h, output_w, *options):
    return input.new_empty((rois.shape[0], input.shape[1], output_h, output_w))


def _reference_rotated(input, rois, output_h, output_w, *options):
    return reference.roi_align_rotated(input, rois.detach(), (output_h, output_w), *options)


ROTATED = Operator(
    "roi_align_rotated",
    reference=_reference_rotated,
    fake=fake,
    check=checks.roi_align_rotated,
    check_numbers=checks.image_numbers,
    flops=flops.pooling,
)
register(
    *with_backward(
        ROTATED,
        ("input",),
        saves=_INPUT_SIZE,
        recompute=bins_and_input,
        linear=lambda call, average: average,
        rows=("grad_output", "rois"),
        flops=flops.roi_align_backward,
    )
)
