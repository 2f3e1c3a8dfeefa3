"""Non-maximum suppression of boxes."""

import torch
from torch import Tensor

from . import checks, plain, reference_boxes
from ._arguments import check_tensors
from .operator import Operator
from .register import register


def nms(
    boxes: Tensor,  # [N, 4], (x1, y1, x2, y2), in pixels
    scores: Tensor,  # [N]
    iou_threshold: float,
    offset: int = 0,
) -> Tensor:  # [kept], int64
    """Non-maximum suppression: drops each box that overlaps a kept box with a higher score.

    Greedy, as in Faster R-CNN (Ren et al. 2015, sec. 3.3). Same arguments as ``mmcv.ops.nms``, and the same
    boxes are kept, on CPU and CUDA.

    Args:
        boxes: ``(N, 4)``, ``(x1, y1, x2, y2)``, any floating type. Overlaps are computed in float64 for
            float64 boxes, else in float32.
        scores: ``(N,)``, any floating type.
        iou_threshold: from 0 to 1. A box is dropped if its intersection over union with a kept box is
            **above** it.
        offset: 0 or 1, added to every width and height. Use 1 if a box from 0 to 9 is 10 pixels wide.

    Returns:
        Indices of the kept boxes by descending score; equal scores keep their order. NaN scores come
        first. A box with a NaN coordinate is kept and suppresses no other box.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid.
        TypeError: an argument is not a tensor.
    """
    if not torch.jit.is_scripting():
        check_tensors("nms", boxes=boxes, scores=scores)
    return torch.ops.dcnzoo.nms(boxes, scores, iou_threshold, offset)


def fake(boxes, *arguments):
    number = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(number, dtype=torch.long)


OPERATOR = Operator(
    "nms",
    reference=reference_boxes.nms,
    plain=plain.nms,
    fake=fake,
    check=checks.nms,
    rows=("boxes", "scores"),
    fused=True,
)
register(OPERATOR)
