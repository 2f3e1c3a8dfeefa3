"""Average precision and confusion of the classes, by COCO's rules."""

import contextlib
import dataclasses
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.mask import iou

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
        errors: [N], of each image: objects without a detection, and detections without an object.
        mask_ap: [K], as ``ap``, of the masks; None if the truth or the detections have none.
    """

    objects: np.ndarray
    ap: np.ndarray
    precision: np.ndarray
    confusion: np.ndarray
    errors: np.ndarray
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
    found: dict[str, Any] = {"images": [], "annotations": []}  # ids from 1
    for image, result in enumerate(detections):
        result.to_coco(found)
        if result.crops is not None:
            found["images"][image] |= zip(("height", "width"), result.crops.size, strict=True)
    objects = [_entry(image, each) for image, instances in enumerate(truth, 1) for each in instances]
    kinds = ["bbox"]
    if all(each.crops is not None for each in detections) and all(each["segmentation"] for each in objects):
        kinds.append("segm")
    annotated = COCO()
    annotated.dataset = {
        "images": found["images"],
        "categories": [{"id": label} for label in range(1, classes + 1)],
        "annotations": numbered(objects),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        annotated.createIndex()
    any_size: dict[str, Any] = {"areaRng": [[0, 1e10]], "areaRngLbl": ["all"]}
    evaluations = [
        match(annotated, found["annotations"], kind, maxDets=[limit], **any_size) for kind in kinds
    ]
    precisions = [each.eval["precision"][:, :, :, 0, 0].T for each in evaluations]  # [K, 101, 10]
    confident, confusion = defaultdict(list), np.zeros((classes + 1, classes + 1), int)
    errors = np.zeros(len(truth), int)
    for each in found["annotations"]:
        if each["score"] >= threshold:
            confident[each["image_id"]].append(each)
    for image in range(1, len(truth) + 1):
        for pair in match_boxes(annotated.imgToAnns[image], confident[image], limit):
            row, column = (-1 if each is None else each["category_id"] - 1 for each in pair)
            confusion[row, column] += 1
            errors[image - 1] += None in pair
    labels = [each["category_id"] - 1 for each in objects if not each["iscrowd"]]
    counts = np.bincount(labels, minlength=classes)
    ap, mask_ap = [*(each.mean((1, 2)) for each in precisions), None][:2]
    return ClassResults(counts, ap, precisions[0][..., 0], confusion, errors, mask_ap)


def most_errors(results: Iterable[ClassResults], number: int = 3) -> dict[int, int]:
    """Return the images with the most errors of all results together, the most first: index → errors."""
    errors = np.sum([result.errors for result in results] or [np.zeros(1, int)], axis=0)
    order = np.argsort(-errors, kind="stable")[:number]
    return {index: int(errors[index]) for index in order.tolist() if errors[index]}


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


def _entry(image: int, instance: Mapping) -> dict:
    x1, y1, x2, y2 = instance["bbox"]
    return {
        "image_id": image,
        "category_id": instance["bbox_label"] + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": instance["ignore_flag"],
        "segmentation": instance.get("mask"),
    }
