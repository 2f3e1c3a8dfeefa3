"""MMDetection's COCO data set with checks of the annotation file.

MMDetection silently skips annotations that it cannot use: inverted boxes, categories that the config
does not name, even every annotation of a file. Training then runs with less data or none. The checks
are those of ``dcnzoo data check --as-mmdetection``.
"""

import contextlib
import io
import logging
import os
from collections.abc import Sequence
from typing import Any

import msgspec
from mmdet.datasets import coco
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import coco_metric
from mmdet.registry import DATASETS
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_local_path, load
from mmengine.logging import MMLogger, print_log

from dcnzoo.compat.patches import Changes
from dcnzoo.data.check import CocoTruth, read_truth
from dcnzoo.data.coco_file import CocoFile, Image
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.shapes import CLASSES, PALETTE, ShapesSpec, make_shapes
from dcnzoo.detect.metrics import Evaluation, Truth, load_detections
from dcnzoo.openmmlab.results import require_masks_of_image_size
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.text import few

_decode = msgspec.json.Decoder().decode


class CheckedCOCO(Truth, COCO):
    """MMDetection's ``COCO``, which checks the annotation file first.

    Args:
        compared: whether pycocotools compares masks; if so, every annotation must have one.

    Raises:
        UserError: see :func:`_usable_truth`; or the categories are not the requested ones in their order.
    """

    def __init__(self, file: str, compared: bool, backend_args: dict | None) -> None:
        self.file = file
        super().__init__(_usable_truth(file, compared, compared, backend_args))
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_cat_ids(self, cat_names: Sequence[str] = (), *args: object, **kwargs: object) -> list[int]:
        names = [category["name"] for category in self.dataset["categories"]]
        _require_classes(self.file, names, cat_names)
        return super().get_cat_ids(cat_names, *args, **kwargs)


def _usable_truth(
    file: str, masks: bool, compared: bool = False, backend_args: dict | None = None
) -> CocoTruth:
    """Read a COCO file; see :class:`CocoTruth`.

    Raises:
        UserError: it does not exist, or a problem makes a training or an evaluation impossible or wrong.
    """
    with get_local_path(file, backend_args=backend_args) as path:
        try:
            return read_truth(path, masks).require_usable(compared)
        except FileNotFoundError:
            raise UserError(f"ann_file: expected a file, found none at {file}") from None
        except InvalidAnnotation as error:
            raise UserError(f"{file}: {error}") from None


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

    With ``sort_categories``, MMDetection's own reader is used. The AP is that of the predicted images.

    Attributes:
        class_aps: ``bbox`` or ``segm`` → name of a class → its AP and AP50, after an evaluation.
    """

    classwise: bool

    def __init__(self, ann_file: str | None = None, *args: object, **kwargs: object) -> None:
        checked = ann_file is not None and not kwargs.get("sort_categories")
        super().__init__(None if checked else ann_file, *args, **kwargs)
        self.class_aps = dict[str, dict[str, tuple[float, float]]]()
        self._images = 0  # the number of images in the last evaluation
        if checked:
            compared = "segm" in self.metrics and not self.format_only
            self._coco_api = CheckedCOCO(str(ann_file), compared, self.backend_args)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        require_masks_of_image_size("CocoMetric", data_samples)
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Evaluate; the lines that pycocotools prints go to the log. Without any detection, each AP is 0."""
        self.img_ids = [*dict.fromkeys(result["img_id"] for _, result in results)]
        self._require_known_images()
        evaluations = list[Evaluation]()

        def evaluation(*args: Any) -> Evaluation:
            evaluations.append(Evaluation(*args))
            return evaluations[-1]

        requested = self.classwise
        with Changes() as changes, contextlib.redirect_stdout(io.StringIO()) as printed:
            for name in ("COCOeval", "COCOevalMP"):
                changes.set(coco_metric, name, evaluation)
            changes.set(coco_metric, "load", lambda data: data if isinstance(data, list) else load(data))
            changes.set(COCO, "loadRes", load_detections)
            changes.set(self, "classwise", False)  # MMDetection's rows need ten thresholds
            metrics = super().compute_metrics(results)
        MMLogger.get_current_instance().info(printed.getvalue())
        kinds = [kind for kind in self.metrics if kind != "proposal_fast"]
        for kind, each in zip(kinds, evaluations, strict=False):
            if kind != "proposal":
                names = [self._coco_api.cats[number]["name"] for number in each.params.catIds]
                self.class_aps[kind] = dict(zip(names, each.per_class(), strict=True))
                if requested:
                    for name, (ap, _) in self.class_aps[kind].items():
                        metrics[f"{name}_precision"] = round(ap, 3)
        return metrics

    def _require_known_images(self) -> None:
        """Require that the file has the predicted images; warn if it has others, too."""
        if self._coco_api is None:
            return
        total, images = len(self._coco_api.imgs), len(self.img_ids)
        name = getattr(self._coco_api, "file", "ann_file")
        if unknown := [number for number in self.img_ids if number not in self._coco_api.imgs]:
            raise UserError(f"{name}: expected the predicted images, got none with the ids {few(unknown)}")
        if images < total and images != self._images:
            _log(f"{name}: the AP is that of the {images} predicted of {total} images")
        self._images = images

    def results2json(self, results: Sequence[dict[str, Any]], outfile_prefix: str) -> dict[str, Any]:
        """Convert the results to COCO's format; write them to files only if the config asks for files."""
        written = dict[str, list[dict[str, Any]]]()
        with Changes() as changes:
            if self.outfile_prefix is None:
                changes.set(coco_metric, "dump", lambda entries, file: written.update({file: entries}))
            files = super().results2json(results, outfile_prefix)
        return {kind: written.get(file, file) for kind, file in files.items()}


class CocoDataset(coco.CocoDataset):
    """Replaces MMDetection's ``CocoDataset`` in the registry and checks the annotation file.

    Annotations stay JSON text in a memory-mapped file, which all processes share, until their image is
    loaded. MMEngine would pickle lists of millions of objects instead.

    Raises:
        UserError: the file does not exist or has a problem that makes a training impossible; or the
            classes differ; or no image is left after filtering.
    """

    _content: CocoFile
    _shared_with_metric: CocoTruth | None
    _masks = False  # whether the pipeline loads masks

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return MMDetection's dictionary of each image, with the numbers of its annotations."""
        self._masks = any(getattr(transform, "with_mask", False) for transform in self.pipeline.transforms)
        truth = _usable_truth(self.ann_file, self._masks, backend_args=self.backend_args)
        self._content = truth.content
        self._shared_with_metric = truth if self.test_mode else None
        for line in truth.notes():
            _log(f"{self.ann_file}: {line}")
        names = self.metainfo["classes"]
        _require_classes(self.ann_file, [str(each.name) for each in truth.categories], names)
        # in the order of the file
        self.cat_ids = [each.id for each in truth.categories if not names or each.name in names]
        self.cat2label = {number: label for label, number in enumerate(self.cat_ids)}
        self.cat_img_map = {number: [*truth.images_of[number]] for number in self.cat_ids}
        return [self._entry(image, truth.numbers[image.id]) for image in truth.images]

    def _entry(self, image: Image, annotations: Sequence[int]) -> dict[str, Any]:
        """Return MMDetection's dictionary of an image; numbers of annotations stand for its objects."""
        folders, name = self.data_prefix, str(image.file_name)
        entry: dict[str, Any] = {
            "img_path": os.path.join(folders["img"], name),
            "img_id": image.id,
            "seg_map_path": None,
            "height": image.height,
            "width": image.width,
            "annotations": annotations,
        }
        if folders.get("seg"):
            entry["seg_map_path"] = os.path.join(
                folders["seg"], os.path.splitext(name)[0] + self.seg_map_suffix
            )
        if self.return_classes:  # for detectors with a language model
            entry.update(text=self.metainfo["classes"], custom_entities=True)
            entry["caption_prompt"] = self.caption_prompt
        return entry

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return MMDetection's dictionary of an image, with its objects."""
        info = super().get_data_info(idx)
        entries = [_decode(self._content.annotations[number]) for number in info.pop("annotations")]
        raw = {"raw_img_info": {**info, "file_name": info["img_path"]}, "raw_ann_info": entries}
        info["instances"] = self.parse_data_info(raw)["instances"]
        for instance in info["instances"] if self._masks else ():
            if "mask" not in instance:  # ignored, as in MMDetection with polygons without an area
                instance.update(mask=[], ignore_flag=1)
        return info

    def counted_objects(self, idx: int) -> list[dict[str, Any]]:
        """Return the objects of an image that the AP counts, as instances; some of them are not trained."""
        objects = []
        for number in super().get_data_info(idx)["annotations"]:
            entry = _decode(self._content.annotations[number])
            if (label := self.cat2label.get(entry["category_id"])) is not None:
                x, y, width, height = entry["bbox"]
                instance = {"bbox": [x, y, x + width, y + height], "bbox_label": label}
                instance["ignore_flag"] = int(entry.get("iscrowd") or 0)
                if entry.get("segmentation"):
                    instance["mask"] = entry["segmentation"]
                objects.append(instance)
        return objects

    def _copy_without_annotation(self, memo: dict[str, Any] | None = None) -> "CocoDataset":
        """Copy with a new ``memo``. mmengine's default one keeps deleted objects, whose ids may be reused."""
        return super()._copy_without_annotation({} if memo is None else memo)

    def filter_data(self) -> list[dict[str, Any]]:
        if left := super().filter_data():
            return left
        why = f"without an annotation or too small (filter_cfg={self.filter_cfg})"
        text = f"expected at least 1 image to train on, got 0 of {len(self.data_list)}: all are {why}"
        raise UserError(f"{self.ann_file}: {text}")


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
