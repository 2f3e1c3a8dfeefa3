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

By `make gpu`: {gpu}, CUDA {cuda}, torch {torch}, Triton {triton}, {day}. Median times of CUDA graphs; the
inputs stay in the L2 cache if they fit. Float32 is TF32. *dcnzoo*: compiled kernels; *dcnzoo fused*: those in
Triton; *F.conv2d*: cuDNN's ordinary convolution; *grid_sample*: the same formula in plain PyTorch.

Tests on this GPU: {tests}.

Kernels that `auto` runs, by type and pass: fused from this number of output pixels on, else compiled: {auto}.

## Operators

{summary}

## Training

{training}

## All cases

{cases}
"""


def rows(file: Path) -> list[Row]:
    main = {(case.operator, case.name): case.main for case in CASES}
    return [
        Row(
            job["operator"], job["case"], main[job["operator"], job["case"]], job["dtype"], job["mode"], 1,
            job["contestant"], result["us"] / 1e6, 0.0, result.get("bytes"),
        )
        for job, result in results(file)
        if "us" in result
    ]  # fmt: skip


def main(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    machine = report["machine"]
    measured = rows(folder / "operators.jsonl")
    table = json.loads((folder / "configs.json").read_text())
    text = TEXT.format(
        **machine,
        day=report["day"],
        tests=report["correctness"],
        auto=listed(table[machine["target"]]["auto"]),
        summary=markdown(summary(measured)),
        training="\n".join(f"- {job['step']}: {listed(r)}" for job, r in results(folder / "training.jsonl")),
        cases=markdown(all_cases(measured)),
    )
    path = ROOT / "docs" / "benchmarks" / f"gpu-{slug(machine | {'cpu': machine['gpu']})}.md"
    write_text(path, text)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
