"""Figures: learning curves, precision and recall, confusion, sampling points on an image.

Every function returns a matplotlib figure that is not attached to a GUI. The label of a chart
(``figure.get_label()``) says in words what it shows. Texts have at least 9 points, 12 pixels of a page. Lines
differ in their markers, not only in their colours.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dcnzoo.utils.errors import printable

# Okabe-Ito without yellow, which is invisible on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS, _DASHES = ("o", "s", "^", "D", "v", "P"), ("-", "--")  # together, twelve different pairs
_GREY, _LINE = "#6b7280", "#e5e7eb"
RAMP = ("#fde047", "#dc2626")  # colours of weak and strong modulation
_MARK = "#22d3ee"
_SIDE = 3.0  # width of a photo, in inches
_WIDTH = 3.4  # least width of a chart, in inches: 326 pixels

# arm → iterations [T], values [seeds, T]
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


@contextmanager
def any_letters() -> Iterator[None]:
    """Context, also a decorator, without warnings of missing glyphs: browsers draw the texts of a chart."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def plot_curves(title: str, curves: Curves, step: str = "iteration", with_legend: bool = False) -> Figure:
    """Plot learning curves: one colour per arm, thin lines for seeds, a thick line for their mean.

    Args:
        step: label of the x axis.
        with_legend: also if there is only one curve.
    """
    figure, axes = _chart(title, step)
    lines: list[Line2D] = []
    texts: list[str] = []
    for index, (arm, (iterations, values)) in enumerate(curves.items()):
        style = _line_style(index, len(iterations))
        axes.plot(iterations, values.T, color=style["color"], lw=0.8, alpha=0.35)
        lines += axes.plot(iterations, values.mean(0), **style)
        if len(iterations):
            first, last = values.mean(0)[[0, -1]]
            texts.append(f"{arm}: from {first:.3g} at {iterations[0]} to {last:.3g} at {iterations[-1]}")
    top = axes.dataLim.y1
    axes.set_ylim(0, 1.08 * top if 0 < top < np.inf else None)
    axes.set_xlim(left=0)
    if with_legend or len(curves) > 1:
        _legend(figure, lines, list(curves))
    figure.set_label(f"{title} by {step}. {'; '.join(texts)}")
    return figure


def plot_precision_recall(title: str, precision: Mapping[str, np.ndarray]) -> Figure:
    """Plot one curve per class, with its AP50 in the legend.

    Args:
        precision: class → [101], the precision at the recalls 0, 0.01, …, 1.
    """
    figure, axes = _chart(title, "recall")
    axes.set_ylabel("precision", color=_GREY)
    lines: list[Line2D] = []
    for index, values in enumerate(precision.values()):
        lines += axes.plot(np.linspace(0, 1, len(values)), values, **_line_style(index, len(values)))
    axes.set(xlim=(0, 1), ylim=(0, 1.04))
    _legend(figure, lines, [f"{name}  {values.mean():.2f}" for name, values in precision.items()])
    areas = (f"{name} {values.mean():.2f}" for name, values in precision.items())
    figure.set_label(f"{title}. AP50: {', '.join(areas)}")
    return figure


def plot_confusion(title: str, counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Plot a confusion matrix; the colours show shares of a row.

    Args:
        counts: [N + 1, M], rows are the ground truth: N classes, and no class. The columns are all
            detections: those of the N classes first, those of no class last.
        names: of the columns. The last row has the name of the last column, the others those of the first.
    """
    figure, axes = _chart(title, "detected", size=1.6 + 0.42 * len(names))
    classes = len(counts) - 1
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=colour, fontsize=9)
    labels = [plain(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right")
    axes.set_yticks(range(classes + 1), [*labels[:classes], labels[-1]])
    axes.set_ylabel("ground truth", color=_GREY)
    axes.grid(visible=False)
    correct = (f"{n}: {counts[i, i]:.0f} of {counts[i].sum():.0f}" for i, n in enumerate(names[:classes]))
    figure.set_label(f"{title}. Objects detected as their class: {', '.join(correct)}")
    return figure


def plot_sides(title: str, sides: Mapping[str, np.ndarray]) -> Figure:
    """Plot histograms of lengths on a logarithmic scale.

    Args:
        sides: name → lengths in pixels.
    """
    figure, axes = _chart(title, "pixels")
    values = np.concatenate([*sides.values()])
    bins = np.geomspace(max(values.min() * 0.99, 0.1), values.max() * 1.01, 25)
    lines: list[Line2D] = []
    for index, each in enumerate(sides.values()):
        counts = np.repeat(np.histogram(each, bins)[0], 2)
        lines += axes.plot(np.repeat(bins, 2)[1:-1], counts, **_line_style(index, len(counts)))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("objects", color=_GREY)
    _legend(figure, lines, [*sides])
    texts = (f"{name} {np.median(each):.0f} pixels" for name, each in sides.items())
    figure.set_label(f"{title}. In the middle: {', '.join(texts)}")
    return figure


def _chart(title: str, xlabel: str, size: float = 3.1) -> tuple[Figure, Axes]:
    """Return a chart of this height, in inches, and at least as wide as the page on a phone."""
    figure = Figure(figsize=(max(_WIDTH, size + 0.3), size), layout="constrained")
    axes = figure.subplots()
    axes.set_title(plain(title), loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(xlabel, color=_GREY)
    axes.grid(axis="y", color=_LINE)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_GREY)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)
    return figure, axes


def plain(text: str) -> str:
    """Replace what an SVG cannot contain; keep matplotlib from reading ``$`` as the start of a formula."""
    return "\n".join(map(printable, text.split("\n"))).replace("$", r"\$")


def _line_style(index: int, points: int) -> dict[str, Any]:
    every = max(1, points // 8)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": _DASHES[index // len(COLOURS) % len(_DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markevery": (index % every, every),  # so that markers do not coincide
        "markersize": 5,
        "linewidth": 2,
    }


@any_letters()
def _legend(figure: Figure, lines: Sequence[Line2D], labels: Sequence[str]) -> None:
    """Place the legend below the curves. matplotlib would hide labels of lines that start with ``_``."""
    columns = 2 if max(map(len, labels)) < 16 else 1
    names = [plain(label) for label in labels]
    legend = figure.legend(lines, names, loc="outside lower left", frameon=False, ncols=columns, fontsize=9)
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)


def plot_points(
    image: np.ndarray,  # [H, W, 3]
    at: tuple[float, float],
    points: np.ndarray,  # [M, 2], (y, x)
    weight: np.ndarray,  # [M]
) -> Figure:
    """Plot sampling points, with their modulation as size and colour, and a cross at the output (x, y).

    Coordinates are pixels of the image. The modulation is relative to its largest absolute value.
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=(_SIDE, _SIDE * height / width))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image, interpolation="nearest")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    weight = np.abs(weight)
    largest = float(weight.max()) or 1.0
    area = 32 / max(1, len(weight) / 100)  # many points are drawn small
    axes.scatter(
        points[:, 1], points[:, 0], s=2 + area * weight / largest, c=weight, vmin=0, vmax=largest,
        cmap=LinearSegmentedColormap.from_list("modulation", RAMP), edgecolors="black", linewidths=0.4,
    )  # fmt: skip
    axes.plot(*at, "+", color=_MARK, ms=11, mew=1.8)
    return figure
