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
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import coco
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import coco_metric
from mmdet.registry import DATASETS
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_local_path, load
from mmengine.logging import MMLogger, print_log

from dcnzoo.compat.patches import Changes
from dcnzoo.data.annotations import Annotations
from dcnzoo.data.check import KINDS, as_error, check_coco, wrong_with_classes
from dcnzoo.data.files import FileEntries
from dcnzoo.data.shapes import CLASSES, PALETTE, ShapesSpec, make_shapes
from dcnzoo.detect.metrics import Evaluation, replace_id_0
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.memory import return_memory
from dcnzoo.utils.text import few, short


class CheckedCOCO(COCO):
    """MMDetection's ``COCO`` for a file that :func:`~dcnzoo.data.check.check_coco` has checked.

    Warns about annotations that MMDetection skips and about other problems of the file.

    Args:
        annotation_file: JSON in UTF-8 or UTF-16, with or without a byte order mark.
        masks: the masks are used. Otherwise, problems with masks are only warnings.
        compared: pycocotools compares the masks, so every annotation must have one.
        quiet: no warnings.
        report: of the file, if it is known.

    Raises:
        UserError: the file does not exist or has a problem that makes training impossible; or its
            categories are not the requested ones in the requested order.
    """

    def __init__(
        self,
        annotation_file: str,
        masks: bool = False,
        compared: bool = False,
        quiet: bool = False,
        report: Annotations | None = None,
    ) -> None:
        self.file = annotation_file
        if not os.path.isfile(annotation_file):
            raise UserError(f"ann_file: expected a file, found none at {annotation_file}")
        super().__init__()
        report = report or check_coco(annotation_file)
        _require_usable(report, masks)
        self.dataset = report.edit()
        annotations = self.dataset["annotations"]
        if compared:
            self._require_masks()
        if not quiet:
            _warn(report)
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


def _require_usable(report: Annotations, masks: bool) -> None:
    stops = [p for p in report.problems if p.stops and (masks or not KINDS[p.kind].of_masks)]
    if stops:
        raise as_error(report, stops)


def _require_classes(file: str, names: Sequence[str], classes: Sequence[str]) -> None:
    if classes and (problem := wrong_with_classes(names, classes)):
        raise UserError(f"{file}: categories: {problem}, as in metainfo")


def _warn(report: Annotations) -> np.ndarray:  # [N], bool
    """Warn about annotations that MMDetection skips, and about other problems; return those it uses."""
    columns, lines, gone = report.columns, [], set()
    used = np.ones(len(columns.ids), bool)
    for reason, wrong in columns.unusable(report.images).items():
        if ids := columns.ids[used & wrong].tolist():
            text = f"{len(ids)} of {len(used)} annotations are skipped: {reason}: ids {few(ids)}"
            lines.append(f"{report.file}: {text}")
            gone |= {f"annotation {number}" for number in ids}
        used &= ~wrong
    others = [p for p in report.problems if p.subject not in gone and p.kind != "empty"]
    if others:
        counts = Counter(problem.kind for problem in others)
        lines.append(
            f"{report.file}: {others[0]}; used anyway, with "
            f"{len(others) - 1} other entries with problems ({', '.join(counts)}), which "
            f"`dcnzoo data check {report.file}` lists"
        )
    for line in lines:
        _log(line)
    return used


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
    _entries: Any = None  # the annotations, in the order of the images, if they are parsed when asked for
    _masks = False  # whether the pipeline loads masks

    def full_init(self) -> None:
        """Read and filter the file."""
        super().full_init()
        if self._entries is not None:
            return_memory()  # of the file's text, in each process of a training

    def load_data_list(self) -> list[dict[str, Any]]:
        self._masks = any(getattr(transform, "with_mask", False) for transform in self.pipeline.transforms)
        images = self._load_columns()
        if images is None:
            if self.COCOAPI is CheckedCOCO:
                self.COCOAPI = functools.partial(CheckedCOCO, masks=self._masks)
            images = super().load_data_list()
            self.__dict__.pop("COCOAPI", None)  # with the annotations
            objects = (each for image in images for each in image["instances"] if not each["ignore_flag"])
            self._warn_without_objects({each["bbox_label"] for each in objects})
            if self._masks:
                self._warn_without_mask(*map(sum, zip(*map(_ignore_without_mask, images), strict=True)))
        first = images[0].get("img_path") or self.parse_data_info(_raw(images[0], []))["img_path"]
        is_local = "://" not in first and self.backend_args is None and _loads_files(self.pipeline.transforms)
        if is_local and not os.path.isfile(first):
            raise UserError(
                f"data_prefix: expected the images of {self.ann_file}, the first at {first}, found none; "
                "data=FOLDER names the new folder of a training's data"
            )
        return images

    def _load_columns(self) -> list[dict[str, Any]] | None:
        """Return the images of a large file, whose annotations are parsed when they are asked for.

        None: the file is small or unusual; or a subclass or a setting needs the parsed annotations.
        """
        methods = (getattr(type(self), name) for name in ("load_data_list", "parse_data_info", "filter_data"))
        changed = any(method.__module__ not in (__name__, coco.__name__) for method in methods)
        if changed or self.COCOAPI is not CheckedCOCO or not self.serialize_data:
            return None
        if (self.proposal_file, self.backend_args) != (None, None):
            return None
        if not os.path.isfile(self.ann_file):
            return None
        report = check_coco(self.ann_file)
        entries = report.content.get("annotations")
        if not isinstance(entries, FileEntries):
            self.COCOAPI = functools.partial(CheckedCOCO, masks=self._masks, report=report)
            return None
        _require_usable(report, self._masks)
        columns = report.columns
        classes, categories, pictures = self.metainfo["classes"], report.categories, report.images
        _require_classes(self.ann_file, [each["name"] for each in categories], classes)
        chosen = [n for n, each in enumerate(categories) if not classes or each["name"] in classes]
        self.cat_ids = [categories[position]["id"] for position in chosen]
        self.cat2label = {number: label for label, number in enumerate(self.cat_ids)}
        ids = np.array([image["id"] for image in pictures])
        rows, known = columns.rows, columns.rows >= 0
        of_category = ((categories[n]["id"], known & (columns.labels == n)) for n in chosen)
        self.cat_img_map = {number: ids[np.unique(rows[own])] for number, own in of_category}
        used = _warn(report)
        if self._masks:
            used &= ~columns.ignored & np.isin(columns.labels, chosen)
            self._warn_without_mask(int((used & ~columns.has_mask).sum()), int(used.sum()))
        labels = {*columns.labels[known & ~columns.ignored & ~columns.crowd].tolist()}
        self._warn_without_objects({label for label, position in enumerate(chosen) if position in labels})
        order = np.argsort(rows, kind="stable")[np.count_nonzero(~known) :]
        ends = np.cumsum(np.bincount(rows[known], minlength=len(ids))).tolist()
        self._entries = entries.take(order)
        spans = zip([0, *ends], ends, strict=False)
        return [
            {key: image[key] for key in ("file_name", "width", "height")}
            | {"img_id": image["id"], "span": span}
            for image, span in zip(pictures, spans, strict=True)
        ]

    def _copy_without_annotation(self, memo: dict[str, Any] | None = None) -> "CocoDataset":
        """Copy with a new ``memo``. mmengine's default keeps entries of deleted objects, whose ids recur."""
        return super()._copy_without_annotation({} if memo is None else memo)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        info = super().get_data_info(idx)
        if self._entries is None:
            return info
        parsed = self.parse_data_info(_raw(info, self._entries[slice(*info["span"])]))
        if self._masks:
            _ignore_without_mask(parsed)
        return {**parsed, "sample_idx": info["sample_idx"]}

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


def _raw(image: dict[str, Any], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what MMDetection parses."""
    return {"raw_img_info": image, "raw_ann_info": annotations}


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
