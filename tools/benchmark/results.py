"""Measured results and their ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from families import OURS
from measure import Timing, median

MIB = 1 << 20
# Allowed peak extra memory: this share of inputs, weights and outputs, but at least this number of bytes.
MEMORY_SHARE, MEMORY_FLOOR = 0.10, 16 * MIB


@dataclass(frozen=True)
class Setting:
    """A row of a table: a case in a dtype, a pass and a number of threads."""

    family: str
    group: str
    case: str
    shape: str
    main: bool
    dtype: str
    mode: str
    threads: int


@dataclass
class Row:
    """A contestant in a setting.

    Attributes:
        timing: seconds; None if not measured.
        problem: the reason.
        extra, needed: bytes, as in :class:`measure.Memory`; None if not measured.
        memory_problem: the reason.
    """

    setting: Setting
    contestant: str
    timing: Timing | None = None
    problem: str | None = None
    extra: int | None = None
    needed: int | None = None
    memory_problem: str | None = None


@dataclass
class Results:
    """A run of the benchmark.

    Attributes:
        limits: seconds per setting according to the roofline.
        floors: family -> contestants that do less.
        demo: threads -> arm -> seconds per training iteration.
    """

    facts: dict[str, object]
    floors: dict[str, Sequence[str]]
    rows: list[Row] = field(default_factory=list)
    limits: dict[Setting, float] = field(default_factory=dict)
    demo: dict[int, dict[str, Timing]] = field(default_factory=dict)

    def settings(self, **having: object) -> list[Setting]:
        """Return the settings with the given attributes, in order."""
        unique = dict.fromkeys(row.setting for row in self.rows)
        return [s for s in unique if all(getattr(s, key) == value for key, value in having.items())]

    def row(self, setting: Setting, contestant: str) -> Row | None:
        found = (row for row in self.rows if row.setting == setting and row.contestant == contestant)
        return next(found, None)

    def seconds(self, setting: Setting, contestant: str) -> float | None:
        row = self.row(setting, contestant)
        return row.timing.median if row and row.timing else None

    def floor(self, setting: Setting) -> float | None:
        """Return the seconds of the faster floor."""
        times = [self.seconds(setting, name) for name in self.floors.get(setting.family, ())]
        return min((time for time in times if time is not None), default=None)

    def over_floor(self, setting: Setting, contestant: str = OURS) -> float | None:
        return _ratio(self.seconds(setting, contestant), self.floor(setting))

    def ratio(self, contestant: str, other: str, setting: Setting) -> float | None:
        return _ratio(self.seconds(setting, contestant), self.seconds(setting, other))

    def of_limit(self, setting: Setting) -> float | None:
        """Return dcnzoo's share of the roofline."""
        return _ratio(self.limits.get(setting), self.seconds(setting, OURS))

    def noise(self) -> float | None:
        """Return the median spread of all timings, a measure of other work on the machine."""
        return median([row.timing.spread for row in self.rows if row.timing and row.timing.count > 1])


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


@dataclass(frozen=True)
class Figure:
    """A row of the summary: a ratio of two contestants' times, medians over cases.

    Attributes:
        ratios: threads -> median. For dcnzoo over a floor, low is good; for a rival over dcnzoo, high is
            good.
        worst, worst_case: the ratio and name of the worst case, with the most threads.
        of_limit: dcnzoo's median share of the roofline, with the most threads.
        count: number of cases.
    """

    family: str
    mode: str
    dtype: str
    over: str
    ratios: dict[int, float]
    worst: float
    worst_case: str
    of_limit: float | None
    count: int


def summary(results: Results) -> Iterator[Figure]:
    """Summarise the cases of each family that count in a summary, or all cases if none does."""
    for family, dtype, mode in dict.fromkeys((s.family, s.dtype, s.mode) for s in results.settings()):
        kind = dict(family=family, dtype=dtype, mode=mode)
        settings = results.settings(**kind, main=True) or results.settings(**kind)
        rivals = dict.fromkeys(row.contestant for row in results.rows if row.setting in settings)
        for rival in rivals:
            if rival.split()[0] != OURS and rival not in results.floors[family]:
                over_ours = partial(results.ratio, rival, OURS)
                yield from _figure(kind, f"{rival} / {OURS}", settings, results, min, over_ours)
        if not results.floors[family]:
            continue
        floor, *others = results.floors[family]
        yield from _figure(kind, f"{OURS} / {floor}", settings, results, max, results.over_floor)
        formats = [other.removeprefix(floor) for other in others if other.startswith(f"{floor} ")]
        if formats:
            formats.insert(0, "")  # contiguous
        for suffix in formats:
            over_same = partial(results.ratio, f"{OURS}{suffix}", f"{floor}{suffix}")
            over = f"{OURS} / {floor}, both {suffix.strip() or 'contiguous'}"
            yield from _figure(kind, over, settings, results, max, over_same)


def _figure(
    kind: dict[str, str],
    over: str,
    settings: Sequence[Setting],
    results: Results,
    worst_of: Callable,
    ratio_of: Callable[[Setting], float | None],
) -> Iterator[Figure]:
    ratios = {s: ratio for s in settings if (ratio := ratio_of(s)) is not None}
    if not ratios:
        return
    most = max(s.threads for s in ratios)
    last = {s: ratio for s, ratio in ratios.items() if s.threads == most}
    worst = worst_of(last, key=last.get)
    shares = [share for s in last if (share := results.of_limit(s)) is not None]
    medians = {
        n: median([r for s, r in ratios.items() if s.threads == n]) for n in {s.threads for s in ratios}
    }
    yield Figure(
        *(kind["family"], kind["mode"], kind["dtype"], over, medians, last[worst], worst.case),
        of_limit=median(shares),
        count=len(last),
    )


def largest_memory(results: Results) -> Row | None:
    """Return the case that uses the largest share of its allowed memory."""
    rows = (results.row(s, OURS) for s in results.settings(mode="forward", dtype="float32"))
    return max(
        (row for row in rows if row and row.extra is not None),
        key=lambda row: row.extra / max(MEMORY_SHARE * row.needed, MEMORY_FLOOR),
        default=None,
    )
