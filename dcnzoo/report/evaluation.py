"""Precision and confusion of detections, from the arrays of pycocotools' evaluation."""

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcnzoo.detect.detections import Detections

IOU = 0.5  # of boxes that match


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of :func:`evaluate`, for K classes.

    Attributes:
        images: number of images.
        precision: [K, 101], at the recalls 0, 0.01, …, 1; −1 for a class without objects.
        confusion: [K + 1, K + 1]: objects (rows) by the class of the detection that matches (columns). In the
            last column, objects without a detection; in the last row, detections without an object.
    """

    images: int
    precision: np.ndarray
    confusion: np.ndarray


def evaluate(
    truth: Sequence[Sequence[Mapping]], detections: Sequence[Detections], classes: int, threshold: float
) -> Evaluation:
    """Compare the boxes of detections with the ground truth.

    Args:
        truth: per image, objects with ``bbox`` (x1, y1, x2, y2), ``bbox_label`` and ``ignore_flag``, as in
            MMDetection's data sets.
        detections: per image, with all scores.
        threshold: lowest score of the detections in the confusion matrix.
    """
    objects = [
        _entry(image, each["bbox"], each["bbox_label"], iscrowd=each["ignore_flag"])
        for image, instances in enumerate(truth)
        for each in instances
    ]
    results = [
        _entry(image, box, label, score=float(score))
        for image, found in enumerate(detections)
        for box, label, score in zip(found.boxes.tolist(), found.labels.tolist(), found.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluation(objects, results, len(truth), classes)
        evaluation.accumulate()
        likely = [result for result in results if result["score"] >= threshold]
        matches = _evaluation(objects, likely, len(truth), classes, useCats=0)
    labels, found_labels = (  # by id; id 0 is no match: the last row
        np.array([-1, *(each["category_id"] for each in entries)]) for entries in (objects, likely)
    )
    confusion = np.zeros((classes + 1, classes + 1), int)
    for image in filter(None, matches.evalImgs):
        pairs = labels[image["dtMatches"][0].astype(int)], found_labels[image["dtIds"]]
        counted = image["dtIgnore"][0] == 0
        np.add.at(confusion, (pairs[0][counted], pairs[1][counted]), 1)
        missed = (image["gtMatches"][0] == 0) & (image["gtIgnore"] == 0)
        np.add.at(confusion, (labels[image["gtIds"]][missed], -1), 1)
    return Evaluation(len(truth), evaluation.eval["precision"][0, :, :, 0, 0].T, confusion)


def _entry(image: int, box: Sequence[float], label: int, **more: float) -> dict:
    x1, y1, x2, y2 = box
    area = (x2 - x1) * (y2 - y1)
    return {"image_id": image, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, **more}


def _evaluation(
    objects: list[dict], results: list[dict], images: int, classes: int, **options: int
) -> COCOeval:
    both = COCO(), COCO()
    for coco, entries in zip(both, (objects, results), strict=True):
        for number, entry in enumerate(entries, 1):  # pycocotools takes 0 for no match
            entry["id"] = number
        coco.dataset = {
            "images": [{"id": image} for image in range(images)],
            "categories": [{"id": label} for label in range(classes)],
            "annotations": entries,
        }
        coco.createIndex()
    evaluation = COCOeval(*both, "bbox")
    parameters = evaluation.params
    parameters.iouThrs, parameters.maxDets = np.array([IOU]), [100]
    parameters.areaRng, parameters.areaRngLbl = [[0, 1e10]], ["all"]
    vars(parameters).update(options)
    evaluation.evaluate()
    return evaluation
