"""RoIAlign: pools the maps inside boxes to a fixed size, without rounding the boxes."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks, flops, plain, reference
from ._arguments import Int2, check_integers, check_tensors, pair
from ._autograd import with_backward
from .operator import Operator
from .register import register


def roi_align(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor | list[Tensor],  # [K, 5], (image, x1, y1, x2, y2)
    output_size: Int2,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:  # [K, C, oH, oW]
    """Pools bilinear samples of each region of interest to ``output_size`` bins.

    Mask R-CNN (He et al. 2017, sec. 3). Same arguments as ``mmcv.ops.roi_align``, and the same results except
    for RoIs without samples (docs/ops/boxes.md).

    Args:
        input: ``(N, C, H, W)``, float64, float32, bfloat16 or float16 (summed in float32).
        rois: ``(K, 5)``: the image number, then ``(x1, y1, x2, y2)``; or a list of the boxes ``(K, 4)`` of
            each image. ``spatial_scale`` converts the coordinates to pixels of ``input``. Any floating type,
            int32 or int64; gets no gradient.
        output_size: number of bins, ``(oH, oW)`` or one number for both.
        spatial_scale: pixels of ``input`` per unit of ``rois``, ``1 / stride`` of the feature map.
        sampling_ratio: samples per bin along each axis. 0 or less: the bin's length in pixels, rounded up.
        pool_mode: ``"avg"``, over the samples of a bin.
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
    if pool_mode != "avg":
        raise RuntimeError(f"roi_align: pool_mode: expected 'avg', got '{pool_mode}'")
    rows = rows_of_boxes("roi_align", rois)
    if not torch.jit.is_scripting():
        check_tensors("roi_align", input=input, rois=rows)
        check_integers("roi_align", sampling_ratio=sampling_ratio)
    height, width = pair("roi_align", "output_size", output_size)
    return torch.ops.dcnzoo.roi_align(
        input, rows, height, width, float(spatial_scale), sampling_ratio, aligned
    )


def rows_of_boxes(name: str, rois: Tensor | list[Tensor]) -> Tensor:  # [K, 5]
    """Return the ``rois`` of :func:`roi_align` as one tensor of a floating type."""
    if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript skips the block only for a lone condition)
        if not all(isinstance(each, Tensor) for each in (rois if isinstance(rois, list) else [rois])):
            return cast(Tensor, rois)  # a proxy, or no tensor: check_tensors raises the error
    if isinstance(rois, list):
        if len(rois) == 0:
            raise RuntimeError(f"{name}: rois: expected the boxes of each image, got an empty list")
        rows = torch.cat([F.pad(boxes, [1, 0], value=float(i)) for i, boxes in enumerate(rois)])
    else:
        rows = rois
    return rows.float() if rows.dtype in (torch.int32, torch.int64) else rows


def fake(input, rois, output_h, output_w, *numbers):
    return input.new_empty((rois.shape[0], input.shape[1], output_h, output_w))


def bins_and_input(call):
    """Return the arguments of a RoI pooling that its backward does not have."""
    bins = dict(zip(("output_h", "output_w"), call.grad_output.shape[2:], strict=True))
    if "input_size" in call._fields:  # the gradient does not depend on the values
        bins["input"] = call.grad_output.new_zeros(()).expand(call.input_size)
    return bins


def _reference(input, rois, output_h, output_w, *sampling):
    return reference.roi_align(input, rois.detach(), (output_h, output_w), *sampling)


OPERATOR = Operator(
    "roi_align",
    reference=_reference,
    plain=plain.roi_align,
    fake=fake,
    check=checks.roi_align,
    check_numbers=checks.image_numbers,
    flops=flops.pooling,
    rows=("rois",),
    fused=True,
)
register(
    *with_backward(
        OPERATOR,
        ("input",),
        saves={"input_size": "input.shape"},
        recompute=bins_and_input,
        is_linear=True,
    )
)
