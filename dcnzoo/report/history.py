"""Read mmengine's log of a training, including its restarts."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class History:
    """The numbers in ``work_dir/*/vis_data/scalars.json``.

    Attributes:
        training: iteration → loss, time and other logged values.
        validation: epoch, or iteration if training does not count epochs → metrics.
    """

    training: dict[int, dict[str, float]]
    validation: dict[int, dict[str, float]]

    @classmethod
    def read(cls, work_dir: Path) -> "History":
        """Read the logs of all starts. A later start replaces earlier entries from its first iteration on."""
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
                # skip the entries of OffsetStatisticsHook
                elif not any(name.startswith("offsets/") for name in entry):
                    metrics = {k: v for k, v in entry.items() if k not in ("step", "time", "data_time")}
                    if metrics:
                        validation[entry["step"]] = metrics
        return cls(training, validation)

    @property
    def iteration(self) -> int:
        """The last logged iteration."""
        return max(self.training, default=0)


def read_entries(log: Path) -> Iterator[dict[str, float]]:
    """Yield the lines of a ``scalars.json``, which may still be written to."""
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # being written, or truncated by a killed process
            continue
        if "step" in entry:
            yield entry


def _forget(entries: dict[int, dict[str, float]], first: int) -> None:
    for step in [step for step in entries if step >= first]:
        del entries[step]
