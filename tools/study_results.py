"""The results of ``tools/study.py``: a CSV with one row per training, and statistics."""

import csv
import dataclasses
import io
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scipy.stats import ttest_1samp

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import write_text

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "study.csv"
# setting → deformation of its instances, relative to the demo's data
STRENGTHS = {"none": 0.0, "half": 0.5, "full": 1.0, "strong": 1.5}


@dataclasses.dataclass(frozen=True, order=True)
class Row:
    """One training.

    Attributes:
        study: the first study that uses it; others may compare with it.
        setting: the data.
        box_ap, mask_ap: after the last epoch, 0 to 1; ``mask_ap`` is None for detectors without masks.
        seconds_per_iteration: median, on one thread.
        commit: of this repository, with ``-dirty`` if there were uncommitted changes.
    """

    study: str
    arm: str
    setting: str
    seed: int
    box_ap: float
    mask_ap: float | None
    seconds_per_iteration: float
    iterations: int
    commit: str

    @property
    def key(self) -> tuple[str, str, int]:
        return self.arm, self.setting, self.seed


TIME_COLUMNS = ("arm", "round", "cpu_seconds_per_iteration")
COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def read_rows(file: Path) -> list[Row]:
    """Read all rows; a missing file has none.

    Raises:
        UserError: the file has other columns.
    """
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{file}: columns: expected {','.join(COLUMNS)}, got {reader.fieldnames}")
        return [
            Row(
                row["study"],
                row["arm"],
                row["setting"],
                int(row["seed"]),
                float(row["box_ap"]),
                float(row["mask_ap"]) if row["mask_ap"] else None,
                float(row["seconds_per_iteration"]),
                int(row["iterations"]),
                row["commit"],
            )
            for row in reader
        ]


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write the rows in a fixed order, independent of the order in which the runs ended."""
    ordered = sorted(rows, key=lambda row: (row.study, row.setting, row.arm, row.seed))
    write_csv(file, COLUMNS, map(dataclasses.asdict, ordered))


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, buffer.getvalue())


def read_time(file: Path) -> dict[str, list[float]]:
    """Read the seconds of each arm, one value per round."""
    found: dict[str, list[float]] = defaultdict(list)
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                found[row["arm"]].append(float(row[TIME_COLUMNS[2]]))
    return dict(found)


def time_ratio(times: Mapping[str, list[float]], arm: str, baseline: str) -> float | None:
    """Return the median ratio of an arm's to the baseline's iteration time; None if not measured."""
    if arm not in times or baseline not in times:
        return None
    return statistics.median(own / other for own, other in zip(times[arm], times[baseline], strict=True))


def select(rows: Iterable[Row], arm: str, setting: str = "full") -> dict[int, Row]:
    """Return the rows of one arm on one data set, by seed."""
    return {row.seed: row for row in rows if (row.arm, row.setting) == (arm, setting)}


def differences(arm: dict[int, Row], baseline: dict[int, Row], metric: str = "mask_ap") -> list[float]:
    """Return the differences for the seeds that both have, ordered by seed."""
    return [getattr(arm[s], metric) - getattr(baseline[s], metric) for s in sorted(arm.keys() & baseline)]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The mean of paired differences, its 95% confidence interval (Student's t), and the number above 0."""

    mean: float
    low: float
    high: float
    ahead: int
    pairs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Comparison":
        low, high = (
            ttest_1samp(values, 0).confidence_interval(0.95) if len(values) > 1 else (float("nan"),) * 2
        )
        return cls(statistics.mean(values), low, high, sum(value > 0 for value in values), len(values))

    def __str__(self) -> str:
        if self.pairs < 2:
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"
