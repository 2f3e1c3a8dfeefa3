"""Shared code of the coverage tools: one config per family, trials in separate processes, results."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from mmengine.structures import BaseDataElement
from rich.console import Console
from torch import Tensor
from trial import configs_in, reason

from dcnzoo.openmmlab.packages import mim_folder
from dcnzoo.utils.files import write_text
from dcnzoo.utils.progress import make_progress

SIZES = ("r50_", "r50-", "tiny", "-t_", "-t-", "r18")
NO_MODELS = ("_base_", "common", "deploy")  # only base configs, or configs for mmdeploy
UNTRIED = "not tried"
SECONDS, MEMORY = 600, 12 << 30  # limits of a trial: seconds, bytes


# Families


def families(
    package: str, representatives: dict[str, str], pattern: str = "", depth: int = 1
) -> Iterator[tuple[str, str]]:
    """Yield each folder of a package's configs and the config that represents it.

    Args:
        representatives: configs of the families for which :func:`representative` would choose badly.
        depth: number of nested folders that name a family.
    """
    names: dict[str, list[str]] = {}
    for path in configs_in(mim_folder(package) / "configs"):
        family = "/".join(path.parts[:depth])
        part = len(path.parts) <= depth or family in NO_MODELS or path.name.startswith("_")
        if not part and re.search(pattern, family):
            names.setdefault(family, []).append("/".join(path.parts[depth:]))
    for family in sorted(names):
        yield family, f"{package}::{family}/{representatives.get(family) or representative(names[family])}"


def representative(names: list[str]) -> str:
    """Choose the smallest and simplest config by its name; avoid subfolders if possible."""

    def key(name: str) -> tuple:
        sizes = [i for i, size in enumerate(SIZES) if size in name]
        return name.count("/"), min(sizes, default=len(SIZES)), len(name), name

    return min(names, key=key)


# Trials


def tensors(node: object) -> Iterator[Tensor]:
    """Yield the floating-point tensors in data samples and nested containers."""
    if isinstance(node, Tensor):
        yield from [node] if node.is_floating_point() else []
    elif isinstance(node, BaseDataElement):
        yield from tensors(list(node.values()))
    elif isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            yield from tensors(value)


def apart(trial: Callable[[], str | None], seconds: float = SECONDS, memory: int = MEMORY) -> str:
    """Run ``trial()`` in a separate process; return its result, or the reason for its failure in one line.

    ``None`` becomes ``ok``. The process is ended if it exceeds the limits of time or memory.
    """

    def run() -> None:
        torch.set_num_threads(1)  # a forked process lacks its parent's threads and would wait for them
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        try:
            result = trial() or "ok"
        except Exception as error:
            result = reason(error)
        sender.send(result)

    fork = multiprocessing.get_context("fork")  # inherits the imported modules
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=run, daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else f"not finished after {seconds:g} seconds"
    except EOFError:
        process.join()
        return f"the process ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join()


# Results


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of torch and of the installed ``packages``, which affect the results."""
    found = {}
    for package in ("torch", *packages):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def listed(packages: dict[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in packages.items())


def read_results(path: Path | None) -> tuple[dict[str, str], dict[str, str]]:
    """Read versions, and results by config name."""
    if path is None or not path.is_file():
        return {}, {}
    content = json.loads(path.read_text())
    return content["versions"], content["results"]


def write_results(path: Path, installed: dict[str, str], results: dict[str, str]) -> None:
    write_text(path, json.dumps({"versions": installed, "results": results}, indent=1))


def add_arguments(parser: argparse.ArgumentParser, results: str) -> None:
    parser.add_argument("pattern", nargs="?", default="", help="regular expression (default: all)")
    parser.add_argument("--results", type=Path, default=Path(results), metavar="FILE")
    parser.add_argument("--again", action="store_true", help="repeat trials that have a result")
    parser.add_argument("--stored", action="store_true", help="try nothing: only read the results")
    parser.add_argument("--failed", action="store_true", help="repeat trials that failed")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the page with the table")


def add_after(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--after",
        type=Path,
        metavar="FILE",
        help="results of an environment with fewer packages: try only configs that are not ok there",
    )


def try_all(
    chosen: list[tuple[str, str]],
    trial: Callable[[str], str],
    args: argparse.Namespace,
    here: dict[str, str],
    before: dict[str, str],
) -> list[tuple[str, str, str]]:
    """Try each family; return its name, config and result.

    Args:
        chosen: families and their configs.
        trial: returns the result of a config.
        args: those of :func:`add_arguments`. Results in the file are reused. Several processes may share it.
        here: versions; results of other versions are not reused.
        before: results of an environment with fewer packages. Configs that are ok there are skipped.
    """

    def stored() -> dict[str, str]:
        found, results = read_results(args.results)
        return results if found == here else {}

    at_start = stored()
    repeated = {
        name for name, result in at_start.items() if args.again or (args.failed and not is_ok(result))
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with make_progress(Console(stderr=True)) as progress:
        task = progress.add_task("testing", total=len(chosen), note="")
        for family, name in chosen:
            progress.update(task, note=family)
            result = before.get(name)
            if result is None or not is_ok(result):
                new = stored().get(name)
                if args.stored:
                    new = new or result or UNTRIED
                elif new is None or name in repeated:
                    new = trial(name)
                    write_results(args.results, here, {**stored(), name: new})
                more = is_ok(new) and result is not None
                result = f"{new} with further packages; without: {result}" if more else new
            rows.append((family, name, result))
            print(f"{family}: {result}", flush=True)
            progress.advance(task)
    print(f"{count_ok(rows)} of {len(rows)} families are ok")
    return rows


def count_ok(rows: list[tuple[str, str, str]]) -> int:
    return sum(is_ok(result) for *_, result in rows)


def count_tried(rows: list[tuple[str, str, str]]) -> int:
    return sum(result != UNTRIED for *_, result in rows)


def is_ok(result: str) -> bool:
    return result.startswith("ok")


def table(rows: list[tuple[str, str, str]]) -> str:
    """Return the rows of the table, without its header."""
    return "".join(f"| {family} | `{name}` | {result} |\n" for family, name, result in rows)
