"""Masks of a large picture, each stored as the part of the picture that contains the object.

Requires only numpy, and OpenCV for polygons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np


@dataclass(frozen=True, eq=False)
class Crops:
    """Masks ``[K, H, W]``, without the pixels far from their objects. ``crops[0]`` is a mask of full size.

    Attributes:
        parts: one mask ``[h, w]`` per object, bool.
        corners: the row and column of each part in the picture.
        size: height and width of the picture.
    """

    parts: Sequence[np.ndarray]
    corners: Sequence[tuple[int, int]]
    size: tuple[int, int]

    @classmethod
    def of(cls, masks: np.ndarray | Crops) -> Crops:  # [K, H, W], bool
        if isinstance(masks, Crops):
            return masks
        parts, corners = [], []
        for mask in masks:
            x1, y1, x2, y2 = extent(mask)
            parts.append(mask[y1:y2, x1:x2].copy())  # not a view, which would keep all masks in memory
            corners.append((y1, x1))
        return cls(parts, corners, (masks.shape[1], masks.shape[2]))

    @classmethod
    def joined(
        cls, crops: Sequence[Crops], corners: Sequence[tuple[int, int]], size: tuple[int, int]
    ) -> Crops:
        """Join the masks of pictures that are parts of one of this size, at these rows and columns."""
        moved = [
            (row + y, column + x)
            for each, (row, column) in zip(crops, corners, strict=True)
            for y, x in each.corners
        ]
        return cls([part for each in crops for part in each.parts], moved, size)

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> Crops: ...
    def __getitem__(self, index):
        numbers = np.arange(len(self))[index]
        if numbers.ndim:
            return Crops([self.parts[n] for n in numbers], [self.corners[n] for n in numbers], self.size)
        mask = np.zeros(self.size, bool)
        part, (y, x) = self.parts[int(numbers)], self.corners[int(numbers)]
        mask[y : y + part.shape[0], x : x + part.shape[1]] = part
        return mask

    def whole(self) -> np.ndarray:  # [K, H, W], bool
        masks = np.zeros((len(self), *self.size), bool)
        for number, mask in enumerate(masks):
            mask[:] = self[number]
        return masks

    def boxes(self) -> np.ndarray:  # [K, 4], float32, (x1, y1, x2, y2)
        extents = np.array([extent(part) for part in self.parts]).reshape(-1, 4)
        return (extents + np.tile(np.array(self.corners).reshape(-1, 2)[:, ::-1], 2)).astype(np.float32)

    def segmentation(self, number: int, polygons: bool) -> dict[str, Any]:
        """Return a mask's area and its segmentation in COCO's format; an empty mask has no polygons."""
        part, corner = self.parts[number], self.corners[number]
        area = float(part.sum())
        if polygons and area:
            return {"area": area, "segmentation": polygons_of(part, corner)}
        code = encode(part, corner, self.size)
        return {"area": area, "segmentation": {**code, "counts": code["counts"].decode()}}


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:  # [H, W]
    """Return the corners (x1, y1, x2, y2) of the non-zero pixels; four zeros for an empty mask."""
    ends = [np.flatnonzero(mask.any(axis)) for axis in (0, 1)]
    (x1, x2), (y1, y2) = ((int(used[0]), int(used[-1]) + 1) if used.size else (0, 0) for used in ends)
    return x1, y1, x2, y2


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
