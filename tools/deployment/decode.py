"""Masks and raw outputs of exported detectors, for programs without dcnzoo. Needs numpy alone."""

import numpy as np


def paste(mask, box, height, width):
    """Return the mask [height, width] of a picture from a row of box_masks and its box (x1, y1, x2, y2)."""

    def weights(low, high, pixels, cells):  # [pixels, cells]: bilinear, zero outside of the box
        places = (np.arange(pixels) + 0.5 - low) / (high - low) * cells - 0.5
        return np.clip(1 - np.abs(places[:, None] - np.arange(cells)), 0, None)

    x1, y1, x2, y2 = box
    rows, columns = weights(y1, y2, height, mask.shape[0]), weights(x1, x2, width, mask.shape[1])
    return rows @ mask @ columns.T >= 0.5


def decode(outputs, strides, size, offset=0.0, yolox=False, score_threshold=0.3, iou_threshold=0.6, most=100):
    """Return boxes [K, 4], scores [K] and labels [K] of a picture of this height and width, best first."""
    boxes, scores = [], []
    for level, stride in enumerate(strides):
        logits, values = outputs[f"scores_{level}"][0], outputs[f"boxes_{level}"][0]
        probability = 1 / (1 + np.exp(-logits))
        if f"factors_{level}" in outputs:
            probability = probability / (1 + np.exp(-outputs[f"factors_{level}"][0]))
        y, x = (np.mgrid[: logits.shape[1], : logits.shape[2]] + offset) * stride
        if yolox:
            centre = np.stack([x, y]) + values[:2] * stride
            half = np.exp(values[2:]) * stride / 2
            corners = np.concatenate([centre - half, centre + half])
        else:
            corners = np.stack([x - values[0], y - values[1], x + values[2], y + values[3]])
        boxes.append(corners.reshape(4, -1).T)
        scores.append(probability.reshape(len(probability), -1).T)
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    if yolox:  # the best class of each place
        scores = np.where(scores == scores.max(1, keepdims=True), scores, 0)
    else:
        boxes = boxes.clip(0, [size[1], size[0], size[1], size[0]])
        scores = np.where((boxes[:, 2:] > boxes[:, :2]).all(1)[:, None], scores, 0)
    place, label = np.nonzero(scores > score_threshold)
    boxes, scores = boxes[place], scores[place, label]
    remaining, kept = np.argsort(-scores, kind="stable"), []
    while len(remaining) and len(kept) < most:
        best, remaining = remaining[0], remaining[1:]
        kept.append(best)
        far = overlaps(boxes[best], boxes[remaining]) <= iou_threshold
        remaining = remaining[far | (label[remaining] != label[best])]
    return boxes[kept], scores[kept], label[kept]


def overlaps(box, boxes):
    """Return the intersections of a box with others over their unions."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return shared / np.maximum(areas - shared, 1e-12)
