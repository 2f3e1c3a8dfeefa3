"""Average precision by COCO's definition, and the names of its metrics. Requires pycocotools."""

import contextlib
import io
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import area

from dcnzoo.detect.detections import Detections
from dcnzoo.utils.text import few

try:
    from faster_coco_eval import COCOeval_faster as COCOevalBase
except ImportError:  # no wheel for this platform
    COCOevalBase = COCOeval

MOST_DETECTIONS = [100, 300, 1000]  # limits per image, as in MMDetection; AP uses the last one
KINDS = {"bbox": "box", "segm": "mask", "proposal": "proposal"}
METRICS = {  # end of the key of MMDetection's CocoMetric → name, in the order of COCOeval.stats
    **{"mAP": "AP", "mAP_50": "AP50", "mAP_75": "AP75"},
    **{"mAP_s": "AP, small", "mAP_m": "AP, medium", "mAP_l": "AP, large"},
}
NAMES = {f"{kind}_{end}": f"{KINDS[kind]} {METRICS[end]}" for kind in KINDS for end in METRICS}
UNDEFINED = -1.0  # an AP without objects


class Evaluation(COCOevalBase):
    """pycocotools' evaluation in C++: the same numbers, several times as fast, without ``evalImgs``.

    Every AP is computed with the largest of ``params.maxDets``. pycocotools does so for AP50 and the others,
    but computes AP itself with 100; if ``params.maxDets`` has no 100, it returns −1.
    """

    params: Any
    eval: dict[str, Any]
    stats: np.ndarray

    def summarize(self) -> None:
        """Set ``stats`` and print them, as pycocotools does."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            COCOeval.summarize(self)
        precision = self.eval["precision"][:, :, :, 0, -1]  # of all sizes
        valid = precision[precision > -1]
        self.stats[0] = valid.mean() if valid.size else UNDEFINED
        limit, (first, *others) = self.params.maxDets[-1], printed.getvalue().splitlines()
        head, _, _ = first.partition("maxDets=")
        print(f"{head}maxDets={limit:>3d} ] = {self.stats[0]:0.3f}", *others, sep="\n")


def metric_name(key: str) -> str:
    """Return the name of a metric: box AP50 for ``coco/bbox_mAP_50``; others are unchanged."""
    return NAMES.get(key.rpartition("/")[2], key)


def is_undefined(key: str, value: object) -> bool:
    """Whether the value of a CocoMetric key, such as ``coco/bbox_mAP``, means that there are no objects."""
    return metric_name(key) != key and value == UNDEFINED


def read_coco(file: str | os.PathLike, classes: Iterable[str]) -> COCO:
    """Read a COCO file whose categories are classes of a detector.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not a COCO file, has an id or category twice, which pycocotools counts wrongly
            without a warning, or has a category that is not a class.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(file))
            replace_id_0(truth.dataset["annotations"])
            truth.createIndex()
        names = [category["name"] for category in truth.dataset["categories"]]
        ids = {
            key: [each["id"] for each in truth.dataset[key]]
            for key in ("images", "annotations", "categories")
        }
        for key, values in {**ids, "names of categories": names}.items():
            if repeated := [value for value, number in Counter(values).items() if number > 1]:
                raise ValueError(f"{key}: expected each once, got {few(repeated)} again")
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        details = f"{error}; `dcnzoo data check {file}` lists all problems"
        raise ValueError(f"annotations: expected a COCO file, got {file}: {details}") from error
    if unknown := sorted(set(names) - set(classes)):
        known = ", ".join(classes) or "none (the detector has no names)"
        raise ValueError(f"annotations: {file}: expected categories among {known}; got {', '.join(unknown)}")
    return truth


def replace_id_0(annotations: list[dict]) -> None:
    """Replace the id 0 of an annotation by a free id: pycocotools' evaluation never matches the id 0."""
    if zeros := [annotation for annotation in annotations if annotation["id"] == 0]:
        free = 1 + max(annotation["id"] for annotation in annotations)
        for number, annotation in enumerate(zeros, free):
            annotation["id"] = number


def evaluate(truth: COCO, results: Iterable[Detections]) -> dict[str, float]:
    """Compare results, one for each image in the order of the ids, with the objects of a COCO file."""
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
    metrics = _metrics(truth, objects, "bbox")
    if has_masks and any(each.get("segmentation") for each in truth.anns.values()):
        objects = [{**each, "area": area(each["segmentation"])} for each in objects]
        metrics |= _metrics(truth, objects, "segm")
    return metrics


def _metrics(truth: COCO, objects: list[dict], kind: str) -> dict[str, float]:
    evaluation = match(truth, objects, kind, maxDets=MOST_DETECTIONS)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    values = zip(METRICS.values(), evaluation.stats.tolist(), strict=False)
    # UNDEFINED: there is no object of this size
    return {f"{KINDS[kind]} {metric}": value for metric, value in values if value != UNDEFINED}


def numbered(annotations: Iterable[dict]) -> list[dict]:
    """Give annotations ids from 1: pycocotools takes 0 for no match."""
    return [{**each, "id": number} for number, each in enumerate(annotations, 1)]


def match(truth: COCO, objects: list[dict], kind: str = "bbox", **parameters: object) -> Evaluation:
    """Match detections in COCO's format with a COCO file's objects; ``parameters``: ``COCOeval.params``."""
    with contextlib.redirect_stdout(io.StringIO()):
        detected = COCO()
        detected.dataset = {**truth.dataset, "annotations": numbered(objects)}
        detected.createIndex()
        evaluation = Evaluation(truth, detected, kind)
        for name, value in parameters.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation
