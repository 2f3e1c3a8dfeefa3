"""Convert the outputs of an exported graph to detections."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dcnzoo.detect.crops import Crops, extent
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.pictures import resized

MASK_THRESHOLD = "dcnzoo.mask_threshold"  # key in the metadata: of probabilities; 0.5 without it


def rescale_detections(
    outputs: Mapping[str, np.ndarray],
    size: tuple[int, int],
    picture_size: tuple[int, int],
    metadata: Mapping[str, str],
) -> Detections:
    """Convert one image's outputs from pixels of the model's input to pixels of the picture.

    Args:
        size: height and width of the input without padding.
        picture_size: height and width of the picture.
        metadata: of the model.
    """
    there = outputs["labels"] >= 0
    dets = outputs["dets"][there]
    factor = np.array([picture_size[1] / size[1], picture_size[0] / size[0]] * 2)
    boxes = (dets[:, :4] * factor).astype(np.float32)
    masks = None
    if "masks" in outputs:
        parts = []
        threshold = 255 * float(metadata.get(MASK_THRESHOLD, 0.5))
        margin = np.ceil(factor[:2]) + 1  # the reach of the interpolation
        softs, areas = outputs["masks"][there], boxes
        if MASK_THRESHOLD not in metadata:  # masks that are not of a box may reach beyond it
            areas = np.array([extent(soft) for soft in softs]).reshape(-1, 4) * factor
        first = np.floor(areas[:, :2] - margin).clip(0).astype(int)
        last = np.ceil(areas[:, 2:] + margin).clip(0).astype(int)
        for soft, (x1, y1), (x2, y2) in zip(softs, first, last, strict=True):
            # resize probabilities, then threshold: a thresholded mask would have a less exact border
            region = (slice(y1, y2), slice(x1, x2))
            probability = resized(soft[: size[0], : size[1]].astype(np.float32), picture_size, region)
            parts.append(probability >= threshold)
        masks = Crops(parts, first[:, ::-1].tolist(), picture_size)
    return Detections(boxes, dets[:, 4], outputs["labels"][there], masks)
