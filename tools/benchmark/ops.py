"""Compare time and memory of the operators with those of other packages on the CPU: ``dcnzoo bench``."""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import click
import families
import machine
import measure
import report
import torch
from families import OURS, Call, Unsupported
from measure import PASSES, Effort, MemoryProbe, Timing
from results import Results, Row, Setting
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rivals import RIVALS, probe

from dcnzoo.cli import one_line_errors
from dcnzoo.cli._options import FOLDER, Command, option

KNOWN = families.load()
ROOT = Path(__file__).resolve().parents[2]
DTYPES = ("float32", "float64", "bfloat16", "float16")
# default dtypes; only the first applies to all cases, the others to the cases of the summary
DEFAULT_DTYPES = ("float32", "bfloat16")
# Largest difference of a rival's result from dcnzoo's, relative to the largest value.
AGREEMENT = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
# Relative interquartile range above which results should not be quoted.
NOISY = 0.10
QUICK_SHAPES = ("demo-c4-s2",)


def choose(option: str, values: Sequence[str], valid: Iterable[str]) -> list[str]:
    """Select the ``valid`` names that match any of the patterns ``values``; without patterns, all."""
    valid = list(dict.fromkeys(valid))
    for value in values:
        if not fnmatch.filter(valid, value):
            raise click.UsageError(f"--{option}: expected {', '.join(valid)}; got {value!r}")
    return [v for v in valid if any(fnmatch.fnmatchcase(v, p) for p in values or ["*"])]


def complete(args: SimpleNamespace) -> SimpleNamespace:
    """Fill in the defaults of all options."""
    chosen = (args.family, args.ops, args.shapes, args.rivals, args.threads, args.dtype, args.passes)
    partial = any(chosen) or args.quick or args.no_memory or args.demo_training == "only"
    smoke = args.quick and not args.shapes
    if smoke and not args.family:
        args.family, args.shapes = ["deform_conv2d"], list(QUICK_SHAPES)
    args.family = choose("family", args.family, KNOWN)
    if smoke and not args.shapes:
        args.shapes = [KNOWN[family].CASES[0].name for family in args.family]
    cases = [(family, case) for family in args.family for case in KNOWN[family].CASES]
    args.ops = choose("ops", args.ops, (case.op for _, case in cases))
    named = set(args.shapes)
    args.shapes = choose("shapes", args.shapes, (case.name for _, case in cases))
    args.rivals = choose("rivals", args.rivals, RIVALS)
    args.passes = choose("passes", args.passes, PASSES)
    args.every_dtype = bool(args.dtype)
    default_dtypes = ("float32",) if args.quick else DEFAULT_DTYPES
    args.dtype = choose("dtype", args.dtype or default_dtypes, DTYPES)
    args.cases = [
        (family, case)
        for family, case in cases
        if case.name in args.shapes
        and case.op in args.ops
        and (args.all or case.name in named or not case.optional)
    ]
    if not args.cases:
        raise click.UsageError("--shapes, --ops: expected a case that fits both, got none")

    cores = machine.cores()
    args.threads = sorted(set(args.threads or ([1] if args.quick or cores == 1 else [1, 2])))
    if not all(1 <= count <= cores for count in args.threads):
        raise click.UsageError(f"--threads: expected 1 to {cores}, this machine's cores; got {args.threads}")
    raw = ROOT / "work_dirs/benchmarks"
    args.raw, args.out = args.out or raw, args.out or (raw if partial else ROOT / "docs/benchmarks")
    args.effort = Effort(0.02, 3, 3) if args.quick else Effort(args.seconds)
    return args


several = partial(option, several=True, metavar="NAME...")


@click.command(cls=Command)
@several("--family", help=f"Operators: {', '.join(KNOWN)} (default: all).")
@several("--ops", help="Variants of the operators: v1, v2, … (default: all).")
@several("--shapes", help="Cases, or patterns such as 'c3*' (default: all).")
@option("--all", is_flag=True, help="Include slow cases (p2).")
@several("--rivals", help=f"Rivals: {', '.join(RIVALS)} (default: all).")
@several(
    "--threads", type=int, metavar="N...", help="Numbers of threads (default: 1 and, with two cores, 2)."
)
@several(
    "--dtype",
    help=f"Types: {', '.join(DTYPES)} (default: float32, for the cases of the summary also bfloat16).",
)
@several("--passes", help=f"Passes: {', '.join(PASSES)} (default: both).")
@option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=0.5,
    help="Time for each contestant and case.",
)
@option("--no-memory", is_flag=True, help="Do not measure peak memory.")
@option(
    "--demo-training",
    is_flag=False,
    flag_value="also",
    type=click.Choice(["also", "only"]),
    help="Also (or only) time the demo's training iteration with and without dcn.",
)
@option("--quick", is_flag=True, help="Run one small case with few samples, as a smoke test.")
@option("--out", type=FOLDER, help="Output folder.")
def main(**options: object) -> None:
    """Compare time and memory of dcnzoo's operators with those of all installed rivals, on the CPU.

    The contestants take turns in one process, so that other work affects all of them equally; compare the
    ratios, not the milliseconds. A complete run writes its summary to docs/benchmarks/, named by machine and
    versions; all other files go to work_dirs/benchmarks/.

    \b
    examples:
      dcnzoo bench --family deform_conv2d --shapes 'c3*' --dtype float32 --threads 1
      dcnzoo bench --demo-training only
      dcnzoo bench --family '*'       # all operators: about 25 minutes
    """
    if len(sys.argv) == 1:
        print(click.get_current_context().get_help())
        return
    args = complete(SimpleNamespace(**options))
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    present, absent = probe(args.rivals)
    contestants = {
        family: [name for name in KNOWN[family].CONTESTANTS if _is_in(name, KNOWN[family], present)]
        for family in args.family
    }
    facts = machine.describe("cpu")
    document = {
        "name": machine.slug(facts),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "tools/benchmark/ops.py", *sys.argv[1:]]),
        "machine": facts,
        "rivals": present,
        "absent": {n: {"reason": why, "how_to_get": RIVALS[n].how_to_get} for n, why in absent.items()},
    }
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()), highlight=False)
    console.print("rivals:", ", ".join(f"{n} {v}" for n, v in present.items()) or "none", highlight=False)
    for line in report.absences(document["absent"]):
        console.print(f"unavailable: {line}", style="yellow", highlight=False, soft_wrap=True)

    results = Results(facts, {family: KNOWN[family].FLOORS for family in args.family})
    with _progress(console) as progress, MemoryProbe() as memory:
        roofline = {}
        if args.demo_training != "only":
            # measured before and after; the higher one counts: a limit measured on a busy machine would be
            # too low and flatter the results
            has_limit = any(case.work(1) for _, case in args.cases)
            if has_limit:
                measure_roofline(args, roofline, progress)
            measure_cases(args, contestants, memory, results, progress)
            if has_limit:
                measure_roofline(args, roofline, progress)
                set_limits(args, roofline, results)
        if args.demo_training:
            measure_demo(args, results, progress)

    tables = report.setting_tables(results, contestants)
    for title, rows in tables:
        report.show(title, rows, console, text_columns=2)
    for line in report.problems(results):
        console.print(f"not measured: {line}", style="yellow", highlight=False, soft_wrap=True)
    document["noise"] = results.noise()
    if (document["noise"] or 0) > NOISY:
        console.print(
            f"noisy machine: half of all timings vary by more than {document['noise']:.0%} "
            "(interquartile range); run again on an idle machine",
            style="yellow",
            soft_wrap=True,
        )
    if roofline:
        report.show("measured limits of the machine", report.roofline_table(roofline), console)
    report.show("summary: medians over the cases", report.summary_table(results), console, text_columns=4)
    document["roofline"] = [
        {"dtype": dtype, "threads": threads, **dataclasses.asdict(peak)}
        for (dtype, threads), peak in roofline.items()
    ]
    raw = {".json": report.as_json(document, results), "-cases.md": report.as_tables(tables)}
    name = document["name"]
    plot = report.as_plot(results, contestants)
    page = report.as_markdown(document, results, roofline, f"{name}.png" if plot else None)
    files = {".md": page, ".png": plot}
    for path in report.write(args.raw, name, raw) + report.write(args.out, name, files):
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        console.print(f"written: {shown}", highlight=False, soft_wrap=True)


def _is_in(name: str, module: ModuleType, present: dict[str, str]) -> bool:
    package = name.split()[0]
    return package == OURS or name in module.FLOORS or package in present


def _progress(console: Console) -> Progress:
    note = TextColumn("{task.fields[note]}")
    columns = (*Progress.get_default_columns(), TimeElapsedColumn(), note)
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


def measure_roofline(args: SimpleNamespace, roofline: dict, progress: Progress) -> None:
    """Measure the limits by dtype and threads; keep the higher values."""
    keys = [(dtype, threads) for dtype in args.dtype for threads in args.threads]
    bar = progress.add_task("limits", total=len(keys), note="")
    for dtype, threads in keys:
        seconds = 0.1 if args.quick else 2.0
        found = machine.measure_roofline(getattr(torch, dtype), threads, seconds)
        roofline[dtype, threads] = found.better_of(roofline.get((dtype, threads), found))
        progress.advance(bar)


def set_limits(args: SimpleNamespace, roofline: dict, results: Results) -> None:
    cases = {(family, case.name): case for family, case in args.cases}
    for setting in results.settings():
        work = cases[setting.family, setting.case].work(getattr(torch, setting.dtype).itemsize)
        if work is not None:
            peak = roofline[setting.dtype, setting.threads]
            results.limits[setting] = peak.seconds(work, setting.mode)


def measure_cases(
    args: SimpleNamespace,
    contestants: dict[str, list[str]],
    memory: MemoryProbe,
    results: Results,
    progress: Progress,
) -> None:
    """Measure every case in every dtype and add the results to ``results``."""
    jobs = [
        (family, case, dtype)
        for family, case in args.cases
        for dtype in args.dtype
        if args.every_dtype or dtype == args.dtype[0] or case.main
    ]
    bar = progress.add_task("cases", total=len(jobs), note="")
    for family, case, dtype in jobs:
        label = f"{family} {case.name} {dtype}"
        progress.update(bar, note=label)
        if progress.disable:
            progress.console.print(label, highlight=False)

        def note(text: str, label: str = label) -> None:
            progress.update(bar, note=f"{label}: {text}")

        measure_case(args, KNOWN[family], family, case, dtype, contestants[family], memory, results, note)
        progress.advance(bar)


def measure_case(
    args: SimpleNamespace,
    module: ModuleType,
    family: str,
    case,
    dtype: str,
    names: Sequence[str],
    memory: MemoryProbe,
    results: Results,
    note: Callable[[str], None],
) -> None:
    tensors = case.tensors(getattr(torch, dtype), "cpu")
    # One Call per contestant and number of threads: onnxruntime's sessions have their own threads.
    calls, problems = prepare(module, case, dtype, tensors, names, args.threads)
    for mode in args.passes:
        runners = {}
        for threads in args.threads:
            setting = Setting(family, case.group, case.name, case.shape, case.main, dtype, mode, threads)
            for name in names:
                row = Row(setting, name, problem=problems.get(name))
                if row.problem is None:
                    run = measure.make_pass(calls[name, threads], mode, case.out_shape)
                    if run is None:
                        continue  # no gradients
                    runner = measure.Runner(run, threads, "cpu")
                    note(f"{mode}, {name}")
                    try:
                        runner.warm_up()
                        runners[setting, name] = runner
                    except Exception as error:
                        row.problem = _why(error)
                results.rows.append(row)
        for _ in measure.take_turns(runners, args.effort):
            note(mode)
        for (setting, name), runner in runners.items():
            row = results.row(setting, name)
            row.timing = Timing.of(runner.samples)
            if setting.threads == args.threads[-1] and not args.no_memory:
                note(f"{mode}, memory of {name}")
                try:
                    found = memory.measure(
                        family=family, case=case.name, contestant=name,
                        threads=setting.threads, dtype=dtype, mode=mode,
                    )  # fmt: skip
                    row.extra, row.needed = found.extra, found.needed
                except RuntimeError as error:
                    row.memory_problem = str(error)


def prepare(
    module: ModuleType,
    case,
    dtype: str,
    tensors: dict,
    names: Sequence[str],
    all_threads: Sequence[int],
) -> tuple[dict[tuple[str, int], Call], dict[str, str]]:
    """Prepare the contestants; return them, and the problems of the others.

    A contestant with another result than dcnzoo is a problem.
    """
    calls, problems = {}, {}
    expected = None
    for name in names:
        try:
            for threads in all_threads:
                calls[name, threads] = module.CONTESTANTS[name](case, tensors, threads)
            if name in module.FLOORS:
                continue
            with torch.no_grad():
                output = calls[name, all_threads[-1]].forward()
        except Unsupported as error:
            problems[name] = str(error)
        except Exception as error:
            problems[name] = _why(error)
        else:
            expected = output if name == OURS else expected
            difference = 0.0 if expected is None else measure.disagreement(output, expected)
            if not difference <= AGREEMENT[dtype]:
                problems[name] = f"different result: differs by {difference:.1e} of the largest value"
    return calls, problems


def _why(error: Exception) -> str:
    return f"fails: {' '.join(str(error).split())[:160] or type(error).__name__}"


def measure_demo(args: SimpleNamespace, results: Results, progress: Progress) -> None:
    try:
        import demo_training
        import mmdet  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f"error: --demo-training: expected mmdet to be installed (make setup): {error}"
        ) from None
    iterations = 2 if args.quick else 25
    total = iterations * len(args.threads) * len(demo_training.ARMS)
    bar = progress.add_task("demo training", total=total, note="")
    results.demo = demo_training.measure(args.threads, iterations, lambda: progress.advance(bar))


if __name__ == "__main__":
    with one_line_errors():
        main()
