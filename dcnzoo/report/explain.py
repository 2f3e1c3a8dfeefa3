"""The part of an image that influences a deformable layer's output at one position.

:func:`explain_network` explains a network, :func:`dcnzoo.report.explain_detector.explain` a detector. Both
record the layers that run (:func:`record`), select those to draw (:func:`select`) and compute receptive
fields (:func:`explanation_at`). :mod:`dcnzoo.report.explain_page` writes the page.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcnzoo.compat.patches import Changes
from dcnzoo.layers.statistics import OffsetStatistics, offset_statistics, tracks_offsets
from dcnzoo.report.receptive_field import receptive_fields
from dcnzoo.report.sampling import (
    Box,
    Frame,
    SamplingField,
    grid_of_points,
    output_window,
    record_sampling,
)
from dcnzoo.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The data for :func:`dcnzoo.report.explain_page.render_explanation`.

    Attributes:
        image: [H, W, 3], uint8, RGB.
        frame: the model's input and the image.
        box: the position, in pixels of ``image``.
        fields: sampling positions of the deformable layers, in forward order.
        layer: title of the field of the layer with this receptive field.
        receptive_field: [h, w] of the model's input without padding: see :func:`receptive_fields`.
        statistics: :func:`dcnzoo.layers.offset_statistics` of each layer that records them, including layers
            without a field.
        objects: boxes of detections, in pixels of ``image``, with their texts.
        further: (x, y) in pixels of ``image`` → the receptive field of the output there.
    """

    image: np.ndarray
    frame: Frame
    box: Box
    fields: Sequence[SamplingField]
    layer: str
    receptive_field: Tensor
    statistics: Mapping[str, OffsetStatistics]
    further: Mapping[tuple[float, float], Tensor] = dataclasses.field(default_factory=dict)
    objects: Sequence[tuple[Box, str]] = ()

    @property
    def largest_weight(self) -> float:
        """The weight that is drawn at full size and colour. DCNv4's signs are ignored."""
        return max(float(field.weight.abs().max()) for field in self.fields) or 1.0


def explain_network(
    model: nn.Module,
    inputs: Tensor,
    box: Box | None = None,
    layer: str | None = None,
    further: int = 0,
) -> Explanation:
    """Explain any image network, as :func:`dcnzoo.report.explain_detector.explain` explains a detector.

    Args:
        model: it runs in evaluation mode; afterwards its modules have their previous modes.
        inputs: [1, C, H, W], one picture as ``model`` takes it. Three channels are shown as
            RGB, others by their mean; the smallest value is black and the largest one white.
        box: in pixels of ``inputs``; may be a point. Default: the centre.
        layer, further: as for a detector.

    Raises:
        UserError: wrong ``inputs`` or ``box``, the layer does not exist, or no layer can be drawn.
    """
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or len(inputs) != 1:
        got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UserError(f"explain_network: inputs: expected a tensor [1, C, H, W], got {got}")
    height, width = inputs.shape[-2:]
    box = box or Box(width / 2, height / 2, width / 2, height / 2)
    box.require_inside(height, width)
    picture = inputs[0].detach().float().cpu()
    picture = picture if len(picture) == 3 else picture.mean(0, keepdim=True).expand(3, -1, -1)
    picture = (picture - picture.min()) / (picture.max() - picture.min()).clamp(min=1e-12)
    shown = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        _, fields, statistics = record(model, lambda: model(inputs))
        fields, statistics = select(fields, statistics, layer)
        frame = Frame((height, width))
        return explanation_at(model, model, inputs, shown, frame, box, fields, statistics, further)
    finally:
        for module in training:
            module.training = True


def explanation_at(
    model: nn.Module,
    run: Callable[[Tensor], object],
    inputs: Tensor,
    shown: np.ndarray,
    frame: Frame,
    box: Box,
    fields: Sequence[SamplingField],
    statistics: Mapping[str, OffsetStatistics],
    further: int,
) -> Explanation:
    """Compute the receptive fields of the last layer at a box and at ``further`` other places.

    Args:
        shown: the picture that was resized to ``inputs``; see :class:`Explanation` for the others.
    """
    points = grid_of_points(fields[-1], (shown.shape[0], shown.shape[1]), frame, further)
    windows = [output_window(fields[-1], each, frame) for each in (box, *points)]
    gradients = receptive_fields(model, run, inputs, fields[-1].name, windows, fields[-1].run)
    height, width = (round(n / scale) for n, scale in zip(shown.shape, frame.scale, strict=False))
    first, *others = (gradient[:height, :width] for gradient in gradients)
    further_fields = {(x, y): field for (x, y, *_), field in zip(points, others, strict=True)}
    return Explanation(shown, frame, box, fields, fields[-1].title, first, statistics, further_fields)


def record(
    model: nn.Module, run: Callable[[], Any]
) -> tuple[Any, list[SamplingField], dict[str, OffsetStatistics]]:
    """Return the result of ``run``, and the fields and statistics of the layers that ran.

    Afterwards, the layers have the statistics that they had before.
    """
    with Changes() as changes:
        for layer in filter(tracks_offsets, model.modules()):
            for name in ("track_offsets", "_last_offsets", "_last_modulation"):
                changes.set(layer, name, True if name == "track_offsets" else None)
        with torch.no_grad(), record_sampling(model) as fields:
            result = run()
        return result, fields, offset_statistics(model)


def select(
    fields: list[SamplingField],
    statistics: dict[str, OffsetStatistics],
    layer: str | None,
) -> tuple[list[SamplingField], dict[str, OffsetStatistics]]:
    """Return the fields and statistics of one layer, or of all layers if ``layer`` is None."""
    if not fields:
        raise UserError("model: expected a layer of type DCN, DCNv2, DCNv3, DCNv4 or PackedDeformConv2d")
    chosen = [field for field in fields if layer in (None, field.title)]
    if not chosen:
        names = ", ".join(field.title for field in fields)
        raise UserError(f"layer: expected one of {names}, got {layer}")
    drawn = {f"{field.title}.attn": field.title for field in fields}  # the attention of an extractor
    statistics = {drawn.get(name, name): value for name, value in statistics.items()}
    if layer is not None:
        statistics = {name: value for name, value in statistics.items() if name == chosen[0].title}
    return chosen, statistics


def offset_table(
    fields: Sequence[SamplingField], statistics: Mapping[str, OffsetStatistics]
) -> list[list[str]]:
    """Return a header and one row per deformable layer; offsets are in pixels of the layer's input."""
    rows = [["layer", "output", "offset", "largest", "outside"]]
    by_name = {field.title: field for field in fields}
    for name in [*by_name, *(name for name in statistics if name not in by_name)]:
        field, known = by_name.get(name), statistics.get(name)
        size = "×".join(map(str, field.weight.shape[-2:])) if field else "not drawn"
        if known is not None:
            mean, largest, outside = known
        elif field is not None:  # not a layer of dcnzoo
            mean, largest, outside = float(field.offset.abs().mean()), float(field.offset.abs().max()), None
        share = "–" if outside is None else f"{outside:.1%}"
        rows.append([name, size, f"{mean:.3f}", f"{largest:.2f}", share])
    return rows
