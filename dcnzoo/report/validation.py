"""A detector and its validation images: predictions, precision and recall. Requires mmdet."""

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from dcnzoo.detect.detections import Detections
from dcnzoo.detect.metrics import MOST_DETECTIONS
from dcnzoo.detect.pictures import picture_to_show
from dcnzoo.layers.statistics import OffsetStatistics
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.detector import TorchDetector
from dcnzoo.openmmlab.runs.build import build_model
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.report.evaluation import ClassResults, evaluate
from dcnzoo.report.explain import record
from dcnzoo.report.runs import TrainedRun, by_label
from dcnzoo.report.sampling import Frame, SamplingField
from dcnzoo.utils.errors import UserError


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
        model = build_model(recipe, checkpoint, device=device, allow_partial=allow_partial)
        self.detector = TorchDetector(model)
        self.threshold = self.detector.score_threshold
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
            batch = self._batch(index)
            detections += self.detector.results(batch, self.detector.run(batch, 0.0), 0.0)
        counted = getattr(self.dataset, "counted_objects", None)  # those of the AP in the log
        truth = [
            counted(index) if counted else self.dataset.get_data_info(index)["instances"] for index in indices
        ]
        return evaluate(truth, detections, len(self.classes), self.threshold, self._limit)

    def predict(self, index: int) -> Prediction:
        """Run the model on image ``index``."""
        truth = self.annotated(index)
        detector, batch = self.detector, self._batch(index)
        samples, fields, statistics = record(detector.model, lambda: detector.run(batch, self.threshold))
        (detections,) = detector.results(batch, samples, self.threshold)
        detections = dataclasses.replace(detections, classes=self.classes, image=truth.image)
        return Prediction(truth, detections, fields, Frame.of(samples[0].metainfo), statistics)

    def _batch(self, index: int) -> dict:
        return pseudo_collate([self.dataset[index]])

    def annotated(self, index: int) -> Detections:
        """Return the original image and its annotations, which the test pipeline need not load."""
        info = self.dataset.get_data_info(index)
        with_mask = all("mask" in instance for instance in info["instances"])
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


def described_images(detector: ValidationRunner) -> list[tuple]:
    """Return each image's file without its folder, which may have moved, its size, and its objects' boxes.

    Raises:
        UserError: the data set is not one of MMDetection, and its wrapper hides the images.
    """
    dataset = detector.dataset
    try:
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        return [
            (Path(info["img_path"]).name, info.get("height"), info.get("width"), _boxes(info["instances"]))
            for info in infos
        ]
    except (AttributeError, KeyError) as error:
        kind = type(dataset).__name__
        raise UserError(f"val_dataloader: expected a data set of images, got {kind}: {error}") from error


def _boxes(instances: Sequence[Mapping]) -> list[tuple]:
    return [(each["bbox_label"], *map(float, each["bbox"])) for each in instances]


def pick_images(images: Sequence[tuple], number: int) -> list[int]:
    """Select images of :func:`described_images` in the order of the file, those with three objects first.

    The selection does not depend on the results.
    """
    return sorted(range(len(images)), key=lambda index: len(images[index][-1]) < 3)[:number]
