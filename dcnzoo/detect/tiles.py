"""Tiles of a large picture, and the detections in all of them. Requires only numpy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dcnzoo.detect.crops import Crops
from dcnzoo.detect.detections import Detections, iou, shared_areas

Window = tuple[slice, slice]  # rows, columns
IOU = 0.5  # two boxes of a class with a larger IoU count as the same object
SHARE = 0.7  # a piece of an object has more than this share of its area in the whole object's box


def windows(size: tuple[int, int], tile: int) -> list[Window]:
    """Cover a picture of this height and width with tiles that overlap by at least a quarter of a side."""
    rows, columns = (_parts(extent, tile) for extent in size)
    return [(row, column) for row in rows for column in columns]


def _parts(extent: int, tile: int) -> list[slice]:
    if extent <= tile:
        return [slice(0, extent)]
    overlap = tile // 4
    number = -(-(extent - overlap) // (tile - overlap))
    starts = np.linspace(0, extent - tile, number).astype(int)
    return [slice(start, start + tile) for start in starts.tolist()]


def merge(tiles: Sequence[Detections], places: Sequence[Window], size: tuple[int, int]) -> Detections:
    """Merge the detections of a picture's tiles.

    First, apply non-maximum suppression by class, with the objects that a tile cuts ranked last. Then drop
    the pieces of objects that are complete in another tile.

    Args:
        places: the rows and columns of each tile in the picture.
        size: height and width of the picture.
    """
    corners = [(row.start, column.start) for row, column in places]
    boxes = np.concatenate(
        [tile.boxes + np.array([x, y, x, y], np.float32) for tile, (y, x) in zip(tiles, corners, strict=True)]
    )
    scores = np.concatenate([tile.scores for tile in tiles])
    labels = np.concatenate([tile.labels for tile in tiles])
    cut = np.concatenate(
        [_is_cut(tile.boxes, place, size) for tile, place in zip(tiles, places, strict=True)]
    )
    # each class is moved to its own place, so that objects of different classes do not overlap
    apart = boxes.astype(np.float64) + labels[:, None] * 2.0 * max(size)
    index = _suppress(apart, scores.astype(np.float64) - cut)
    index = np.delete(index, _pieces(apart[index], np.flatnonzero(cut[index])))
    crops = [tile.crops for tile in tiles if tile.crops is not None]
    masks: Any = Crops.joined(crops, corners, size) if len(crops) == len(tiles) else None
    return Detections(boxes, scores, labels, masks)[index]


def _suppress(boxes: np.ndarray, ranks: np.ndarray) -> np.ndarray:  # [K, 4], [K]
    """Return the indices that remain after non-maximum suppression, the highest ranks first."""
    remaining, order = [], np.argsort(-ranks, kind="stable")
    while len(order):
        first, order = order[0], order[1:]
        remaining.append(first)
        order = order[iou(boxes[[first]], boxes[order])[0] <= IOU]
    return np.array(remaining, int)


def _is_cut(boxes: np.ndarray, place: Window, size: tuple[int, int]) -> np.ndarray:
    """Return whether each box ends at an edge of its tile that is not an edge of the picture, [K]."""
    cut = np.zeros(len(boxes), bool)
    for axis, (part, extent) in enumerate(zip(place, size, strict=True)):
        if part.start > 0:
            cut |= boxes[:, 1 - axis] < 2
        if part.stop < extent:
            cut |= boxes[:, 3 - axis] > part.stop - part.start - 2
    return cut


def _pieces(boxes: np.ndarray, cut: np.ndarray) -> list[int]:
    """Return the indices in ``cut`` [M] whose box is mostly inside a larger one of ``boxes`` [K, 4]."""
    areas, pieces = (boxes[:, 2:] - boxes[:, :2]).prod(-1), []
    for number in cut.tolist():  # one by one: a matrix of all pairs takes gigabytes
        area, shared = areas[number], shared_areas(boxes[[number]], boxes)[0]
        if ((shared > SHARE * area) & (areas > area)).any():
            pieces.append(number)
    return pieces
