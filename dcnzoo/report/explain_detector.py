"""Run a trained detector on an image and record its sampling points. Requires mmdet."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mmengine.dataset import pseudo_collate
from torch import Tensor

from dcnzoo.detect.pictures import picture_to_show, read
from dcnzoo.openmmlab.detector import TorchDetector
from dcnzoo.report.explain import Box, Explanation, explanation_at, record, select
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
    batch = pseudo_collate([item])
    height, width = picture.shape[:2]
    if at is not None:
        box = Box(*at, *at)
    if box is not None:
        box.require_inside(height, width, "box" if at is None else "at")

    predicted, fields, statistics = record(model, lambda: detector.run(batch, -1.0))
    (objects,) = detector.results(batch, predicted, -1.0)
    fields, statistics = select(fields, statistics, layer)
    if box is None:
        x1, y1, x2, y2 = objects.boxes[0].tolist() if len(objects) else (0, 0, width, height)
        box = Box(*[(x1 + x2) / 2, (y1 + y2) / 2] * 2)
    data = model.data_preprocessor(batch)
    inputs, samples = data["inputs"], data["data_samples"]

    def run(inputs: Tensor) -> list:
        return model(inputs, samples, mode="predict")  # stopped before the heads write into the samples

    shown, frame = picture_to_show(picture), Frame.of(samples[0].metainfo)
    explanation = explanation_at(model, run, inputs, shown, frame, box, fields, statistics, further)
    objects = dataclasses.replace(objects, classes=detector.classes)
    objects = objects[objects.scores >= detector.score_threshold].with_one_label()
    rows = zip(objects.boxes.tolist(), objects.names, objects.scores, strict=True)
    titles = [(Box(*box), f"{name} {score:.2f}") for box, name, score in rows]
    return dataclasses.replace(explanation, objects=titles)
