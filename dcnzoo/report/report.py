"""Reports of one or several trainings. Requires mmdet."""

import dataclasses
import difflib
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from markupsafe import Markup
from mmengine.config import Config
from torch import Tensor

from dcnzoo.export.picture import Detections
from dcnzoo.report import page
from dcnzoo.report.detector import Prediction, ValidationRunner
from dcnzoo.report.evaluation import IOU
from dcnzoo.report.explain import Box, offset_table, points_of
from dcnzoo.report.history import History
from dcnzoo.report.page import Section
from dcnzoo.report.plots import (
    COLOURS,
    Curves,
    Panel,
    plot_confusion,
    plot_curves,
    plot_panels,
    plot_precision_recall,
)
from dcnzoo.report.sampling import SamplingField, trace_sampling
from dcnzoo.utils.errors import UserError, one_line, user_errors
from dcnzoo.utils.files import write_text
from dcnzoo.utils.jsonl import versions
from dcnzoo.utils.text import cut
from dcnzoo.zoo.loading import work_directory

_THRESHOLD = 0.3  # of the scores of detections
_LOW_AP = 0.1
_EARLY = 2000  # iterations
_MOST_CLASSES = 12  # in a confusion matrix
_MOST_LAYERS = 16
_MOST_POINTS = 1000
_MAIN_METRICS = 3
_OFFSETS = {
    "mean_abs": "mean |offset| [pixels]",
    "outside": "share outside the map",
    "modulation_mean": "mean modulation",
}
_KINDS = {"bbox": "box", "segm": "mask", "proposal": "proposal"}
_SIZES = {"s": "small", "m": "medium", "l": "large"}


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """A work directory of ``dcnzoo train``.

    Attributes:
        label: name of its curves; runs with the same label are seeds of one setting.
        checkpoint: for the detections; None if there is none.
    """

    label: str
    folder: Path
    cfg: Config
    history: History
    checkpoint: Path | None

    @classmethod
    def read(cls, folder: Path, label: str | None = None, checkpoint: Path | None = None) -> "TrainedRun":
        """Read the newest config and all logs of a folder; use its last checkpoint unless one is given.

        Raises:
            UserError: the folder or the checkpoint does not exist, or the folder contains no training.
        """
        config, last = work_directory(folder)
        history = History.read(folder)
        if not history.training:
            raise UserError(
                f"model: expected a work directory of dcnzoo train, found no losses in {folder}/*/vis_data"
            )
        checkpoint = checkpoint or last
        if checkpoint is not None and not checkpoint.is_file():
            raise UserError(f"checkpoint: expected a file, found none at {checkpoint}")
        cfg = Config.fromfile(config)
        return cls(label or folder.resolve().name, folder, cfg, history, checkpoint)

    @property
    def counts_epochs(self) -> bool:
        loop = self.cfg.train_cfg
        return bool(loop.get("by_epoch", loop.get("type") == "EpochBasedTrainLoop"))

    @property
    def seconds_per_iteration(self) -> float:
        return statistics.median(entry["time"] for entry in self.history.training.values())

    @property
    def last_validation(self) -> dict[str, float]:
        """The metrics of the last validation; empty if there was none."""
        return self.history.validation[max(self.history.validation)] if self.history.validation else {}


def metric_name(key: str) -> str:
    """Return the display name of a metric: box AP50 for ``coco/bbox_mAP_50``; others are unchanged."""
    found = re.fullmatch(r"coco/(bbox|segm|proposal)_mAP(?:_(50|75|s|m|l))?", key)
    if not found:
        return key
    kind, detail = found.groups()
    return f"{_KINDS[kind]} AP" + (f", {_SIZES[detail]}" if detail in _SIZES else detail or "")


def main_metrics(runs: Sequence[TrainedRun]) -> list[str]:
    """Return the most important metrics that all runs have."""
    entries = [entry for run in runs if (entry := run.last_validation)]
    if len(entries) < len(runs):
        return []
    shared = [name for name in entries[0] if all(name in entry for entry in entries)]
    means = [name for name in shared if name.endswith("mAP")]
    return (means or shared)[:_MAIN_METRICS]


def by_label(runs: Sequence[TrainedRun]) -> dict[str, list[TrainedRun]]:
    return {run.label: [other for other in runs if other.label == run.label] for run in runs}


def mean_and_spread(values: Sequence[float]) -> str:
    text = f"{statistics.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.3f}"


def summary(
    runs: Sequence[TrainedRun], detectors: Mapping[str, ValidationRunner], head: str = "run"
) -> list[list[str]]:
    """Return a header and one row per label: main metrics, seconds per iteration, number of parameters."""
    metrics = main_metrics(runs)
    rows = [[head, *map(metric_name, metrics), "s / iteration", "parameters"]]
    for label, seeds in by_label(runs).items():
        figures = [mean_and_spread([run.last_validation[metric] for run in seeds]) for metric in metrics]
        seconds = statistics.mean(run.seconds_per_iteration for run in seeds)
        rows.append([label, *figures, f"{seconds:.3f}", _parameters(detectors.get(label))])
    return rows


def _parameters(detector: ValidationRunner | None) -> str:
    return "–" if detector is None else f"{sum(p.numel() for p in detector.model.parameters()):,}"


def load_detectors(
    runs: Sequence[TrainedRun], device: str = "cpu", allow_partial: bool = False
) -> dict[str, ValidationRunner]:
    """Load the detector of the first run of each label, if it has a checkpoint."""
    detectors = {}
    for label, seeds in by_label(runs).items():
        if seeds[0].checkpoint is not None:
            detectors[label] = ValidationRunner(seeds[0].cfg, seeds[0].checkpoint, device, allow_partial)
    return detectors


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    labels: Sequence[str] | None = None,
    checkpoint: Path | None = None,
    images: int = 5,
    evaluated: int = 100,
    device: str = "cpu",
    allow_partial: bool = False,
) -> Path:
    """Write the page of :func:`render_runs` atomically; return its path.

    Args:
        folders: work directories.
        out: the file (default: ``report.html`` in the first folder).
        labels: of the folders (default: their names).
        checkpoint: of the first folder (default: the last checkpoint).
        images, evaluated: see :func:`render_runs`.
        device: on which the detectors run.
        allow_partial: if a checkpoint does not fit its config, load the parameters that fit.

    Raises:
        UserError: a folder contains no training, or a checkpoint does not fit.
    """
    names = labels or [None] * len(folders)
    checkpoints = [checkpoint, *[None] * (len(folders) - 1)]
    with user_errors():
        runs = [TrainedRun.read(*each) for each in zip(folders, names, checkpoints, strict=True)]
        detectors = load_detectors(runs, device, allow_partial)
    out = out or folders[0] / "report.html"
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
    sections, table = [_curves(runs)], summary(runs, detectors, head)
    facts = None
    if len(table) == 2:  # a single label
        iterations = f"{max(run.history.iteration for run in runs):,}"
        facts = {**dict(zip(table[0][1:], table[1][1:], strict=True)), "iterations": iterations}
    else:
        text = "Metrics of the last validation. Of several runs: mean ± standard deviation."
        sections.insert(0, Section("Result", text, [page.table(table)]))
    sections += _pictures(detectors, images, evaluated)
    sections += [_offsets_over_time(runs), _validations(runs), _configuration(runs), _environment(runs)]
    lengths = (f"{run.label}: {run.history.iteration:,} iterations in {run.folder}." for run in runs)
    return page.render(
        "report.html",
        title=title or " and ".join(by_label(runs)),
        lead=" ".join(lengths) if lead is None else lead,
        sections=[section for section in sections if section.parts],
        facts=facts,
        footer=footer,
    )


# Curves


def _curves(runs: Sequence[TrainedRun]) -> Section:
    counted = "epoch" if runs[0].counts_epochs else "iteration"
    figures = [plot_curves("training loss", _series(runs, "training", "loss"))]
    for metric in main_metrics(runs):
        figures.append(plot_curves(metric_name(metric), _series(runs, "validation", metric), counted))
    text = "Training loss and validation metrics. Thin lines are single runs, thick lines are means."
    return Section("Learning curves", f"{text}{_low_ap(runs)}", [page.charts(figures)])


def _low_ap(runs: Sequence[TrainedRun]) -> str:
    """Say whether a low AP is normal; empty if no run has one."""
    means = {run: [v for name, v in run.last_validation.items() if name.endswith("mAP")] for run in runs}
    low = [run.history.iteration for run, values in means.items() if values and max(values) < _LOW_AP]
    if not low:
        return ""
    text = f" An AP below {_LOW_AP} after {max(low):,} iterations is "
    if max(low) <= _EARLY:
        return f"{text}normal: AP rises after the loss has fallen. Train longer."
    return f"{text}unusual. Check the annotations (dcnzoo data check) and the learning rate."


def _series(runs: Sequence[TrainedRun], log: str, name: str) -> Curves:
    curves: Curves = {}
    for label, seeds in by_label(runs).items():
        series = [_column(getattr(run.history, log), name) for run in seeds]
        steps = sorted(set.intersection(*map(set, series)))  # a resumed run may lack a validation
        curves[label] = (np.array(steps), np.array([[one[step] for step in steps] for one in series]))
    return curves


def _column(log: Mapping[int, Mapping[str, float]], name: str) -> dict[int, float]:
    return {step: entry[name] for step, entry in log.items() if name in entry}


def _validations(runs: Sequence[TrainedRun]) -> Section:
    folds = []
    for run in runs:
        validation = run.history.validation
        if not validation:
            continue
        names = list(dict.fromkeys(name for entry in validation.values() for name in entry))
        rows = [["epoch" if run.counts_epochs else "iteration", *map(metric_name, names)]]
        for step, entry in sorted(validation.items()):
            # COCO's evaluation returns −1 if a metric is not defined
            values = [entry.get(name, -1.0) for name in names]
            rows.append([str(step), *("–" if value == -1 else f"{value:.3f}" for value in values)])
        folds.append(page.fold(_called(run, runs), page.table(rows)))
    return Section("All validations", "", folds)


def _called(run: TrainedRun, runs: Sequence[TrainedRun]) -> str:
    return run.label if len(by_label(runs)[run.label]) == 1 else f"{run.label}, {run.folder.name}"


# Pictures


def _pictures(detectors: Mapping[str, ValidationRunner], images: int, evaluated: int) -> Iterator[Section]:
    if not detectors:
        return
    first = next(iter(detectors.values()))
    for label, detector in detectors.items():
        if detector.classes != first.classes:
            raise UserError(
                f"{label}: expected the classes of the other runs, {', '.join(first.classes)}, "
                f"got {', '.join(detector.classes)}"
            )
    try:
        chosen = pick_images(first, images)
        predictions = {
            label: [each.predict(i, _THRESHOLD) for i in chosen] for label, each in detectors.items()
        }
        if evaluated:
            yield _errors(detectors, evaluated)
    except (FileNotFoundError, AttributeError, KeyError) as error:
        # the data is missing, or inside an unknown wrapper; the rest of the report does not need it
        yield Section("Detections", f"The images cannot be read: {one_line(error)}", [Markup("")])
        return
    if not chosen:
        return
    yield _detections(predictions)
    for label, predicted in predictions.items():
        if predicted[0].fields:
            title = "Sampling positions" if len(detectors) == 1 else f"Sampling positions, {label}"
            yield _sampling(title, predicted[0])


def pick_images(detector: ValidationRunner, number: int) -> list[int]:
    """Select images in the order of the file, those with three or more objects first.

    The selection does not depend on the results.
    """
    infos = [detector.dataset.get_data_info(index) for index in range(len(detector.dataset))]
    return sorted(range(len(infos)), key=lambda index: len(infos[index]["instances"]) < 3)[:number]


def _errors(detectors: Mapping[str, ValidationRunner], evaluated: int) -> Section:
    figures = []
    for label, detector in detectors.items():
        result = detector.evaluate(evaluated, _THRESHOLD)
        numbers = result.confusion.sum(1)[:-1].argsort(kind="stable")[::-1][:_MOST_CLASSES]
        chosen = sorted(number for number in numbers if result.precision[number, 0] >= 0)
        names = [cut(detector.classes[number], 24) for number in chosen]
        suffix = f", {label}" if len(detectors) > 1 else ""
        if chosen:
            curves = dict(zip(names, result.precision[chosen], strict=True))
            figures.append(plot_precision_recall(f"precision and recall{suffix}", curves))
        counts = result.confusion[np.ix_([*chosen, -1], [*chosen, -1])]
        figures.append(plot_confusion(f"confusion{suffix}", counts, [*names, "none"]))
    text = (
        f"Boxes in the first {result.images} validation images; they match from IoU {IOU} on. The legend "
        f"shows AP50. The confusion matrix counts detections with a score of at least {_THRESHOLD}. Column "
        "'none': objects that were missed; row 'none': detections without an object."
    )
    if len(detector.classes) > _MOST_CLASSES:
        text += f" Of {len(detector.classes)} classes, the {_MOST_CLASSES} with the most objects."
    return Section("Errors by class", text, [page.charts(figures)])


def _detections(predictions: Mapping[str, Sequence[Prediction]]) -> Section:
    rows = []
    for row in zip(*predictions.values(), strict=True):
        images = {"ground truth": row[0].truth.draw(with_scores=False)}
        for label, prediction in zip(predictions, row, strict=True):
            images[label if len(predictions) > 1 else "detections"] = prediction.detections.draw()
        rows.append(page.pictures(images))
    text = (
        "The first validation images. Images with three or more objects come first. The selection does not "
        f"depend on the results. Detections have a score of at least {_THRESHOLD}."
    )
    return Section("Detections", text, rows)


def _sampling(title: str, prediction: Prediction) -> Section:
    parts = []
    chain = _chain(prediction.fields)
    image = prediction.truth.image
    places = locations(prediction.truth)
    if chain:
        kinds = {"ordinary grid": [f.without_offset() for f in chain], "learnt offsets": chain}
        traced = [
            _panel(f"{name}: {kind}", place, *trace_sampling(fields, place, prediction.image_size))
            for kind, fields in kinds.items()
            for name, place in places.items()
        ]
        way = f" through {', '.join(field.name for field in chain[:-1])}" if len(chain) > 1 else ""
        text = (
            f"Sampling points of {chain[-1].name} for one output position (cross), traced back to the image"
            f"{way}. Top: ordinary convolutions. Bottom: learnt offsets. Size and colour: the modulation, "
            "relative to the largest in the panel."
        )
        figure = plot_panels(image, traced, columns=len(places))
        parts += [Markup("<p>{}</p>").format(text), page.picture(figure)]
    name, place = next(iter(places.items()))
    y, x = place
    panels = [
        _panel(field.name, place, *points_of(field, Box(x, y, x, y), prediction.image_size))
        for field in prediction.fields[:_MOST_LAYERS]
    ]
    left_out = len(prediction.fields) - len(panels)
    text = f"Sampling points of each layer at one position ({name})"
    text += f"; {left_out} more layers are not shown" if left_out else ""
    parts += [Markup("<h3>{}</h3>").format(text), page.picture(plot_panels(image, panels))]
    parts += [
        Markup("<h3>Offsets over the whole image, in pixels of the layer's input</h3>"),
        page.table(offset_table(prediction.fields, prediction.statistics)),
    ]
    return Section(title, "", parts)


def _panel(title: str, place: tuple[float, float], points: Tensor, weight: Tensor) -> Panel:
    y, x = place
    weight = weight.abs() / weight.abs().max().clamp(min=1e-12)
    return Panel(title, Box(x, y, x, y), points=points.numpy(), weight=weight.numpy())


def _chain(fields: Sequence[SamplingField]) -> list[SamplingField]:
    """Select the last consecutive layers of the backbone that give at most a thousand points together."""
    # not consecutive: parallel branches of HRNet, and layers that run several times
    of_backbone = [
        field
        for field in fields
        if field.name.startswith("backbone.") and ".branches." not in field.name and " #" not in field.name
    ]
    chain: list[SamplingField] = []
    points = 1
    for field in reversed(of_backbone):
        points *= len(field.weight)
        if points > _MOST_POINTS:
            break
        chain.insert(0, field)
    return chain


def locations(truth: Detections) -> dict[str, tuple[float, float]]:
    """Return the centre, (y, x), of the largest and smallest object, and a point far from all objects."""
    size = truth.image.shape[:2]
    masks = truth.masks if truth.masks is not None else _filled(truth.boxes, size)
    areas = masks.sum((1, 2))
    order = [i for i in np.argsort(areas, kind="stable") if areas[i]]
    background = ~masks.any(0) if len(masks) else np.ones(size, bool)
    places = {}
    if order:
        places[f"{truth.names[order[-1]]}, the largest"] = masks[order[-1]]
    if len(order) > 1:
        places[f"{truth.names[order[0]]}, the smallest"] = masks[order[0]]
    if background.any():
        places["background"] = background
    return {title: _innermost(mask) for title, mask in places.items()}


def _filled(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # [N, H, W], bool
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().astype(int), strict=True):
        mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
    return masks


def _innermost(mask: np.ndarray) -> tuple[float, float]:
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(y), float(x)


# Offsets, settings


def _offsets_over_time(runs: Sequence[TrainedRun]) -> Section:
    parts = []
    for run in runs:
        offsets = run.history.offsets
        last = offsets[max(offsets)] if offsets else {}
        sizes = {name.removeprefix("mean_abs/"): last[name] for name in last if name.startswith("mean_abs/")}
        layers = sorted(sizes, key=sizes.get, reverse=True)[: len(COLOURS)]
        figures = []
        for column, title in _OFFSETS.items():
            curves: Curves = {}
            for layer in layers:
                if values := _column(offsets, f"{column}/{layer}"):
                    curves[layer] = (np.array([*values]), np.array([[*values.values()]]))
            if curves:
                figures.append(plot_curves(title, curves))
        if figures:
            parts += [Markup("<h3>{}</h3>").format(_called(run, runs)), page.charts(figures)]
    text = f"From OffsetStatisticsHook: the {len(COLOURS)} layers with the largest final offsets."
    return Section("Offsets during training", text, parts)


def _configuration(runs: Sequence[TrainedRun]) -> Section:
    parts = []
    firsts = [seeds[0] for seeds in by_label(runs).values()]
    for other in firsts[1:]:
        lines = difflib.unified_diff(
            _settings(firsts[0]), _settings(other), firsts[0].label, other.label, n=2, lineterm=""
        )
        difference = "\n".join(lines) or "no differences"
        parts.append(page.fold(f"Differences of {other.label} from {firsts[0].label}", page.text(difference)))
    parts += [page.fold(f"Config of {run.label}", page.text(run.cfg.pretty_text)) for run in firsts]
    return Section("Configuration", "", parts)


def _settings(run: TrainedRun) -> list[str]:
    return [line for line in run.cfg.pretty_text.splitlines() if not line.startswith("work_dir")]


def _environment(runs: Sequence[TrainedRun]) -> Section:
    """Show the environment from the last start's log: the report may be written on another machine."""
    parts = []
    for seeds in by_label(runs).values():
        logs = sorted(seeds[0].folder.glob("*/*.log"))
        text = logs[-1].read_text(encoding="utf-8", errors="replace") if logs else ""
        found = re.search(r"^System environment:\n(.*?)^-{20,}$", text, re.DOTALL | re.MULTILINE)
        if found:
            parts.append(page.fold(f"Environment of {seeds[0].label}", page.text(found[1].rstrip())))
    return Section("Environment", "", parts)
