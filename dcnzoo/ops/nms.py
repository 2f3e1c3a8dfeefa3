"""Non-maximum suppression of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _plain, reference_boxes


def nms(
    boxes: Tensor,  # [N, 4], (x1, y1, x2, y2), in pixels
    scores: Tensor,  # [N]
    iou_threshold: float,
    offset: int = 0,
) -> Tensor:  # [kept], int64
    """Keeps the boxes that no better-scored kept box overlaps.

    Greedy, as in Faster R-CNN (Ren et al. 2015, sec. 3.3); arguments and decisions are those of
    ``mmcv.ops.nms``, on CPU and CUDA alike.

    Args:
        boxes: ``(N, 4)``, ``(x1, y1, x2, y2)``, any floating type. Overlaps are computed in float64 for
            float64 boxes, else in float32.
        scores: ``(N,)``, any floating type.
        iou_threshold: a box whose intersection over union with a kept box is **above** it is dropped.
        offset: 0 or 1, added to every width and height: 1 where a box from 0 to 9 is 10 pixels wide.

    Returns:
        Indices of the kept boxes by descending score; equal scores keep their order. NaN scores come
        first, and a box with a NaN coordinate neither suppresses nor is suppressed.

    Raises:
        RuntimeError: a shape, dtype, device or value that does not fit.
    """
    return torch.ops.dcnzoo.nms(boxes, scores, iou_threshold, offset)


_plain.register("nms", reference_boxes.nms, autograd=False)


@torch.library.register_fake("dcnzoo::nms")
def _(boxes, scores, iou_threshold, offset=0):
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.long)
