"""Average precision and confusion of the classes."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from dcnzoo.report import page
from dcnzoo.report.evaluation import IOU, ClassResults
from dcnzoo.report.page import Section
from dcnzoo.report.plots import plot_confusion, plot_precision_recall
from dcnzoo.report.validation import ValidationRunner, thresholds
from dcnzoo.utils.text import cut

_MOST_CLASSES = 12  # in a chart


def show_errors(detectors: Mapping[str, ValidationRunner], results: Mapping[str, ClassResults]) -> Section:
    parts = []
    all_names = next(iter(detectors.values())).classes  # of all detectors
    if len(results) == 2:
        parts.append(page.table(compare_classes(results, all_names)))
    for label, result in results.items():
        numbers = result.confusion.sum(1)[:-1].argsort(kind="stable")[::-1][:_MOST_CLASSES]
        chosen = sorted(number for number in numbers if result.objects[number])
        names = [cut(all_names[number], 24) for number in chosen]
        suffix = f", {label}" if len(results) > 1 else ""
        figures = []
        if chosen:
            curves = dict(zip(names, result.precision[chosen], strict=True))
            figures.append(plot_precision_recall(f"precision and recall{suffix}", curves))
        counts = result.confusion[np.ix_([*chosen, -1], [*chosen, -1])]
        figures.append(plot_confusion(f"confusion{suffix}", counts, [*names, "none"]))
        if suffix:
            parts.append(Markup("<h3>{}</h3>").format(label))
        parts += [page.table(class_table(result, all_names)), page.charts(figures)]
    images = next(iter(results.values())).images
    text = (
        f"Boxes in the first {images} validation images; they match from IoU {IOU} on (AP: 0.5 to 0.95). The "
        f"confusion matrix counts detections with a score of at least {thresholds(detectors)}. Column "
        "'none': objects that were missed; row 'none': detections without an object."
    )
    if len(all_names) > _MOST_CLASSES:
        text += f" Of {len(all_names)} classes, the charts show the {_MOST_CLASSES} with the most objects."
    return Section("Errors by class", text, parts)


def class_table(result: ClassResults, names: Sequence[str]) -> list[list[str]]:
    """Return a header, the means, and one row per class with objects."""
    chosen = np.flatnonzero(result.objects)
    columns = result.ap, result.precision.mean(1)
    rows = [["class", "objects", "AP", "AP50"]]
    if len(chosen):
        means = [f"{column[chosen].mean():.3f}" for column in columns]
        rows.append([f"mean of {len(chosen)}", str(result.objects.sum()), *means])
    for number in chosen.tolist():
        values = (f"{column[number]:.3f}" for column in columns)
        rows.append([names[number], str(result.objects[number]), *values])
    return rows


def compare_classes(results: Mapping[str, ClassResults], names: Sequence[str]) -> list[list[str]]:
    """Return a header and one row per class with objects: the AP of two runs, and their difference."""
    first, second = (result.ap for result in results.values())
    rows = [["AP of the class", *results, "difference"]]
    for number in np.flatnonzero(next(iter(results.values())).objects).tolist():
        one, other = first[number], second[number]
        rows.append([names[number], f"{one:.3f}", f"{other:.3f}", f"{other - one:+.3f}"])
    return rows
