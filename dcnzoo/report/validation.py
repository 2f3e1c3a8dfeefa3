"""A detector and its validation images: predictions, precision and recall. Requires mmdet."""

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from dcnzoo.detect.detections import Detections
from dcnzoo.detect.metrics import MOST_DETECTIONS
from dcnzoo.detect.pictures import picture_to_show
from dcnzoo.layers.statistics import OffsetStatistics
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.detector import default_score_threshold
from dcnzoo.openmmlab.results import instances_of, to_detections
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.report.evaluation import ClassResults, evaluate
from dcnzoo.report.explain import record
from dcnzoo.report.runs import TrainedRun, by_label
from dcnzoo.report.sampling import Frame, SamplingField


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The result for one image of a data set, in pixels of its file.

    Attributes:
        truth: the image and the annotated objects, with a score of 1.
        detections: the detected objects.
        fields: sampling positions of the deformable layers, in forward order, with unique names.
        frame: the model's input and the file.
        statistics: of the layers' offsets: :func:`dcnzoo.layers.offset_statistics`.
    """

    truth: Detections
    detections: Detections
    fields: list[SamplingField]
    frame: Frame
    statistics: dict[str, OffsetStatistics]


class ValidationRunner:
    """A model with its weights, and its validation data set (or test data set, if there is none).

    Attributes:
        threshold: lowest score of a detection in pictures and in the confusion matrix.
    """

    def __init__(
        self, cfg: Config, checkpoint: str | Path, device: str = "cpu", allow_partial: bool = False
    ) -> None:
        recipe = Recipe(cfg)
        self.model: Any = execute.build(recipe, checkpoint, device=device, allow_partial=allow_partial)
        self.threshold = default_score_threshold(self.model)
        loader = cfg.get("val_dataloader") or cfg.test_dataloader
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            self.dataset = DATASETS.build(loader.dataset)
        self.classes: tuple[str, ...] = self.dataset.metainfo["classes"]
        metrics = dicts(cfg.get("val_evaluator") or cfg.get("test_evaluator"))
        limits = [limit for _, metric in metrics for limit in metric.get("proposal_nums", ())]
        self._limit = max(limits, default=MOST_DETECTIONS[-1])  # the limit of the AP in the log

    def evaluate(self, number: int) -> ClassResults:
        """Run the model on the first images; see :func:`dcnzoo.report.evaluation.evaluate`."""
        indices = range(min(number, len(self.dataset)))
        detections = []
        for index in indices:
            with torch.no_grad():
                (sample,) = self.model.test_step(pseudo_collate([self.dataset[index]]))
            detections.append(to_detections(instances_of(sample), 0))
        counted = getattr(self.dataset, "counted_objects", None)  # those of the AP in the log
        truth = [
            counted(index) if counted else self.dataset.get_data_info(index)["instances"] for index in indices
        ]
        return evaluate(truth, detections, len(self.classes), self.threshold, self._limit)

    def predict(self, index: int) -> Prediction:
        """Run the model on image ``index``."""
        truth = self.annotated(index)
        batch = pseudo_collate([self.dataset[index]])
        (sample,), fields, statistics = record(self.model, lambda: self.model.test_step(batch))
        detections = to_detections(instances_of(sample), self.threshold)
        detections = dataclasses.replace(
            detections, masks=detections.crops, classes=self.classes, image=truth.image
        )
        return Prediction(truth, detections, fields, Frame.of(sample.metainfo), statistics)

    def annotated(self, index: int) -> Detections:
        """Return the original image and its annotations, which the test pipeline need not load."""
        info = self.dataset.get_data_info(index)
        with_mask = any(instance.get("mask") for instance in info["instances"])
        annotations = {"type": "LoadAnnotations", "with_bbox": True, "with_mask": with_mask}
        load = self.dataset.pipeline.transforms[0]  # the config's own loader: images may not be local files
        results = TRANSFORMS.build(annotations)(load(info))
        masks = results["gt_masks"].to_ndarray().astype(bool) if with_mask else None
        boxes = results["gt_bboxes"].tensor.numpy()
        scores, image = np.ones(len(boxes)), picture_to_show(results["img"])
        return Detections(boxes, scores, results["gt_bboxes_labels"], masks, self.classes, image)


def load_detectors(
    runs: Sequence[TrainedRun], device: str = "cpu", allow_partial: bool = False
) -> dict[str, ValidationRunner]:
    """Load the detector of the first run of each label, if it has a checkpoint."""
    return {
        label: ValidationRunner(seeds[0].cfg, checkpoint, device, allow_partial)
        for label, seeds in by_label(runs).items()
        if (checkpoint := seeds[0].checkpoint) is not None
    }


def thresholds(detectors: Mapping[str, ValidationRunner]) -> str:
    """Return the lowest scores of the detections, as text: ``0.5``."""
    return " and ".join(dict.fromkeys(f"{detector.threshold:g}" for detector in detectors.values()))


def names_of_images(detector: ValidationRunner) -> list[str]:
    """Return the files of the images without their folders, which may have moved."""
    dataset = detector.dataset
    return [Path(dataset.get_data_info(index)["img_path"]).name for index in range(len(dataset))]


def pick_images(detector: ValidationRunner, number: int) -> list[int]:
    """Select images in the order of the file, those with three or more objects first.

    The selection does not depend on the results.
    """
    infos = [detector.dataset.get_data_info(index) for index in range(len(detector.dataset))]
    return sorted(range(len(infos)), key=lambda index: len(infos[index]["instances"]) < 3)[:number]
