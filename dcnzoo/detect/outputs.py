"""Convert the outputs of an exported graph to detections.

For N images with K rows each, best first; unused rows are zeros with the label -1:

=====================  ======================================================================================
``dets``               [N, K, 5]: (x1, y1, x2, y2, score) in pixels of the input
``labels``             [N, K]
``box_masks``          [N, K, h, w], of two-stage detectors: probabilities, which cover the box
``masks``              [N, K, H, W], uint8, of other heads: 255 inside, 0 outside, in pixels of the input
``mask_logits``        [N, K, h, w], of Mask2Former: they and ``class_scores`` give the boxes, scores and
                       masks of a picture
``class_scores``       [N, K]
=====================  ======================================================================================
"""

import math
from collections.abc import Mapping

import numpy as np

from dcnzoo.detect.backends import BOX_MASKS, CLASS_SCORES, MASK_LOGITS
from dcnzoo.detect.crops import Crops, extent
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.pictures import resize_picture, resized

# metadata key of the lowest probability with which a pixel is part of an object (default: 0.5)
MASK_THRESHOLD = "dcnzoo.mask_threshold"
# metadata key of the default of a detector's calls
SCORE_THRESHOLD_KEY = "dcnzoo.score_threshold"


def rescale_detections(
    outputs: Mapping[str, np.ndarray],
    size: tuple[int, int],
    picture_size: tuple[int, int],
    metadata: Mapping[str, str],
    score_threshold: float = -math.inf,
) -> Detections:
    """Convert one image's outputs from pixels of the model's input to pixels of the picture.

    Args:
        size: height and width of the input without padding.
        picture_size: height and width of the picture.
        metadata: of the model.
        score_threshold: of the detections to return.
    """
    present = outputs["labels"] >= 0
    if MASK_LOGITS in outputs:
        return _from_logits(outputs, present, size, picture_size, score_threshold)
    present &= outputs["dets"][:, 4] >= score_threshold
    dets = outputs["dets"][present]
    factor = np.array([picture_size[1] / size[1], picture_size[0] / size[0]] * 2)
    boxes = (dets[:, :4] * factor).astype(np.float32)
    masks, threshold = None, float(metadata.get(MASK_THRESHOLD, 0.5))
    if BOX_MASKS in outputs:
        masks = paste(outputs[BOX_MASKS][present], boxes, picture_size, threshold)
    elif "masks" in outputs:
        softs, parts = outputs["masks"][present], []
        margin = np.ceil(factor[:2]) + 1  # pixels that the interpolation reaches outside
        areas = np.array([extent(soft) for soft in softs]).reshape(-1, 4) * factor
        first = np.floor(areas[:, :2] - margin).clip(0).astype(int)
        last = np.ceil(areas[:, 2:] + margin).clip(0).astype(int)
        for soft, (x1, y1), (x2, y2) in zip(softs, first, last, strict=True):
            # resize probabilities, then threshold: a thresholded mask would have a less exact border
            region = (slice(y1, y2), slice(x1, x2))
            probability = resized(soft[: size[0], : size[1]].astype(np.float32), picture_size, region)
            parts.append(probability >= 255 * threshold)
        masks = Crops(parts, first[:, ::-1].tolist(), picture_size)
    return Detections(boxes, dets[:, 4], outputs["labels"][present], masks)


def _from_logits(
    outputs: Mapping[str, np.ndarray],
    present: np.ndarray,  # [K], bool
    size: tuple[int, int],
    picture_size: tuple[int, int],
    score_threshold: float,
) -> Detections:
    """Return Mask2Former's detections. As in MMDetection, resized masks determine boxes and scores.

    A score is the class's score times the mean probability inside the mask.
    """
    height, width = outputs["input_size"]
    boxes, scores, masks = [], [], []
    chosen = np.flatnonzero(present & (outputs[CLASS_SCORES] >= score_threshold))
    for row in chosen:
        logits = resize_picture(outputs[MASK_LOGITS][row], (height, width))[: size[0], : size[1]]
        logits = resize_picture(logits, picture_size)
        inside = logits > 0
        certainty = (1 / (1 + np.exp(-logits[inside].astype(np.float64)))).sum() / (inside.sum() + 1e-6)
        scores.append(outputs[CLASS_SCORES][row] * certainty)
        boxes.append(extent(inside))
        masks.append(Crops.of(inside[None]))
    values = np.array(scores, np.float32)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    crops = Crops.joined(masks, [(0, 0)] * len(masks), picture_size)
    result = Detections(corners, values, outputs["labels"][chosen], crops)
    order = np.argsort(-values, kind="stable")
    return result[order[values[order] >= score_threshold]]


def paste(
    softs: np.ndarray,  # [K, h, w], probabilities
    boxes: np.ndarray,  # [K, 4]
    size: tuple[int, int],
    threshold: float,
) -> Crops:
    """Stretch masks over their boxes in a picture, bilinearly, as MMDetection does; zero outside.

    Bilinear resampling along the axes is a product with one matrix of hat functions per axis.
    """
    parts, corners = [], []
    for soft, box in zip(softs, boxes, strict=True):
        x, y = (_weights(box[i], box[i + 2], soft.shape[1 - i], size[1 - i]) for i in (0, 1))
        parts.append(y[1] @ soft @ x[1].T >= threshold)
        corners.append((y[0], x[0]))
    return Crops(parts, corners, size)


def _weights(low: float, high: float, taps: int, pixels: int) -> tuple[int, np.ndarray]:
    """Return the first pixel near a box along one axis, and the weights [pixels, taps] of a mask's values."""
    first = math.floor(min(max(min(low, high) - 1, 0), pixels))
    end = math.ceil(min(max(max(low, high) + 1, first), pixels))
    if low == high:
        return first, np.zeros((end - first, taps), np.float32)
    # in the order of grid_sample's operations, for equal results
    position = (np.arange(first, end, dtype=np.float32) + np.float32(0.5) - low) / (high - low) * taps - 0.5
    distance = np.abs(position[:, None] - np.arange(taps, dtype=np.float32))
    return first, np.maximum(1 - distance, np.float32(0))
