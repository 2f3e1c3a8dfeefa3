"""Write a page of docs/benchmarks from the results of ``make gpu``: python -m benchmarks.gpu.page FOLDER."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cases import PASSES
from benchmarks.gpu.journal import results
from benchmarks.measure import ROOT, markdown, slug
from dcnzoo.utils.files import write_text

Times = dict[tuple[str, str], float]  # (case, contestant) -> µs
TYPES = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32 (TF32)"}
TEXT = """# {gpu}, torch {torch}, dcnzoo {dcnzoo}

By `make gpu`: {gpu}, CUDA {cuda}, torch {torch}, Triton {triton}, {day}. Median times of CUDA graphs; the
inputs stay in the L2 cache if they fit. *cuDNN*: the ordinary convolution of the same shape, in the faster
memory format. The other columns are times relative to it: smaller is better. *error*: of the output, relative
to the compiled kernels in float32, the largest of the column.

Tests on this GPU: {tests}.

## `deform_conv2d`: two images of 800 × 1344

{convolutions}
## `dcnv3`, `dcnv4`, `ms_deform_attn`

Time of the compiled kernels; *torch*: the same formula in plain PyTorch (`grid_sample`), relative to it.

{attention}

## Training

{training}
"""


def tables(jobs: list[tuple[dict, dict]]) -> Iterator[tuple[str, str, list[tuple[dict, dict]]]]:
    """Yield the jobs of each type and pass."""
    for dtype in TYPES:
        for mode in PASSES:
            part = [(job, result) for job, result in jobs if (job["dtype"], job["mode"]) == (dtype, mode)]
            if part:
                yield dtype, mode, part


def convolutions(jobs: list[tuple[dict, dict]], auto: dict) -> str:
    text = ""
    for dtype, mode, part in tables(jobs):
        times: Times = {(j["case"], j["contestant"]): r["us"] for j, r in part if "us" in r}
        cases = list(dict.fromkeys(job["case"] for job, _ in part))
        names = sorted({name for _, name in times if not name.startswith("cuDNN")})
        floor = {c: min(us for (case, n), us in times.items() if case == c and "cuDNN" in n) for c in cases}
        ratios = {key: us / floor[key[0]] for key, us in times.items()}
        rows = [["case", "cuDNN, µs", *names]]
        rows += [[c, f"{floor[c]:.0f}", *(_ratio(ratios.get((c, n))) for n in names)] for c in cases]
        medians = (statistics.median(ratios[c, n] for c in cases if (c, n) in ratios) for n in names)
        rows.append(["**median**", "", *map(_ratio, medians)])
        if mode == "forward":
            errors = {n: max(r.get("error", 0) for j, r in part if j["contestant"] == n) for n in names}
            rows.append(["error", "", *(f"{errors[n]:.0e}" for n in names)])
        least = auto.get(dtype, {}).get("forward" if mode == "forward" else "backward")
        chosen = (
            "the compiled kernels" if least is None else f"the fused kernels from {least:,} output pixels on"
        )
        step = "forward" if mode == "forward" else "backward"
        text += f"### {TYPES[dtype]}, {mode}\n\n"
        text += f"Kernels that `auto` runs in the {step} pass: {chosen}.\n\n{markdown(rows)}\n\n"
    return text


def attention(jobs: list[tuple[dict, dict]]) -> str:
    rows = [
        ["operator", "case", "type", *(f"{mode}{unit}" for mode in PASSES for unit in (", µs", ", torch"))]
    ]
    times = {(j["operator"], j["case"], j["dtype"], j["mode"], j["contestant"]): r.get("us") for j, r in jobs}
    for key in dict.fromkeys(key[:3] for key in times):
        row = [f"`{key[0]}`", *key[1:]]
        for mode in PASSES:
            own, slow = (times.get((*key, mode, name)) for name in ("compiled", "torch"))
            row += [f"{own:.0f}" if own else "–", f"{slow / own:.1f}×" if own and slow else "–"]
        rows.append(row)
    return markdown(rows)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def training(jobs: list[tuple[dict, dict]]) -> str:
    def fact(name: str, value: object) -> str:
        return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"

    return "\n".join(f"- {job['step']}: " + ", ".join(map(fact, r, r.values())) for job, r in jobs)


def main(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    machine = report["machine"]
    jobs = results(folder / "operators.jsonl")
    own = [job for job in jobs if job[0]["operator"] == "deform_conv2d"]
    auto = json.loads((folder / "configs.json").read_text())[machine["target"]]["auto"]
    text = TEXT.format(
        **machine,
        day=report["day"],
        tests=report["correctness"],
        convolutions=convolutions(own, auto),
        attention=attention([job for job in jobs if job not in own]),
        training=training(results(folder / "training.jsonl")),
    )
    path = ROOT / "docs" / "benchmarks" / f"gpu-{slug(machine | {'cpu': machine['gpu']})}.md"
    write_text(path, text)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
