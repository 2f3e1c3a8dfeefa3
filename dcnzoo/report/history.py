"""Read mmengine's log of a training, including its restarts."""

import dataclasses
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from dcnzoo.utils.errors import UserError


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


def _merged_entries(log: Path) -> list[dict]:
    """Read a log, or all logs in a work directory; later entries replace earlier ones of the same step."""
    files = sorted(log.glob("*/vis_data/scalars.json")) if log.is_dir() else [log]
    found: dict[tuple[bool, bool, int], dict] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"log: expected a file or a work directory, found none at {file}")
        for entry in read_entries(file):
            # a step has separate entries for losses, OffsetStatisticsHook and metrics
            offsets = any(name.startswith("offsets/") for name in entry)
            found[("loss" in entry, offsets, entry["step"])] = entry
    if not found:
        raise UserError(f"{log}: expected mmengine's scalars.json, found no entries")
    return sorted(found.values(), key=lambda entry: entry["step"])


def curve(log: Path, key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of a key, which may omit the prefix before a slash (coco/bbox_mAP).

    Raises:
        UserError: the log or the key does not exist.
    """
    known: dict[str, None] = {}
    steps, values = [], []
    for entry in _merged_entries(log):
        for name, value in entry.items():
            known[name] = None
            if key in (name, name.rpartition("/")[2]):
                steps.append(entry["step"])
                values.append(value)
    if not steps:
        raise UserError(f"{log}: --keys: expected one of {', '.join(known)}, got {key}")
    return steps, values


def times_by_epoch(log: Path, include_outliers: bool) -> dict[int, float]:
    """Return the mean seconds per iteration of each epoch.

    The first entry of an epoch includes the start of the workers; it counts only with ``include_outliers``.

    Raises:
        UserError: the log does not exist or contains no times.
    """
    by_epoch: dict[int, list[float]] = {}
    for entry in _merged_entries(log):
        if "loss" in entry and "time" in entry:
            by_epoch.setdefault(entry.get("epoch", 1), []).append(entry["time"])
    if not by_epoch:
        raise UserError(f"{log}: expected training entries with a time, found none")
    return {
        epoch: statistics.mean(times if include_outliers or len(times) == 1 else times[1:])
        for epoch, times in sorted(by_epoch.items())
    }
