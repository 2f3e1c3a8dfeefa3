"""Average precision by COCO's definition. Requires pycocotools and msgspec."""

import contextlib
import io
import os
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import area

from dcnzoo.data.check import CocoTruth, read_truth
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.metric_names import METRICS, UNDEFINED, named
from dcnzoo.utils.errors import note

try:
    from faster_coco_eval import COCOeval_faster as COCOevalBase
except ImportError:  # no wheel for this platform
    COCOevalBase = COCOeval

MOST_DETECTIONS = [100, 300, 1000]  # limits per image, as in MMDetection; AP uses the last one
PAIRS = 200_000  # images × categories that are evaluated at once; each takes about 1 kB


class Evaluation(COCOevalBase):
    """pycocotools' evaluation in C++: the same numbers, several times as fast, without ``evalImgs``.

    Every AP is computed with the largest of ``params.maxDets``. pycocotools does so for AP50 and the others,
    but computes AP itself with 100; if ``params.maxDets`` has no 100, it returns −1.
    """

    params: Any
    eval: dict[str, Any]
    stats: np.ndarray

    def evaluate(self) -> None:
        """Evaluate and accumulate, some categories at a time: all of LVIS' would take gigabytes."""
        images, self.params.iouThrs = len(self.params.imgIds), np.atleast_1d(self.params.iouThrs)
        categories = np.unique(self.params.catIds).tolist() if self.params.useCats else self.params.catIds
        step = max(1, PAIRS // max(1, images)) if self.params.useCats else len(categories)
        parts = []
        for start in range(0, len(categories), step):
            self.params.catIds = categories[start : start + step]
            super().evaluate()
            super().accumulate()
            parts.append(self.eval)
        self.params.catIds = categories
        axes = {"precision": 2, "scores": 2, "recall": 1}
        together = {key: np.concatenate([part[key] for part in parts], axis) for key, axis in axes.items()}
        self.eval = {**parts[0], **together}

    def accumulate(self) -> None:
        """Do nothing: :meth:`evaluate` has accumulated."""

    def per_class(self) -> list[tuple[float, float]]:
        """Return AP and AP50 of each category, in the order of ``params.catIds``.

        NaN: there are no objects or, for AP50, no threshold of 0.5.
        """
        precision = self.eval["precision"][:, :, :, 0, -1].transpose(2, 0, 1)  # [K, thresholds, 101]
        at_50 = np.isclose(self.params.iouThrs, 0.5)
        values = [(of_class.mean(), of_class[at_50].mean() if any(at_50) else -1) for of_class in precision]
        return [(np.nan if ap < 0 else ap, np.nan if ap_50 < 0 else ap_50) for ap, ap_50 in values]

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


class Truth(COCO):
    """The objects of a COCO file without problems, for pycocotools' evaluation."""

    def __init__(self, source: CocoTruth) -> None:
        super().__init__()
        self.source = source
        annotations = [*map(msgspec.json.Decoder().decode, source.content.annotations)]
        for number, each in enumerate(annotations, 1):  # pycocotools takes the id 0 for no match
            each.update(id=number, iscrowd=int(each.get("iscrowd") or 0))
        self.dataset = {
            "images": [*map(msgspec.structs.asdict, source.images)],
            "categories": [*map(msgspec.structs.asdict, source.categories)],
            "annotations": annotations,
        }
        with contextlib.redirect_stdout(io.StringIO()):  # "creating index..."
            self.createIndex()


def read_coco(file: str | os.PathLike, classes: Iterable[str]) -> Truth:
    """Read a COCO file whose categories are classes of a detector.

    Standard error names annotations that are used in another way than the others.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it has problems, which :func:`dcnzoo.data.check.judge` names, or a category that is not a
            class.
    """
    source = _usable(file)
    names = [str(category.name) for category in source.categories]
    if unknown := sorted(set(names) - set(classes)):
        known = ", ".join(classes) or "none (the detector has no names)"
        raise ValueError(f"annotations: {file}: expected categories among {known}; got {', '.join(unknown)}")
    for line in source.notes():
        note(f"{file}: {line}")
    return Truth(source)


def _usable(file: str | os.PathLike, masks: bool = False) -> CocoTruth:
    try:
        return read_truth(file, masks).require_usable(compared=masks)
    except InvalidAnnotation as error:
        raise ValueError(f"annotations: {file}: {error}") from None


def evaluate(truth: Truth, results: Iterable[Detections]) -> dict[str, float]:
    """Compare results, one for each image in the order of the ids, with the objects of a COCO file.

    Raises:
        ValueError: masks are compared, and those of the file have problems.
    """
    content: dict[str, Any] | None = None
    kinds, has_masks = ["bbox"], any(each.get("segmentation") for each in truth.anns.values())
    for result in results:
        if has_masks and result.crops is not None and len(kinds) == 1:
            kinds.append("segm")
            _usable(truth.source.content.file, masks=True)
        content = result.to_coco(content)
    if content is None:
        raise ValueError("annotations: expected a COCO file with images, got none")
    images = dict(enumerate(sorted(truth.imgs), 1))
    numbers = {category["name"]: number for number, category in truth.cats.items()}
    categories = {each["id"]: numbers.get(each["name"]) for each in content["categories"]}
    objects = [each for each in content["annotations"] if categories[each["category_id"]] is not None]
    for each in objects:
        each.update(image_id=images[each["image_id"]], category_id=categories[each["category_id"]])
    metrics = dict[str, float]()
    for kind in kinds:
        evaluation = match(truth, objects, kind, maxDets=MOST_DETECTIONS)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.summarize()
        metrics |= {
            f"{kind}_{end}": value for end, value in zip(METRICS, evaluation.stats.tolist(), strict=False)
        }
        for each in objects:
            each.pop("bbox", None)  # else, the area of the mask would be that of the box
    return named(metrics)


def indexed(dataset: dict[str, Any]) -> COCO:
    """Return the content of a COCO file as pycocotools loads it."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):  # "creating index..."
        coco.createIndex()
    return coco


def load_detections(truth: COCO, objects: list[dict]) -> COCO:
    """Return detections as ``COCO.loadRes`` does, also if there are none.

    Args:
        objects: in COCO's format. They get ids, and areas: of their boxes or, without boxes, masks.
    """
    for number, each in enumerate(objects, 1):
        box = each.get("bbox")
        each.update(id=number, iscrowd=0, area=box[2] * box[3] if box else area(each["segmentation"]))
    return indexed({**truth.dataset, "annotations": objects})


def match(truth: COCO, objects: list[dict], kind: str = "bbox", **parameters: object) -> Evaluation:
    """Match detections in COCO's format with a COCO file's objects; ``parameters``: ``COCOeval.params``."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = Evaluation(truth, load_detections(truth, objects), kind)
        for name, value in parameters.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation
