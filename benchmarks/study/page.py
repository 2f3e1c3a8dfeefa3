"""The page of the study: statistics, tables and pictures, all from the CSV."""

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
    RATES,
    TIMED,
    Row,
    average,
    best_rate,
    result,
    select,
)
from dcnzoo.report.plots import COLOURS
from dcnzoo.report.runs import mean_and_spread
from dcnzoo.utils.files import replacing, write_text

matplotlib.rcParams["svg.hashsalt"] = "study"  # reproducible ids
MARGIN = 0.01  # the smallest difference of interest
FAMILY = len(ARMS) - 1  # v2 is compared with each other arm
Results = dict[str, list[Row]]  # arm → final rows, in the order of the seeds


def interval(values: Sequence[float], family: int = 1) -> tuple[float, float]:
    """Return Student's 95% interval of the mean; ``family`` intervals are valid together (Bonferroni)."""
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
    return {"epoch": values(epochs.values(), "epoch"), "ap": values(epochs.values())}


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
    return {
        "pairs": len(gain),
        "budget": BUDGET,
        "gain": with_interval(gain),
        "verdict": verdict(gain, family=1),
        "arms": markdown(lines),
        "facts": facts(select(rows, setting=TIMED)),
    }


def facts(rows: list[Row]) -> dict[str, list[str]]:
    return {name: sorted({row[name] for row in rows}) for name in ("commit", "machine", "torch")}


def plot(main: Results, rows: list[Row]) -> Figure:
    """Draw the learning curves with 95% intervals."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (arm, results), colour in zip(main.items(), COLOURS, strict=True):
        validations = [curve(rows, last) for last in results]
        aps = np.stack([each["ap"] for each in validations])  # [seeds, epochs]
        epochs = validations[0]["epoch"]
        axes.plot(epochs, aps.mean(0), color=colour, label=arm)
        axes.fill_between(epochs, *zip(*map(interval, aps.T), strict=True), color=colour, alpha=0.12)
    axes.set(xlabel="epoch", ylabel="validation AP")
    axes.legend()
    return figure


def page_of(rows: list[Row]) -> str:
    """Return the text of the page, from the template."""
    main = complete(rows, "shapes", tuple(ARMS))
    wider = gains(main)["wider"]
    late = [np.diff(curve(rows, last)["ap"])[-1] for last in main["plain"]]
    bounds = [interval(np.delete(wider, seed), FAMILY)[0] for seed in range(len(wider))]
    template = Path(__file__).with_name("study.md.jinja").read_text(encoding="utf-8")
    masks = {arm: values(results, "mask_ap") for arm, results in main.items()}
    above = [arm for arm in masks if arm != "v2" and interval(masks["v2"] - masks[arm])[1] < 0]
    highest = [arm for arm in main if best_rate(rows, arm) == max(RATES)]
    return jinja2.Template(template, undefined=jinja2.StrictUndefined, keep_trailing_newline=True).render(
        seeds=len(main["v2"]),
        gain=with_interval(gains(main)["plain"], FAMILY),
        verdict=verdict(gains(main)["plain"]),
        late=with_interval(late),
        above_in_mask_ap=", ".join(f"`{arm}`" for arm in above),
        highest_rate=", ".join(f"`{arm}`" for arm in highest),
        wider_bound=interval(wider, FAMILY)[0],
        fragile=sum(bound <= 0 for bound in bounds),
        arms=arms_table(rows, main),
        comparisons=comparisons_table(main),
        settings=settings_table(rows),
        timed=timed_results(rows),
        facts=facts([row for row in rows if row["setting"] != TIMED and row["stage"] != "shipped"]),
    )


def write_page(rows: list[Row], docs: Path) -> None:
    """Write study.md and its picture."""
    text = page_of(rows)
    with replacing(docs / "images/study-curves.svg") as partial:
        plot(complete(rows, "shapes", tuple(ARMS)), rows).savefig(
            partial, format="svg", metadata={"Date": None}
        )
    write_text(docs / "study.md", text)
