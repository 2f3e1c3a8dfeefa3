"""Masks of a large picture, each stored as the part of the picture that contains the object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

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


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:  # [H, W]
    """Return the corners (x1, y1, x2, y2) of the non-zero pixels; four zeros for an empty mask."""
    ends = [np.flatnonzero(mask.any(axis)) for axis in (0, 1)]
    (x1, x2), (y1, y2) = ((int(used[0]), int(used[-1]) + 1) if used.size else (0, 0) for used in ends)
    return x1, y1, x2, y2
