"""Precision, recall and confusion of the classes."""

from collections.abc import Mapping, Sequence

import numpy as np

from dcnzoo.report import page
from dcnzoo.report.evaluation import IOU
from dcnzoo.report.page import Section
from dcnzoo.report.plots import plot_confusion, plot_precision_recall
from dcnzoo.report.validation import THRESHOLD, ValidationRunner
from dcnzoo.utils.text import cut

_MOST_CLASSES = 12  # in a confusion matrix


def show_errors(detectors: Mapping[str, ValidationRunner], evaluated: int) -> Section:
    figures = []
    for label, detector in detectors.items():
        result = detector.evaluate(evaluated, THRESHOLD)
        numbers = result.confusion.sum(1)[:-1].argsort(kind="stable")[::-1][:_MOST_CLASSES]
        chosen = sorted(number for number in numbers if result.precision[number, 0] >= 0)
        names = _short_names([detector.classes[number] for number in chosen])
        suffix = f", {label}" if len(detectors) > 1 else ""
        if chosen:
            curves = dict(zip(names, result.precision[chosen], strict=True))
            figures.append(plot_precision_recall(f"precision and recall{suffix}", curves))
        counts = result.confusion[np.ix_([*chosen, -1], [*chosen, -1])]
        figures.append(plot_confusion(f"confusion{suffix}", counts, [*names, "none"]))
    text = (
        f"Boxes in the first {result.images} validation images; they match from IoU {IOU} on. The legend "
        f"shows AP50. The confusion matrix counts detections with a score of at least {THRESHOLD}. Column "
        "'none': objects that were missed; row 'none': detections without an object."
    )
    if len(detector.classes) > _MOST_CLASSES:
        text += f" Of {len(detector.classes)} classes, the {_MOST_CLASSES} with the most objects."
    return Section("Errors by class", text, [page.charts(figures)])


def _short_names(names: Sequence[str]) -> list[str]:
    """Shorten names for charts; number those that would become equal."""
    short = [cut(name, 24) for name in names]
    return [f"{each} ({i})" if short.count(each) > 1 else each for i, each in enumerate(short, 1)]
