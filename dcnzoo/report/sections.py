"""The sections of a report. Each function returns a :class:`dcnzoo.report.page.Section`."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from dcnzoo.detect.metric_names import is_undefined, metric_names
from dcnzoo.openmmlab.history import PARTS
from dcnzoo.report import page, plots
from dcnzoo.report.evaluation import IOU, ClassResults
from dcnzoo.report.explain import Box, offset_table, points_of
from dcnzoo.report.page import Picture, Section, in_words
from dcnzoo.report.plots import COLOURS, Curves, plot_curves
from dcnzoo.report.runs import TrainedRun, by_label, main_metrics, name_of
from dcnzoo.report.validation import Prediction, ValidationRunner, thresholds
from dcnzoo.utils.text import counted, cut

_MOST_CLASSES = 12  # in a chart
_MOST_LAYERS = 16
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
            figures.append(plots.plot_precision_recall("precision and recall of boxes", curves))
        counts = result.confusion[np.ix_([*chosen, -1], [*chosen, -1])]
        figures.append(plots.plot_confusion("confusion of boxes", counts, [*names, "none"]))
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
        means = [_figure(np.ma.masked_invalid(column[chosen]).mean()) for column in columns.values()]
        rows.append([f"mean of {len(chosen)}", str(objects.sum()), *means])
    for number in chosen.tolist():
        rows.append([names[number], str(objects[number]), *(_figure(c[number]) for c in columns.values())])
    return rows


def _figure(value: float) -> str:
    """Return a metric as text; NaN, or a mean of nothing, is undefined."""
    return "–" if np.ma.is_masked(value) or np.isnan(value) else f"{value:.3f}"


def show_curves(runs: Sequence[TrainedRun]) -> Section:
    unit = "epoch" if runs[0].counts_epochs else "iteration"
    figures = [plot_curves("training loss", _series(runs, "training", "loss"))]
    for metric, name in metric_names(main_metrics(runs)).items():
        figures.append(plot_curves(name, _series(runs, "validation", metric), unit))
    for name in PARTS:
        if all(name in entry for run in runs for entry in run.history.training.values()):
            figures.append(plot_curves(f"training, {name}", _series(runs, "training", name)))
    rates = page.charts([plot_curves("learning rate", _series(runs, "training", "lr"))])
    text = (
        "Training loss and validation metrics, then the losses of all heads by kind. Thin lines are single "
        "runs, thick lines are means."
    )
    return Section("Learning curves", text, [page.charts(figures), page.fold("learning rate", rates)])


def _series(runs: Sequence[TrainedRun], log: str, name: str) -> Curves:
    curves: Curves = {}
    for label, seeds in by_label(runs).items():
        series = [_column(getattr(run.history, log), name) for run in seeds]
        steps = sorted(set.intersection(*map(set, series)))  # a resumed run may lack a validation
        curves[label] = (np.array(steps), np.array([[one[step] for step in steps] for one in series]))
    return curves


def show_validations(runs: Sequence[TrainedRun]) -> Section:
    folds = []
    for run in runs:
        validation = run.history.validation
        if not validation:
            continue
        names = list(dict.fromkeys(name for entry in validation.values() for name in entry))
        rows = [["epoch" if run.counts_epochs else "iteration", *metric_names(names).values()]]
        for step, entry in sorted(validation.items()):
            defined = {name: value for name, value in entry.items() if not is_undefined(name, value)}
            rows.append([str(step), *(_figure(defined.get(name, np.nan)) for name in names)])
        folds.append(page.fold(name_of(run, runs), page.table(rows)))
    return Section("All validations", "", folds)


def show_offsets(runs: Sequence[TrainedRun]) -> Section:
    parts = []
    for run in runs:
        offsets = run.history.offsets
        last = offsets[max(offsets)] if offsets else {}
        sizes = {name.removeprefix("mean_abs/"): last[name] for name in last if name.startswith("mean_abs/")}
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
            parts += [Markup("<h3>{}</h3>").format(name_of(run, runs)), page.charts(figures)]
    if not parts:
        return Section("Offsets during training", "", parts)
    text = f"From OffsetStatisticsHook: the {counted(len(COLOURS), 'layers')} with the largest final offsets."
    return Section("Offsets during training", text, parts)


def _column(log: Mapping[int, Mapping[str, float]], name: str) -> dict[int, float]:
    return {step: entry[name] for step, entry in log.items() if name in entry}
