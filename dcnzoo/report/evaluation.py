"""Average precision and confusion of the classes, by COCO's rules."""

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcnzoo.detect.detections import Detections
from dcnzoo.detect.metrics import MOST_DETECTIONS, indexed, load_detections, match

IOU = 0.5  # of boxes that match


@dataclasses.dataclass(frozen=True)
class ClassResults:
    """The result of :func:`evaluate`, for K classes.

    Attributes:
        objects: [K], number of objects that count.
        ap: [K], average precision of the boxes by COCO's definition; NaN for a class without objects.
        precision: [K, 101], at the recalls 0, 0.01, …, 1; NaN for a class without objects.
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
    content: dict[str, Any] = {}  # ids from 1
    for result in detections:
        content = result.to_coco(content or None)
        if result.crops is not None:
            content["images"][-1] |= zip(("height", "width"), result.crops.size, strict=True)
    instances = [(image, each) for image, objects in enumerate(truth, 1) for each in objects]
    objects = [_entry(number, *each) for number, each in enumerate(instances, 1)]
    categories = [{"id": label} for label in range(1, classes + 1)]
    annotated = indexed({**content, "categories": categories, "annotations": objects})
    settings: dict[str, Any] = {"maxDets": [limit], "areaRng": [[0, 1e10]], "areaRngLbl": ["all"]}

    kinds = ["bbox"]
    if all(each.crops is not None for each in detections) and all(each["segmentation"] for each in objects):
        kinds.append("segm")
    precision = {}  # kind → [K, 101, 10], at the IoU 0.5, 0.55, …; NaN for a class without objects
    for kind in kinds:
        values = match(annotated, content["annotations"], kind, **settings).eval["precision"]
        precision[kind] = np.where(values < 0, np.nan, values)[:, :, :, 0, 0].T
    ap = {kind: values.mean((1, 2)) for kind, values in precision.items()}

    confident = [each for each in content["annotations"] if each["score"] >= threshold]
    confusion, errors = _confusion(annotated, confident, settings)
    labels = [each["category_id"] - 1 for each in objects if not each["iscrowd"]]
    return ClassResults(
        objects=np.bincount(labels, minlength=classes),
        ap=ap["bbox"],
        precision=precision["bbox"][..., 0],
        confusion=confusion,
        errors=errors,
        mask_ap=ap.get("segm"),
    )


def _confusion(
    truth: COCO, detections: list[dict], settings: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Match boxes of all classes; return ``confusion`` and ``errors`` of :class:`ClassResults`."""
    with contextlib.redirect_stdout(io.StringIO()):
        boxes = COCOeval(truth, load_detections(truth, detections), "bbox")
        vars(boxes.params).update(settings, iouThrs=np.array([IOU]), useCats=0)
        boxes.evaluate()
    # id → row or column; the id 0, no object or no detection, has the last ones
    rows = {0: -1} | {number: each["category_id"] - 1 for number, each in truth.anns.items()}
    columns = {0: -1} | {each["id"]: each["category_id"] - 1 for each in detections}
    confusion = np.zeros((len(truth.cats) + 1, len(truth.cats) + 1), int)
    errors = np.zeros(len(truth.imgs), int)
    for image in filter(None, boxes.evalImgs):
        detected = zip(image["dtMatches"][0], image["dtIds"], image["dtIgnore"][0], strict=True)
        missed = zip(image["gtIds"], image["gtMatches"][0], image["gtIgnore"], strict=True)
        pairs = [(number, detection) for number, detection, ignored in detected if not ignored]
        pairs += [(number, 0) for number, detection, ignored in missed if not (detection or ignored)]
        for number, detection in pairs:
            confusion[rows[number], columns[detection]] += 1
        errors[image["image_id"] - 1] = sum(0 in pair for pair in pairs)
    return confusion, errors


def most_errors(results: Iterable[ClassResults], number: int = 3) -> dict[int, int]:
    """Return the images with the most errors of all results together, the most first: index → errors."""
    errors = np.sum([result.errors for result in results] or [np.zeros(1, int)], axis=0)
    order = np.argsort(-errors, kind="stable")[:number]
    return {index: int(errors[index]) for index in order.tolist() if errors[index]}


def _entry(number: int, image: int, instance: Mapping) -> dict:
    x1, y1, x2, y2 = instance["bbox"]
    return {
        "id": number,
        "image_id": image,
        "category_id": instance["bbox_label"] + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": instance["ignore_flag"],
        "segmentation": instance.get("mask"),
    }
