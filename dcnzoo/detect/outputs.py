"""Convert the outputs of an exported graph to detections."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dcnzoo.detect.crops import Crops
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.pictures import resized

CLIPS = "dcnzoo.clips"  # key in the metadata; "False": boxes may extend beyond the image, as in YOLOv3


def rescale_detections(
    outputs: Mapping[str, np.ndarray],
    size: tuple[int, int],
    picture_size: tuple[int, int],
    metadata: Mapping[str, str],
    border: tuple[int, int] | None = None,
) -> Detections:
    """Convert one image's outputs from pixels of the model's input to pixels of the picture.

    Args:
        size: height and width of the input without padding.
        picture_size: height and width of the picture.
        metadata: of the model.
        border: boxes are clipped to this height and width of the input: the size after the pipeline, which
            exceeds ``size`` if the pipeline pads.
    """
    there = outputs["labels"] >= 0
    dets = outputs["dets"][there]
    factor = np.array([picture_size[1] / size[1], picture_size[0] / size[0]] * 2)
    boxes = dets[:, :4]
    if metadata.get(CLIPS) != "False":  # the graph clips to its input, which includes padding
        boxes = boxes.clip(0, (border or size)[::-1] * 2)
    boxes = (boxes * factor).astype(np.float32)
    masks = None
    if "masks" in outputs:
        parts = []
        margin = np.ceil(factor[:2]) + 1  # the reach of the interpolation
        first = np.floor(boxes[:, :2] - margin).clip(0).astype(int)
        last = np.ceil(boxes[:, 2:] + margin).clip(0).astype(int)
        for soft, (x1, y1), (x2, y2) in zip(outputs["masks"][there], first, last, strict=True):
            # resize probabilities, then threshold: a thresholded mask would have a less exact border
            region = (slice(y1, y2), slice(x1, x2))
            probability = resized(soft[: size[0], : size[1]].astype(np.float32), picture_size, region)
            parts.append(probability >= 127.5)
        masks = Crops(parts, first[:, ::-1].tolist(), picture_size)
    return Detections(boxes, dets[:, 4], outputs["labels"][there], masks)
