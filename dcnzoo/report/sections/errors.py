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
    first = next(iter(detectors.values()))
    all_names, columns = first.classes, []  # of all detectors
    for label, result in results.items():
        numbers = result.confusion.sum(1)[:-1].argsort(kind="stable")[::-1][:_MOST_CLASSES]
        chosen = sorted(number for number in numbers if result.objects[number])
        names = [cut(all_names[number], 24) for number in chosen]
        figures = []
        if chosen:
            curves = dict(zip(names, result.precision[chosen], strict=True))
            figures.append(plot_precision_recall("precision and recall of boxes", curves))
        counts = result.confusion[np.ix_([*chosen, -1], [*chosen, -1])]
        figures.append(plot_confusion("confusion of boxes", counts, [*names, "none"]))
        heading = Markup("<h3>{}</h3>").format(label)
        columns.append(heading + page.charts(figures))
    parts = [page.table(class_table(results, all_names)), page.columns(columns)]
    images, number = len(next(iter(results.values())).errors), len(first.dataset)
    which = f"all {number}" if images == number else f"the first {images} of {number}"
    other = "" if images == number else ", so the means differ from the AP above"
    text = (
        f"AP is the mean from IoU 0.5 to 0.95, in {which} validation images{other}. The confusion matrix "
        f"counts boxes with a score of at least {thresholds(detectors)}, which match from IoU {IOU} on. "
        "Column 'none': objects that were missed; row 'none': detections without an object."
    )
    if len(all_names) > _MOST_CLASSES:
        text += f" Of {len(all_names)} classes, the charts show the {_MOST_CLASSES} with the most objects."
    return Section("Errors by class", text, parts)


def class_table(results: Mapping[str, ClassResults], names: Sequence[str]) -> list[list[str]]:
    """Return a header, the means, and one row per class with objects; the models are side by side."""
    objects = next(iter(results.values())).objects
    columns = {}
    for kind in ("box AP", "box AP50", "mask AP"):
        for label, result in results.items():
            values = {"box AP": result.ap, "box AP50": result.precision.mean(1), "mask AP": result.mask_ap}
            if (column := values[kind]) is not None:
                columns[kind if len(results) == 1 else f"{kind}, {label}"] = column
    chosen = np.flatnonzero(objects)
    rows = [["class", "objects", *columns]]
    if len(chosen):
        means = [f"{column[chosen].mean():.3f}" for column in columns.values()]
        rows.append([f"mean of {len(chosen)}", str(objects.sum()), *means])
    for number in chosen.tolist():
        texts = (f"{column[number]:.3f}" for column in columns.values())
        rows.append([names[number], str(objects[number]), *texts])
    return rows
