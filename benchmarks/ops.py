"""Compare time and memory of the operators with those of other packages on the CPU.

::

    make bench                                                     # all: docs/benchmarks, about 25 minutes
    python -m benchmarks.ops deform_conv2d --cases 'c3*' --dtypes float32 --threads 1
    taskset -c 0,1 python -m benchmarks.ops --against main 7429618 --threads 1  # next to other revisions

The contestants take turns in one process; compare the ratios, not the milliseconds. A contestant whose result
differs from dcnzoo's is not timed. A complete run writes its summary to docs/benchmarks/, named by machine
and versions; all measurements go to work_dirs/benchmarks/ after each case, those of a part under a name with
its options. ``--against`` builds operators of revisions and compares CPU times, which other programs disturb
less (set OMP_WAIT_POLICY=passive, or waiting counts).
"""

import argparse
import contextlib
import fnmatch
import itertools
import json
import math
import multiprocessing
import os
import re
import shlex
import statistics
import sys
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.pool import Pool
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import revision
from benchmarks.cases import CASES, OURS, PASSES, Case, Contestant, Forward, contestants, operators, passes
from benchmarks.measure import ROOT, describe, listed, markdown, parser_of, slug, take_turns
from dcnzoo.utils.files import write_text
from dcnzoo.utils.memory import return_memory
from tests.op_cases import Sample

# Largest difference of a contestant's result from dcnzoo's, relative to the largest value.
AGREEMENT = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
LAST = " channels_last"
PACKAGES = ("mmcv", "onnxruntime", "openvino", "torchvision", "torch-ms-deform-attn")


@dataclass
class Row:
    """A measurement; ``extra``: peak memory in bytes in addition to inputs and results."""

    operator: str
    case: str
    main: bool
    dtype: str
    mode: str
    threads: int
    contestant: str
    seconds: float
    iqr: float
    extra: int | None = None
    stride: int = 1

    @property
    def setting(self) -> tuple[str, str, str, str, int]:
        return self.operator, self.case, self.dtype, self.mode, self.threads


def is_floor(contestant: str) -> bool:
    """Return whether a contestant is a plain convolution, which does less work."""
    return contestant.startswith("F.")


# The tensors of a sample that get gradients, and a contestant's calls of it by number of threads
Prepared = tuple[list[Tensor], dict[int, Forward]]


@dataclass(frozen=True)
class Settings:
    """How each case is measured.

    Attributes:
        seconds: for each contestant and case.
        copies: of the inputs. Where these lie in memory changes times more than most revisions do.
    """

    threads: list[int]
    passes: list[str]
    seconds: float
    timer: Callable[[], float] = timeit.default_timer
    rounds: int = 5
    copies: int = 1


def competitors(operator: str, patterns: Iterable[str], revisions: Iterable[str]) -> dict[str, Contestant]:
    """Return dcnzoo, then the chosen contestants: other packages, or namespaces of other revisions."""
    others = contestants(operator)
    if revisions:
        floors = {name: prepare for name, prepare in others.items() if is_floor(name)}
        others = revision.contestants(operator, revisions) | floors
    return {name: prepare for name, prepare in others.items() if name == OURS or chosen(name, patterns)}


def measure(
    case: Case, dtype: str, contestants: Mapping[str, Contestant], settings: Settings, pool: Pool | None
) -> Iterator[Row | str]:
    """Yield a row for each measurement, and the reason for each contestant that is missing.

    Args:
        contestants: by name; the first one, dcnzoo, has the expected result.
        pool: whose processes measure the peak memory; None: it is not measured.
    """
    sample = case.sample(getattr(torch, dtype))
    prepared: dict[str, list[Prepared]] = {}
    expected = None
    for name, prepare in contestants.items():
        try:
            calls = [prepare_copy(prepare, sample, settings.threads) for _ in range(settings.copies)]
            with torch.no_grad():
                output = calls[0][1][settings.threads[-1]]()
            expected = output if expected is None else expected
            difference = 0 if is_floor(name) else relative_difference(output, expected)
            if not difference <= AGREEMENT[dtype]:  # also NaN
                raise ValueError(f"different result: differs by {difference:.1e} of the largest value")
            prepared[name] = calls
        except Exception as error:
            yield f"{name}: {' '.join(str(error).split())[:160]} ({case.operator} {case.name})"
    for mode in settings.passes:
        yield from time_pass(case, dtype, mode, prepared, settings, pool)


def prepare_copy(prepare: Contestant, sample: Sample, threads: Iterable[int]) -> Prepared:
    """Prepare calls of a copy of the sample."""
    copied, forwards = sample.leaves(), {}
    for count in threads:
        torch.set_num_threads(count)
        forwards[count] = prepare(copied)
    return copied.given, forwards


def time_pass(
    case: Case, dtype: str, mode: str, prepared: Mapping[str, list[Prepared]], settings: Settings,
    pool: Pool | None,
) -> Iterator[Row]:  # fmt: skip
    """Time a pass of all contestants, which take turns."""
    functions = {}
    for name, calls in prepared.items():
        with contextlib.suppress(NotImplementedError):  # no gradients
            for threads in settings.threads:
                runs = [passes(forwards[threads], given, mode) for given, forwards in calls]
                functions[name, threads] = alternating(runs), threads
    times = take_turns(functions, settings.seconds, settings.timer, settings.rounds)
    for (name, threads), timed in times.items():
        setting = (case.operator, case.name, case.main, dtype, mode, threads)
        row = Row(*setting, name, timed.median, timed.iqr, stride=case.stride)
        if pool and threads == settings.threads[-1] and name == OURS:
            row.extra = pool.apply(extra_memory, (case.operator, case.name, dtype, mode, threads))
        yield row


def alternating(runs: Iterable[Callable[[], object]]) -> Callable[[], object]:
    """Return a function that runs the next one of ``runs`` at each call."""
    turns = itertools.cycle(runs)
    return lambda: next(turns)()


def chosen(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def relative_difference(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        return float("inf")
    got, expected = got.detach().double(), expected.detach().double()
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


# Memory


def fresh_processes() -> Pool:
    """Return a pool that runs each call in a new process, forked from one that has computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.cases"])
    return context.Pool(1, maxtasksperchild=1)


def extra_memory(operator: str, case: str, dtype: str, mode: str, threads: int) -> int:
    """Measure the peak memory of a call of dcnzoo, in a new process: allocators and pools keep memory."""
    torch.set_num_threads(threads)
    prepare = contestants(operator)[OURS]
    for small in operators()[operator].forms():  # starts threads, loads kernels
        warm = small.to(getattr(torch, dtype)).leaves()
        passes(prepare(warm), warm.given, mode)()
    (chosen_case,) = (c for c in CASES if (c.operator, c.name) == (operator, case))
    sample = chosen_case.sample(getattr(torch, dtype)).leaves()
    forward = prepare(sample)

    def run() -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(mode != "forward"):
            output = forward()
        gradients = () if mode == "forward" else torch.autograd.grad(output.sum(), sample.given)
        return output.detach(), *gradients

    before = _reset_peak()
    results = run()
    return max(0, _peak() - before - sum(t.nbytes for t in results if t is not None))


def _reset_peak() -> int:
    """Reset the peak memory of this process and return its present memory; 0 if it cannot be reset."""
    return_memory()  # otherwise the next detector would reuse memory that the previous one freed
    try:
        Path("/proc/self/clear_refs").write_bytes(b"5")
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError):
        return 0


def _peak() -> int:
    """Return the peak memory of this process since it was reset, in bytes."""
    lines = Path("/proc/self/status").read_bytes().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(b"VmHWM"))


# Tables


def ratios(rows: list[Row]) -> dict[str, dict[tuple, float]]:
    """Return, for each pair such as ``mmcv / dcnzoo``, the ratio of times in each setting."""
    settings: dict[tuple, dict[str, float]] = defaultdict(dict)
    for row in rows:
        settings[row.setting][row.contestant] = row.seconds
    pairs: dict[str, dict[tuple, float]] = defaultdict(dict)
    for setting, times in settings.items():
        for name in times:
            for other, seconds in compared_with(name, times).items():
                pairs[f"{name} / {other}"][setting] = times[name] / seconds
    return pairs


def compared_with(name: str, times: Mapping[str, float]) -> dict[str, float]:
    """Return the times with which the time of a contestant is compared.

    dcnzoo is compared with the faster plain convolution and the one in its format, others with dcnzoo.
    """
    floors = {floor: seconds for floor, seconds in times.items() if is_floor(floor)}
    own = f"{OURS}{LAST}" if name.endswith(LAST) else OURS
    others = {}
    if name.startswith(OURS) and floors:
        plain = next(iter(floors)).split()[0]
        others[f"{plain}, the faster"] = min(floors.values())
        if name == own and len(floors) > 1:
            same = plain + name.removeprefix(OURS)
            others[same] = floors[same]
    if name != own and name not in floors and own in times:
        others[own] = times[own]
    return others


def summary(rows: list[Row]) -> list[list[str]]:
    """Return a table of medians over the main cases, and of the worst case with any number of threads.

    Comparisons with the faster plain convolution also have rows for each stride, if there are several.
    """
    threads = sorted({row.threads for row in rows})
    with_main = {row.operator for row in rows if row.main}
    main = {row.setting for row in rows if row.main or row.operator not in with_main}
    strides = {row.setting: row.stride for row in rows}
    found = defaultdict(set)
    for row in rows:
        found[row.operator].add(row.stride)
    with_strides = {name for name, each in found.items() if len(each) > 1}
    table = [["operator", "pass", "type", "time ratio", *(f"{n} threads" for n in threads), "worst", "cases"]]
    for pair, by_setting in ratios(rows).items():
        groups: dict[tuple, dict[tuple, float]] = defaultdict(dict)
        for (operator, case, dtype, mode, count), ratio in by_setting.items():
            if (operator, case, dtype, mode, count) in main:
                groups[operator, mode, dtype, pair][case, count] = ratio
                if pair.endswith(", the faster") and operator in with_strides:
                    stride = strides[operator, case, dtype, mode, count]
                    groups[operator, mode, dtype, f"{pair}, stride {stride}"][case, count] = ratio
        for key, values in groups.items():
            by_threads = {n: [r for (_, count), r in values.items() if count == n] for n in threads}
            worst = (max if " / F." in pair else min)(values, key=values.get)
            medians = [f"{statistics.median(v):.2f}×" if v else "–" for v in by_threads.values()]
            number = len({case for case, _ in values})
            table.append([*key, *medians, f"{values[worst]:.2f}× {worst[0]}", str(number)])
    return [table[0], *sorted(table[1:], key=lambda line: line[0])]


def all_cases(rows: list[Row]) -> list[list[str]]:
    head = ["operator", "case", "type", "pass", "threads", "contestant", "ms", "IQR", "/ dcnzoo", "extra MiB"]
    own = {row.setting: row.seconds for row in rows if row.contestant == OURS}
    table = [head]
    for row in rows:
        spread, ratio = row.iqr / row.seconds, row.seconds / own.get(row.setting, math.nan)
        extra = "" if row.extra is None else f"{row.extra / 2**20:.1f}"
        figures = [f"{row.seconds * 1e3:.3f}", f"{spread:.0%}", f"{ratio:.2f}×", extra]
        table.append([*map(str, row.setting), row.contestant, *figures])
    return table


def parse() -> tuple[argparse.Namespace, list[Case]]:
    """Return the options of the command line and the chosen cases."""
    names = list(dict.fromkeys(case.operator for case in CASES))
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("operators", nargs="*", metavar="OPERATOR", help=f"{', '.join(names)} (default: all); patterns, too")
    add("--cases", nargs="+", default=["*"], metavar="CASE", help="names of cases, or patterns such as 'c3*'")
    add("--contestants", nargs="+", default=["*"], metavar="NAME", help="mmcv 'F.*' …; dcnzoo always runs")
    add("--all", action="store_true", help="include slow cases (p2)")
    add("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    add("--dtypes", nargs="+", choices=AGREEMENT, default=["float32", "bfloat16"], metavar="TYPE")
    add("--passes", nargs="+", choices=PASSES, default=PASSES, metavar="PASS")
    add("--seconds", type=float, default=0.5, help="for each contestant and case (default: 0.5)")
    add("--no-memory", action="store_true", help="do not measure peak memory")
    add("--against", nargs="+", default=[], metavar="REVISION", help="compare operators with revisions")
    add("--out", type=Path, default=ROOT / "work_dirs/benchmarks", metavar="FOLDER")
    args = parser.parse_args()
    patterns = args.operators or (["deform_conv2d"] if args.against else ["*"])
    if args.against and not set(patterns) <= set(revision.OPERATORS):
        parser.error(f"--against: expected operators of {', '.join(revision.OPERATORS)}")
    cases = [
        case
        for case in CASES
        if chosen(case.operator, patterns) and chosen(case.name, args.cases)
        if args.all or args.cases != ["*"] or not case.optional
    ]
    if not cases:
        parser.error(f"expected an operator with such a case; operators: {', '.join(names)}")
    return args, cases


@dataclass
class Results:
    """The measurements of a run: its command, the machine, the rows, and why contestants are missing."""

    command: str
    machine: dict[str, object]
    rows: list[Row] = field(default_factory=list)
    problems: dict[str, None] = field(default_factory=dict)

    def save(self, file: Path) -> None:
        rows = [vars(row) for row in self.rows]
        write_text(
            file, json.dumps({"command": self.command, "machine": self.machine, "rows": rows}, indent=1)
        )


def is_complete(args: argparse.Namespace, words: list[str]) -> bool:
    """Return whether the results of a command line belong to docs/benchmarks."""
    return args.cases == ["*"] if args.against else not words


def name_of(
    args: argparse.Namespace, words: list[str], machine: Mapping[str, object], commits: list[str]
) -> str:
    """Return the name of the files. Results of some cases, or of other revisions, have another name."""
    name = "-".join(["revisions", *commits, slug(machine)] if commits else [slug(machine)])
    pairs = itertools.pairwise(["", *words])
    options = [word for before, word in pairs if before != "--out" and word.partition("=")[0] != "--out"]
    part = re.sub(r"[^a-z0-9.]+", "-", " ".join(options).lower()).strip("-")
    return name if is_complete(args, words) else "-".join(filter(None, [name, "part", part]))[:240]


def run(
    args: argparse.Namespace, cases: Iterable[Case], revisions: list[str], results: Results, file: Path
) -> None:
    """Measure the cases, and save the results after each."""
    settings = Settings(args.threads, args.passes, args.seconds)
    if revisions:
        settings = replace(settings, timer=time.process_time, rounds=20, copies=5)
    without_memory = args.no_memory or revisions
    with contextlib.nullcontext() if without_memory else fresh_processes() as pool:
        for case in cases:
            against = competitors(case.operator, args.contestants, revisions)
            for dtype in args.dtypes:
                for result in measure(case, dtype, against, settings, pool):
                    if isinstance(result, Row):
                        results.rows.append(result)
                        milliseconds = f"{result.seconds * 1e3:.3f} ms"
                        print(*result.setting, f"{result.contestant}:", milliseconds, flush=True)
                    else:
                        results.problems[result] = None
            results.save(file)


def page(results: Results, times: str) -> str:
    """Return the summary as a page of docs/benchmarks; ``times``: what was measured."""
    noise = statistics.median(row.iqr / row.seconds for row in results.rows)
    return f"""# Operators: {results.machine["cpu"]}

{listed(results.machine)}.

`{results.command}`

Ratios of {times}, medians over the cases. [Performance](../performance.md) explains the terms. Interquartile
range, median over all timings: {noise:.1%}{", a noisy machine: run again" if noise > 0.1 else ""}.

{markdown(summary(results.rows))}
""".replace(f"{OURS}_", "")


def main() -> None:
    args, cases = parse()
    words = sys.argv[1:]
    revisions = [revision.load(each) for each in args.against]
    results = Results(shlex.join(["python", "-m", "benchmarks.ops", *words]), describe(*PACKAGES))
    print(listed(results.machine))
    name = name_of(args, words, results.machine, [each.removeprefix(f"{OURS}_") for each in revisions])
    run(args, cases, revisions, results, args.out / f"{name}.json")
    missing = "".join(f"- {line}\n" for line in results.problems)
    if not results.rows:
        raise SystemExit(
            f"error: expected an operator with such a pass, nothing was measured\n{missing}".strip()
        )
    text = page(results, "CPU times" if revisions else "times")
    print(text)
    folder = ROOT / "docs/benchmarks" if is_complete(args, words) else args.out
    write_text(folder / f"{name}.md", text)
    write_text(
        args.out / f"{name}-cases.md", f"{markdown(all_cases(results.rows))}\n\nNot measured:\n\n{missing}"
    )
    print(f"written: {args.out / name}*")


if __name__ == "__main__":
    main()
