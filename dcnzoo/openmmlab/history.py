"""Read mmengine's log of a training, including its restarts."""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcnzoo.utils.files import files_beside, read_beside

# part of the loss → words in the names of its losses; the first match counts
_WORDS = {
    "mask loss": "mask|dice|semantic",
    "class loss": "cls|conf|obj|heatmap",
    "box loss": "bbox|iou|l1|dfl|xy|wh|off|centerness|reg",
}
PARTS = ("class loss", "box loss", "mask loss")
VALIDATED = "validation_step"  # the epoch or iteration after which a validation ran
BEGAN = "began_after"  # the epoch or iteration after which a process began to train
_LOGS = "*/vis_data/scalars.json"
Rows = dict[int, dict[str, float]]  # iteration or epoch → values by name


def loss_parts(losses: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of the losses of classes, boxes and masks; other values are left out."""
    sums: defaultdict[str, float] = defaultdict(float)
    for name, loss in losses.items():
        part = next((part for part, words in _WORDS.items() if re.search(words, name)), None)
        if "loss" in name and part:
            sums[part] += loss
    return {part: sums[part] for part in PARTS if part in sums}


@dataclasses.dataclass(frozen=True)
class History:
    """The numbers in ``work_dir/*/vis_data/scalars.json``.

    A row with ``loss`` comes from training. :class:`~dcnzoo.openmmlab.hooks.ResumeHook` writes where a start
    began, and adds ``validation_step`` to the rows of validations. Without this hook, a row with ``time`` but
    no loss is a validation. Other hooks may write other rows.

    Attributes:
        training: iteration → loss, its parts, learning rate, time and other logged values.
        validation: epoch, or iteration if training does not count epochs → metrics.
        offsets: iteration → the figures of OffsetStatisticsHook, as ``<figure>/<layer>``.
    """

    training: Rows
    validation: Rows
    offsets: Rows

    @classmethod
    def read(cls, work_dir: Path) -> "History":
        """Read the logs of all starts. A later start replaces the entries after the point where it began."""
        training, validation, offsets = Rows(), Rows(), Rows()
        for log in sorted(files_beside(work_dir, _LOGS)):  # MMEngine names a start's folder after its time
            for entry in _entries(log):
                step = entry["step"]
                figures = {
                    k.removeprefix("offsets/"): v for k, v in entry.items() if k.startswith("offsets/")
                }
                if BEGAN in entry:
                    training, offsets = _before(training, entry), _before(offsets, entry)
                    validation = {number: row for number, row in validation.items() if number <= entry[BEGAN]}
                elif figures:
                    offsets[step] = figures
                elif "loss" in entry:
                    training[step] = {**entry, **loss_parts(entry)}
                elif (ran := entry.get(VALIDATED, step if "time" in entry else None)) is not None:
                    others = ("step", "time", "data_time", VALIDATED)
                    validation[int(ran)] = {k: v for k, v in entry.items() if k not in others}
        return cls(training, validation, offsets)

    @property
    def iteration(self) -> int:
        """The last logged iteration."""
        return max(self.training, default=0)


def _before(rows: Rows, began: Mapping[str, float]) -> Rows:
    """Return the rows before a start, without those of an interrupted epoch that is repeated."""
    earlier = {step: row for step, row in rows.items() if step <= began["step"]}
    return {step: row for step, row in earlier.items() if row.get("epoch", 0) <= began[BEGAN]}


def _entries(log: Path) -> list[dict[str, Any]]:
    """Return the numbers in the lines of a ``scalars.json``, which may still be written to."""
    entries = []
    for line in (read_beside(log) or "").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # being written, or truncated by a killed process
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append({key: value for key, value in entry.items() if isinstance(value, int | float)})
    return entries
