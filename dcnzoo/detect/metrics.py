"""Average precision by COCO's definition. Requires pycocotools."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import area

from dcnzoo.detect.detections import Detections

MOST_DETECTIONS = [100, 300, 1000]  # per image, as in MMDetection; the first is that of AP
METRICS = ("AP", "AP50", "AP75", "AP, small", "AP, medium", "AP, large")  # COCOeval.stats[:6]


def read_coco(file: str | os.PathLike, classes: Iterable[str]) -> COCO:
    """Read a COCO file whose categories are classes of a detector.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not a COCO file, or has a category that is not a class.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(file))
            replace_id_0(truth.dataset["annotations"])
            truth.createIndex()
        names = [category["name"] for category in truth.dataset["categories"]]
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"annotations: expected a COCO file, got {file}: {error!r}") from error
    if unknown := sorted(set(names) - set(classes)):
        known = ", ".join(classes) or "none (the detector has no names)"
        raise ValueError(f"annotations: {file}: expected categories among {known}; got {', '.join(unknown)}")
    return truth


def replace_id_0(annotations: list[dict]) -> None:
    """Give an annotation with the id 0 a free one: pycocotools' evaluation never matches it."""
    for annotation in annotations:
        if annotation["id"] == 0:
            annotation["id"] = 1 + max(each["id"] for each in annotations)


def evaluate(truth: COCO, results: Iterable[Detections]) -> dict[str, float]:
    """Compare the detections in the images of a COCO file, in the order of its ids, with its objects."""
    content: dict | None = None
    has_masks = False
    for result in results:
        content = result.to_coco(content)
        has_masks |= result.crops is not None
    if content is None:
        raise ValueError("annotations: expected a COCO file with images, got none")
    images = dict(enumerate(sorted(truth.imgs), 1))
    numbers = {category["name"]: number for number, category in truth.cats.items()}
    categories = {each["id"]: numbers.get(each["name"]) for each in content["categories"]}
    objects = [
        {
            **each,
            "image_id": images[each["image_id"]],
            "category_id": categories[each["category_id"]],
            "area": each["bbox"][2] * each["bbox"][3],
            "iscrowd": 0,
        }
        for each in content["annotations"]
        if categories[each["category_id"]] is not None
    ]
    metrics = _metrics(truth, objects, "bbox", "box")
    if has_masks and any(each.get("segmentation") for each in truth.anns.values()):
        objects = [{**each, "area": area(each["segmentation"])} for each in objects]
        metrics |= _metrics(truth, objects, "segm", "mask")
    return metrics


def _metrics(truth: COCO, objects: list[dict], kind: str, name: str) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO()
        found.dataset = {**truth.dataset, "annotations": objects}
        found.createIndex()
        evaluation = COCOeval(truth, found, kind)
        evaluation.params.maxDets = MOST_DETECTIONS
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = zip(METRICS, evaluation.stats.tolist(), strict=False)
    return {f"{name} {metric}": value for metric, value in values if value >= 0}  # -1: no object of this size
