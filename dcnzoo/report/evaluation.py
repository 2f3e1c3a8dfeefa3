"""Average precision and confusion of the classes, by COCO's rules."""

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.mask import iou

from dcnzoo.detect.coco import encode
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.metrics import MOST_DETECTIONS, match, numbered

IOU = 0.5  # of boxes that match


@dataclasses.dataclass(frozen=True)
class ClassResults:
    """The result of :func:`evaluate`, for K classes.

    Attributes:
        objects: [K], number of objects that count.
        ap: [K], average precision of the boxes by COCO's definition; −1 for a class without objects.
        precision: [K, 101], at the recalls 0, 0.01, …, 1; −1 for a class without objects.
        confusion: [K + 1, K + 1]: objects (rows) by the class of the detection that matches (columns). In the
            last column, objects without a detection; in the last row, detections without an object.
        images: number of images.
        mask_ap: [K], as ``ap``, of the masks; None if the truth or the detections have none.
    """

    objects: np.ndarray
    ap: np.ndarray
    precision: np.ndarray
    confusion: np.ndarray
    images: int
    mask_ap: np.ndarray | None = None


def evaluate(
    truth: Sequence[Sequence[Mapping]],
    detections: Sequence[Detections],
    classes: int,
    threshold: float,
    limit: int = MOST_DETECTIONS[-1],
) -> ClassResults:
    """Compare detections with the ground truth.

    Args:
        truth: per image, objects with ``bbox`` (x1, y1, x2, y2), ``bbox_label``, ``ignore_flag`` and perhaps
            ``mask``, as in MMDetection's data sets.
        detections: per image, with all scores.
        threshold: lowest score of the detections in the confusion matrix.
        limit: number of detections per image that count, those with the highest scores.
    """
    objects = [
        [
            _entry(
                image,
                each["bbox"],
                each["bbox_label"],
                iscrowd=each["ignore_flag"],
                segmentation=each.get("mask"),
            )
            for each in instances
        ]
        for image, instances in enumerate(truth)
    ]
    results = [
        [
            _entry(image, box, label, score=score, segmentation=segmentation)
            for box, label, score, segmentation in zip(
                r.boxes.tolist(), r.labels.tolist(), r.scores.tolist(), _segmentations(r), strict=True
            )
        ]
        for image, r in enumerate(detections)
    ]
    annotated = COCO()
    annotated.dataset = {
        "images": [{"id": i, **_size(each)} for i, each in enumerate(detections)],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": numbered(chain(*objects)),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        annotated.createIndex()
    any_size: dict[str, Any] = {"areaRng": [[0, 1e10]], "areaRngLbl": ["all"]}
    precisions = {}  # [K, 101, 10]
    kinds = ["bbox"]
    if all(each["segmentation"] for each in chain(*objects, *results)):
        kinds.append("segm")
    for kind in kinds:
        evaluation = match(annotated, list(chain(*results)), kind, maxDets=[limit], **any_size)
        precisions[kind] = evaluation.eval["precision"][:, :, :, 0, 0].T
    precision, ap = precisions["bbox"], {kind: each.mean((1, 2)) for kind, each in precisions.items()}
    confusion = np.zeros((classes + 1, classes + 1), int)
    for expected, detected in zip(objects, results, strict=True):
        for pair in match_boxes(expected, [each for each in detected if each["score"] >= threshold], limit):
            row, column = (-1 if each is None else each["category_id"] for each in pair)
            confusion[row, column] += 1
    counts = np.bincount(
        [each["category_id"] for image in objects for each in image if not each["iscrowd"]], minlength=classes
    )
    return ClassResults(counts, ap["bbox"], precision[..., 0], confusion, len(truth), ap.get("segm"))


def _segmentations(result: Detections) -> list[dict | None]:
    crops = result.crops
    if crops is None:
        return [None] * len(result)
    rows = zip(crops.parts, crops.corners, strict=True)
    return [encode(part, corner, crops.size) for part, corner in rows]


def _size(result: Detections) -> dict[str, int]:
    height, width = result.crops.size if result.crops else (0, 0)
    return {"height": height, "width": width}


def match_boxes(
    objects: Sequence[dict], results: Sequence[dict], limit: int = MOST_DETECTIONS[-1]
) -> list[tuple[dict | None, dict | None]]:
    """Match the detections in an image with its objects, those with high scores first, as COCO does.

    Crowds, and the detections that only match crowds, are left out.
    """
    results = sorted(results, key=lambda result: -result["score"])[:limit]
    boxes = [[entry["bbox"] for entry in entries] for entries in (results, objects)]
    overlaps = iou(*boxes, [entry["iscrowd"] for entry in objects]) if all(boxes) else [[]] * len(results)
    free, pairs = {*range(len(objects))}, []
    for result, row in zip(results, overlaps, strict=True):
        likely = [(not objects[i]["iscrowd"], row[i], i) for i in free if len(row) and row[i] >= IOU]
        counts, _, best = max(likely, default=(True, 0, None))
        if counts:
            pairs.append((None if best is None else objects[best], result))
            free.discard(best)
    return pairs + [(objects[i], None) for i in sorted(free) if not objects[i]["iscrowd"]]


def _entry(image: int, box: Sequence[float], label: int, **more: Any) -> dict:
    x1, y1, x2, y2 = box
    area = (x2 - x1) * (y2 - y1)
    return {"image_id": image, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, **more}
