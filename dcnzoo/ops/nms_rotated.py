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
    """Non-maximum suppression: drops each rotated box that overlaps a kept box with a higher score.

    The compiled part of ``mmcv.ops.nms_rotated``, which ignores labels, on CPU and CUDA.

    Args:
        boxes: ``(N, 5)``, ``(x, y, width, height, angle)``, as in :func:`box_iou_rotated`.
        scores: ``(N,)``, any floating type.
        iou_threshold: a box is dropped if its intersection over union with a kept box is **above** it. The
            comparison is in float64 for float64 boxes, else in float32. (mmcv's CPU kernel also drops a box
            exactly at the threshold. ``mmcv.ops.nms_rotated`` on dcnzoo's operators does the same.)
        clockwise: whether a positive angle rotates the x axis towards the y axis, which points down.

    Returns:
        Indices of the kept boxes by descending score; equal scores keep their order. NaN scores come first.
        A box with a NaN is kept and suppresses no other box.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid.
    """
    return torch.ops.dcnzoo.nms_rotated(boxes, scores, iou_threshold, clockwise)


_plain.register("nms_rotated", reference_boxes.nms_rotated, autograd=False)


@torch.library.register_fake("dcnzoo::nms_rotated")
def _(boxes, scores, iou_threshold, clockwise=True):
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.long)
