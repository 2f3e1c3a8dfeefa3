"""Overlaps and non-maximum suppression of rotated boxes."""

import torch
from torch import Tensor

from . import checks, reference_boxes
from ._arguments import check_tensors
from .nms import fake as fake_nms
from .operator import Operator
from .register import register


def box_iou_rotated(
    boxes1: Tensor,  # [M, 5], (x, y, width, height, angle), x and y of the centre
    boxes2: Tensor,  # [N, 5]
    mode: str = "iou",
    aligned: bool = False,
    clockwise: bool = True,
) -> Tensor:  # [M, N], or [M] if aligned
    """Overlap of rotated boxes: intersection over union, or over the area of the first box.

    Same arguments as ``mmcv.ops.box_iou_rotated``, and its results up to the rounding of its float32.

    Args:
        boxes1: ``(M, 5)``, ``(x, y, width, height, angle)``: the centre, the size and an angle in radians.
            Any floating type; overlaps are computed in float64.
        boxes2: ``(N, 5)``, with the dtype and device of ``boxes1``.
        mode: ``"iou"`` divides the shared area by the union, ``"iof"`` by the area of the box of ``boxes1``.
        aligned: compare each box of ``boxes1`` only with the box of the same index in ``boxes2``.
        clockwise: whether a positive angle rotates the x axis towards the y axis, which points down.

    Returns:
        ``(M, N)``, or ``(M,)`` with ``aligned``, in the boxes' dtype, without gradient. A box with an area
        below 1e-14, or with a NaN in its centre or angle, overlaps nothing. A NaN in a size makes every
        overlap NaN that is divided by that box's area.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid.
        TypeError: an argument is not a tensor.
    """
    if mode != "iou" and mode != "iof":
        raise RuntimeError(f"box_iou_rotated: mode: expected 'iou' or 'iof', got '{mode}'")
    if not torch.jit.is_scripting():
        check_tensors("box_iou_rotated", boxes1=boxes1, boxes2=boxes2)
    return torch.ops.dcnzoo.box_iou_rotated(
        boxes1.detach(), boxes2.detach(), mode == "iof", aligned, clockwise
    )


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
        TypeError: an argument is not a tensor.
    """
    if not torch.jit.is_scripting():
        check_tensors("nms_rotated", boxes=boxes, scores=scores)
    return torch.ops.dcnzoo.nms_rotated(boxes, scores, iou_threshold, clockwise)


def _reference(boxes1, boxes2, over_first=False, *how):
    return reference_boxes.box_iou_rotated(boxes1, boxes2, "iof" if over_first else "iou", *how)


def _fake(boxes1, boxes2, over_first=False, aligned=False, clockwise=True):
    return boxes1.new_empty(boxes1.shape[:1] if aligned else (boxes1.shape[0], boxes2.shape[0]))


register(
    Operator("box_iou_rotated", reference=_reference, fake=_fake, check=checks.box_iou_rotated),
    Operator("nms_rotated", reference=reference_boxes.nms_rotated, fake=fake_nms, check=checks.nms_rotated),
)
