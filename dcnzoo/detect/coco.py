"""Masks in COCO's format. Requires pycocotools, and OpenCV for polygons."""

from typing import Any

import numpy as np


def segmentation_of(mask: np.ndarray, polygons: bool) -> dict[str, Any]:  # [H, W]
    """Return the area and the segmentation of a mask; an empty mask is always run-length encoded."""
    from pycocotools.mask import encode

    area = float(mask.sum())
    if polygons and area:
        return {"area": area, "segmentation": polygons_of(mask)}
    code = encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"area": area, "segmentation": {**code, "counts": code["counts"].decode()}}


def polygons_of(mask: np.ndarray) -> list[list[float]]:  # [H, W]
    """Return the outlines of a mask, [x1, y1, x2, y2, …], without its holes. Requires OpenCV.

    OpenCV's outlines go through the centres of pixels. On a mask of twice the size, these are within a
    quarter of an original pixel of its border.
    """
    import cv2

    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    outlines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((outline.reshape(-1) + 0.5) / 2).tolist() for outline in outlines if len(outline) > 2]
