"""Reports of one or several trainings. Requires mmdet.

:mod:`dcnzoo.report.runs` reads the work directories, :mod:`dcnzoo.report.validation` runs the detectors,
:mod:`dcnzoo.report.sections` makes the parts of the page, and this module decides which parts there are.
"""

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dcnzoo.detect.metric_names import metric_names
from dcnzoo.detect.sources import ModelError
from dcnzoo.openmmlab.classes import require_equal
from dcnzoo.report import page, sections
from dcnzoo.report.evaluation import IOU, most_errors
from dcnzoo.report.page import Section
from dcnzoo.report.runs import TrainedRun, by_label, main_metrics, mean_and_spread, name_of
from dcnzoo.report.validation import (
    ValidationRunner,
    described_images,
    load_detectors,
    pick_images,
    thresholds,
)
from dcnzoo.utils.errors import UserError, one_line, user_errors
from dcnzoo.utils.files import numbered, require_new, write_text
from dcnzoo.utils.jsonl import versions
from dcnzoo.utils.text import counted

REPORT = "report.html"


def write_report(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    checkpoint: Path | str | None = None,
    images: int = 5,
    evaluated: int = 100,
    device: str = "cpu",
    allow_partial: bool = False,
    force: bool = False,
) -> Path:
    """Write the page of :func:`render_runs` atomically; return its path.

    Args:
        folders: work directories.
        out: the file (default: ``report.html`` in the first folder, or ``report_2.html``, … if it exists).
        labels: of the folders (default: their names; their paths, if two have one name).
        checkpoint: the first folder's checkpoint (default: the best one if there is one, else the last).
        images, evaluated: see :func:`render_runs`.
        device: on which the detectors run.
        allow_partial: if a checkpoint does not fit its config, load the parameters that fit.
        force: replace ``out``.

    Raises:
        UserError: a folder contains no training, a checkpoint does not fit, or ``out`` exists.
    """
    work_dirs = [*map(Path, folders)]
    if out is None:
        out = work_dirs[0] / REPORT
        out = out if force else numbered(out)
    out = require_new("report", out, force=force)
    names = [path.resolve().name for path in work_dirs]
    if len(set(names)) < len(names):  # folders of one name are different trainings
        names = [*map(str, work_dirs)]
    with user_errors():
        runs = [
            TrainedRun.read(folder, label, None if number else checkpoint)
            for number, (folder, label) in enumerate(zip(work_dirs, labels or names, strict=True))
        ]
        detectors = load_detectors(runs, device, allow_partial)
    write_text(out, render_runs(runs, detectors, images=images, evaluated=evaluated, footer=footer()))
    return out


def footer() -> str:
    return "made with " + ", ".join(f"{name} {version}" for name, version in versions().items())


def render_runs(
    runs: Sequence[TrainedRun],
    detectors: Mapping[str, ValidationRunner],
    title: str | None = None,
    lead: str | None = None,
    head: str = "run",
    images: int = 5,
    footer: str = "",
    evaluated: int = 100,
) -> str:
    """Render the report as HTML.

    Args:
        detectors: from :func:`load_detectors`; a label without a detector has no pictures.
        head: heading of the column of labels.
        images: number of images with detections; images with three or more objects come first.
        evaluated: number of images for the confusion matrix and the curves of precision and recall.
    """
    table = summary(runs, detectors, head)
    as_tiles = len(by_label(runs)) <= 2
    shown = [] if as_tiles else [Section("Result", "", [page.table(table)])]
    shown += _show_predictions(detectors, images, evaluated)
    shown += [sections.show_curves(runs), sections.show_offsets(runs), sections.show_validations(runs)]
    return page.render(
        "report.html",
        title=title or " and ".join(by_label(runs)),
        lead=" ".join(filter(None, [lead or result(runs), origins(runs)])),
        sections=[section for section in shown if section.parts or section.text],
        facts=_facts(table) if as_tiles else None,
        footer=footer,
    )


def _facts(table: Sequence[Sequence[str]]) -> dict[str, tuple[str, str]]:
    """Return the tiles of a :func:`summary`: name → its values, and their labels if there are several."""
    (_, *names), *rows = table
    labels, *columns = zip(*rows, strict=True)
    note = " → ".join(labels) if len(labels) > 1 else ""
    return {name: (" → ".join(column), note) for name, column in zip(names, columns, strict=True)}


def result(runs: Sequence[TrainedRun]) -> str:
    """Return the first metric of each label in a sentence, and how sure a difference is in a clause."""
    arms, texts = by_label(runs), []
    for metric, name in metric_names(main_metrics(runs)[:1]).items():
        for label, seeds in arms.items():
            values = mean_and_spread([run.metrics[metric] for run in seeds])
            texts.append(f"{label}: {name} {values}")
    if texts and 1 < len(arms) == len(runs):
        texts.append("one training each, and another seed changes the AP")
    return f"{'; '.join(texts)}." if texts else ""


def origins(runs: Sequence[TrainedRun]) -> str:
    """Return a sentence about the checkpoints of a page."""
    texts = []
    for run in runs:
        name = f"{name_of(run, runs)}: " if len(runs) > 1 else ""
        texts.append(
            f"{name}{run.described}, of {counted(run.history.iteration, 'iterations')} in {run.folder}"
        )
    return f"Checkpoint of all metrics, tables and pictures: {'; '.join(texts)}."


def summary(
    runs: Sequence[TrainedRun], detectors: Mapping[str, ValidationRunner], head: str = "run"
) -> list[list[str]]:
    """Return a header and one row per label: main metrics, seconds per iteration, number of parameters."""
    metrics = main_metrics(runs)
    rows = [[head, *metric_names(metrics).values(), "s / iteration", "parameters"]]
    for label, seeds in by_label(runs).items():
        figures = [mean_and_spread([run.metrics[metric] for run in seeds]) for metric in metrics]
        seconds = statistics.mean(run.seconds_per_iteration for run in seeds)
        detector = detectors.get(label)
        parameters = f"{sum(p.numel() for p in detector.detector.model.parameters()):,}" if detector else "–"
        rows.append([label, *figures, f"{seconds:.3f}", parameters])
    return rows


def _show_predictions(
    detectors: Mapping[str, ValidationRunner], images: int, evaluated: int
) -> Iterator[Section]:
    """Run the detectors; yield the sections about their predictions, or one that says why there are none."""
    if not detectors:
        return
    first = next(iter(detectors.values()))
    for label, detector in detectors.items():
        require_equal(first.classes, detector.classes, label)
    try:
        described = described_images(first)
        if any(described_images(detector) != described for detector in detectors.values()):
            text = (
                "The trainings have different validation images or annotations: their AP cannot be compared. "
                "Not shown: pictures and errors by class."
            )
            yield Section("Detections", text, [])
            return
        chosen = pick_images(described, images)
        predictions = {label: [each.predict(i) for i in chosen] for label, each in detectors.items()}
        results = {label: each.evaluate(evaluated) for label, each in detectors.items() if evaluated}
        worst = most_errors(results.values()) if chosen else {}
        failures = {label: [each.predict(i) for i in worst] for label, each in detectors.items()}
    except (FileNotFoundError, UserError, ModelError) as error:
        # the data is missing, or the weights are not finite; the rest of the report does not need them
        yield Section("Detections", f"Not shown: pictures and errors by class. {one_line(error)}", [])
        return
    if chosen:
        text = (
            "The first validation images. Images with three or more objects come first. The selection does "
            "not depend on the results."
        )
        yield sections.show_detections("Detections", text, predictions, thresholds(detectors))
    if worst:
        text = (
            f"The validation images with the most errors ({', '.join(map(str, worst.values()))}): objects "
            f"without a detection, and detections without an object, from IoU {IOU} on."
        )
        yield sections.show_detections("Most errors", text, failures, thresholds(detectors))
    if results:
        yield sections.show_errors(detectors, results)
    for label, predicted in predictions.items():
        if predicted and predicted[0].fields:
            title = "Sampling positions" if len(detectors) == 1 else f"Sampling positions, {label}"
            yield sections.show_sampling(title, predicted[0])
