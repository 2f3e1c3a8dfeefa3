"""Masks in COCO's format. Requires only numpy, and OpenCV for polygons."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def segmentation_of(
    part: np.ndarray, corner: tuple[int, int], size: tuple[int, int], polygons: bool
) -> dict[str, Any]:
    """Return the area and the segmentation of a mask; an empty mask is always run-length encoded.

    Args:
        part: [h, w], the part of the mask that has the object.
        corner: the row and column of the part in the picture.
        size: height and width of the picture.
    """
    area = float(part.sum())
    if polygons and area:
        return {"area": area, "segmentation": polygons_of(part, corner)}
    code = encode(part, corner, size)
    return {"area": area, "segmentation": {**code, "counts": code["counts"].decode()}}


def encode(part: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """Return the bytes of pycocotools' ``encode`` for a whole mask, from the columns of a part of it."""
    (height, width), (y, x) = size, corner
    columns = np.zeros((part.shape[1], height), np.int8)
    columns[:, y : y + part.shape[0]] = part.T
    ends = np.flatnonzero(np.diff(columns.ravel(), prepend=0, append=0)) + x * height
    counts = np.diff(ends, prepend=0, append=height * width).tolist()
    if counts[-1] == 0 and len(counts) > 1:
        counts.pop()  # the mask ends in the last pixel
    return {"size": [height, width], "counts": _compressed(counts)}


def _compressed(counts: Sequence[int]) -> bytes:
    """Return lengths of runs as COCO's text, from the fourth on as differences to the last but one.

    Each number is written in groups of five bits, the lowest first, as the characters from "0" on. The sixth
    bit says that more follow; the fifth of the last group is the sign.
    """
    text = bytearray()
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while not -16 <= value < 16:
            text.append(48 + (32 | value & 31))
            value >>= 5
        text.append(48 + (value & 31))
    return bytes(text)


def polygons_of(mask: np.ndarray, corner: tuple[int, int] = (0, 0)) -> list[list[float]]:  # [H, W]
    """Return the outlines of a mask, [x1, y1, x2, y2, …], without its holes. Requires OpenCV.

    OpenCV's outlines go through the centres of pixels. On a mask of twice the size, these are within a
    quarter of an original pixel of its border.

    Args:
        corner: the row and column of the mask in the picture.
    """
    import cv2

    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    outlines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = [(outline.reshape(-1, 2) + 0.5) / 2 + corner[::-1] for outline in outlines if len(outline) > 2]
    return [each.ravel().tolist() for each in points]
