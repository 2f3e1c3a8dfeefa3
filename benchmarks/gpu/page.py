"""Write a page of docs/benchmarks from the results of ``make gpu``: python -m benchmarks.gpu.page FOLDER.

A page that exists keeps its text. Only its sections, which are between comments, are replaced, and of these
only those for which FOLDER has results.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.gpu.journal import results
from benchmarks.measure import ROOT, listed, markdown, replace_section, slug
from benchmarks.ops import Row, all_cases, summary
from dcnzoo.utils.files import write_text

TEXT = """# {gpu}, torch {torch}, dcnzoo {dcnzoo}

{machine}
Median times between events, with the L2 cache flushed before each call. *Inputs in the cache*: CUDA graphs
without the flush. *Error*: of the output, relative to the compiled kernels in float32 (norms).
Float32 is TF32 in the part `benchmark`, and not in `without_library`.

*dcnzoo*: compiled kernels; *dcnzoo fused*: those in Triton; *dcnzoo Triton*: these
without the compiled library; *F.conv2d*: cuDNN's ordinary
convolution; *grid_sample*: the same formula in plain PyTorch.

{tests}{auto}
## Operators

{operators}
### Inputs in the cache

{cached}
### Agreement

{agreement}
## Training

{training}
## All cases

{cases}"""
NAMES = ("machine", "tests", "auto", "operators", "cached", "agreement", "training", "cases")
EMPTY = "<!-- {name}: written by benchmarks.gpu.page -->\n\nNot measured.\n\n<!-- end of {name} -->\n"


def rows(file: Path, time: str) -> list[Row]:
    cases = {(case.operator, case.name): case for case in CASES}
    return [
        Row(
            operator=job["operator"],
            case=job["case"],
            main=(case := cases.get((job["operator"], job["case"]))) is not None and case.main,
            dtype=job["dtype"],
            mode=job["mode"],
            threads=1,
            contestant=job["contestant"].removesuffix(" compiled"),
            seconds=result[time] / 1e6,
            iqr=(result.get("p80_us", 0) - result.get("p20_us", 0)) / 1e6,
            extra=result.get("bytes"),
            stride=case.stride if case else 1,
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


def sections(folder: Path, report: dict) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each section that the folder has results for."""
    machine = report["machine"]
    facts = f"{machine['gpu']}, CUDA {machine['cuda']}, torch {machine['torch']}, Triton {machine['triton']}"
    yield "machine", f"By `make gpu`: {facts}, {report['day']}."
    if "correctness" in report:
        yield "tests", f"Tests on this GPU: {report['correctness']}."
    table = folder / "configs.json"
    if entry := json.loads(table.read_text()).get(machine["target"]) if table.exists() else None:
        least = "; ".join(f"{dtype}: {listed(pixels)}" for dtype, pixels in entry["auto"].items())
        rule = "runs the fused kernels from so many output pixels on, and the compiled ones below"
        yield "auto", f"`auto` {rule}. {least}."
    files = [folder / "benchmark.jsonl", folder / "without_library.jsonl"]
    if measured := [row for file in files for row in rows(file, "us")]:
        yield "operators", markdown(summary(measured))
        yield "cached", markdown(summary([row for file in files for row in rows(file, "cached_us")]))
        yield "agreement", markdown([*errors(files[0]), *errors(files[1])[1:]])
        yield "cases", markdown(all_cases(measured))
    if training := results(folder / "training.jsonl"):
        yield "training", "\n".join(f"- {listed(job)}: {listed(result)}" for job, result in training)


def main(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    machine = report["machine"]
    path = ROOT / "docs" / "benchmarks" / f"gpu-{slug(machine | {'cpu': machine['gpu']})}.md"
    if not path.exists():
        empty = {name: EMPTY.format(name=name) for name in NAMES}
        facts = {name: machine[name] for name in ("gpu", "torch", "dcnzoo")}
        write_text(path, TEXT.format(**facts, **empty))
    for name, text in sections(folder, report):
        replace_section(path, name, text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
