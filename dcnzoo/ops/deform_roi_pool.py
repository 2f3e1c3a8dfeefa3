"""Deformable RoI pooling: RoIAlign with an offset for each bin."""

import torch
from torch import Tensor

from . import checks, flops, plain, reference
from ._arguments import Int2, check_integers, check_tensors, pair
from ._autograd import with_backward
from .operator import Operator
from .register import register
from .roi_align import bins_and_input, fake, roi_align, rows_of_boxes


def deform_roi_pool(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor | list[Tensor],  # [K, 5], (image, x1, y1, x2, y2)
    offset: Tensor | None,  # [K, 2, oH, oW], x and y, in units of gamma · the RoI's size
    output_size: Int2,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:  # [K, C, oH, oW]
    """Pools each region of interest to ``output_size`` bins, each displaced by its ``offset``.

    Deformable Convolutional Networks (Dai et al. 2017, sec. 2.2). Same arguments and output as
    ``mmcv.ops.deform_roi_pool``; the gradient of offsets beyond the outermost pixels is the true derivative,
    unlike mmcv's. For the modulated form of DCNv2 (Zhu et al. 2019, eq. 2), multiply the
    result by a mask ``(K, 1, oH, oW)``.

    Args:
        input, rois, output_size, spatial_scale, sampling_ratio: as in :func:`roi_align`.
        offset: ``(K, 2, oH, oW)``: displacement of each bin, x first. An offset of 1 is ``gamma`` times the
            RoI's width or height. Any floating type. ``None``: no displacement.
        gamma: scale of the offsets.

    Returns:
        ``(K, C, oH, oW)``: the average over each bin of bilinear samples, at the half-pixel coordinates of
        an aligned RoIAlign. A sample more than one pixel outside the map counts as zero in the average; up
        to one pixel outside, it reads the border pixel. A bin with an offset that is not finite gives zeros.
        So does a RoI without samples: it is not finite, or its size is not positive while
        ``sampling_ratio`` is 0.

    Raises:
        RuntimeError, TypeError: as in :func:`roi_align`.
    """
    rows = rows_of_boxes("deform_roi_pool", rois)
    if not torch.jit.is_scripting():
        check_tensors("deform_roi_pool", input=input, rois=rows, offset=rows if offset is None else offset)
        check_integers("deform_roi_pool", sampling_ratio=sampling_ratio)
    height, width = pair("deform_roi_pool", "output_size", output_size)
    if offset is None:
        return roi_align(input, rows, (height, width), spatial_scale, sampling_ratio)
    return torch.ops.dcnzoo.deform_roi_pool(
        input, rows, offset, height, width, float(spatial_scale), sampling_ratio, float(gamma)
    )


def _reference(input, rois, offset, output_h, output_w, *sampling):
    return reference.deform_roi_pool(input, rois.detach(), offset, (output_h, output_w), *sampling)


OPERATOR = Operator(
    "deform_roi_pool",
    reference=_reference,
    plain=plain.deform_roi_pool,
    fake=lambda input, rois, offset, *numbers: fake(input, rois, *numbers),
    check=checks.deform_roi_pool,
    check_numbers=checks.image_numbers,
    flops=flops.pooling,
    rows=("rois", "offset"),
    fused=True,
)
register(*with_backward(OPERATOR, ("input", "offset"), recompute=bins_and_input))
