"""Learning curves, all validations, offsets during training."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from dcnzoo.detect.metrics import metric_names
from dcnzoo.openmmlab.history import PARTS
from dcnzoo.report import page
from dcnzoo.report.page import Section
from dcnzoo.report.plots import COLOURS, Curves, plot_curves
from dcnzoo.report.runs import TrainedRun, by_label, main_metrics, name_of
from dcnzoo.utils.text import counted

_OFFSETS = {
    "mean_abs": "mean |offset| [pixels]",
    "outside": "share outside the map",
    "modulation_mean": "mean modulation",
}


def show_curves(runs: Sequence[TrainedRun]) -> Section:
    counted = "epoch" if runs[0].counts_epochs else "iteration"
    figures = [plot_curves("training loss", _series(runs, "training", "loss"))]
    for metric, name in metric_names(main_metrics(runs)).items():
        figures.append(plot_curves(name, _series(runs, "validation", metric), counted))
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
            # COCO's evaluation returns −1 if a metric is not defined
            values = [entry.get(name, -1.0) for name in names]
            rows.append([str(step), *("–" if value == -1 else f"{value:.3f}" for value in values)])
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
    text = f"From OffsetStatisticsHook: the {counted(len(COLOURS), 'layers')} with the largest final offsets."
    return Section("Offsets during training", text, parts)


def _column(log: Mapping[int, Mapping[str, float]], name: str) -> dict[int, float]:
    return {step: entry[name] for step, entry in log.items() if name in entry}
