"""Print a training or a test in the terminal: a head, a row per epoch, the result and the next step."""

import datetime
import os
import re
import shlex
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_world_size, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from dcnzoo.detect.metric_names import is_undefined, metric_names
from dcnzoo.layers.offsets import OffsetPredictor
from dcnzoo.openmmlab.history import History, loss_parts
from dcnzoo.openmmlab.saved import SavedCheckpoints, best_files, best_prefix, last_checkpoint
from dcnzoo.openmmlab.weights import without_wrapper
from dcnzoo.utils.errors import printable, show
from dcnzoo.utils.text import columns, counted, cut, few

WIDTH = 100  # terminals with at least this many columns show the parts of the loss
COUNTED_IMAGES = 20_000  # the objects of a larger data set are not counted: reading it takes seconds
SHOWN_CLASSES = 12
NAMES = SavedCheckpoints(Path())  # the default names of checkpoints
COLUMNS = ("bbox_mAP", "bbox_mAP_50", "segm_mAP")  # of CocoMetric


class SummaryHook(Hook):
    """Print a training or a test for a person to read; mmengine's log is then only in its file.

    Prints one line per epoch, or per validation if the training counts iterations, also without a terminal.
    :class:`~dcnzoo.openmmlab.hooks.ProgressHook` shows the bar.

    Args:
        saved: the checkpoints of a training.
        changes: the changes that options have made to the config.
    """

    priority = "LOWEST"  # after CheckpointHook, which writes the best checkpoint

    def __init__(self, saved: SavedCheckpoints = NAMES, changes: str = "") -> None:
        self._saved, self._changes = saved, changes
        self._by_epoch, self._unit = True, "epoch"  # what the training counts
        self._began = self._started = time.monotonic()  # of the row, and of the training
        self._row: dict[str, str] = {}  # the next row, printed after its validation
        self._widths: dict[str, int] = {}  # widths of the columns in the last head
        self._classes: dict[int, list[str]] = {}  # epoch or iteration → APs of the classes

    # Training

    def before_train(self, runner: Runner) -> None:
        data = {"train": runner.train_dataloader}
        if runner.val_loop:
            data["validate"] = runner.val_dataloader
        folder = f"{shown_path(runner.work_dir)} (log: {runner.timestamp}/{runner.timestamp}.log)"
        print_pairs([*_head(runner, data), ("changed", self._changes), ("work dir", folder)])
        self._by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        self._unit = "epoch" if self._by_epoch else "iteration"
        self._began = self._started = time.monotonic()

    def after_train_epoch(self, runner: Runner) -> None:
        if self._by_epoch:
            self._row = self._progress(runner, runner.epoch + 1)

    def before_train_epoch(self, runner: Runner) -> None:
        self._print_row()  # of an epoch without validation

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        step = runner.epoch if self._by_epoch else runner.iter
        if not self._row:  # the training counts iterations, or resumes with the validation of an epoch
            self._row = self._progress(runner, step)
        self._row.update(_figures(metrics))
        self._classes[step] = [*_classes(runner.val_evaluator, metrics).values()]
        self._print_row()

    def after_train(self, runner: Runner) -> None:
        self._print_row()
        if not is_main_process():
            return
        folder, info = Path(runner.work_dir), runner.message_hub.runtime_info
        lines = [("time", str(datetime.timedelta(seconds=round(time.monotonic() - self._started))))]
        if getattr(runner.train_loop, "stop_training", False):
            lines.append(("stopped", "early by EarlyStoppingHook; the log has the reason"))
        last = last_checkpoint(folder)
        file = self._saved.best() or last  # commands use it for this work directory
        lines += self._result(folder, file)
        names = [Path(path).name for path in best_files(info) if "://" in path or os.path.exists(path)]
        if last:
            names.append(last.name)
        lines.append(("files", ", ".join([*names, "vis_data/"])))
        print()
        print_pairs(lines)

    def _result(self, folder: Path, file: Path | None) -> list[tuple[str, str]]:
        """Return the metrics of a checkpoint, or of the last validation if it was not validated."""
        validations = History.read(folder).validation
        step = self._saved.number(file.name) if file and self._saved.by_epoch == self._by_epoch else None
        label = "best" if step in validations and file == self._saved.best() else "last"
        if step not in validations:
            step = max(validations, default=0)
        if not (metrics := validations.get(step)):
            return []
        names = metric_names(metrics)
        # the metric of save_best
        selected = {key: metrics[key] for key in metrics if file and file.name.startswith(best_prefix(key))}
        figures = {**{names[key]: f"{value:.3f}" for key, value in selected.items()}, **_figures(metrics)}
        aps = ", ".join(f"{name} {figure}" for name, figure in figures.items())
        rows = [("classes", row) for row in self._classes.get(step, ())]
        return [(label, f"{self._unit} {step}: {aps}"), *rows]

    def _progress(self, runner: Runner, step: int) -> dict[str, str]:
        """Return the cells of a row: epoch or iteration, mean losses since the last row, rate, time."""
        end = runner.max_epochs if self._by_epoch else runner.max_iters
        window = len(runner.train_dataloader) if self._by_epoch else runner.train_loop.val_interval
        scalars = runner.message_hub.log_scalars
        means = {
            name.removeprefix("train/"): buffer.mean(window)
            for name, buffer in scalars.items()
            if re.fullmatch(r"train/(.*[._])?loss(_.*)?", name) and len(buffer.data[0])
        }
        cells = {self._unit: f"{step}/{end}"}
        if "loss" in means:
            cells["loss"] = f"{means.pop('loss'):.3f}"
        if shutil.get_terminal_size((WIDTH, 0)).columns >= WIDTH:
            cells |= {name: f"{loss:.3f}" for name, loss in loss_parts(means).items()}
        # with paramwise_cfg, lr is that of the first group, such as 0 of a frozen backbone
        if rate := scalars.get("train/base_lr") or scalars.get("train/lr"):
            cells["lr"] = f"{rate.current():.2g}"
        now = time.monotonic()
        cells["time"], self._began = str(datetime.timedelta(seconds=round(now - self._began))), now
        return cells

    def _print_row(self) -> None:
        """Print the pending row, below a head if its columns are new."""
        row, self._row = self._row, {}
        if not (row and is_main_process()):
            return
        lines = [row]
        if not row.keys() <= self._widths.keys():  # also of the first validation
            self._widths = {name: max(len(name), len(text), 6) for name, text in row.items()}
            print()
            lines = [{name: name for name in row}, row]
        for cells in lines:
            texts = [f"{cells.get(name, ''):>{width}}" for name, width in self._widths.items()]
            show("  ".join(texts).rstrip())

    # Test

    def before_test(self, runner: Runner) -> None:
        print_pairs(_head(runner, {"test": runner.test_dataloader}))

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        classes, pairs = _classes(runner.test_evaluator, metrics), list[tuple[str, str]]()
        for metric, keys in groupby(labels(metrics, most=None).items(), lambda label: _without_end(label[0])):
            pairs += [(name, f"{metrics[key]:.3f}") for key, name in keys]
            pairs.append(("classes", classes.get(metric, "")))
        print_pairs(pairs)


def labels(metrics: Mapping[str, object], most: int | None = 3) -> dict[str, str]:
    """Return the keys and names of metrics: COCO's main APs or, without them, ``most``; None: all."""
    numbers = [key for key, value in metrics.items() if isinstance(value, Real)]  # numpy's, too
    known = [key for key in numbers if not is_undefined(key, metrics[key])]
    main = [key for key in known if key.rpartition("/")[2] in COLUMNS]
    names = metric_names(metrics)
    return {key: names[key] for key in (main if main and most else known[:most])}


def _figures(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the values of the metrics in :func:`labels` as text, by name."""
    return {name: f"{metrics[key]:.3f}" for key, name in labels(metrics).items()}


def _without_end(key: str) -> str:
    """Return the part of a CocoMetric key that its APs share: ``coco/bbox`` of ``coco/bbox_mAP_50``."""
    return key.partition("_mAP")[0]


def _by_prefix(evaluator: Any) -> list[tuple[str, Any]]:
    """Return the metrics of an evaluator, each with the prefix of its keys."""
    metrics = getattr(evaluator, "metrics", ())
    sets = getattr(evaluator, "dataset_prefixes", [""] * len(metrics))  # of a MultiDatasetsEvaluator
    return [
        ("/".join(filter(None, (name, metric.prefix))), metric)
        for name, metric in zip(sets, metrics, strict=False)
    ]


def shown_path(path: str | os.PathLike) -> str:
    """Return a path, relative to the working directory if the path is inside it."""
    path = Path(path).resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _head(runner: Runner, loaders: Mapping[str, DataLoader]) -> list[tuple[str, str]]:
    """Return the model, its deformable layers, the data, the device and the weights."""
    model = without_wrapper(runner.model)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    name = f" ({Path(runner.cfg.filename).stem})" if getattr(runner.cfg, "filename", None) else ""
    weights = runner._load_from or ""
    return [
        ("model", f"{type(model).__name__}{name}, {millions:.1f} million parameters"),
        ("layers", ", ".join(_deformable_layers(model))),
        *((part, _describe(loader.dataset)) for part, loader in loaders.items()),
        ("device", _device(runner)),
        ("processes", _processes(runner)),
        ("weights", os.path.normpath(weights) if os.path.isfile(weights) else weights),
    ]


def _deformable_layers(model: nn.Module) -> Iterator[str]:
    owners = (
        type(module).__name__
        for module in model.modules()
        if any(isinstance(child, OffsetPredictor) for child in module.children())
    )
    for name, count in sorted(Counter(owners).items()):
        yield f"{count} × {name}"


def _describe(dataset: Any) -> str:
    """Return the numbers of images, objects and classes, and the first names of the classes."""
    text = counted(len(dataset), "images")
    reader = getattr(dataset, "get_data_info", None)
    if reader is not None and len(dataset) <= COUNTED_IMAGES:
        objects = sum(len(reader(index).get("instances", ())) for index in range(len(dataset)))
        text += f", {counted(objects, 'objects')}"
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes") or ()
    return f"{text}, {counted(len(classes), 'classes')}: {printable(few(classes, 4))}" if classes else text


def _device(runner: Runner) -> str:
    device = next(runner.model.parameters(), torch.empty(0)).device
    threads = f", {counted(torch.get_num_threads(), 'threads')}" if device.type == "cpu" else ""
    wrapper = getattr(runner, "optim_wrapper", None)
    precision = getattr(wrapper, "cast_dtype", None) or "mixed precision"
    return f"{device}{threads}, {precision if isinstance(wrapper, AmpOptimWrapper) else 'float32'}"


def _processes(runner: Runner) -> str:
    """Return the numbers of processes, machines and images per step of a distributed run."""
    if not is_distributed():
        return ""
    machines = len(set(all_gather_object(socket.gethostname())))
    text = f"{get_world_size()} on {counted(machines, 'machines')}"
    wrapper = getattr(runner, "optim_wrapper", None)
    if not isinstance(wrapper, OptimWrapper):  # in a test, it is still a config
        return text
    loader = runner.train_dataloader
    images = loader.batch_size or getattr(loader.batch_sampler, "batch_size", 1)
    images *= get_world_size() * getattr(wrapper, "_accumulative_counts", 1)
    return f"{text}, {counted(images, 'images')} per step"


def _classes(evaluator: Any, metrics: Mapping[str, object]) -> dict[str, str]:
    """Return the AP and AP50 of each class; of many classes, only the best and worst.

    Returns:
        ``coco/bbox`` → a text that begins with the name of the AP, for each CocoMetric and its kinds.
    """
    rows = dict[str, str]()
    names = metric_names(metrics)
    for prefix, metric in _by_prefix(evaluator):
        for kind, aps in getattr(metric, "class_aps", {}).items():
            ordered: list = sorted(aps.items(), key=lambda item: -np.nan_to_num(item[1][0], nan=-1))
            half = SHOWN_CLASSES // 2
            shown = ordered if len(ordered) <= SHOWN_CLASSES else ordered[:half] + ordered[-half:]
            texts = []
            for name, (ap, ap_50) in shown:
                at_50 = "" if np.isnan(ap_50) else f" ({ap_50:.3f})"
                texts.append(f"{cut(printable(name), 20)} {ap:.3f}{at_50}")
            if len(shown) < len(ordered):
                texts.insert(half, "…")
            key = f"{prefix}/{kind}_mAP"
            rows[_without_end(key)] = f"{names.get(key, key)} (AP50): {', '.join(texts)}"
    return rows


def next_steps(work_dir: Path) -> str:
    name = shlex.quote(shown_path(work_dir))
    return f"dcnzoo infer {name} PICTURE, dcnzoo export {name}"


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    if is_main_process():
        show(*columns([pair for pair in pairs if pair[1]]))
