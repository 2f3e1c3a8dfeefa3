"""Figures: learning curves, detections next to the ground truth, sampling points on an image.

Every function returns a matplotlib figure that is not attached to a GUI.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

if TYPE_CHECKING:
    from mmengine.structures import InstanceData

# Okabe-Ito without yellow, which is invisible on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_GREY, _LINE = "#6b7280", "#e5e7eb"
RAMP = ("#fde047", "#dc2626")  # of weak and strong modulation
_MARK = "#22d3ee"


@dataclasses.dataclass(frozen=True)
class Instances:
    """The objects to draw on one image.

    Attributes:
        boxes: [N, 4], (x0, y0, x1, y1) in pixels.
        labels: [N], indices into the class names.
        masks: [N, H, W], bool; None draws only boxes.
        scores: [N]; None for ground truth.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    scores: np.ndarray | None = None

    @classmethod
    def of(cls, found: "InstanceData") -> "Instances":
        """Convert a detector's ``pred_instances``."""
        masks = found.masks.cpu().numpy().astype(bool) if "masks" in found else None
        boxes = getattr(found.bboxes, "tensor", found.bboxes)
        return cls(boxes.cpu().numpy(), found.labels.cpu().numpy(), masks, found.scores.cpu().numpy())

    def above(self, threshold: float) -> "Instances":
        """Select instances with a score of at least ``threshold``; all instances of the ground truth."""
        if self.scores is None:
            return self
        keep = self.scores >= threshold
        masks = None if self.masks is None else self.masks[keep]
        return Instances(self.boxes[keep], self.labels[keep], masks, self.scores[keep])

    def titles(self, classes: Sequence[str]) -> list[str]:
        """Return the class of each instance, followed by its score if there is one."""
        names = [classes[label] for label in self.labels]
        if self.scores is None:
            return names
        return [f"{name} {score:.2f}" for name, score in zip(names, self.scores, strict=True)]


# arm → iterations [T], values [seeds, T]
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def plot_learning_curves(quantities: Mapping[str, Curves], step: str = "iteration") -> Figure:
    """Plot one panel per quantity: one colour per arm, thin lines for seeds, a thick line for their mean.

    Args:
        quantities: title → the curves of each arm.
        step: label of the x axis.
    """
    figure = _figure(3.8 * len(quantities), 3.1, columns=len(quantities))
    for axes, (quantity, curves) in zip(figure.axes, quantities.items(), strict=True):
        for index, (arm, (iterations, values)) in enumerate(curves.items()):
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(iterations, values.T, color=colour, lw=0.8, alpha=0.35)
            marker = "o" if len(iterations) < 20 else None
            axes.plot(iterations, values.mean(0), color=colour, lw=2, marker=marker, ms=4, label=arm)
        axes.set_title(quantity, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel(step, color=_GREY)
        top = axes.dataLim.y1
        axes.set_ylim(0, 1.08 * top if 0 < top < np.inf else None)
        axes.set_xlim(left=0)
        axes.grid(axis="y", color=_LINE)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_GREY)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(_GREY)
        if len(curves) > 1:
            axes.legend(frameon=False)
    return figure


def plot_detections(
    images: Sequence[np.ndarray],
    columns: Mapping[str, Sequence[Instances]],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    threshold: float = 0.3,
    size: tuple[float, float] | None = None,
) -> Figure:
    """Plot one row per image and one column per source: ground truth, one arm, another arm.

    Args:
        images: [H, W, 3], uint8, RGB.
        columns: heading → instances per image.
        palette: RGB per class.
        threshold: detections with a lower score are not drawn.
        size: width and height of the figure, in inches.
    """
    size = size or (2.6 * len(columns), 2.6 * len(images))
    figure = _figure(*size, len(columns), len(images))
    grid = np.array(figure.axes).reshape(len(images), len(columns))
    for column, (heading, per_image) in enumerate(columns.items()):
        grid[0, column].set_title(heading, fontsize=11, fontweight="bold")
        for row, (image, instances) in enumerate(zip(images, per_image, strict=True)):
            show_image(grid[row, column], image)
            _draw_instances(grid[row, column], instances.above(threshold), classes, palette)
    figure.draw_without_rendering()  # the layout
    FigureCanvasAgg(figure)  # measures texts
    for axes in figure.axes:
        if len(axes.texts) > 1:
            _separate_labels(axes)
    return figure


@dataclasses.dataclass(frozen=True)
class Panel:
    """What :func:`plot_panels` draws on the image.

    Attributes:
        region: (x1, y1, x2, y2), the position of the output; a point is a region without extent.
        heat: [H, W, 4], drawn over the image.
        points: [M, 2], (y, x).
        weight: [M], of the points; signs are ignored.
    """

    title: str
    region: tuple[float, float, float, float]
    heat: np.ndarray | None = None
    points: np.ndarray | None = None
    weight: np.ndarray | None = None


def plot_panels(image: np.ndarray, panels: Sequence[Panel], columns: int = 4) -> Figure:
    """Plot one panel per layer or position: sampling points, with the modulation as size and colour.

    All coordinates are pixels of ``image``.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    height, width = image.shape[:2]
    side = 3.0
    figure = _figure(side * columns, (side * height / width + 0.3) * rows, columns, rows)
    largest = max(np.abs(panel.weight).max() for panel in panels if panel.weight is not None) or 1.0
    ramp = LinearSegmentedColormap.from_list("modulation", RAMP)
    for axes, panel in zip(figure.axes, panels, strict=False):
        show_image(axes, image)
        axes.set_title(panel.title, fontsize=8)
        if panel.heat is not None:
            axes.imshow(panel.heat, interpolation="nearest")
        if panel.points is not None:
            weight = np.abs(panel.weight)
            area = 32 / max(1, len(weight) / 100)  # many points are drawn small
            drawn = axes.scatter(
                *panel.points.T[::-1], s=2 + area * weight / largest, c=weight, cmap=ramp,
                vmin=0, vmax=largest, edgecolors="black", linewidths=0.4,
            )  # fmt: skip
        x1, y1, x2, y2 = panel.region
        if (x1, y1) == (x2, y2):
            axes.plot(x1, y1, "+", color=_MARK, ms=11, mew=1.8)
        else:
            axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=_MARK, lw=1.4)
    for unused in figure.axes[len(panels) :]:
        unused.set_axis_off()
    figure.colorbar(drawn, ax=figure.axes, label="modulation", shrink=0.6, aspect=30)
    return figure


def _separate_labels(axes: Axes) -> None:
    """Move texts that overlap up or down."""
    adjust_text(
        axes.texts,
        ax=axes,
        only_move="y",
        expand=(1, 1.1),
        force_text=(0, 0.3),
        max_move=(0, 6),
        time_lim=0.5,
    )


def _figure(width: float, height: float, columns: int = 1, rows: int = 1) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.subplots(rows, columns, squeeze=False)
    return figure


def show_image(axes: Axes, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    axes.imshow(image, interpolation="nearest")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_instances(
    axes: Axes,
    instances: Instances,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> None:
    rows = zip(instances.boxes, instances.labels, instances.titles(classes), strict=True)
    for i, (box, label, title) in enumerate(rows):
        colour = np.array(palette[label]) / 255
        if instances.masks is not None and instances.masks[i].any():
            _draw_mask(axes, instances.masks[i], colour)
        x0, y0, x1, y1 = box - 0.5  # in matplotlib, pixel 0 starts at -0.5
        # a dark outline, because white is invisible on light images
        outline = [withStroke(linewidth=1.6, foreground="black")]
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="white", lw=0.7, path_effects=outline)
        axes.text(
            max(x0, 0),
            max(y0, 8),
            title,
            fontsize=6.5,
            color="white",
            va="bottom",
            clip_on=True,
            bbox={"facecolor": colour * 0.75, "edgecolor": "none", "pad": 1},
        )


def _draw_mask(axes: Axes, mask: np.ndarray, colour: np.ndarray) -> None:
    # draw only the covered part and a margin for the outline: a large image is slow
    y, x = (
        slice(max(at.min() - 1, 0), at.max() + 2)
        for at in (mask.any(1).nonzero()[0], mask.any(0).nonzero()[0])
    )
    part = mask[y, x]
    tint = np.zeros((*part.shape, 4))
    tint[part] = [*colour, 0.45]
    left, top = x.start - 0.5, y.start - 0.5
    extent = (left, left + part.shape[1], top + part.shape[0], top)
    axes.imshow(tint, interpolation="nearest", extent=extent)
    if min(part.shape) > 1:
        rows, columns = np.arange(part.shape[0]) + y.start, np.arange(part.shape[1]) + x.start
        axes.contour(columns, rows, part, levels=[0.5], colors=[colour], linewidths=1.1)
