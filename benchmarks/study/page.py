"""The page of the study: statistics, tables and pictures, all from the CSV."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp

from benchmarks.measure import markdown
from benchmarks.study.training import (
    ARMS,
    BUDGET,
    PAIR,
    PLAN,
    TIMED,
    TIMED_RATES,
    Row,
    Run,
    average,
    best_rate,
    result,
    select,
)
from dcnzoo.report.plots import COLOURS
from dcnzoo.report.runs import mean_and_spread
from dcnzoo.utils.files import replacing, write_text
from dcnzoo.zoo.index import find

matplotlib.rcParams["svg.hashsalt"] = "study"  # reproducible ids
MARGIN = 0.01  # the smallest difference of interest
FAMILY = len(ARMS) - 1  # v2 is compared with each other arm
Results = dict[str, list[Row]]  # arm → final rows, in the order of the seeds


def interval(values: Sequence[float], family: int = 1) -> tuple[float, float]:
    """Return Student's 95% interval of the mean; of several, all are covered with 95% (Bonferroni)."""
    return tuple(map(float, ttest_1samp(values, 0).confidence_interval(1 - 0.05 / family)))


def with_interval(values: Sequence[float], family: int = 1) -> str:
    low, high = interval(values, family)
    return f"{np.mean(values):+.3f} ({low:+.3f} to {high:+.3f})"


def verdict(values: Sequence[float], family: int = FAMILY) -> str:
    low, high = interval(values, family)
    if low > 0 or high < 0:
        return "gain" if low > 0 else "loss"
    return "no difference" if low > -MARGIN and high < MARGIN else "undecided"


def complete(rows: list[Row], setting: str, arms: Sequence[str]) -> Results:
    """Return the results of the seeds that all arms have completed."""
    runs = [run for run in PLAN if run.setting == setting and run.stage != "search"]
    results = {(run.seed, run.arm): result(rows, run) for run in runs}
    seeds = [seed for seed in sorted({run.seed for run in runs}) if all(results[seed, arm] for arm in arms)]
    return {arm: [results[seed, arm] for seed in seeds] for arm in arms}


def values(rows: Iterable[Row], column: str = "") -> np.ndarray:
    """Return the values of a column, or the primary endpoint."""
    return np.array([float(row[column]) if column else average(row) for row in rows])


def gains(main: Results) -> dict[str, np.ndarray]:
    """Return the differences of the primary endpoint between v2 and each other arm, by seed."""
    return {arm: values(main["v2"]) - values(results) for arm, results in main.items() if arm != "v2"}


def curve(rows: list[Row], last: Row) -> dict[str, np.ndarray]:
    """Return the values at the validations of a training with the result ``last``."""
    training = {name: last[name] for name in ("stage", "setting", "arm", "model_seed")}
    epochs = {row["epoch"]: row for row in select(rows, **training, split="val")}  # the last row of each
    columns = {name: values(epochs.values(), name) for name in ("epoch", "cpu_seconds", "box_ap", "mask_ap")}
    return {**columns, "ap": values(epochs.values())}


def ratios_of_times(file: Path) -> np.ndarray:
    """Return the CPU time of an iteration with DCNv2 relative to one without, by round."""
    with file.open(encoding="utf-8", newline="") as lines:
        seconds = {
            (row["arm"], row["round"]): float(row["cpu_seconds_per_iteration"])
            for row in csv.DictReader(lines)
        }
    return np.array([time / seconds["off", name] for (arm, name), time in seconds.items() if arm == "v2"])


def at_equal_time(rows: list[Row], main: Results, arm: str, ratio: float | None = None) -> list[str]:
    """Return the differences of v2 and ``arm`` in validation AP, box AP and mask AP at equal CPU time.

    By the plan, at the end of the shorter training in recorded CPU seconds. With ``ratio``, at the last
    epoch of ``arm``, if an epoch of ``v2`` takes ``ratio`` times as long.
    """
    differences = []
    for results in zip(main["v2"], main[arm], strict=True):
        v2, other = (curve(rows, last) for last in results)
        ends = [min(v2["cpu_seconds"][-1], other["cpu_seconds"][-1])] * 2
        unit = "cpu_seconds" if ratio is None else "epoch"
        if ratio is not None:
            ends = [other["epoch"][-1] / ratio, other["epoch"][-1]]
        aps = [
            [np.interp(end, each[unit], each[name]) for name in ("ap", "box_ap", "mask_ap")]
            for end, each in zip(ends, (v2, other), strict=True)
        ]
        differences.append(np.subtract(*aps))
    return [with_interval(column) for column in np.transpose(differences)]


def equal_time_table(rows: list[Row], main: Results, ratio: float) -> str:
    lines = [("v2 −", "CPU time of v2 / the other", "AP", "box AP", "mask AP")]
    for arm in gains(main):
        lines.append((arm, "as recorded", *at_equal_time(rows, main, arm)))
    lines.append(("plain", f"{ratio:.2f} in each pair", *at_equal_time(rows, main, "plain", ratio)))
    return markdown(lines)


def arms_table(rows: list[Row], main: Results) -> str:
    lines = [("arm", "parameters", "learning rate", "box AP", "mask AP")]
    for arm, results in main.items():
        aps = (mean_and_spread(values(results, name).tolist()) for name in ("box_ap", "mask_ap"))
        lines.append((arm, results[0]["parameters"], best_rate(rows, arm), *aps))
    return markdown(lines)


def comparisons_table(main: Results) -> str:
    lines = [("v2 −", "AP (99%)", "verdict", "box AP (95%)", "mask AP (95%)")]
    for arm, gain in gains(main).items():
        parts = [values(main["v2"], name) - values(main[arm], name) for name in ("box_ap", "mask_ap")]
        lines.append((arm, with_interval(gain, FAMILY), verdict(gain), *map(with_interval, parts)))
    return markdown(lines)


def settings_table(rows: list[Row]) -> str:
    lines = [("data", "pairs", "plain", "v2", "v2 − plain (95%)", "share of 1 − AP removed (95%)")]
    for setting in dict.fromkeys(run.setting for run in PLAN if run.setting != TIMED):
        plain, v2 = map(values, complete(rows, setting, ("plain", "v2")).values())
        aps = (mean_and_spread(each.tolist()) for each in (plain, v2))
        parts = map(with_interval, (v2 - plain, (v2 - plain) / (1 - plain)))
        lines.append((setting, len(v2), *aps, *parts))
    return markdown(lines)


def timed_results(rows: list[Row]) -> dict[str, object]:
    """Return the variables of the section of equal_time.md."""
    results = complete(rows, TIMED, PAIR)
    gain = values(results["v2"]) - values(results["plain"])
    lines = [("arm", "learning rate", "epochs", "CPU seconds", "box AP, test")]
    for arm in PAIR:
        epochs, seconds, aps = (values(results[arm], name) for name in ("epoch", "cpu_seconds", "box_ap"))
        spans = [f"{each.mean():.1f} ({each.min():.3g} to {each.max():.3g})" for each in (epochs, seconds)]
        lines.append((arm, best_rate(rows, arm, TIMED), *spans, mean_and_spread(aps.tolist())))
    search = [("arm", *TIMED_RATES)]
    for arm in PAIR:
        runs = [Run("search", TIMED, arm, 9100, rate) for rate in TIMED_RATES]
        search.append((arm, *(f"{average(result(rows, run)):.3f}" for run in runs)))
    return {
        "pairs": len(gain),
        "budget": BUDGET,
        "gain": with_interval(gain),
        "spread": gain.std(ddof=1),
        "verdict": verdict(gain, family=1),
        "arms": markdown(lines),
        "search": markdown(search),
        "facts": facts(select(rows, setting=TIMED)),
    }


def facts(rows: list[Row]) -> dict[str, list[str]]:
    return {name: sorted({row[name] for row in rows}) for name in ("commit", "machine", "torch")}


def shipped_table(rows: list[Row]) -> str:
    lines = [("detector", "box AP, validation", "mask AP, validation", "box AP, test", "mask AP, test")]
    for row in select(rows, stage="shipped"):
        zoo = find(row["arm"]).metrics()
        aps = (zoo["box AP"] / 100, zoo["mask AP"] / 100, float(row["box_ap"]), float(row["mask_ap"]))
        lines.append((row["arm"], *(f"{ap:.3f}" for ap in aps)))
    return markdown(lines)


def plot(rows: list[Row], main: Results) -> dict[str, Figure]:
    """Draw the learning curves with 95% intervals, and the differences with the intervals of the family."""
    figures = {name: Figure(figsize=(6, 3.6), layout="constrained") for name in ("curves", "differences")}
    curves, differences = (figure.subplots() for figure in figures.values())
    for (arm, results), colour in zip(main.items(), COLOURS, strict=True):
        validations = [curve(rows, last) for last in results]
        aps = np.stack([each["ap"] for each in validations])  # [seeds, epochs]
        epochs = validations[0]["epoch"]
        curves.plot(epochs, aps.mean(0), color=colour, label=arm)
        curves.fill_between(epochs, *zip(*map(interval, aps.T), strict=True), color=colour, alpha=0.12)
    curves.set(xlabel="epoch", ylabel="validation AP")
    curves.legend()
    for place, gain in enumerate(gains(main).values()):
        differences.plot([place] * len(gain), gain, "o", color=COLOURS[0], alpha=0.3, ms=4)
        differences.plot([place] * 3, [*interval(gain, FAMILY), gain.mean()], "_-", color=COLOURS[0], ms=12)
    differences.axhspan(-MARGIN, MARGIN, color="#6b7280", alpha=0.12)
    differences.set_xticks(range(FAMILY), gains(main))
    differences.set(xlabel="v2 minus", ylabel="test AP")
    return figures


def results_of(rows: list[Row], main: Results, times: Path) -> dict[str, object]:
    """Return the variables of the section of results."""
    late, late_v2 = ([np.diff(curve(rows, last)["ap"])[-1] for last in main[arm]] for arm in ("plain", "v2"))
    seconds = values(main["v2"], "cpu_seconds") / values(main["plain"], "cpu_seconds")
    ratios, wider = ratios_of_times(times), gains(main)["wider"]
    bounds = [interval(np.delete(wider, seed), FAMILY)[0] for seed in range(len(wider))]
    return {
        "verdicts": {arm: verdict(gain) for arm, gain in gains(main).items()},
        "gain": with_interval(gains(main)["plain"], FAMILY),
        "late": with_interval(late),
        "late_v2": with_interval(late_v2),
        "converged": np.mean(late) < 0.005,
        "arms": arms_table(rows, main),
        "comparisons": comparisons_table(main),
        "recorded_ratios": (seconds.min(), seconds.max()),
        "rounds": len(ratios),
        "measured_ratios": (float(np.median(ratios)), ratios.min(), ratios.max()),
        "equal_time": equal_time_table(rows, main, float(np.median(ratios))),
        "late_seeds": with_interval(gains(main)["plain"][5:], FAMILY) if len(seconds) == 10 else None,
        "wider_bound": interval(wider, FAMILY)[0],
        "fragile": sum(bound <= 0 for bound in bounds),
    }


def page_of(rows: list[Row], times: Path) -> tuple[str, dict[str, Figure]]:
    """Return the text of the page, from the template, and its pictures by name."""
    first_plan = [run for run in PLAN if run.setting != TIMED]
    main = complete(rows, "shapes", tuple(ARMS))
    template = Path(__file__).with_name("study.md.jinja").read_text(encoding="utf-8")
    text = jinja2.Template(template, undefined=jinja2.StrictUndefined, keep_trailing_newline=True).render(
        seeds=len(main["v2"]),
        **results_of(rows, main, times),
        settings=settings_table(rows),
        shipped=shipped_table(rows),
        timed=timed_results(rows),
        hours=sum(float(row["cpu_seconds"]) for run in first_plan if (row := result(rows, run))) / 3600,
        facts=facts([row for row in rows if row["setting"] != TIMED]),
    )
    return text, plot(rows, main)


def write_page(rows: list[Row], docs: Path) -> None:
    """Write study.md and its pictures."""
    text, pictures = page_of(rows, docs / "demo_times.csv")
    for name, figure in pictures.items():
        with replacing(docs / f"images/study-{name}.svg") as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None})
    write_text(docs / "study.md", text)
