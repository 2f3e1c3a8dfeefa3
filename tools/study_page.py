"""The page of ``tools/study.py``: tables and plots from its CSVs, in the template study.md.jinja."""

import io
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import matplotlib
from matplotlib.figure import Figure
from study_results import (
    RESULTS,
    STRENGTHS,
    Comparison,
    Row,
    differences,
    read_rows,
    read_time,
    select,
    time_ratio,
)
from study_sampling import REGIONS, SamplingRow, read_sampling

from dcnzoo.report.plots import COLOURS
from dcnzoo.report.report import mean_and_spread
from dcnzoo.utils.files import write_bytes, write_text

Times = Mapping[str, Sequence[float]]  # arm → CPU seconds per iteration, one value per round
TEMPLATE = Path(__file__).with_name("study.md.jinja")


LONGER = ("off-9-epochs", "off-10-epochs")
AIM = 0.05  # mask AP that DCNv2 was expected to gain
# other pages with tables of the study
WITH_FIGURES = tuple(RESULTS.parents[1] / name for name in ("README.md", "docs/demo.md"))
_BLOCK = re.compile(r"(<!-- study: (\w+) -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)


def fill_in(text: str, rows: Sequence[Row], times: Times) -> str:
    """Replace the tables between ``<!-- study: NAME -->`` and ``<!-- end -->`` by those of the results."""
    tables = {"demo": table(rows, times, ["off", "v2"]), "pairs": pair_table(rows)}
    return _BLOCK.sub(lambda block: f"{block[1]}{tables[block[2]]}{block[3]}", text)


def write_page(page: Path, results: Path, sampling: Path, times: Path, planned: int) -> None:
    """Write the page, and the plots to ``images`` in its folder. Committed results also update other pages.

    Args:
        planned: the number of trainings of the complete study.
    """
    rows, looked, timed = read_rows(results), read_sampling(sampling), read_time(times)
    if "off" in timed:
        timed |= dict.fromkeys(LONGER, timed["off"])  # the same iterations, only more of them
    if results == RESULTS:
        for file in WITH_FIGURES:
            write_text(file, fill_in(file.read_text(encoding="utf-8"), rows, timed))
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    images = page.parent / "images"
    _save(images / "study-dose.svg", plot_dose(rows))
    _save(images / "study-dilation.svg", plot_dilation(looked))
    text = template.render(
        done=len(rows),
        planned=planned,
        operators=table(rows, timed, ["off", "v1", "v2", "v3", "v4"]),
        where=table(rows, timed, ["off", "v2-c4", "v2-c3-c4", "v2"]),
        times=[table(rows, timed, [longer, "v2"]) for longer in LONGER if select(rows, longer)],
        dose=dose_table(rows),
        pairs=pair_table(rows),
        real=real_table(rows),
        headline=comparison(rows, "v2"),
        boxes=comparison(rows, "v2", metric="box_ap"),
        strong=comparison(rows, "v2", "strong"),
        aim=AIM,
        dilation=dilation_table(looked),
        on_object=on_object_table(looked),
        commits=", ".join(sorted({row.commit for row in rows})),
    )
    write_text(page, text)


def comparison(
    rows: Sequence[Row],
    arm: str,
    setting: str = "full",
    baseline: str = "off",
    metric: str = "mask_ap",
) -> Comparison | None:
    """Compare APs. None if fewer than two pairs have been run."""
    values = differences(select(rows, arm, setting), select(rows, baseline, setting), metric)
    return Comparison.of(values) if len(values) > 1 else None


def real_table(rows: Sequence[Row]) -> str:
    lines = []
    for setting, metric, name in (
        ("bccd", "box_ap", "box AP"),
        ("fruits_nuts", "box_ap", "box AP"),
        ("fruits_nuts", "mask_ap", "mask AP"),
    ):
        off, v2 = select(rows, "off", setting), select(rows, "v2", setting)
        found = comparison(rows, "v2", setting, metric=metric)
        if found is not None:
            means = [mean_and_spread([getattr(row, metric) for row in each.values()]) for each in (off, v2)]
            lines.append([setting, name, *means, str(found), f"{found.ahead} of {found.pairs}"])
    return markdown(["data set", "", "off", "v2", "v2 − off (95% interval)", "pairs ahead"], lines)


def table(rows: Sequence[Row], times: Times, arms: Sequence[str]) -> str:
    """Return a table with one row per arm; the first arm is the baseline."""
    lines = []
    for arm in arms:
        own = select(rows, arm)
        if not own:
            continue
        cells = [
            arm,
            mean_and_spread([r.box_ap for r in own.values()]),
            mean_and_spread([r.mask_ap for r in own.values()]),
        ]
        for metric in ("box_ap", "mask_ap"):
            found = comparison(rows, arm, baseline=arms[0], metric=metric)
            cells.append(
                "" if arm == arms[0] or found is None else f"{found}, {found.ahead} of {found.pairs}"
            )
        longer = time_ratio(times, arm, arms[0])
        cells.append("" if arm == arms[0] or longer is None else f"{longer:.2f}×")
        lines.append(cells)
    head = [
        "detector",
        "box AP",
        "mask AP",
        f"box AP − {arms[0]} (95% interval), pairs ahead",
        f"mask AP − {arms[0]}",
        "time per iteration",
    ]
    return markdown(head, lines)


def pair_table(rows: Sequence[Row]) -> str:
    off, v2 = select(rows, "off"), select(rows, "v2")
    seeds = sorted(off.keys() & v2)
    lines = [
        [name, *(f"{value:{form}}" for value in values)]
        for name, form, values in (
            ("off", ".3f", [off[s].mask_ap for s in seeds]),
            ("v2", ".3f", [v2[s].mask_ap for s in seeds]),
            ("difference", "+.3f", differences(v2, off)),
        )
    ]
    return markdown(["mask AP, seed", *map(str, seeds)], lines)


def dose_table(rows: Sequence[Row]) -> str:
    lines = []
    for setting in STRENGTHS:
        off, v2 = select(rows, "off", setting), select(rows, "v2", setting)
        cells = [f"{STRENGTHS[setting]:g}"]
        for metric in ("box_ap", "mask_ap"):
            found = comparison(rows, "v2", setting, metric=metric)
            if found is not None:
                cells += [
                    f"{statistics.mean(getattr(r, metric) for r in each.values()):.3f}" for each in (off, v2)
                ]
                cells.append(f"{found}, {found.ahead} of {found.pairs}")
        if len(cells) > 1:
            lines.append(cells)
    head = [f"{name}{what}" for name in ("box AP", "mask AP") for what in (", off", ", v2", ", v2 − off")]
    return markdown(["deformation", *head], lines)


def plot_dose(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    found = {}
    for setting, strength in STRENGTHS.items():
        each = comparison(rows, "v2", setting)
        if each is None:
            continue
        found[strength] = each
        values = differences(select(rows, "v2", setting), select(rows, "off", setting))
        axes.plot([strength] * len(values), values, "o", color=COLOURS[0], alpha=0.25, ms=4)
        axes.errorbar(
            strength,
            each.mean,
            [[each.mean - each.low], [each.high - each.mean]],
            fmt="o",
            color=COLOURS[0],
            capsize=4,
            lw=2,
        )
    axes.plot(list(found), [each.mean for each in found.values()], color=COLOURS[0], lw=1.5)
    axes.axhline(0, color="#6b7280", lw=0.8)
    axes.set_xlabel("strength of the deformation (1: the demo's data)")
    axes.set_ylabel("mask AP, DCNv2 − plain")
    return figure


def by_layer(looked: Sequence[SamplingRow]) -> dict[tuple[str, str], dict[str, list[SamplingRow]]]:
    """Group rows: (arm, layer) → region → one row per seed."""
    found: dict = defaultdict(lambda: defaultdict(list))
    for row in looked:
        found[row.arm, row.layer][row.region].append(row)
    return found


def dilation_table(looked: Sequence[SamplingRow]) -> str:
    lines = [
        [*key, *(_mean_and_std(regions[region]) for region in REGIONS)]
        for key, regions in by_layer(looked).items()
    ]
    return markdown(["detector", "layer", *REGIONS], lines)


def _mean_and_std(rows: Sequence[SamplingRow]) -> str:
    """Return mean and standard deviation over locations, averaged over seeds."""
    if not rows:
        return "–"
    mean, std = (
        statistics.mean(values) for values in zip(*((r.dilation, r.dilation_std) for r in rows), strict=True)
    )
    return f"{mean:.2f} ± {std:.2f}"


def on_object_table(looked: Sequence[SamplingRow]) -> str:
    lines = []
    for key, regions in by_layer(looked).items():
        cells = []
        for region in list(REGIONS)[:-1]:
            rows = regions[region]
            trained, regular = (
                statistics.mean(getattr(row, which) for row in rows) if rows else float("nan")
                for which in ("on_object", "on_object_regular")
            )
            cells.append(f"{trained:.3f} / {regular:.3f}")
        lines.append([*key, *cells])
    return markdown(["detector", "layer", *list(REGIONS)[:-1]], lines)


def plot_dilation(looked: Sequence[SamplingRow]) -> Figure:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for index, ((arm, layer), regions) in enumerate(by_layer(looked).items()):
        means = [[row.dilation for row in regions[region]] for region in REGIONS]
        drawn = [(x, values) for x, values in enumerate(means) if values]
        axes.errorbar(
            [x + 0.06 * index for x, _ in drawn],
            [statistics.mean(values) for _, values in drawn],
            [statistics.stdev(values) if len(values) > 1 else 0 for _, values in drawn],
            fmt="o-",
            color=COLOURS[index % len(COLOURS)],
            capsize=3,
            label=f"{arm}, {layer}",
        )
    axes.set_xticks(range(len(REGIONS)), list(REGIONS))
    axes.set_ylabel("effective dilation [pixels of the layer's input]")
    if looked:
        axes.legend(frameon=False, fontsize=8)
    return figure


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return "*(not yet run)*"
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def _save(file: Path, figure: Figure) -> None:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": file.stem}):  # reproducible ids
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_bytes(file, buffer.getvalue().encode())
