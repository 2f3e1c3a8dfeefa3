"""The sections of a report. Each function returns a :class:`dcnzoo.report.page.Section`."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

import numpy as np
from markupsafe import Markup

from dcnzoo.detect.metric_names import metric_names
from dcnzoo.openmmlab.history import PARTS, Rows
from dcnzoo.report import page, plots
from dcnzoo.report.evaluation import IOU, ClassResults
from dcnzoo.report.explain import offset_table
from dcnzoo.report.page import Picture, Section, in_words
from dcnzoo.report.plots import COLOURS, Curves, plot_curves
from dcnzoo.report.runs import Setting, TrainedRun, main_metrics, named_runs
from dcnzoo.report.sampling import Box, points_of
from dcnzoo.report.validation import Prediction, ValidationRunner, thresholds
from dcnzoo.utils.text import counted, cut

_MOST_CLASSES = 12  # in a chart
_MOST_LAYERS = 16
_TRAINING, _VALIDATIONS = attrgetter("history.training"), attrgetter("validations")  # of a TrainedRun
_OFFSETS = {
    "mean_abs": "mean |offset| [pixels]",
    "outside": "share outside the map",
    "modulation_mean": "mean modulation",
}


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
        figure = plots.plot_points(image, (x, y), points, weight)
        down, across = np.abs(points - [y, x]).mean(0)
        distance = f"mean distance from ({x:.0f}, {y:.0f}): x {across:.1f}, y {down:.1f}"
        alt = f"Photo with {counted(len(points), 'points')}; {distance}"
        layers.append(Picture(figure, field.title, alt))
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


def show_errors(detectors: Mapping[str, ValidationRunner], results: Mapping[str, ClassResults]) -> Section:
    first = next(iter(detectors.values()))
    all_names, columns, has_others = first.classes, [], False  # of all detectors
    for label, result in results.items():
        numbers = result.confusion.sum(1)[:-1].argsort(kind="stable")[::-1][:_MOST_CLASSES]
        chosen = sorted(number for number in numbers if result.objects[number])
        names = [cut(all_names[number], 24) for number in chosen]
        figures = []
        if chosen:
            curves = dict(zip(names, result.precision[chosen], strict=True))
            figures.append(plots.plot_precision_recall("precision and recall of boxes", curves))
        counts = confusion_of(result, chosen)
        others = counts.shape[1] > len(counts)
        names += ["other", "none"] if others else ["none"]
        has_others |= others
        figures.append(plots.plot_confusion("confusion of boxes", counts, names))
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
    if has_others:
        text += " Column 'other': detections of classes that are not shown."
    if len(all_names) > _MOST_CLASSES:
        text += f" Of {len(all_names)} classes, the charts show the {_MOST_CLASSES} with the most objects."
    return Section("Errors by class", text, parts)


def confusion_of(result: ClassResults, classes: Sequence[int]) -> np.ndarray:
    """Return the confusion of some classes.

    If there are detections of other classes, the column before the last one counts them, so that each row
    keeps its sum.
    """
    rows, chosen = result.confusion[[*classes, -1]], [*classes, -1]
    others = np.delete(rows, chosen, 1).sum(1)
    counts = rows[:, chosen]
    return np.insert(counts, -1, others, 1) if others.any() else counts


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
        means = [_figure(np.ma.masked_invalid(column[chosen]).mean()) for column in columns.values()]
        rows.append([f"mean of {len(chosen)}", str(objects.sum()), *means])
    for number in chosen.tolist():
        rows.append([names[number], str(objects[number]), *(_figure(c[number]) for c in columns.values())])
    return rows


def _figure(value: float) -> str:
    """Return a metric as text; NaN, or a mean of nothing, is undefined."""
    return "–" if np.ma.is_masked(value) or np.isnan(value) else f"{value:.3f}"


def show_curves(settings: Sequence[Setting]) -> Section:
    runs = [run for _, run in named_runs(settings)]
    figures = [plot_curves("training loss", _curves(settings, _TRAINING, "loss"))]
    for metric, name in metric_names(main_metrics(settings)).items():
        for unit in dict.fromkeys(run.unit for run in runs):  # epochs and iterations share no axis
            curves = _curves(settings, _VALIDATIONS, metric, unit)
            figures.append(plot_curves(name, curves, unit, with_legend=len(settings) > 1))
    for name in PARTS:
        if all(name in entry for run in runs for entry in run.history.training.values()):
            figures.append(plot_curves(f"training, {name}", _curves(settings, _TRAINING, name)))
    rates = page.charts([plot_curves("learning rate", _curves(settings, _TRAINING, "lr"))])
    text = (
        "Training loss and validation metrics, then the losses of all heads by kind. Thin lines are single "
        "runs, thick lines are means."
    )
    return Section("Learning curves", text, [page.charts(figures), page.fold("learning rate", rates)])


def _curves(
    settings: Sequence[Setting], rows_of: Callable[[TrainedRun], Rows], name: str, unit: str | None = None
) -> Curves:
    """Return one column of the rows of each setting's runs; with a unit, of the runs that have it."""
    curves: Curves = {}
    for setting in settings:
        runs = [run for run in setting.runs if unit in (None, run.unit)]
        if series := [_column(rows_of(run), name) for run in runs]:
            steps = sorted(set.intersection(*map(set, series)))  # a resumed run may lack a validation
            values = np.array([[one[step] for step in steps] for one in series])
            curves[setting.label] = np.array(steps), values
    return curves


def show_validations(settings: Sequence[Setting]) -> Section:
    folds = []
    for title, run in named_runs(settings):
        if not run.validations:
            continue
        names = list(dict.fromkeys(name for entry in run.history.validation.values() for name in entry))
        rows = [[run.unit, *metric_names(names).values()]]
        for step, entry in sorted(run.validations.items()):
            rows.append([str(step), *(_figure(entry.get(name, np.nan)) for name in names)])
        folds.append(page.fold(title, page.table(rows)))
    return Section("All validations", "", folds)


def show_offsets(settings: Sequence[Setting]) -> Section:
    parts = []
    for name, run in named_runs(settings):
        offsets = run.history.offsets
        last = offsets[max(offsets)] if offsets else {}
        sizes = {key.removeprefix("mean_abs/"): last[key] for key in last if key.startswith("mean_abs/")}
        layers = sorted(sizes, key=sizes.__getitem__, reverse=True)[: len(COLOURS)]
        figures = []
        for column, title in _OFFSETS.items():
            curves: Curves = {}
            for layer in layers:
                if values := _column(offsets, f"{column}/{layer}"):
                    curves[layer] = (np.array([*values]), np.array([[*values.values()]]))
            if curves:
                figures.append(plot_curves(title, curves))
        if figures:
            parts += [Markup("<h3>{}</h3>").format(name), page.charts(figures)]
    if not parts:
        return Section("Offsets during training", "", parts)
    text = f"From OffsetStatisticsHook: the {counted(len(COLOURS), 'layers')} with the largest final offsets."
    return Section("Offsets during training", text, parts)


def _column(log: Rows, name: str) -> dict[int, float]:
    return {step: entry[name] for step, entry in log.items() if name in entry}
