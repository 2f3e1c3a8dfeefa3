"""Show the results of a benchmark as tables; write JSON, Markdown and a plot."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from families import OURS
from machine import Roofline
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measure import PASSES
from results import MIB, Results, Setting, largest_memory, summary
from rich.console import Console
from rich.table import Table
from sections import markdown

from dcnzoo.utils.files import write_bytes

# Okabe-Ito, as in dcnzoo.report
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASH = "–"


def number(value: float | None, unit: str = "") -> str:
    """Format a number with about three digits, without an exponent."""
    if value is None:
        return DASH
    decimals = next((d for d, bound in ((3, 1), (2, 10), (1, 100)) if abs(value) < bound), 0)
    return f"{value:.{decimals}f}{unit}"


def setting_tables(
    results: Results, contestants: Mapping[str, Sequence[str]]
) -> list[tuple[str, list[list[str]]]]:
    """Return title and rows (the first is the header) for every family, dtype and pass."""
    tables = []
    keys = dict.fromkeys((s.family, s.dtype, s.mode) for s in results.settings())
    for family, dtype, mode in keys:
        settings = results.settings(family=family, dtype=dtype, mode=mode)
        floors = results.floors[family]
        one_package = len({name.split()[0] for name in floors}) == 1
        unit = (floors[0] if one_package else "floor") if floors else None
        rivals = [
            name
            for name in contestants[family]
            if name != OURS and name not in floors and not name.startswith(f"{OURS} ")
        ]
        variants = [name for name in contestants[family] if name.startswith(f"{OURS} ")]
        head = ["case", "shape", "threads", *([f"{unit} ms"] if unit else []), f"{OURS} ms", "IQR"]
        if unit:
            head += [f"{OURS} / {unit}", *(f"{v.removeprefix(OURS).strip()} / {unit}" for v in variants)]
            head += ["share of limit"]
        head += [*(f"{rival} / {OURS}" for rival in rivals), "extra MiB"]
        rows = [_line(results, s, unit, variants, rivals) for s in settings]
        tables.append((f"{family}, {mode}, {dtype}", [head, *rows]))
    return tables


def _line(
    results: Results, s: Setting, unit: str | None, variants: Sequence[str], rivals: Sequence[str]
) -> list[str]:
    own = results.row(s, OURS)
    timing = own.timing if own else None
    line = [s.case, s.shape, str(s.threads)]
    if unit:
        floor = results.floor(s)
        line.append(number(floor and floor * 1e3))
    line += [
        number(timing and timing.median * 1e3),
        f"{timing.spread:.0%}" if timing else DASH,
    ]
    if unit:
        line += [number(results.over_floor(s, name), "×") for name in (OURS, *variants)]
        share = results.of_limit(s)
        line.append(DASH if share is None else f"{share:.0%}")
    line += [number(results.ratio(rival, OURS, s), "×") for rival in rivals]
    line.append(DASH if own is None or own.extra is None else f"{own.extra / MIB:.1f}")
    return line


def summary_table(results: Results) -> list[list[str]]:
    threads = sorted({s.threads for s in results.settings()} | results.demo.keys())
    counts = [f"{count} thread{'s' * (count > 1)}" for count in threads]
    rows = [["operator", "pass", "type", "time ratio", *counts, "worst case", "share of limit", "cases"]]
    for figure in summary(results):
        worst = f"{number(figure.worst, '×')} {figure.worst_case}"
        share = DASH if figure.of_limit is None else f"{figure.of_limit:.0%}"
        ratios = [number(figure.ratios.get(count), "×") for count in threads]
        what = [figure.family, figure.mode, figure.dtype, figure.over]
        rows.append([*what, *ratios, worst, share, str(figure.count)])
    if results.demo:
        ratios = {count: arms["on"].median / arms["off"].median for count, arms in results.demo.items()}
        cells = [number(ratios.get(count), "×") for count in threads]
        rows.append(["demo", "training iteration", "float32", "dcn on / off", *cells, DASH, DASH, "1"])
    return rows


def memory_line(results: Results) -> str | None:
    row = largest_memory(results)
    if row is None:
        return None
    case = f"{row.setting.family} {row.setting.case}"
    return (
        f"Largest extra memory of a forward pass: {row.extra / MIB:.1f} MiB, beyond "
        f"{row.needed / MIB:.1f} MiB of inputs, weights and outputs ({case})."
    )


def roofline_table(roofline: Mapping[tuple[str, int], Roofline]) -> list[list[str]]:
    rows = [["dtype", "threads", "matrix product", "gather"]]
    for (dtype, threads), peak in roofline.items():
        rows.append([dtype, str(threads), f"{peak.flops / 1e9:.0f} GFLOP/s", f"{peak.gather / 1e9:.0f} GB/s"])
    return rows


def problems(results: Results) -> list[str]:
    """Return one line per contestant and reason, with the cases."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in results.rows:
        for problem in (row.problem, row.memory_problem):
            if problem:
                found.setdefault((row.contestant, problem), {})[row.setting.case] = None
    return [f"{name}: {problem} ({', '.join(cases)})" for (name, problem), cases in found.items()]


def absences(absent: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [f"{name}: {a['reason']}; {a['how_to_get']}" for name, a in absent.items()]


def show(title: str, rows: Sequence[Sequence[str]], console: Console, text_columns: int = 1) -> None:
    table = Table(title=title, title_justify="left")
    for i, head in enumerate(rows[0]):
        table.add_column(head, justify="left" if i < text_columns else "right", no_wrap=i == 0)
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


# Files


def as_json(document: dict, results: Results) -> bytes:
    rows = []
    for row in results.rows:
        entry = {**asdict(row.setting), **asdict(row)}
        del entry["setting"]
        rows.append(entry)
    document = {
        **document,
        "demo_training": {
            str(t): {a: asdict(v) for a, v in arms.items()} for t, arms in results.demo.items()
        },
        "rows": rows,
    }
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def as_markdown(document: dict, results: Results, roofline: Mapping, picture: str | None) -> bytes:
    """Return the summary as Markdown, with a picture of this name in the same folder."""
    machine = document["machine"]
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    rivals = ", ".join(f"{name} {version}" for name, version in document["rivals"].items())
    parts = [
        f"# Operators: {machine.get('gpu') or machine['cpu']}",
        f"{document['date'][:10]}. {facts}. Rivals: {rivals or 'none'}.",
        f"`{document['command']}`",
        "Ratios of times, medians over the cases. [Performance](../performance.md) explains the terms. "
        f"Interquartile range, median over all timings: {number((document['noise'] or 0) * 100, ' %')}.",
        f"![Times of the operators as multiples of a plain convolution, by case]({picture})"
        if picture
        else "",
        markdown(summary_table(results)),
        memory_line(results) or "",
    ]
    if roofline:
        parts += ["## Measured limits of the machine", markdown(roofline_table(roofline))]
    for heading, lines in {
        "Unavailable": absences(document["absent"]),
        "Not measured": problems(results),
    }.items():
        if lines:
            parts += [f"## {heading}", "\n".join(f"- {line}" for line in lines)]
    return ("\n\n".join(filter(None, parts)) + "\n").encode()


def as_tables(tables: Sequence[tuple[str, list[list[str]]]]) -> bytes:
    """Return the results of every case as Markdown."""
    return ("\n\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in tables) + "\n").encode()


def as_plot(results: Results, contestants: Mapping[str, Sequence[str]]) -> bytes | None:
    """Plot time relative to the floor: one panel per pass, with the most threads and the first dtype.

    Shows one family: the first with a case that counts in the summary, else the first.
    """
    families = [f for f in contestants if results.floors[f] and results.settings(family=f)]
    if not families:
        return None
    family = next((f for f in families if results.settings(family=f, main=True)), families[0])
    threads = max(s.threads for s in results.settings(family=family))
    dtype = results.settings(family=family)[0].dtype
    modes = [m for m in PASSES if results.settings(family=family, mode=m)]
    most = max(len(results.settings(family=family, mode=m, threads=threads, dtype=dtype)) for m in modes)
    figure = Figure(figsize=(max(5.0, 1.5 + 0.34 * most), 3.6 * len(modes)), layout="constrained")
    for axes, mode in zip(figure.subplots(len(modes), squeeze=False)[:, 0], modes, strict=True):
        settings = results.settings(family=family, mode=mode, threads=threads, dtype=dtype)
        names = [n for n in contestants[family] if n not in results.floors[family]]
        for colour, name in zip(COLOURS, names, strict=False):
            ratios = [results.over_floor(s, name) for s in settings]
            points = [(i, r) for i, r in enumerate(ratios) if r is not None]
            if points:
                size = 34 if name == OURS else 18
                axes.scatter(*zip(*points, strict=True), s=size, color=colour, label=name, zorder=3)
        for i, s in enumerate(settings):
            limit, floor = results.limits.get(s), results.floor(s)
            if limit and floor:
                label = "limit (roofline)" if i == 0 else None
                axes.hlines(limit / floor, i - 0.4, i + 0.4, color="#6b7280", lw=1.2, label=label)
        axes.axhline(1, color="#6b7280", lw=0.8, ls=":")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        axes.set_xticks(range(len(settings)), [s.case for s in settings], rotation=60, ha="right", fontsize=7)
        axes.set_ylabel(f"time / {results.floors[family][0]}")
        axes.set_title(f"{mode}, {dtype}, threads: {threads}", fontsize=10)
        axes.grid(axis="y", lw=0.4, alpha=0.6)
    labels = {label: handle for axes in figure.axes for handle, label in _legend(axes)}
    figure.legend(labels.values(), labels.keys(), fontsize=7, ncols=4, loc="outside upper center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _legend(axes: Axes) -> Iterator[tuple[Artist, str]]:
    return zip(*axes.get_legend_handles_labels(), strict=True)


def write(folder: Path, name: str, files: Mapping[str, bytes | None]) -> list[Path]:
    """Write ``name`` with each suffix, each file atomically; return the paths."""
    whole = {folder / f"{name}{suffix}": content for suffix, content in files.items() if content is not None}
    for path, content in whole.items():
        write_bytes(path, content)
    return list(whole)
