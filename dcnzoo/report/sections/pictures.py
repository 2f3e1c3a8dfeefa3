"""Detections beside the ground truth, sampling points on images."""

from collections import Counter
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from dcnzoo.detect.crops import Crops
from dcnzoo.detect.detections import Detections
from dcnzoo.report import page
from dcnzoo.report.explain import Box, offset_table, points_of
from dcnzoo.report.page import Picture, Section
from dcnzoo.report.plots import Panel, plot_panel
from dcnzoo.report.sampling import Frame, SamplingField, trace_sampling
from dcnzoo.report.validation import Prediction
from dcnzoo.utils.text import counted

_MOST_LAYERS = 16
_MOST_POINTS = 1000


def show_detections(predictions: Mapping[str, Sequence[Prediction]], threshold: str) -> Section:
    rows = []
    for number, row in enumerate(zip(*predictions.values(), strict=True), 1):
        truth = row[0].truth
        drawn = {"ground truth": (truth, truth.draw(with_scores=False, every_label=True))}
        for label, prediction in zip(predictions, row, strict=True):
            caption = label if len(predictions) > 1 else "detections"
            drawn[caption] = prediction.detections, prediction.detections.draw()
        images = []
        for caption, (objects, picture) in drawn.items():
            text = f"{caption}: {_in_words(objects)}"
            images.append(Picture(picture, text, f"Picture {number} with boxes and names, {text}"))
        rows.append(page.pictures(images))
    text = (
        "The first validation images. Images with three or more objects come first. The selection does not "
        f"depend on the results. Detections have a score of at least {threshold}."
    )
    return Section("Detections", text, rows)


def _in_words(objects: Detections) -> str:
    """Count the objects by class, as text of the page: browsers have fonts of any script for it."""
    counts = Counter(objects.names).most_common()
    return ", ".join(f"{count} × {name}" for name, count in counts) or "no objects"


def show_sampling(title: str, prediction: Prediction) -> Section:
    parts = []
    chain = _chain(prediction.fields)
    image = prediction.truth.image
    assert image is not None  # it was read from a file of the data set
    places = locations(prediction.truth)
    if chain:
        kinds = {"ordinary grid": [f.without_offset() for f in chain], "learnt offsets": chain}
        traced = [
            _panel(image, f"{name}: {kind}", place, trace_in_picture(fields, place, prediction.frame))
            for name, place in places.items()
            for kind, fields in kinds.items()
        ]
        way = f" through {', '.join(field.name for field in chain[:-1])}" if len(chain) > 1 else ""
        text = (
            f"Sampling points of {chain[-1].name} for one output position (cross), traced back to the image"
            f"{way}: those of ordinary convolutions, and those with the learnt offsets. Size and colour: the "
            "modulation, relative to the largest in the picture."
        )
        parts += [Markup("<p>{}</p>").format(text), page.pictures(traced, "small")]
    name, (y, x) = next(iter(places.items()))
    region = Box(x, y, x, y)
    layers = [
        _panel(image, field.name, (y, x), points_of(field, region, prediction.frame))
        for field in prediction.fields[:_MOST_LAYERS]
    ]
    left_out = len(prediction.fields) - len(layers)
    text = f"Sampling points of each layer at one position ({name})"
    text += f"; not shown: {counted(left_out, 'more layers')}" if left_out else ""
    parts += [Markup("<h3>{}</h3>").format(text), page.pictures(layers, "small")]
    parts += [
        Markup("<h3>Offsets over the whole image, in pixels of the layer's input</h3>"),
        page.table(offset_table(prediction.fields, prediction.statistics)),
    ]
    return Section(title, "", parts)


def trace_in_picture(
    fields: Sequence[SamplingField], place: tuple[float, float], frame: Frame
) -> tuple[Tensor, Tensor]:
    """Call :func:`trace_sampling` with pixels of the picture."""
    y, x = frame.to_input(torch.tensor(place)).tolist()
    points, weight = trace_sampling(fields, (y, x), frame.size)
    return frame.to_picture(points), weight


def _panel(
    image: np.ndarray, title: str, place: tuple[float, float], sampled: tuple[Tensor, Tensor]
) -> Picture:
    y, x = place
    points, weight = (part.numpy() for part in sampled)
    figure = plot_panel(image, Panel(title, Box(x, y, x, y), points=points, weight=weight))
    down, across = np.abs(points - place).mean(0)
    distance = f"mean distance from ({x:.0f}, {y:.0f}): x {across:.1f}, y {down:.1f}"
    alt = f"Photo with {counted(len(points), 'points')}; {distance}"
    return Picture(figure, title, alt)


def _chain(fields: Sequence[SamplingField]) -> list[SamplingField]:
    """Select the last consecutive layers of the backbone that give at most a thousand points together."""
    # HRNet's parallel branches and layers that run several times are not consecutive
    of_backbone = [
        field
        for field in fields
        if field.name.startswith("backbone.") and ".branches." not in field.name and " #" not in field.name
    ]
    chain: list[SamplingField] = []
    points = 1
    for field in reversed(of_backbone):
        points *= len(field.weight)
        if points > _MOST_POINTS:
            break
        chain.insert(0, field)
    return chain


def locations(truth: Detections) -> dict[str, tuple[float, float]]:
    """Return the centre, (y, x), of the largest and smallest object, and a point far from all objects."""
    assert truth.image is not None  # it was read from a file of the data set
    crops = truth.crops or _filled(truth.boxes, truth.image.shape[:2])
    background = np.ones(crops.size, bool)
    for part, (y, x) in zip(crops.parts, crops.corners, strict=True):
        background[y : y + part.shape[0], x : x + part.shape[1]] &= ~part
    areas = np.array([part.sum() for part in crops.parts])
    order = [i for i in np.argsort(areas, kind="stable") if areas[i]]
    chosen = {"largest": order[-1:], "smallest": order[:-1][:1]}
    places: dict[str, tuple[float, float]] = {}
    for name, numbers in chosen.items():
        for i in numbers:
            (top, left), (down, across) = crops.corners[i], _innermost(crops.parts[i])
            places[f"{truth.names[i]}, the {name}"] = (top + down, left + across)
    if background.any():
        places["background"] = _innermost(background)
    return places


def _filled(boxes: np.ndarray, size: tuple[int, int]) -> Crops:
    corners = boxes.round().astype(int).clip(0, [size[1], size[0]] * 2).tolist()
    parts = [np.ones((y2 - y1, x2 - x1), bool) for x1, y1, x2, y2 in corners]
    return Crops(parts, [(y1, x1) for x1, y1, _, _ in corners], size)


def _innermost(mask: np.ndarray) -> tuple[float, float]:
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(y), float(x)
