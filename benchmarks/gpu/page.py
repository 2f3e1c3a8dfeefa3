"""Write a page of docs/benchmarks from the results of ``make gpu``: python -m benchmarks.gpu.page FOLDER."""

import json
import sys
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.gpu.journal import results
from benchmarks.measure import ROOT, listed, markdown, slug
from benchmarks.ops import Row, all_cases, summary
from dcnzoo.utils.files import write_text

TEXT = """# {gpu}, torch {torch}, dcnzoo {dcnzoo}

By `make gpu`: {gpu}, CUDA {cuda}, torch {torch}, Triton {triton}, {day}.

Median times between events, with the L2 cache flushed before each call. *Inputs in the cache*: CUDA graphs
without the flush. *Error*: of the output, relative to the compiled kernels in float32 (norms).
Float32 is TF32 in the part `benchmark`, and not in `without_library`.

*dcnzoo*: compiled kernels; *dcnzoo fused*: those in Triton; *dcnzoo Triton*: these
without the compiled library; *F.conv2d*: cuDNN's ordinary
convolution; *grid_sample*: the same formula in plain PyTorch.

Tests on this GPU: {tests}.

`auto` runs the fused kernels from so many output pixels on, and the compiled ones below. {auto}.

## Operators

{summary}

### Inputs in the cache

{cached}

### Agreement

{errors}

## Training

{training}

## All cases

{cases}
"""


def rows(file: Path, time: str) -> list[Row]:
    main = {(case.operator, case.name) for case in CASES if case.main}
    return [
        Row(
            operator=job["operator"],
            case=job["case"],
            main=(job["operator"], job["case"]) in main,
            dtype=job["dtype"],
            mode=job["mode"],
            threads=1,
            contestant=job["contestant"].removesuffix(" compiled"),
            seconds=result[time] / 1e6,
            iqr=(result.get("p80_us", 0) - result.get("p20_us", 0)) / 1e6,
            extra=result.get("bytes"),
        )
        for job, result in results(file)
        if time in result
    ]


def errors(file: Path) -> list[list[object]]:
    """Return a table of the largest error of each contestant, by operator and type."""
    largest: dict[tuple[str, str, str], float] = {}
    for job, result in results(file):
        if "error" in result:
            key = job["operator"], job["contestant"], job["dtype"]
            largest[key] = max(largest.get(key, 0.0), result["error"])
    return [
        ["operator", "contestant", "type", "largest error"],
        *([*k, f"{e:.1e}"] for k, e in largest.items()),
    ]


def main(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    machine = report["machine"]
    file = folder / "benchmark.jsonl"
    without = folder / "without_library.jsonl"
    measured = [*rows(file, "us"), *rows(without, "us")]
    auto = json.loads((folder / "configs.json").read_text())[machine["target"]]["auto"]
    text = TEXT.format(
        **machine,
        day=report["day"],
        tests=report["correctness"],
        auto="; ".join(f"{dtype}: {listed(least)}" for dtype, least in auto.items()),
        summary=markdown(summary(measured)),
        errors=markdown([*errors(file), *errors(without)[1:]]),
        cached=markdown(summary([*rows(file, "cached_us"), *rows(without, "cached_us")])),
        training="\n".join(
            f"- {listed(job)}: {listed(result)}" for job, result in results(folder / "training.jsonl")
        ),
        cases=markdown(all_cases(measured)),
    )
    path = ROOT / "docs" / "benchmarks" / f"gpu-{slug(machine | {'cpu': machine['gpu']})}.md"
    write_text(path, text)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
