"""Non-maximum suppression of rotated boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _plain, reference_boxes


def nms_rotated(
    boxes: Tensor,  # [N, 5], (x, y, width, height, angle), x and y of the centre
    scores: Tensor,  # [N]
    iou_threshold: float,
    clockwise: bool = True,
) -> Tensor:  # [kept], int64
    """Keeps the rotated boxes that no better-scored kept box overlaps.

    The compiled part of ``mmcv.ops.nms_rotated``, which in mmcv looks at no labels; on CPU and CUDA alike.

    Args:
        boxes: ``(N, 5)``, ``(x, y, width, height, angle)``, as :func:`box_iou_rotated` takes them.
        scores: ``(N,)``, any floating type.
        iou_threshold: a box whose intersection over union with a kept box is **above** it is dropped. Both
            are compared in float64 for float64 boxes, else in float32. (mmcv's kernel for the CPU also drops
            a box that is exactly at the threshold. ``mmcv.ops.nms_rotated`` does so with dcnzoo's operators
            too.)
        clockwise: whether the angle turns the x axis to the y axis, which points down.

    Returns:
        Indices of the kept boxes by descending score; equal scores keep their order. NaN scores come first,
        and a box with a NaN neither suppresses nor is suppressed.

    Raises:
        RuntimeError: a shape, dtype, device or value that does not fit.
    """
    return torch.ops.dcnzoo.nms_rotated(boxes, scores, iou_threshold, clockwise)


_plain.register("nms_rotated", reference_boxes.nms_rotated, autograd=False)


@torch.library.register_fake("dcnzoo::nms_rotated")
def _(boxes, scores, iou_threshold, clockwise=True):
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.long)
