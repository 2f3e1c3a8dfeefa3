"""What the benchmarks share: timed functions, facts about machine and code, tables, pages, CSV files."""

import argparse
import contextlib
import csv
import datetime
import os
import platform
import random
import re
import subprocess
import timeit
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.utils.benchmark import Measurement, Timer

from dcnzoo import __version__, ops
from dcnzoo.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
# what the benchmarks write: a change of these files does not change what is measured
RESULTS = ("docs", "model_zoo.md", "benchmarks/coverage/*.json", "benchmarks/study/results.csv")


def parser_of(program: str) -> argparse.ArgumentParser:
    """Return a parser whose help starts with the docstring of a program."""
    return argparse.ArgumentParser(description=program, formatter_class=argparse.RawDescriptionHelpFormatter)


def take_turns(
    functions: Mapping[Hashable, tuple[Callable[[], object], int]],
    seconds: float,
    timer: Callable[[], float] = timeit.default_timer,
    rounds: int = 5,
) -> dict[Hashable, Measurement]:
    """Time functions, each with a number of threads, for about ``seconds`` each.

    They take turns in random order, so that other work on the machine affects all of them equally.
    """
    timers = {
        key: Timer("run()", globals={"run": run}, num_threads=threads, timer=timer)
        for key, (run, threads) in functions.items()
    }
    measured: dict[Hashable, list[Measurement]] = {key: [] for key in timers}
    shuffle = random.Random(0).shuffle  # nosec B311  # no secret
    order = list(timers)
    for _ in range(rounds):
        shuffle(order)
        for key in order:
            measured[key].append(timers[key].blocked_autorange(min_run_time=seconds / rounds))
    return {key: Measurement.merge(each)[0] for key, each in measured.items()}


def describe(*packages: str, gpu: bool = False) -> dict[str, object]:
    """Return the facts that affect speed, without names that identify a computer."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    facts: dict[str, object] = {"date": datetime.date.today().isoformat()}
    if (ROOT / ".git").exists():
        facts["revision"] = revision()
    facts |= {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_capability": ops.cpu_capability(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "dcnzoo": __version__,
        "load_average_before": round(os.getloadavg()[0], 1),
    }
    if gpu:
        target = "sm_" + "".join(map(str, torch.cuda.get_device_capability()))
        facts |= {"gpu": torch.cuda.get_device_name(), "target": target, "cuda": torch.version.cuda}
    return facts | versions("torch", *packages)


def revision() -> str:
    """Return the commit of this tree, with ``-dirty`` if files other than :data:`RESULTS` have changes."""
    git = ("git", "-C", str(ROOT))
    commit = subprocess.check_output((*git, "rev-parse", "--short=7", "HEAD"), text=True).strip()
    others = (".", *(f":!{path}" for path in RESULTS))
    changed = subprocess.call((*git, "diff", "--quiet", "HEAD", "--", *others))
    return f"{commit}-dirty" if changed else commit


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of the installed packages."""
    installed = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def listed(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def slug(facts: Mapping[str, object]) -> str:
    """Return a file name from the machine and the versions."""
    text = f"{facts['cpu']} {facts['cores']} cores {facts['cpu_capability']} torch "
    text += f"{str(facts['torch']).split('+')[0]} dcnzoo {facts['dcnzoo']}"
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def markdown(rows: Iterable[Sequence[object]]) -> str:
    """Return a table; the first row is its head."""
    head, *body = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def replace_section(page: Path, name: str, text: str) -> None:
    """Replace the text between the comments ``<!-- NAME: … -->`` and ``<!-- end of NAME -->``."""
    pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
    before = page.read_text(encoding="utf-8")
    after, count = re.subn(pattern, lambda m: f"{m[1]}\n{text}\n\n{m[2]}", before, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"error: {page}: expected one section <!-- {name}: … -->, found {count}")
    write_text(page, after)
    print(f"written: {page}")


def properties(node: ElementTree.Element) -> dict[str, str]:
    """Return what a test, or the whole run, has recorded in pytest's junit file."""
    return {each.get("name"): each.get("value") for each in node.findall("properties/property")}


def read_rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none if it does not exist."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def append_row(file: Path, columns: Sequence[str], row: Mapping[str, object]) -> None:
    """Append a row to a CSV file, or start the file. Processes may share it: the row is one write."""
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
