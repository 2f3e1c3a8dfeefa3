"""What was measured, the ratios in it, and the goals that they are held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from families import OURS
from measure import Timing, median

MIB = 1 << 20
# Peak extra memory may be this share of inputs, weights and outputs, or this much where that is more.
MEMORY_SHARE, MEMORY_FLOOR = 0.10, 16 * MIB
# A goal that cannot be reached counts as reached at this share of the roofline.
ENOUGH_OF_LIMIT = 0.80


@dataclass(frozen=True)
class Setting:
    """One line of a table: a case in a dtype, a pass and a number of threads."""

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
        timing: seconds; None where it could not be measured.
        problem: why not.
        extra, needed: bytes, as in :class:`measure.Memory`; None where not measured.
        memory_problem: why not.
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
        floors: by family, the contestants that do less.
        demo: threads -> arm -> seconds per training iteration.
    """

    facts: dict[str, object]
    floors: dict[str, Sequence[str]]
    rows: list[Row] = field(default_factory=list)
    limits: dict[Setting, float] = field(default_factory=dict)
    demo: dict[int, dict[str, Timing]] = field(default_factory=dict)

    def settings(self, **having: object) -> list[Setting]:
        """In order, those with the given attributes."""
        unique = dict.fromkeys(row.setting for row in self.rows)
        return [s for s in unique if all(getattr(s, key) == value for key, value in having.items())]

    def row(self, setting: Setting, contestant: str) -> Row | None:
        found = (row for row in self.rows if row.setting == setting and row.contestant == contestant)
        return next(found, None)

    def seconds(self, setting: Setting, contestant: str) -> float | None:
        row = self.row(setting, contestant)
        return row.timing.median if row and row.timing else None

    def floor(self, setting: Setting) -> float | None:
        """Seconds of the better floor."""
        times = [self.seconds(setting, name) for name in self.floors.get(setting.family, ())]
        return min((time for time in times if time is not None), default=None)

    def over_floor(self, setting: Setting, contestant: str = OURS) -> float | None:
        return _ratio(self.seconds(setting, contestant), self.floor(setting))

    def over_ours(self, setting: Setting, contestant: str) -> float | None:
        return _ratio(self.seconds(setting, contestant), self.seconds(setting, OURS))

    def of_limit(self, setting: Setting) -> float | None:
        """The share of the roofline that dcnzoo reaches."""
        return _ratio(self.limits.get(setting), self.seconds(setting, OURS))

    def noise(self) -> float | None:
        """The median spread of all timings: how restless the machine was."""
        return median([row.timing.spread for row in self.rows if row.timing and row.timing.count > 1])

    def of_allowed_memory(self, setting: Setting) -> float | None:
        row = self.row(setting, OURS)
        if row is None or row.extra is None:
            return None
        return row.extra / max(MEMORY_SHARE * row.needed, MEMORY_FLOOR)


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


@dataclass(frozen=True)
class Goal:
    """A figure that was promised.

    Attributes:
        measured: the median over ``count`` settings (or what ``figure`` says), None where none ran.
        of_limit: the median share of the roofline in the same settings, where that matters.
    """

    figure: str
    goal: float
    at_most: bool
    measured: float | None
    count: int
    of_limit: float | None = None
    note: str = ""

    @property
    def goal_text(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.goal:g}×"

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        if self.measured <= self.goal if self.at_most else self.measured >= self.goal:
            return "met"
        return "met by roofline" if (self.of_limit or 0) >= ENOUGH_OF_LIMIT else "missed"


def goals(results: Results) -> Iterator[Goal]:
    """The goals for the CPU: medians over the ResNet-50 and FPN shapes, float32 unless said."""
    all_threads = sorted({row.setting.threads for row in results.rows})
    most = all_threads[-1:]

    def against_floor(mode: str, limit: float, dtype: str = "float32", note: str = "") -> Iterator[Goal]:
        for threads in all_threads:
            chosen = _main(results, mode, dtype, threads)
            ratios = _known(results.over_floor(s) for s in chosen)
            shares = _known(results.of_limit(s) for s in chosen)
            kind = "" if dtype == "float32" else f" ({dtype})"
            name = f"{mode}{kind}, dcnzoo / F.conv2d, {_threads(threads)}"
            yield Goal(name, limit, True, median(ratios), len(ratios), median(shares), note)

    def against_rival(rival: str, mode: str, limit: float, among: Sequence[int]) -> Iterator[Goal]:
        for threads in among:
            chosen = [s for s in _main(results, mode, "float32", threads) if results.seconds(s, rival)]
            ratios = _known(results.over_ours(s, rival) for s in chosen)
            shares = _known(results.of_limit(s) for s in chosen)
            name = f"{mode}, {rival} / dcnzoo, {_threads(threads)}"
            yield Goal(name, limit, False, median(ratios), len(ratios), median(shares))

    if any(row.setting.main for row in results.rows):
        yield from against_floor("forward", 1.25)
        yield from against_rival("mmcv", "forward", 10, most)
        yield from against_rival("onnxruntime", "forward", 1.6, all_threads)
        yield from against_floor("forward+backward", 1.35)
        yield from against_rival("mmcv", "forward+backward", 25, most)
        slow = (
            ""
            if results.facts["bf16_instructions"]
            else "this CPU has no bf16 instructions, for which the goal is meant"
        )
        yield from against_floor("forward", 1.5, "bfloat16", slow)
        yield from _scaling(results)
        yield _memory(results)
    for threads, arms in results.demo.items():
        ratio = arms["on"].median / arms["off"].median
        name = f"demo training iteration, dcn on / off, {_threads(threads)}"
        note = f"{arms['on'].median * 1e3:.0f} and {arms['off'].median * 1e3:.0f} ms"
        yield Goal(name, 1.2, True, ratio, arms["on"].count, note=note)


def _main(results: Results, mode: str, dtype: str, threads: int) -> list[Setting]:
    return results.settings(main=True, mode=mode, dtype=dtype, threads=threads)


def _scaling(results: Results) -> Iterator[Goal]:
    """One thread against two on the largest shape: the one on which one thread takes longest."""
    for mode in ("forward", "forward+backward"):
        singles = [s for s in _main(results, mode, "float32", 1) if results.seconds(s, OURS)]
        ratio, case = None, "largest shape"
        if singles:
            largest = max(singles, key=lambda s: results.limits.get(s, 0))
            case = largest.case
            doubles = [s for s in _main(results, mode, "float32", 2) if s.case == case]
            if doubles:
                ratio = _ratio(results.seconds(largest, OURS), results.seconds(doubles[0], OURS))
        yield Goal(f"{mode}, 1 thread / 2 threads, {case}", 1.8, False, ratio, int(ratio is not None))


def _memory(results: Results) -> Goal:
    shares = {
        s: share
        for s in results.settings(main=True, mode="forward", dtype="float32")
        if (share := results.of_allowed_memory(s)) is not None
    }
    worst = max(shares, key=shares.get, default=None)
    note = ""
    if worst is not None:
        row = results.row(worst, OURS)
        note = f"{row.extra / MIB:.1f} MiB beside {row.needed / MIB:.1f} MiB on {worst.case}"
    figure = "forward, worst peak extra memory / allowed (10% or 16 MiB)"
    return Goal(figure, 1.0, True, shares.get(worst), len(shares), note=note)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _known(values: Iterator[float | None]) -> list[float]:
    return [value for value in values if value is not None]
