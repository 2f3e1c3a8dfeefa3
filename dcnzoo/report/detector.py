"""Run a trained detector on an image and record its sampling points. Requires mmdet."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from dcnzoo.detect.pictures import read
from dcnzoo.layers.offsets import OffsetStatistics, TracksOffsets, offset_statistics, track_offsets
from dcnzoo.openmmlab.detector import TorchDetector
from dcnzoo.report.explain import Box, Explanation, output_window, places, receptive_fields, with_unique_names
from dcnzoo.report.sampling import SamplingField, record_sampling
from dcnzoo.utils.errors import UserError


def explain(
    detector: TorchDetector,
    image: str | Path,
    box: Box | None = None,
    layer: str | None = None,
    further: int = 0,
) -> Explanation:
    """Determine which pixels of an image influence a deformable layer's output at one position.

    Args:
        detector: from :func:`dcnzoo.load`, not of an exported file.
        image: a file or an address.
        box: in pixels of the file; may be a point. Default: the centre of the detection with the highest
            score, or of the image if nothing is detected.
        layer: the layer for the receptive field, and the only layer to draw. Default: the last layer; all
            layers are drawn.
        further: number of other places, in a grid, whose receptive fields are computed, too.

    Raises:
        UserError: the box is outside the image, the layer does not exist, or no layer can be drawn.
        ValueError: resizing leaves no pixels of the image.
    """
    item, model = detector.prepare(read(image), str(image)), detector.model
    shown = item["inputs"].numpy().transpose(1, 2, 0)[..., ::-1].copy()
    data = model.data_preprocessor(pseudo_collate([item]), False)
    samples = data["data_samples"]
    height, width = samples[0].ori_shape
    if box is not None and not (0 <= box.x1 <= box.x2 < width and 0 <= box.y1 <= box.y2 < height):
        corners = ",".join(f"{value:g}" for value in box)
        raise UserError(f"box: expected x1 ≤ x2 < {width} and y1 ≤ y2 < {height}, got {corners}")

    def run(inputs: Tensor) -> list:
        return model(inputs, copy.deepcopy(samples), mode="predict")

    (sample,), all_fields, statistics = record(model, lambda: run(data["inputs"]))
    objects = sample.get("pred_instances", ())
    fields = _chosen(all_fields, layer, model)
    if layer is not None:
        statistics = {name: value for name, value in statistics.items() if name == fields[0].name}
    if box is None:
        all_of_it = (0, 0, width, height)
        x1, y1, x2, y2 = objects.bboxes[objects.scores.argmax()].tolist() if len(objects) else all_of_it
        box = Box(*[(x1 + x2) / 2, (y1 + y2) / 2] * 2)
    across, down = samples[0].metainfo.get("scale_factor", (1.0, 1.0))
    box = Box(box.x1 * across, box.y1 * down, box.x2 * across, box.y2 * down)
    seen = tuple(data["inputs"].shape[-2:])
    height, width = shown.shape[:2]
    points = places(fields[-1], (height, width), seen, further)
    windows = [output_window(fields[-1], each, seen) for each in (box, *points)]
    gradients = receptive_fields(model, run, data["inputs"], fields[-1].name, windows)
    first, *others = (gradient[:height, :width] for gradient in gradients)
    further_fields = {(x, y): field for (x, y, *_), field in zip(points, others, strict=True)}
    return Explanation(shown, seen, box, fields, fields[-1].name, first, statistics, further_fields)


def record(
    model: nn.Module, run: Callable[[], list]
) -> tuple[list, list[SamplingField], dict[str, OffsetStatistics]]:
    """Return the result of ``run``, and the fields and statistics of the layers that ran."""
    track_offsets(model)
    try:
        with torch.no_grad(), record_sampling(model) as fields:
            result = run()
        return result, with_unique_names(fields), offset_statistics(model)
    finally:
        track_offsets(model, enabled=False)


def _chosen(fields: list[SamplingField], layer: str | None, model: nn.Module) -> list[SamplingField]:
    if not fields:
        others = {type(module).__name__ for module in model.modules() if isinstance(module, TracksOffsets)}
        expected = "expected a layer of type DCN, DCNv2, DCNv3, DCNv4 or PackedDeformConv2d"
        found = f"found only {', '.join(sorted(others))}, which cannot be drawn" if others else "found none"
        raise UserError(f"model: {expected}, {found}")
    chosen = [field for field in fields if layer in (None, field.name)]
    if not chosen:
        names = ", ".join(field.name for field in fields)
        raise UserError(f"layer: expected one of {names}, got {layer}")
    return chosen
