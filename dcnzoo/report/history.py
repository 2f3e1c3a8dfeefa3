"""What mmengine logged of a training, over all its starts."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class History:
    """The numbers in ``work_dir/*/vis_data/scalars.json``.

    Attributes:
        training: iteration → loss, time and whatever else was logged.
        validation: epoch, or iteration where training counts no epochs → metrics.
    """

    training: dict[int, dict[str, float]]
    validation: dict[int, dict[str, float]]

    @classmethod
    def read(cls, work_dir: Path) -> "History":
        """What a later start did again counts, what an earlier one had done beyond it does not."""
        training: dict[int, dict[str, float]] = {}
        validation: dict[int, dict[str, float]] = {}
        for log in sorted(work_dir.glob("*/vis_data/scalars.json")):
            begun = False
            for entry in read_entries(log):
                if "loss" in entry:
                    if not begun:
                        begun = True
                        _forget(training, entry["step"])
                        _forget(validation, entry.get("epoch", entry["step"]))
                    training[entry["step"]] = entry
                elif not any(name.startswith("offsets/") for name in entry):  # OffsetStatisticsHook's
                    metrics = {k: v for k, v in entry.items() if k not in ("step", "time", "data_time")}
                    if metrics:
                        validation[entry["step"]] = metrics
        return cls(training, validation)

    @property
    def iteration(self) -> int:
        """The last one that was logged."""
        return max(self.training, default=0)


def read_entries(log: Path) -> Iterator[dict[str, float]]:
    """The lines of a ``scalars.json``, whoever writes on."""
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # being written, or cut by a kill
            continue
        if "step" in entry:
            yield entry


def _forget(entries: dict[int, dict[str, float]], first: int) -> None:
    for step in [step for step in entries if step >= first]:
        del entries[step]
