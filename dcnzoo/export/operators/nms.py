"""Non-maximum suppression as ONNX nodes.

It is for ``dcnzoo.ops.nms`` in modules of users. The numbers of boxes of a detector are fixed: its NMS is
``select_boxes`` in :mod:`dcnzoo.export.fixed_size`.
"""

from dcnzoo.export.graph import EXPORTERS, FLOAT, Graph, Value, translates

LEAST_IOU = 1e-30  # at 0, OpenVINO also drops boxes that do not overlap


@translates("dcnzoo::nms", EXPORTERS)
def nms(g: Graph, boxes: Value, scores: Value, iou_threshold: float, offset: int = 0) -> Value:  # [kept]
    """``NonMaxSuppression``. It accepts corners in any order, so x1 <= x2 and y1 <= y2 is assumed here."""
    corners = g.Cast(boxes, to=FLOAT)
    if offset:
        corners = g.Add(corners, g.floats(0, 0, offset, offset))
    chosen = g.NonMaxSuppression(
        g.reshape(corners, 1, -1, 4),
        g.reshape(g.Cast(scores, to=FLOAT), 1, 1, -1),
        g.dims(boxes, 0),
        g.floats(max(iou_threshold, LEAST_IOU)),
    )  # [kept, 3]: image, class, box
    return g.reshape(g.Gather(chosen, g.ints(2), axis=1), -1)
