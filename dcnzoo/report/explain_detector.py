"""Run a trained detector on an image and record its sampling points. Requires mmdet."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mmengine.dataset import pseudo_collate
from torch import Tensor

from dcnzoo.detect.pictures import picture_to_show, read
from dcnzoo.openmmlab.detector import TorchDetector
from dcnzoo.openmmlab.results import to_detections
from dcnzoo.report.explain import Box, Explanation, choose, explanation_at, record
from dcnzoo.report.sampling import Frame


def explain(
    detector: TorchDetector,
    image: str | Path,
    box: Box | None = None,
    layer: str | None = None,
    further: int = 0,
    at: Sequence[float] | None = None,
) -> Explanation:
    """Determine which pixels of an image influence a deformable layer's output at one position.

    Args:
        detector: from :func:`dcnzoo.load`, not of an exported file.
        image: a file or an address.
        box: in pixels of the file. Default: the centre of the detection with the highest score, or of the
            image if nothing is detected.
        layer: the layer for the receptive field, and the only layer to draw. Default: the last layer; all
            layers are drawn.
        further: number of other places, in a grid, whose receptive fields are computed, too.
        at: a point, (x, y), in place of ``box``.

    Raises:
        UserError: the box or point is outside the image, the layer does not exist, or no layer can be drawn.
        ValueError: resizing leaves no pixels of the image.
    """
    detector.require_three_channels("explain")
    picture = read(image)
    item, model = detector.prepare(picture, str(image)), detector.model
    data = model.data_preprocessor(pseudo_collate([item]), False)
    samples = data["data_samples"]
    height, width = picture.shape[:2]
    if at is not None:
        box = Box(*at, *at)
    if box is not None:
        box.require_inside(height, width, "box" if at is None else "at")

    def run(inputs: Tensor) -> list:
        return model(inputs, copy.deepcopy(samples), mode="predict")

    (sample,), fields, statistics = record(model, lambda: run(data["inputs"]))
    objects = sample.get("pred_instances", ())
    fields, statistics = choose(fields, statistics, layer)
    if box is None:
        all_of_it = (0, 0, width, height)
        x1, y1, x2, y2 = objects.bboxes[objects.scores.argmax()].tolist() if len(objects) else all_of_it
        box = Box(*[(x1 + x2) / 2, (y1 + y2) / 2] * 2)
    shown, frame = picture_to_show(picture), Frame.of(samples[0].metainfo)
    explanation = explanation_at(model, run, data["inputs"], shown, frame, box, fields, statistics, further)
    titles = []
    if len(objects):
        detections = to_detections(objects, detector.score_threshold)
        detections = dataclasses.replace(detections, masks=detections.crops, classes=detector.classes)
        detections = detections.with_one_label()
        rows = zip(detections.boxes.tolist(), detections.names, detections.scores, strict=True)
        titles = [(Box(*box), f"{name} {score:.2f}") for box, name, score in rows]
    return dataclasses.replace(explanation, objects=titles)
