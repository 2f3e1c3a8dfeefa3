"""detectron2's operators for rotated boxes: functions of ``detectron2._C``, and ``torch.ops.detectron2``.

Angles are in degrees; a positive angle rotates counter-clockwise on the screen. Any floating type works.
"""

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.compat.mmcv import _ext
from dcnzoo.compat.operators import define


def _in_radians(boxes: Tensor) -> Tensor:
    """Boxes or RoIs, whose last column is the angle."""
    return torch.cat([boxes[:, :-1], boxes[:, -1:].deg2rad()], 1)


def box_iou_rotated(
    boxes1: Tensor,  # [M, 5], (x, y, width, height, angle)
    boxes2: Tensor,  # [N, 5]
) -> Tensor:  # [M, N]
    return dcnzoo.ops.box_iou_rotated(_in_radians(boxes1), _in_radians(boxes2), clockwise=False)


def nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    boxes, order = _in_radians(boxes), scores.sort(stable=True, descending=True).indices
    boxes[:, -1].neg_()  # a positive angle of mmcv's operator is clockwise
    return _ext.nms_rotated(boxes, scores, order, boxes[order], order, iou_threshold, False)


def roi_align_rotated_forward(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 6], (image, x, y, width, height, angle)
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
) -> Tensor:
    size, rois = (pooled_height, pooled_width), _in_radians(rois)
    return dcnzoo.ops.roi_align_rotated(input, rois, size, spatial_scale, sampling_ratio, clockwise=False)


def roi_align_rotated_backward(
    grad: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int, batch_size: int,
    channels: int, height: int, width: int, sampling_ratio: int,
) -> Tensor:  # fmt: skip
    size, options = [batch_size, channels, height, width], (spatial_scale, sampling_ratio, True, False)
    return torch.ops.dcnzoo._roi_align_rotated_backward(grad, _in_radians(rois), size, *options)


FUNCTIONS = (box_iou_rotated, nms_rotated, roi_align_rotated_forward, roi_align_rotated_backward)
define("detectron2", {f"{f.__name__}{torch.library.infer_schema(f, mutates_args=())}": f for f in FUNCTIONS})
