"""Measure functions that take turns, describe the machine, and write tables."""

import argparse
import contextlib
import datetime
import os
import platform
import random
import re
import subprocess
import timeit
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.utils.benchmark import Measurement, Timer

from dcnzoo import __version__, ops
from dcnzoo.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]


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
        command = ("git", "-C", str(ROOT), "describe", "--always", "--dirty")
        facts["revision"] = subprocess.check_output(command, text=True).strip()
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
