"""Work directories of trainings, their metrics, and the settings that a report compares."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from dcnzoo.detect.metric_names import is_undefined
from dcnzoo.openmmlab.history import History, Rows
from dcnzoo.openmmlab.runs.recipe import read_config_file
from dcnzoo.openmmlab.saved import SavedCheckpoints
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo.source import resolve

_MAIN_METRICS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """A work directory of ``dcnzoo train``.

    Attributes:
        checkpoint: the weights of the page's figures and pictures; None if there are none.
        step: the epoch or iteration of the checkpoint; None if its name has none.
    """

    folder: Path
    cfg: Config
    history: History
    checkpoint: Path | None
    step: int | None = None

    @classmethod
    def read(cls, folder: Path, checkpoint: Path | str | None = None) -> "TrainedRun":
        """Read the newest config and all logs of a folder; use its best checkpoint unless one is given.

        Raises:
            UserError: the folder or the checkpoint does not exist, or the folder contains no training.
        """
        history = History.read(folder)
        if not history.training:
            raise UserError(
                f"folders: expected work directories, found no losses in {folder}/*/vis_data; "
                f"`dcnzoo train --data {folder}` trains on pictures"
            )
        source = resolve(folder, checkpoint)
        file = source.read_weights() if source.has_weights else None
        cfg = read_config_file(source.config, {"work_dir": str(folder)})
        step = None if file is None else SavedCheckpoints.of(cfg).number(file.name)
        return cls(folder, cfg, history, file, step)

    @property
    def unit(self) -> str:
        """What its validations are counted by: ``epoch`` or ``iteration``."""
        loop = self.cfg.train_cfg
        by_epoch = loop.get("by_epoch", loop.get("type") == "EpochBasedTrainLoop")
        return "epoch" if by_epoch else "iteration"

    @property
    def seconds_per_iteration(self) -> float:
        return statistics.median(entry["time"] for entry in self.history.training.values())

    @property
    def validations(self) -> Rows:
        """Epoch or iteration → the metrics of its validation, without those that are undefined."""
        return {
            step: {name: value for name, value in row.items() if not is_undefined(name, value)}
            for step, row in self.history.validation.items()
        }

    @property
    def validated(self) -> int | None:
        """The epoch or iteration of the page's metrics: the checkpoint's or, if it has none, the last."""
        steps = self.history.validation
        return self.step if self.step in steps else max(steps, default=None)

    @property
    def metrics(self) -> dict[str, float]:
        """The defined metrics of the checkpoint's validation; empty if there was none."""
        return {} if self.validated is None else self.validations[self.validated]

    @property
    def described(self) -> str:
        """The checkpoint and the validation of the metrics, as text: ``best, epoch 37``."""
        if self.checkpoint is None:
            return "no checkpoint"
        name = "best" if self.checkpoint.name.startswith("best_") else "last"
        is_last = self.step == max(self.history.validation, default=self.step)
        text = self.checkpoint.name if self.step is None else f"{self.unit} {self.step}"
        text = f"{name}, {text}" if name == "best" or is_last else text
        if self.validated in (None, self.step):
            return text
        return f"{text}; metrics of {self.unit} {self.validated}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row and a curve of a report: one training, or several that differ in their seeds.

    Attributes:
        runs: at least one; their metrics are averaged.
    """

    label: str
    runs: Sequence[TrainedRun]

    @property
    def shown(self) -> TrainedRun:
        """The run of the pictures, errors and parameters: the first one that has a checkpoint, if any."""
        return next((run for run in self.runs if run.checkpoint is not None), self.runs[0])

    def name_of(self, run: TrainedRun) -> str:
        """Return the label and, if there are several runs, the run's folder."""
        return self.label if len(self.runs) == 1 else f"{self.label}, {run.folder.name}"


def settings_of(labels: Sequence[str], runs: Sequence[TrainedRun]) -> list[Setting]:
    """Group runs with equal labels, in the order of the first one of each label."""
    pairs = list(zip(labels, runs, strict=True))
    return [
        Setting(label, [run for other, run in pairs if other == label]) for label in dict.fromkeys(labels)
    ]


def named_runs(settings: Sequence[Setting]) -> list[tuple[str, TrainedRun]]:
    """Return all runs with their names."""
    return [(setting.name_of(run), run) for setting in settings for run in setting.runs]


def main_metrics(settings: Sequence[Setting]) -> list[str]:
    """Return the most important metrics that all runs have."""
    entries = [run.metrics for _, run in named_runs(settings)]
    shared = [name for name in entries[0] if all(name in entry for entry in entries)]
    means = [name for name in shared if name.endswith("mAP")]
    return means or shared[:_MAIN_METRICS]


def mean_and_spread(values: Sequence[float]) -> str:
    text = f"{statistics.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.3f}"
