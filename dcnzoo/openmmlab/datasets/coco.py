"""MMDetection's COCO data set with checks of the annotation file.

MMDetection silently skips annotations that it cannot use: inverted boxes, categories that the config
does not name, even every annotation of a file. Training then runs with less data or none. The checks
are those of ``dcnzoo data check``.
"""

import contextlib
import functools
import io
import logging
import os
from collections.abc import Collection, Sequence
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import coco
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import coco_metric
from mmdet.registry import DATASETS
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_local_path, load
from mmengine.logging import MMLogger, print_log

from dcnzoo.compat.patches import Changes
from dcnzoo.data.check import problems_of, read_coco, wrong_with_classes
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.shapes import CLASSES, PALETTE, ShapesSpec, make_shapes
from dcnzoo.detect.metrics import Evaluation, replace_id_0
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.text import few, short


class CheckedCOCO(COCO):
    """MMDetection's ``COCO`` with a check of the file: an error stops, other problems are one warning.

    Args:
        annotation_file: JSON in UTF-8 or UTF-16, with or without a byte order mark.
        masks: the masks are used. Otherwise, problems with masks are ignored.
        compared: pycocotools compares the masks, so every annotation must have one.
        quiet: no warning.

    Raises:
        UserError: the file does not exist or has a problem that makes training impossible; or its
            categories are not the requested ones in the requested order.
    """

    def __init__(
        self, annotation_file: str, masks: bool = False, compared: bool = False, quiet: bool = False
    ) -> None:
        self.file = annotation_file
        if not os.path.isfile(annotation_file):
            raise UserError(f"ann_file: expected a file, found none at {annotation_file}")
        super().__init__()
        try:
            self.dataset = read_coco(annotation_file)
        except InvalidAnnotation as error:
            raise UserError(f"{annotation_file}: {error}") from None
        annotations = self.dataset["annotations"]
        problems = [*problems_of(self.dataset, masks and not compared)]
        if stops := [problem for problem in problems if problem.stops and (annotations or problem.text)]:
            more = (
                f" and {len(stops) - 1} more: `dcnzoo data check {self.file}` lists them" if stops[1:] else ""
            )
            raise UserError(f"{self.file}: {stops[0]}{more}")
        if compared:
            self._require_masks()
        if problems and not quiet:
            _log(
                f"{self.file}: {len(problems)} of {len(annotations)} annotations are skipped, the first: {problems[0]}"
            )
        for annotation in annotations:
            annotation.setdefault("iscrowd", 0)  # pycocotools' evaluation requires it
        replace_id_0(annotations)
        with contextlib.redirect_stdout(io.StringIO()):  # "creating index..."
            self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def _require_masks(self) -> None:
        for annotation in self.dataset["annotations"]:
            mask = annotation.get("segmentation")
            # pycocotools treats a polygon of two points as a box
            if not mask or (isinstance(mask, list) and min(map(len, mask)) < 6):
                raise UserError(
                    f"{self.file}: annotation {annotation['id']}: segmentation: expected a mask, which the "
                    f"metric segm requires, got {short(mask)}"
                )

    def get_cat_ids(self, cat_names: Sequence[str] = (), *args: object, **kwargs: object) -> list[int]:
        names = [category["name"] for category in self.dataset["categories"]]
        _require_classes(self.file, names, cat_names)
        return super().get_cat_ids(cat_names, *args, **kwargs)


def _require_classes(file: str, names: Sequence[str], classes: Sequence[str]) -> None:
    if classes and (problem := wrong_with_classes(names, classes)):
        raise UserError(f"{file}: categories: {problem}, as in metainfo")


def _log(text: str, level: int = logging.WARNING) -> None:
    print_log(printable(text), logger="current", level=level)


class CocoMetric(coco_metric.CocoMetric):
    """Replaces MMDetection's ``CocoMetric`` in the registry; reads its file by :class:`CheckedCOCO`.

    With ``sort_categories``, MMDetection's own reader is used.

    Attributes:
        class_aps: the AP of each class, of the last of ``metrics``, after an evaluation.
    """

    class_aps: dict[str, float] = {}
    classwise: bool

    def __init__(self, ann_file: str | None = None, *args: object, **kwargs: object) -> None:
        checked = ann_file is not None and not kwargs.get("sort_categories")
        super().__init__(None if checked else ann_file, *args, **kwargs)
        if checked:
            masks = "segm" in self.metrics
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                # quiet: the data set has already warned about this file
                self._coco_api = CheckedCOCO(path, masks, compared=masks and not self.format_only, quiet=True)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Evaluate; the lines that pycocotools prints go to the log. Without any detection, each AP is 0."""
        requested, self.classwise = self.classwise, True
        with Changes() as changes, contextlib.redirect_stdout(io.StringIO()) as printed:
            changes.set(coco_metric, "COCOeval", Evaluation)
            changes.set(
                coco_metric, "load", lambda results: results if isinstance(results, list) else load(results)
            )
            metrics = super().compute_metrics(results)
        self.classwise = requested
        if not (metrics or self.format_only):  # mmdet returns none
            metrics = {f"{kind}_mAP{end}": 0.0 for kind in self.metrics for end in ("", "_50", "_75")}
        MMLogger.get_current_instance().info(printed.getvalue())
        keys = {f"{name}_precision": name for name in (self.dataset_meta or {}).get("classes", ())}
        self.class_aps = {name: metrics[key] for key, name in keys.items() if key in metrics}
        return {key: value for key, value in metrics.items() if requested or key not in keys}

    def results2json(self, results: Sequence[dict[str, Any]], outfile_prefix: str) -> dict[str, Any]:
        """Convert the results to COCO's format; write them to files only if the config asks for files."""
        if self.outfile_prefix is not None:
            return super().results2json(results, outfile_prefix)
        entries: dict[str, list[dict[str, Any]]] = {"bbox": []}
        if "masks" in results[0]:
            entries["segm"] = []
        for number, result in enumerate(results):
            image, boxes = result.get("img_id", number), result["bboxes"].astype(float)
            boxes[:, 2:] -= boxes[:, :2]
            labels = [self.cat_ids[label] for label in result["labels"]]
            for kind, scores in zip(entries, ("scores", "mask_scores"), strict=False):
                values = result.get(scores, result["scores"]).tolist()
                objects: list[dict[str, Any]] = [
                    {"image_id": image, "bbox": box, "score": score, "category_id": label}
                    for box, score, label in zip(boxes.tolist(), values, labels, strict=True)
                ]
                if kind == "segm":
                    for entry, mask in zip(objects, result["masks"], strict=True):
                        entry["segmentation"] = mask
                entries[kind] += objects
        return {**entries, "proposal": entries["bbox"]}


class CocoDataset(coco.CocoDataset):
    """Replaces MMDetection's ``CocoDataset`` in the registry and checks the annotation file.

    Raises:
        UserError: see :class:`CheckedCOCO`; or the first image does not exist; or no image is left after
            filtering.
    """

    COCOAPI: Any = CheckedCOCO  # or a partial of it
    _masks = False  # whether the pipeline loads masks

    def load_data_list(self) -> list[dict[str, Any]]:
        self._masks = any(getattr(transform, "with_mask", False) for transform in self.pipeline.transforms)
        if self.COCOAPI is CheckedCOCO:
            self.COCOAPI = functools.partial(CheckedCOCO, masks=self._masks)
        images = super().load_data_list()
        self.__dict__.pop("COCOAPI", None)  # with the annotations
        objects = (each for image in images for each in image["instances"] if not each["ignore_flag"])
        self._warn_without_objects({each["bbox_label"] for each in objects})
        if self._masks:
            self._warn_without_mask(*map(sum, zip(*map(_ignore_without_mask, images), strict=True)))
        first = images[0]["img_path"]
        is_local = "://" not in first and self.backend_args is None and _loads_files(self.pipeline.transforms)
        if is_local and not os.path.isfile(first):
            raise UserError(
                f"data_prefix: expected the images of {self.ann_file}, the first at {first}, found none; "
                "data=FOLDER names the new folder of a training's data"
            )
        return images

    def _copy_without_annotation(self, memo: dict[str, Any] | None = None) -> "CocoDataset":
        """Copy with a new ``memo``. mmengine's default keeps entries of deleted objects, whose ids recur."""
        return super()._copy_without_annotation({} if memo is None else memo)

    def _warn_without_mask(self, without: int, total: int) -> None:
        if without:
            _log(f"{self.ann_file}: {without} of {total} objects without a segmentation are ignored")

    def _warn_without_objects(self, labels: Collection[int]) -> None:
        """Warn of classes without an object to train on.

        Args:
            labels: of the objects that are not ignored.
        """
        names = [name for label, name in enumerate(self.metainfo["classes"]) if label not in labels]
        if names and not self.test_mode:
            _log(f"{self.ann_file}: expected objects of each class to train on, got none of {few(names)}")

    def filter_data(self) -> list[dict[str, Any]]:
        left = super().filter_data()
        total = len(self.data_list)
        if 0 < len(left) < total:
            skipped = f"{self.ann_file}: {total - len(left)} of {total} images are skipped"
            why = f"without an annotation or too small (filter_cfg={dict(self.filter_cfg)})"
            _log(f"{skipped}: {why}", logging.INFO)
        if not left:
            raise UserError(
                f"{self.ann_file}: expected at least 1 image to train on, got 0 of {total}: "
                f"all are without an annotation or too small (filter_cfg={dict(self.filter_cfg)})"
            )
        return left


def _loads_files(transforms: Sequence[Any]) -> bool:
    """Whether a pipeline reads pictures as files, by mmcv's loader and without another back end."""
    loader = next(iter(transforms), None)
    if loader is None:
        return True
    usual = getattr(type(loader), "transform", None) is LoadImageFromFile.transform
    return usual and loader.backend_args is loader.file_client_args is None


def _ignore_without_mask(image: dict[str, Any]) -> tuple[int, int]:
    """Mark objects without a mask as ignored, as MMDetection does for polygons without an area.

    Without this, an object without ``segmentation`` raises ``KeyError: 'mask'`` when its image is loaded.

    Returns:
        The numbers of these objects and of all.
    """
    without = [instance for instance in image["instances"] if "mask" not in instance]
    for instance in without:
        instance.update(mask=[], ignore_flag=1)
    return len(without), len(image["instances"])


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """The generated shapes (see :mod:`dcnzoo.data.shapes`) as a COCO data set.

    ``shapes`` contains the fields of :class:`ShapesSpec`. If given, the data set is generated in
    ``data_root`` before it is first read, unless it is there already. Without it, existing files are read.
    """

    METAINFO = {"classes": CLASSES, "palette": PALETTE}

    def __init__(self, *args, shapes: dict[str, Any] | None = None, **kwargs) -> None:
        self.shapes = shapes
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        if self.shapes is not None:
            if is_main_process():
                make_shapes(self.data_root, ShapesSpec(**self.shapes))
            barrier()
        return super().load_data_list()
