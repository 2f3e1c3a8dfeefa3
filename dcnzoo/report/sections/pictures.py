"""Detections beside the ground truth, sampling points on images."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from dcnzoo.report import page
from dcnzoo.report.explain import Box, offset_table, points_of
from dcnzoo.report.page import Picture, Section, in_words
from dcnzoo.report.plots import Panel, plot_panel
from dcnzoo.report.validation import Prediction
from dcnzoo.utils.text import counted

_MOST_LAYERS = 16


def show_detections(
    title: str, text: str, predictions: Mapping[str, Sequence[Prediction]], threshold: str
) -> Section:
    rows = []
    for number, row in enumerate(zip(*predictions.values(), strict=True), 1):
        truth = row[0].truth
        drawn = {"ground truth": (truth, truth.draw(with_scores=False, every_label=True))}
        for label, prediction in zip(predictions, row, strict=True):
            caption = label if len(predictions) > 1 else "detections"
            drawn[caption] = prediction.detections, prediction.detections.draw()
        images = []
        for caption, (objects, picture) in drawn.items():
            words = f"{caption}: {in_words(objects.names)}"
            images.append(Picture(picture, words, f"Picture {number} with boxes and names, {words}"))
        rows.append(page.pictures(images))
    return Section(title, f"{text} Detections have a score of at least {threshold}.", rows)


def show_sampling(title: str, prediction: Prediction) -> Section:
    """Show the points of each layer for the output at the centre of the largest object."""
    objects, image = prediction.truth, prediction.truth.image
    assert image is not None  # it was read from a file of the data set
    name, box = "the picture", np.array([0, 0, image.shape[1], image.shape[0]])
    if len(objects):
        largest = (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(-1).argmax()
        name, box = f"the largest object ({objects.names[largest]})", objects.boxes[largest]
    x, y = (box[:2] + box[2:]) / 2
    layers = []
    for field in prediction.fields[:_MOST_LAYERS]:
        points, weight = (part.numpy() for part in points_of(field, Box(x, y, x, y), prediction.frame))
        figure = plot_panel(image, Panel(field.name, (x, y, x, y), points=points, weight=weight))
        down, across = np.abs(points - [y, x]).mean(0)
        distance = f"mean distance from ({x:.0f}, {y:.0f}): x {across:.1f}, y {down:.1f}"
        alt = f"Photo with {counted(len(points), 'points')}; {distance}"
        layers.append(Picture(figure, field.name, alt))
    left_out = len(prediction.fields) - len(layers)
    text = f"Sampling points of each layer for one output (cross), at the centre of {name}"
    text += f"; not shown: {counted(left_out, 'more layers')}" if left_out else ""
    text += ". Size and colour: the modulation, relative to the largest in the picture."
    parts = [
        page.pictures(layers, "small"),
        Markup("<h3>Offsets over the whole image, in pixels of the layer's input</h3>"),
        page.table(offset_table(prediction.fields, prediction.statistics)),
    ]
    return Section(title, text, parts)
