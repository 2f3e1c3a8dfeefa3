"""The part of an image that influences a deformable layer's output at one position, and a page about it.

:func:`explain_network` explains a network, :func:`dcnzoo.report.explain_detector.explain` a detector. Both
record the layers that run (:func:`record`), select those to draw (:func:`select`) and compute receptive
fields (:func:`explanation_at`). :func:`render_explanation` writes the page.
"""

import base64
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor, nn

from dcnzoo.compat.patches import Changes
from dcnzoo.layers.statistics import OffsetStatistics, offset_statistics, tracks_offsets
from dcnzoo.report.page import image_uri, render
from dcnzoo.report.plots import RAMP
from dcnzoo.report.receptive_field import receptive_fields
from dcnzoo.report.sampling import Frame, SamplingField, nearest_output, record_sampling
from dcnzoo.utils.errors import UserError

_HEAT = LinearSegmentedColormap.from_list("heat", ["#1d4ed800", "#06b6d4a0", "#fde047e0", "#ffffff"])
_MOST_PER_AXIS = 8  # most rows, and most columns, of a box for which points are drawn
_MOST_IN_PAGE = 64  # rows and columns of a layer's output in the page
# most pixels on the longer side of the image in the page, and of a receptive field, which is smoothed
_SIDE, _HEAT_SIDE = 1600, 256


class Box(NamedTuple):
    """A region of the image, in pixels; a point is a box without extent."""

    x1: float
    y1: float
    x2: float
    y2: float

    def require_inside(self, height: int, width: int, name: str = "box") -> None:
        """Raise UserError, with the name of the argument, unless the box is inside an image of this size."""
        if not (0 <= self.x1 <= self.x2 < width and 0 <= self.y1 <= self.y2 < height):
            is_point = name == "at"
            got = ",".join(f"{value:g}" for value in self[: 2 if is_point else 4])
            expected = "a point" if is_point else "the upper left and the lower right corner,"
            area = f"from 0,0 to {width - 1},{height - 1}"
            raise UserError(f"{name}: expected {expected} {area}, got {got}")


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The data for :func:`render_explanation`.

    Attributes:
        image: [H, W, 3], uint8, RGB.
        frame: the model's input and the image.
        box: the position, in pixels of ``image``.
        fields: sampling positions of the deformable layers, in forward order, with unique names.
        layer: name of the layer with this receptive field.
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

    def table(self) -> list[list[str]]:
        return offset_table(self.fields, self.statistics)


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
    gradients = receptive_fields(model, run, inputs, fields[-1].name, windows)
    height, width = (round(n / scale) for n, scale in zip(shown.shape, frame.scale, strict=False))
    first, *others = (gradient[:height, :width] for gradient in gradients)
    further_fields = {(x, y): field for (x, y, *_), field in zip(points, others, strict=True)}
    return Explanation(shown, frame, box, fields, fields[-1].name, first, statistics, further_fields)


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
        return result, with_unique_names(fields), offset_statistics(model)


def select(
    fields: list[SamplingField],
    statistics: dict[str, OffsetStatistics],
    layer: str | None,
) -> tuple[list[SamplingField], dict[str, OffsetStatistics]]:
    """Return the fields and statistics of one layer, or of all layers if ``layer`` is None."""
    if not fields:
        raise UserError("model: expected a layer of type DCN, DCNv2, DCNv3, DCNv4 or PackedDeformConv2d")
    chosen = [field for field in fields if layer in (None, field.name)]
    if not chosen:
        names = ", ".join(field.name for field in fields)
        raise UserError(f"layer: expected one of {names}, got {layer}")
    drawn = {f"{field.name}.attn": field.name for field in fields}  # the attention of an extractor
    statistics = {drawn.get(name, name): value for name, value in statistics.items()}
    if layer is not None:
        statistics = {name: value for name, value in statistics.items() if name == chosen[0].name}
    return chosen, statistics


def offset_table(
    fields: Sequence[SamplingField], statistics: Mapping[str, OffsetStatistics]
) -> list[list[str]]:
    """Return a header and one row per deformable layer; offsets are in pixels of the layer's input."""
    rows = [["layer", "output", "offset", "largest", "outside"]]
    by_name = {field.name: field for field in fields}
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


def with_unique_names(fields: Sequence[SamplingField]) -> list[SamplingField]:
    """Number the runs of a layer that ran several times (heads on several levels): ``head``, ``head #2``."""
    seen: Counter[str] = Counter()
    named = []
    for field in fields:
        seen[field.name] += 1
        number = seen[field.name]
        named.append(dataclasses.replace(field, name=f"{field.name} #{number}") if number > 1 else field)
    return named


def output_window(field: SamplingField, box: Box, frame: Frame) -> tuple[slice, slice]:
    """Return the rows and columns of a layer's output that are closest to the box."""
    corners = torch.tensor([[box.y1, box.x1], [box.y2, box.x2]])
    outputs = nearest_output(field, frame.to_input(corners), frame.size)
    (top, left), (bottom, right) = outputs.tolist()
    return slice(top, bottom + 1), slice(left, right + 1)


def points_of(field: SamplingField, box: Box, frame: Frame) -> tuple[Tensor, Tensor]:
    """Return the sampling points of the outputs in a box, for at most eight rows and columns of it.

    Returns:
        points  # [M, 2], (y, x) in pixels of the image
        weight  # [M], the modulation
    """
    y, x = (
        torch.linspace(w.start, w.stop - 1, min(_MOST_PER_AXIS, w.stop - w.start)).round().long()
        for w in output_window(field, box, frame)
    )
    points = field.points[:, :, y[:, None], x].permute(2, 3, 0, 1).reshape(-1, 2)  # [rows · columns · K, 2]
    points = frame.to_picture(points * torch.tensor(frame.size) / torch.tensor(field.input_size))
    return points, field.weight[:, y[:, None], x].permute(1, 2, 0).flatten()


def grid_of_points(field: SamplingField, shape: tuple[int, int], frame: Frame, number: int) -> list[Box]:
    """Return about ``number`` positions of a layer's output, in a grid, as points in an image of a shape."""
    if not number:
        return []
    rows = max(1, round((number * shape[0] / shape[1]) ** 0.5))
    counts = rows, max(1, number // rows)
    y, x = ((torch.arange(count) + 0.5) * size / count for count, size in zip(counts, shape, strict=True))
    at = frame.to_input(torch.cartesian_prod(y, x))
    outputs = nearest_output(field, at, frame.size).unique(dim=0)
    points = frame.to_picture(outputs * torch.tensor(frame.size) / torch.tensor(field.weight.shape[-2:]))
    return [Box(x, y, x, y) for y, x in points.tolist()]


def heat_map(field: Tensor) -> np.ndarray:  # [H, W] -> [H, W, 4], in 0…1
    """Colour a receptive field: smoothed by 1 % of the longer side, on a square-root scale."""
    sigma = max(1.0, max(field.shape) / 100)
    smoothed = cv2.GaussianBlur(field.numpy(), (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    return _HEAT(np.sqrt(smoothed / max(smoothed.max(), 1e-30)))


def render_explanation(explanation: Explanation, title: str, footer: str = "") -> str:
    """Render a self-contained HTML page; all text is escaped.

    Precision: offsets 1/65,000 of the layer's largest, modulation 1/255 of the largest. The page contains at
    most 64 rows and 64 columns of each layer's output, and the image with at most 1,600 pixels per side.
    """
    (height, width), frame = explanation.image.shape[:2], explanation.frame
    names = [field.name for field in explanation.fields]
    x, y = (sum(explanation.box[i::2]) / 2 for i in (0, 1))
    heats = {(x, y): explanation.receptive_field, **explanation.further}
    shown = {at: (heat_map(field) * 255).round().astype(np.uint8) for at, field in heats.items()}
    data = {
        "image": image_uri(_shrunk(explanation.image, _SIDE)),
        "heats": [{"at": at, "uri": image_uri(_shrunk(heat, _HEAT_SIDE))} for at, heat in shown.items()],
        "width": width,
        "height": height,
        "seen": frame.size,
        "scale": frame.scale,
        "box": explanation.box,
        "ramp": [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in RAMP],
        "objects": explanation.objects,
        "largestWeight": explanation.largest_weight,
        "chosen": names.index(explanation.layer),
        "layers": [_layer(field, explanation) for field in explanation.fields],
    }
    # only "<" could end the script element
    script = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return render(
        "explain.html",
        title=title,
        explanation=explanation,
        table=explanation.table(),
        ramp=RAMP,
        data=Markup(script),  # nosec B704  # JSON without "<"
        footer=footer,
    )


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """Resize an image whose longer side is larger than ``side`` pixels."""
    scale = side / max(image.shape)
    if scale >= 1:
        return image
    size = [max(1, round(scale * n)) for n in (image.shape[1], image.shape[0])]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _layer(field: SamplingField, explanation: Explanation) -> dict:
    height, width = field.weight.shape[-2:]
    step = -(-max(height, width) // _MOST_IN_PAGE)
    size = torch.tensor(field.input_size)[:, None, None]
    # points further outside than one image size are clipped
    offset = torch.minimum(torch.maximum(field.points, -size), 2 * size) - field.grid
    offset = offset[..., ::step, ::step].permute(2, 3, 0, 1)  # [rows, columns, K, 2], (y, x)
    quantum = max(float(offset.abs().max()), 1e-3) / 32767
    weights = field.weight[:, ::step, ::step].permute(1, 2, 0).abs() / explanation.largest_weight
    return {
        "name": field.name,
        "input": field.input_size,
        "output": [height, width],
        "stored": list(offset.shape[:2]),
        "step": step,
        **{name: getattr(field, name) for name in ("kernel_size", "stride", "padding", "dilation")},
        "quantum": quantum,
        "offsets": _base64((offset / quantum).round().numpy().astype("<i2")),
        "weights": _base64((weights * 255).round().numpy().astype(np.uint8)),
    }


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
