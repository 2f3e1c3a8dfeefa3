"""Work directories of trainings, and their metrics."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from dcnzoo.openmmlab.history import History
from dcnzoo.openmmlab.runs.recipe import read_config_file
from dcnzoo.openmmlab.saved import SavedCheckpoints
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo.source import resolve

_MAIN_METRICS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """A work directory of ``dcnzoo train``.

    Attributes:
        label: name of its curves; runs with the same label are seeds of one setting.
        checkpoint: the weights of the page's figures and pictures; None if there are none.
        step: the epoch or iteration of the checkpoint; None if its name has none.
    """

    label: str
    folder: Path
    cfg: Config
    history: History
    checkpoint: Path | None
    step: int | None = None

    @classmethod
    def read(
        cls, folder: Path, label: str | None = None, checkpoint: Path | str | None = None
    ) -> "TrainedRun":
        """Read the newest config and all logs of a folder; use its best checkpoint unless one is given.

        Raises:
            UserError: the folder or the checkpoint does not exist, or the folder contains no training.
        """
        source = resolve(folder, checkpoint)
        history = History.read(folder)
        if not history.training:
            raise UserError(
                f"model: expected a work directory of dcnzoo train, found no losses in {folder}/*/vis_data"
            )
        file = source.read_weights() if source.has_weights else None
        cfg = read_config_file(source.config, {"work_dir": str(folder)})
        step = None if file is None else SavedCheckpoints.of(cfg).number(file.name)
        return cls(label or folder.resolve().name, folder, cfg, history, file, step)

    @property
    def counts_epochs(self) -> bool:
        loop = self.cfg.train_cfg
        return bool(loop.get("by_epoch", loop.get("type") == "EpochBasedTrainLoop"))

    @property
    def seconds_per_iteration(self) -> float:
        return statistics.median(entry["time"] for entry in self.history.training.values())

    @property
    def validated(self) -> int | None:
        """The epoch or iteration of the page's metrics: the checkpoint's or, if it has none, the last."""
        steps = self.history.validation
        return self.step if self.step in steps else max(steps, default=None)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the checkpoint's validation; empty if there was none."""
        return {} if self.validated is None else self.history.validation[self.validated]

    @property
    def described(self) -> str:
        """The checkpoint and the validation of the metrics, as text: ``best, epoch 37``."""
        if self.checkpoint is None:
            return "no checkpoint"
        unit = "epoch" if self.counts_epochs else "iteration"
        name = "best" if self.checkpoint.name.startswith("best_") else "last"
        is_last = self.step == max(self.history.validation, default=self.step)
        text = self.checkpoint.name if self.step is None else f"{unit} {self.step}"
        text = f"{name}, {text}" if name == "best" or is_last else text
        if self.validated in (None, self.step):
            return text
        return f"{text}; metrics of {unit} {self.validated}"


def main_metrics(runs: Sequence[TrainedRun]) -> list[str]:
    """Return the most important metrics that all runs have."""
    entries = [run.metrics for run in runs]
    shared = [name for name in entries[0] if all(name in entry for entry in entries)]
    means = [name for name in shared if name.endswith("mAP")]
    return means or shared[:_MAIN_METRICS]


def by_label(runs: Sequence[TrainedRun]) -> dict[str, list[TrainedRun]]:
    return {run.label: [other for other in runs if other.label == run.label] for run in runs}


def mean_and_spread(values: Sequence[float]) -> str:
    text = f"{statistics.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.3f}"


def name_of(run: TrainedRun, runs: Sequence[TrainedRun]) -> str:
    """Return the label of a run, and its folder if several runs have this label."""
    return run.label if len(by_label(runs)[run.label]) == 1 else f"{run.label}, {run.folder.name}"
