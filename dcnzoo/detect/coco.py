"""Detections in COCO's format. Masks require pycocotools, and OpenCV for polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dcnzoo.detect.detections import Detections


def description(model: str) -> dict[str, str]:
    """Return the entry ``info`` of a file with the detections of a model."""
    return {"description": f"detections of {model or 'a detector'}"}


def coco_categories(classes: Sequence[str]) -> list[dict]:
    return [{"id": number, "name": name} for number, name in enumerate(classes, 1)]


def coco_entries(
    result: Detections, name: str, images: int, annotations: int, polygons: bool = False
) -> tuple[dict, list[dict]]:
    """Return the image of a result and its annotations; the numbers count earlier ones."""
    image: dict[str, Any] = {"id": images + 1, "file_name": name}
    if result.image is not None:
        image |= {"width": result.image.shape[1], "height": result.image.shape[0]}
    entries = []
    rows = zip(result.boxes.tolist(), result.labels.tolist(), result.scores.tolist(), strict=True)
    for i, ((x1, y1, x2, y2), label, score) in enumerate(rows):
        entry = {"id": annotations + i + 1, "image_id": images + 1, "category_id": label + 1}
        entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        if result.crops is not None:
            entry |= _segmentation(result.crops[i], polygons)
        entries.append({**entry, "iscrowd": 0, "score": score})
    return image, entries


def _segmentation(mask: np.ndarray, polygons: bool) -> dict[str, Any]:
    """Return the area and the segmentation of a mask; without pixels, it stays in run-length encoding."""
    from pycocotools.mask import encode

    outlines = polygons_of(mask) if polygons and mask.any() else None
    if outlines:
        return {"area": float(mask.sum()), "segmentation": outlines}
    code = encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"area": float(mask.sum()), "segmentation": {**code, "counts": code["counts"].decode()}}


def polygons_of(mask: np.ndarray) -> list[list[float]]:  # [H, W]
    """Return the outlines of a mask, [x1, y1, x2, y2, …], without its holes. Requires OpenCV.

    OpenCV's outlines go through the centres of pixels. Those of the doubled mask are within a quarter of a
    pixel of its border.
    """
    import cv2

    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    outlines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((outline.reshape(-1) + 0.5) / 2).tolist() for outline in outlines if len(outline) > 2]
