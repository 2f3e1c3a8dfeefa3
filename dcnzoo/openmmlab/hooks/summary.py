"""Print a training or a test in the terminal: a head, a row per epoch, the result and the next step."""

import datetime
import os
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from dcnzoo.detect.metric_names import metric_names
from dcnzoo.openmmlab.history import History, loss_parts
from dcnzoo.openmmlab.hooks.summary_head import head_of
from dcnzoo.openmmlab.hooks.summary_metrics import classes_of, figures, labels, without_end
from dcnzoo.openmmlab.saved import SavedCheckpoints, best_files, best_prefix, last_checkpoint
from dcnzoo.utils.errors import show
from dcnzoo.utils.text import columns

WIDTH = 100  # terminals with at least this many columns show the parts of the loss
NAMES = SavedCheckpoints(Path())  # the default names of checkpoints


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
        print_pairs([*head_of(runner, data), ("changed", self._changes), ("work dir", folder)])
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
        self._row.update(figures(metrics))
        self._classes[step] = [*classes_of(runner.val_evaluator, metrics).values()]
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
        texts = {**{names[key]: f"{value:.3f}" for key, value in selected.items()}, **figures(metrics)}
        aps = ", ".join(f"{name} {figure}" for name, figure in texts.items())
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
        print_pairs(head_of(runner, {"test": runner.test_dataloader}))

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        classes, pairs = classes_of(runner.test_evaluator, metrics), list[tuple[str, str]]()
        for metric, keys in groupby(labels(metrics, most=None).items(), lambda label: without_end(label[0])):
            pairs += [(name, f"{metrics[key]:.3f}") for key, name in keys]
            pairs.append(("classes", classes.get(metric, "")))
        print_pairs(pairs)


def shown_path(path: str | os.PathLike) -> str:
    """Return a path, relative to the working directory if the path is inside it."""
    path = Path(path).resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def next_steps(work_dir: Path) -> str:
    name = shlex.quote(shown_path(work_dir))
    return f"dcnzoo infer {name} PICTURE, dcnzoo export {name}"


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    if is_main_process():
        show(*columns([pair for pair in pairs if pair[1]]))
