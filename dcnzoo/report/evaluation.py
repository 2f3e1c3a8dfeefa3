"""Precision, recall and mistakes of detections, by COCO's rules."""

import contextlib
import dataclasses
import heapq
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.mask import iou

from dcnzoo.detect.detections import Detections
from dcnzoo.detect.metrics import match, numbered

IOU = 0.5  # of boxes that match
MOST_DETECTIONS = 100  # per image, those with the highest scores
THRESHOLDS = np.linspace(0, 1, 101)
MOST_IMAGES = 10  # whose mistakes are shown


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An object without a detection, a detection without an object, or a detection of another class.

    Attributes:
        box: (x1, y1, x2, y2) of the detection, or of the object without one.
        label: the object's class; None if there is no object.
        detected: the detection's class; None if there is no detection.
    """

    box: tuple[float, float, float, float]
    label: int | None
    detected: int | None
    score: float = 1.0

    @property
    def kind(self) -> str:
        if self.detected is None:
            return "missed"
        return "false" if self.label is None else "of another class"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of :func:`evaluate`, for K classes.

    Attributes:
        objects: [K], number of objects that count.
        ap: [K], average precision by COCO's definition; −1 for a class without objects.
        precision: [K, 101], at the recalls 0, 0.01, …, 1; −1 for a class without objects.
        f1, recall: [K, 101], of the detections whose scores are at least :data:`THRESHOLDS`; 0 for a class
            without objects.
        confusion: [K + 1, K + 1]: objects (rows) by the class of the detection that matches (columns). In the
            last column, objects without a detection; in the last row, detections without an object.
        images: their number.
        mistakes: those of the :data:`MOST_IMAGES` images with the most, by the image's index, the most first.
    """

    objects: np.ndarray
    ap: np.ndarray
    precision: np.ndarray
    f1: np.ndarray
    recall: np.ndarray
    confusion: np.ndarray
    images: int
    mistakes: Mapping[int, Sequence[Mistake]]

    @property
    def mean_f1(self) -> np.ndarray:  # [101]
        """The mean over the classes with objects."""
        return self.f1[self.objects > 0].mean(0) if self.objects.any() else np.zeros(len(THRESHOLDS))

    @property
    def best(self) -> int:
        """The index of the threshold with the largest mean F1; of several equal ones, that in the middle."""
        equal = np.flatnonzero(self.mean_f1 >= self.mean_f1.max() - 1e-9)
        return int(equal[len(equal) // 2])


def evaluate(
    truth: Sequence[Sequence[Mapping]], detections: Sequence[Detections], classes: int, threshold: float
) -> Evaluation:
    """Compare the boxes of detections with the ground truth.

    Boxes match from an IoU of :data:`IOU` on, except for ``ap``.

    Args:
        truth: per image, objects with ``bbox`` (x1, y1, x2, y2), ``bbox_label`` and ``ignore_flag``, as in
            MMDetection's data sets.
        detections: per image, with all scores.
        threshold: lowest score of the detections in the confusion matrix and the mistakes.
    """
    objects = [
        _entry(image, each["bbox"], each["bbox_label"], iscrowd=each["ignore_flag"])
        for image, instances in enumerate(truth)
        for each in instances
    ]
    results = [
        _entry(image, box, label, score=float(score))
        for image, result in enumerate(detections)
        for box, label, score in zip(
            result.boxes.tolist(), result.labels.tolist(), result.scores, strict=True
        )
    ]
    annotated = COCO()
    annotated.dataset = {
        "images": [{"id": image} for image in range(len(truth))],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": numbered(objects),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        annotated.createIndex()
    every: dict[str, Any] = {"areaRng": [[0, 1e10]], "areaRngLbl": ["all"]}
    evaluation = match(annotated, results, maxDets=[MOST_DETECTIONS], **every)
    precision = evaluation.eval["precision"][:, :, :, 0, 0].T  # [K, 101, 10]
    by_image: list[tuple[list[dict], list[dict]]] = [([], []) for _ in truth]
    for index, entries in enumerate((objects, results)):
        for entry in entries:
            by_image[entry["image_id"]][index].append(entry)
    counts, f1, recall = _by_threshold(by_image, classes)
    confusion, mistakes = _mistakes(by_image, classes, threshold)
    ap, precision = precision.mean((1, 2)), precision[..., 0]
    return Evaluation(counts, ap, precision, f1, recall, confusion, len(truth), mistakes)


Pair = tuple[dict | None, dict | None]  # an object, and the detection that matches it


def match_boxes(objects: Sequence[dict], results: Sequence[dict]) -> list[Pair]:
    """Match the detections in an image with its objects, those with high scores first, as COCO does.

    Crowds, and the detections that only match crowds, are left out.
    """
    results = sorted(results, key=lambda result: -result["score"])[:MOST_DETECTIONS]
    boxes = [[entry["bbox"] for entry in entries] for entries in (results, objects)]
    overlaps = iou(*boxes, [entry["iscrowd"] for entry in objects]) if all(boxes) else [[]] * len(results)
    free, pairs = {*range(len(objects))}, list[Pair]()
    for result, row in zip(results, overlaps, strict=True):
        likely = [(not objects[i]["iscrowd"], row[i], i) for i in free if len(row) and row[i] >= IOU]
        counts, _, best = max(likely, default=(True, 0, None))
        if counts:
            pairs.append((None if best is None else objects[best], result))
            free.discard(best)
    return pairs + [(objects[i], None) for i in sorted(free) if not objects[i]["iscrowd"]]


def _by_threshold(
    by_image: Sequence[tuple[list[dict], list[dict]]], classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of objects [K], and F1 and recall [K, 101] by the threshold of the scores."""
    objects, correct, false = np.zeros(classes), *np.zeros((2, classes, len(THRESHOLDS)))
    for image in by_image:
        for label in {entry["category_id"] for entries in image for entry in entries}:
            of_class = ([each for each in entries if each["category_id"] == label] for entries in image)
            for entry, result in match_boxes(*of_class):
                objects[label] += entry is not None
                if result is not None:
                    (false if entry is None else correct)[label] += result["score"] >= THRESHOLDS
    positive = objects[:, None].clip(min=1)
    f1 = 2 * correct / (correct + false + positive)
    return objects.astype(int), f1, correct / positive


def _mistakes(
    by_image: Sequence[tuple[list[dict], list[dict]]], classes: int, threshold: float
) -> tuple[np.ndarray, dict[int, list[Mistake]]]:
    confusion = np.zeros((classes + 1, classes + 1), int)

    def mistakes_in(objects: Sequence[dict], results: Sequence[dict]) -> Iterator[Mistake]:
        likely = [result for result in results if result["score"] >= threshold]
        for entry, result in match_boxes(objects, likely):
            label = None if entry is None else entry["category_id"]
            detected = None if result is None else result["category_id"]
            confusion[-1 if label is None else label, -1 if detected is None else detected] += 1
            drawn = result or entry
            if label != detected and drawn:
                x, y, width, height = drawn["bbox"]
                score = result["score"] if result else 1.0
                yield Mistake((x, y, x + width, y + height), label, detected, score)

    images = ((number, [*mistakes_in(*image)]) for number, image in enumerate(by_image))
    worst = heapq.nlargest(MOST_IMAGES, images, key=lambda image: len(image[1]))
    return confusion, {number: mistakes for number, mistakes in worst if mistakes}


def _entry(image: int, box: Sequence[float], label: int, **more: float) -> dict:
    x1, y1, x2, y2 = box
    area = (x2 - x1) * (y2 - y1)
    return {"image_id": image, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, **more}
