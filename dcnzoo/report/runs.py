"""Work directories of trainings, and their metrics."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from dcnzoo.openmmlab.history import History
from dcnzoo.openmmlab.runs.recipe import read_config_file
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo.source import resolve

_MAIN_METRICS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """A work directory of ``dcnzoo train``.

    Attributes:
        label: name of its curves; runs with the same label are seeds of one setting.
        checkpoint: the weights for the detections; None if there are none.
    """

    label: str
    folder: Path
    cfg: Config
    history: History
    checkpoint: Path | None

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
        file = None if source.weights is None else source.read_weights()
        cfg = read_config_file(source.config)
        return cls(label or folder.resolve().name, folder, cfg, history, file)

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


def main_metrics(runs: Sequence[TrainedRun]) -> list[str]:
    """Return the most important metrics that all runs have."""
    entries = [run.last_validation for run in runs]
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
