"""MMDetection's COCO data set with checks of the annotation file.

MMDetection silently skips annotations that it cannot use: inverted boxes, categories that the config
does not name, even every annotation of a file. Training then runs with less data or none. The checks
are those of ``dcnzoo data check``.
"""

import contextlib
import io
import logging
import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import coco
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import coco_metric
from mmdet.registry import DATASETS
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_local_path, load
from mmengine.logging import MMLogger, print_log

from dcnzoo.compat.patches import Changes
from dcnzoo.data.check import UNMASKED, problems_of
from dcnzoo.data.coco_file import KEYS, CocoFile
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.shapes import CLASSES, PALETTE, ShapesSpec, make_shapes
from dcnzoo.detect.metrics import Evaluation, replace_id_0
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import few

_decode = msgspec.json.Decoder().decode


class CheckedCOCO(COCO):
    """MMDetection's ``COCO``, which checks the annotation file first.

    Args:
        annotation_file: JSON in UTF-8 or UTF-16, with or without a byte order mark.
        compared: whether pycocotools compares masks; if so, every annotation must have one.

    Raises:
        UserError: the file does not exist or has a problem that makes an evaluation impossible; or its
            categories are not the requested ones in the requested order.
    """

    def __init__(self, annotation_file: str, compared: bool = False) -> None:
        self.file = annotation_file
        super().__init__()
        content = _open(annotation_file)
        problems = _require_usable(annotation_file, content, masks=compared)
        if bare := [problem for problem in problems if problem.kind == UNMASKED]:
            raise UserError(f"{self.file}: {bare[0]}: the metric segm compares masks")
        lists = self.dataset = {key: [*map(_decode, getattr(content, key))] for key in KEYS}
        for annotation in lists["annotations"]:
            annotation.setdefault("iscrowd", 0)  # pycocotools' evaluation requires it
        replace_id_0(lists["annotations"])
        with contextlib.redirect_stdout(io.StringIO()):  # "creating index..."
            self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_cat_ids(self, cat_names: Sequence[str] = (), *args: object, **kwargs: object) -> list[int]:
        names = [category["name"] for category in self.dataset["categories"]]
        _require_classes(self.file, names, cat_names)
        return super().get_cat_ids(cat_names, *args, **kwargs)


def _open(file: str) -> CocoFile:
    if not os.path.isfile(file):
        raise UserError(f"ann_file: expected a file, found none at {file}")
    try:
        return CocoFile(file)
    except InvalidAnnotation as error:
        raise UserError(f"{file}: {error}") from None


def _require_usable(file: str, content: CocoFile, masks: bool) -> list[Finding]:
    """Return the problems that do not stop a training; MMDetection skips or uses these annotations.

    Raises:
        UserError: a problem makes a training impossible or wrong.
    """
    problems = [*problems_of(content, masks)]
    if stops := [problem for problem in problems if problem.stops]:
        others = f" and {len(stops) - 1} more: `dcnzoo data check {file}` lists them" if stops[1:] else ""
        raise UserError(f"{file}: {stops[0]}{others}")
    return problems


def _require_classes(file: str, names: Sequence[str], classes: Sequence[str]) -> None:
    """Raise UserError unless a file has the classes of metainfo in their order; it may have others, too."""
    common = [name for name in names if name in classes] if classes else []
    if common != list(classes or ()):
        missing = [name for name in classes if name not in names]
        problem = f"missing {few(missing)}" if missing else "the order differs"
        raise UserError(f"{file}: categories: expected {few(classes)}, got {few(names)}: {problem}")


def _log(text: str, level: int = logging.WARNING) -> None:
    print_log(printable(text), logger="current", level=level)


class CocoMetric(coco_metric.CocoMetric):
    """Replaces MMDetection's ``CocoMetric`` in the registry; reads its file by :class:`CheckedCOCO`.

    With ``sort_categories``, MMDetection's own reader is used.

    Attributes:
        class_aps: the AP of each class after an evaluation, for the last entry of ``metrics``.
    """

    class_aps: dict[str, float] = {}
    classwise: bool

    def __init__(self, ann_file: str | None = None, *args: object, **kwargs: object) -> None:
        checked = ann_file is not None and not kwargs.get("sort_categories")
        super().__init__(None if checked else ann_file, *args, **kwargs)
        if checked:
            masks = "segm" in self.metrics
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                self._coco_api = CheckedCOCO(path, compared=masks and not self.format_only)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Evaluate; the lines that pycocotools prints go to the log. Without any detection, each AP is 0."""
        requested, self.classwise = self.classwise, True
        with Changes() as changes, contextlib.redirect_stdout(io.StringIO()) as printed:
            changes.set(coco_metric, "COCOeval", Evaluation)
            changes.set(coco_metric, "load", lambda data: data if isinstance(data, list) else load(data))
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

    Annotations stay JSON text in a memory-mapped file, which all processes share, until their image is
    loaded. MMEngine would pickle lists of millions of objects instead.

    Raises:
        UserError: the file does not exist or has a problem that makes a training impossible; or the first
            image does not exist; or no image is left after filtering.
    """

    _content: CocoFile
    _masks = False  # whether the pipeline loads masks

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return MMDetection's dictionary of each image, with the numbers of its annotations."""
        self._masks = any(getattr(transform, "with_mask", False) for transform in self.pipeline.transforms)
        with get_local_path(self.ann_file, backend_args=self.backend_args) as path:
            content = self._content = _open(path)
            self._warn(_require_usable(self.ann_file, content, self._masks), len(content.annotations))
        categories = [category for _, category in content.entries("categories", strict=True)]
        names = self.metainfo["classes"]
        _require_classes(self.ann_file, [each.name for each in categories], names)
        # in the order of the file
        self.cat_ids = [each.id for each in categories if not names or each.name in names]
        self.cat2label = {number: label for label, number in enumerate(self.cat_ids)}
        numbers, images_of = defaultdict[int, list[int]](list), defaultdict[int, set[int]](set)
        labels = set[int | None]()
        for number, entry in content.entries("annotations", strict=True):
            numbers[entry.image_id].append(number)
            images_of[entry.category_id].add(entry.image_id)
            if not entry.iscrowd and not entry.ignore:
                labels.add(self.cat2label.get(entry.category_id))
        self.cat_img_map = {number: [*images_of[number]] for number in self.cat_ids}
        self._warn_without_objects(labels)
        data_list = []
        for raw in content.images:
            image = _decode(raw)
            image["img_id"] = image["id"]
            info = self.parse_data_info({"raw_img_info": image, "raw_ann_info": []})
            data_list.append({**info, "annotations": numbers[image["img_id"]]})
        first = data_list[0]["img_path"]
        is_local = "://" not in first and self.backend_args is None and _loads_files(self.pipeline.transforms)
        if is_local and not os.path.isfile(first):
            raise UserError(f"data_prefix: expected the images of {self.ann_file}, found none at {first}")
        return data_list

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return MMDetection's dictionary of an image, with its objects."""
        info = super().get_data_info(idx)
        entries = [_decode(self._content.annotations[number]) for number in info.pop("annotations")]
        image = {"file_name": info["img_path"], **{key: info[key] for key in ("img_id", "width", "height")}}
        parsed = self.parse_data_info({"raw_img_info": image, "raw_ann_info": entries})
        info["instances"] = parsed["instances"]
        if self._masks:
            _ignore_without_mask(info["instances"])
        return info

    def _copy_without_annotation(self, memo: dict[str, Any] | None = None) -> "CocoDataset":
        """Copy with a new ``memo``. mmengine's default one keeps deleted objects, whose ids may be reused."""
        return super()._copy_without_annotation({} if memo is None else memo)

    def _warn(self, problems: Sequence[Finding], number: int) -> None:
        """Warn of annotations with a problem, in one line for each kind."""
        subjects = defaultdict[str, list[str]](list)
        for problem in problems:
            if problem.kind:
                subjects[problem.kind].append(problem.subject.removeprefix("annotation "))
        for kind, ids in subjects.items():
            _log(f"{self.ann_file}: {len(ids)} of {number} annotations {kind}: ids {few(ids)}")

    def _warn_without_objects(self, labels: Collection[int | None]) -> None:
        """Warn of classes without an object to train on.

        Args:
            labels: the classes of the objects that are not ignored.
        """
        names = [name for label, name in enumerate(self.metainfo["classes"]) if label not in labels]
        if names and not self.test_mode:
            _log(f"{self.ann_file}: expected objects of each class to train on, got none of {few(names)}")

    def filter_data(self) -> list[dict[str, Any]]:
        left, total = super().filter_data(), len(self.data_list)
        why = f"without an annotation or too small (filter_cfg={self.filter_cfg})"
        if not left:
            text = f"expected at least 1 image to train on, got 0 of {total}: all are {why}"
            raise UserError(f"{self.ann_file}: {text}")
        if len(left) < total:
            _log(f"{self.ann_file}: {total - len(left)} of {total} images are skipped: {why}", logging.INFO)
        return left


def _loads_files(transforms: Sequence[Any]) -> bool:
    """Return whether mmcv's loader reads the pictures as local files, without a storage back end."""
    loader = next(iter(transforms), None)
    if loader is None:
        return True
    usual = getattr(type(loader), "transform", None) is LoadImageFromFile.transform
    return usual and loader.backend_args is loader.file_client_args is None


def _ignore_without_mask(instances: list[dict[str, Any]]) -> None:
    """Mark objects without a mask as ignored, as MMDetection does for polygons without an area.

    Without this, an object without ``segmentation`` raises ``KeyError: 'mask'`` when its image is loaded.
    """
    for instance in instances:
        if "mask" not in instance:
            instance.update(mask=[], ignore_flag=1)


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
