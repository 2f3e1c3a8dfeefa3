"""Precision, recall and confusion of the classes, and the pictures with the most mistakes."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from dcnzoo.detect.detections import Detections
from dcnzoo.report import page
from dcnzoo.report.evaluation import IOU, THRESHOLDS, Evaluation, Mistake
from dcnzoo.report.page import Picture, Section
from dcnzoo.report.plots import plot_confusion, plot_f1, plot_precision_recall
from dcnzoo.report.validation import THRESHOLD, ValidationRunner
from dcnzoo.utils.text import cut

_MOST_CLASSES = 12  # in a chart


def show_errors(detectors: Mapping[str, ValidationRunner], results: Mapping[str, Evaluation]) -> Section:
    parts = []
    images, classes = 0, 0
    for label, result in results.items():
        all_names = detectors[label].classes
        numbers = result.confusion.sum(1)[:-1].argsort(kind="stable")[::-1][:_MOST_CLASSES]
        chosen = sorted(number for number in numbers if result.objects[number])
        names = _short_names([all_names[number] for number in chosen])
        suffix = f", {label}" if len(results) > 1 else ""
        figures = []
        if chosen:
            curves = dict(zip(names, result.precision[chosen], strict=True))
            figures.append(plot_precision_recall(f"precision and recall{suffix}", curves))
            f1 = dict(zip(names, result.f1[chosen], strict=True))
            best = THRESHOLDS[result.best]
            figures.append(plot_f1(f"F1 by threshold{suffix}", f1, result.mean_f1, best))
        counts = result.confusion[np.ix_([*chosen, -1], [*chosen, -1])]
        for title, percent in (("confusion", False), ("confusion, % of the row", True)):
            figures.append(plot_confusion(f"{title}{suffix}", counts, [*names, "none"], percent))
        if suffix:
            parts.append(Markup("<h3>{}</h3>").format(label))
        parts += [page.table(class_table(result, all_names)), page.charts(figures)]
        images, classes = result.images, len(all_names)
    text = (
        f"Boxes in the first {images} validation images; they match from IoU {IOU} on (AP: 0.5 to 0.95). "
        "Recall and F1 are those at the threshold of the scores with the best mean F1. The legends show AP50 "
        f"and the best F1. The confusion matrix counts detections with a score of at least {THRESHOLD}. "
        "Column 'none': objects that were missed; row 'none': detections without an object."
    )
    if classes > _MOST_CLASSES:
        text += f" Of {classes} classes, the charts show the {_MOST_CLASSES} with the most objects."
    return Section("Errors by class", text, parts)


def class_table(result: Evaluation, names: Sequence[str]) -> list[list[str]]:
    """Return a header, the means, and one row per class with objects."""
    chosen = np.flatnonzero(result.objects)
    threshold = f"{THRESHOLDS[result.best]:.2f}"
    ap50 = result.precision.mean(1)
    columns = result.ap, ap50, result.recall[:, result.best], result.f1[:, result.best]
    rows = [["class", "objects", "AP", "AP50", f"recall at {threshold}", f"F1 at {threshold}"]]
    if len(chosen):
        means = [f"{column[chosen].mean():.3f}" for column in columns]
        rows.append([f"mean of {len(chosen)}", str(result.objects.sum()), *means])
    for number in chosen.tolist():
        values = (f"{column[number]:.3f}" for column in columns)
        rows.append([names[number], str(result.objects[number]), *values])
    return rows


def _short_names(names: Sequence[str]) -> list[str]:
    """Shorten names for charts; number those that would become equal."""
    short = [cut(name, 24) for name in names]
    return [f"{each} ({i})" if short.count(each) > 1 else each for i, each in enumerate(short, 1)]


def show_worst(
    detectors: Mapping[str, ValidationRunner], results: Mapping[str, Evaluation]
) -> Iterator[Section]:
    for label, result in results.items():
        worst = result.mistakes.items()
        pictures = [_mistakes_picture(detectors[label], image, mistakes) for image, mistakes in worst]
        text = (
            f"Those of the first {result.images} validation images with the most objects that were "
            "missed, detections without an object (false), and detections of another class. Only these are "
            f"drawn. Detections have a score of at least {THRESHOLD}."
        )
        title = "Most mistakes" if len(results) == 1 else f"Most mistakes, {label}"
        if pictures:
            yield Section(title, text, [page.pictures(pictures)])


def _mistakes_picture(detector: ValidationRunner, image: int, mistakes: Sequence[Mistake]) -> Picture:
    texts = [_in_words(mistake, detector.classes) for mistake in mistakes]
    counts = Counter(mistake.kind for mistake in mistakes)
    drawn = Detections(
        np.array([mistake.box for mistake in mistakes], np.float32),
        np.array([mistake.score for mistake in mistakes]),
        np.arange(len(mistakes)),
        classes=tuple(texts),
        image=detector.annotated(image).image,
    )
    file = detector.file(image)
    numbers = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    caption = f"{file.name}: {numbers} ({'; '.join(texts)})"
    return Picture(
        drawn.draw(with_scores=False), caption, "The photo with the boxes of these mistakes", file.as_uri()
    )


def _in_words(mistake: Mistake, names: Sequence[str]) -> str:
    label = None if mistake.label is None else names[mistake.label]
    if mistake.detected is None:
        return f"missed {label}"
    known = "false" if label is None else f"{label} as"
    return f"{known} {names[mistake.detected]} {mistake.score:.2f}"


def results_data(result: Evaluation, names: Sequence[str]) -> dict:
    """Return the figures of the section for programs: see :func:`dcnzoo.report.report.write_report`."""
    recall, f1 = result.recall[:, result.best], result.f1[:, result.best]
    columns = {"ap": result.ap, "ap50": result.precision.mean(1), "recall": recall, "f1": f1}
    classes = [
        {"name": names[number], "objects": int(result.objects[number])}
        | {key: round(float(column[number]), 4) for key, column in columns.items()}
        for number in np.flatnonzero(result.objects).tolist()
    ]
    return {
        "images": result.images,
        "iou": IOU,
        "threshold": round(float(THRESHOLDS[result.best]), 2),
        "f1": round(float(result.mean_f1[result.best]), 4),
        "classes": classes,
    }
