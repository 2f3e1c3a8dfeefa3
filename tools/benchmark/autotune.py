"""Measure block sizes of the fused kernels on this GPU, in three steps.

check: compiles every candidate and compares its results with the reference. Several processes share the work.
time: measures the correct candidates on several maps, in CUDA graphs.
write: writes the fastest one of each map to the table. A kernel and type that was not measured completely
keeps its entry.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import triton
from convolutions import Case
from families import deform_conv2d as family
from journal import Journal, results
from torch import Tensor

from dcnzoo.ops import fused, reference
from dcnzoo.ops.fused import configs
from dcnzoo.ops.fused.configs import Config
from dcnzoo.utils.files import write_text

KINDS = {"half": torch.bfloat16, "float32": torch.float32}
MAPS = ("p3-n2", "c3-n2", "c4-n2", "c5-n2", "c5")
# Largest error relative to the reference in float64, of the norms: bfloat16 and TF32.
LARGEST_ERROR = {"half": 1e-2, "float32": 2e-3}
# in addition to the candidates in the table: BM, BN, BK, warps, stages
MORE = {
    "forward": {
        "half": [
            *([128, 256, 64, 8, 3], [128, 256, 64, 16, 3], [128, 256, 64, 16, 2], [128, 256, 64, 8, 1]),
            *([128, 256, 32, 16, 3], [128, 128, 64, 8, 3], [128, 128, 64, 8, 1], [128, 128, 32, 8, 4]),
            *([64, 256, 64, 8, 3], [64, 256, 64, 8, 1], [64, 256, 32, 8, 3]),
        ],
        "float32": [[128, 128, 32, 8, 2], [128, 64, 32, 8, 2], [64, 128, 32, 8, 1]],
    },
    "grad_samples": {
        "half": [[64, 64, 128, 8, 3], [64, 32, 256, 8, 2], [128, 64, 128, 8, 2], [64, 64, 256, 8, 1]],
        "float32": [[64, 32, 64, 8, 1], [32, 32, 64, 8, 2]],
    },
    "grad_weight": {
        "half": [[64, 128, 256, 8, 3], [64, 128, 128, 8, 3], [128, 128, 128, 8, 2]],
        "float32": [[32, 64, 64, 4, 2]],
    },
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("step", choices=["check", "time", "write"])
    add("--journal", type=Path, required=True, metavar="FILE", help="results of all steps")
    add("--table", type=Path, default=configs.TABLE, metavar="FILE", help="output (default: the package's)")
    add("--share", default="0/1", metavar="I/N", help="check only every N-th candidate, from the I-th on")
    add("--limit", type=float, default=180, help="time in seconds (default: 180)")
    add("--rehearse", action="store_true", help="without a GPU: tiny maps in Triton's interpreter")
    return parser.parse_args()


def candidates(table: dict, kernel: str, kind: str, rehearse: bool) -> list[Config]:
    known = [sizes for entry in table.values() for sizes in entry[kernel][kind]]
    own = table.get(target(), table["default"])[kernel][kind]
    every = [*own, *([] if rehearse else known + MORE.get(kernel, {}).get(kind, []))]
    return list(dict.fromkeys(Config(*sizes) for sizes in every if len(sizes) == len(Config._fields)))


def target() -> str:
    return configs.target_of(fused.INTERPRETED)


def call(kernel: str, problem: fused.Problem, grad: Tensor, config: Config) -> tuple[Tensor | None, ...]:
    if kernel == "forward":
        return (fused.forward(problem, None, config),)
    if kernel == "grad_weight":
        return (fused.grad_weight(problem, grad, config),)
    return fused.grad_samples(problem, grad, True, True, True, config)


@cache
def make_problem(case: Case, dtype: torch.dtype, device: str) -> tuple[fused.Problem, Tensor]:
    t = case.tensors(dtype, device)
    input = t["input"].contiguous(memory_format=torch.channels_last)
    lists = (list(case.strides), list(case.paddings), [1, 1])
    problem = fused.Problem(input, t["weight"], t["offset"], t["mask"], *lists, 1, allow_tf32=True)
    grad = torch.randn(case.out_shape).to(input).contiguous(memory_format=torch.channels_last)
    return problem, grad


@cache
def expected(case: Case, dtype: torch.dtype, device: str) -> dict[str, tuple[Tensor, ...]]:
    """Output and gradients of the reference in float64, by kernel."""
    problem, grad = make_problem(case, dtype, device)
    input, weight, offset, mask = leaves = [
        t.detach().double().requires_grad_()
        for t in (problem.input, problem.weight, problem.offset, problem.mask)
    ]
    lists = (problem.stride, problem.padding, problem.dilation, problem.groups)
    output = reference.deform_conv(input, weight, offset, mask, None, *lists)
    of_input, of_weight, *of_fields = torch.autograd.grad(output, leaves, grad.double())
    return {
        "forward": (output.detach(),),
        "grad_weight": (of_weight,),
        "grad_samples": (of_input, *of_fields),
    }


def check(kernel: str, kind: str, config: Config, case: Case, device: str) -> dict:
    """Compare with the reference.

    Raises:
        ValueError: the error is too large.
    """
    problem, grad = make_problem(case, KINDS[kind], device)
    exact = expected(case, KINDS[kind], device)[kernel]
    for like in exact:  # what the kernel does not write is NaN: torch reuses this memory
        torch.full_like(like, float("nan"), dtype=KINDS[kind])
    found = call(kernel, problem, grad, config)
    errors = [((f.double() - e).norm() / e.norm()).item() for f, e in zip(found, exact, strict=True)]
    if not all(error <= LARGEST_ERROR[kind] for error in errors):  # also NaN
        raise ValueError(f"wrong result: errors of {', '.join(f'{error:.1e}' for error in errors)}")
    return {"error": max(errors)}


def microseconds(function: Callable[[], object], device: str) -> float:
    """Return the median time on the GPU, from a CUDA graph."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return 1e6 * (time.perf_counter() - start)
    return 1e3 * triton.testing.do_bench_cudagraph(function, rep=20, return_mode="median")


def write_table(journal: Path, table: dict, path: Path, rehearse: bool) -> None:
    """Replace the lists of candidates that were measured completely, and write the table."""
    entry = dict(table.get(target(), table["default"]))
    measured = []
    for kernel in MORE:
        entry[kernel] = dict(entry[kernel])
        for kind in KINDS:
            every = candidates(table, kernel, kind, rehearse)
            chosen = choose(journal, kernel, kind, every, Config(*entry[kernel][kind][-1]))
            if chosen:
                entry[kernel][kind] = [list(config) for config in chosen]
                measured.append(f"{kernel} {kind}")
    if measured:
        where = "Triton's interpreter" if rehearse else torch.cuda.get_device_name()
        entry["source"] = (
            f"{', '.join(measured)}: measured on {where}, torch {torch.__version__}, "
            f"Triton {triton.__version__}, {datetime.date.today().isoformat()}"
        )
    save({**table, target(): entry}, path)


def choose(
    journal: Path, kernel: str, kind: str, every: list[Config], smallest: Config
) -> list[Config] | None:
    """Return the fastest candidate of each map, large ones first; None if a measurement is missing."""
    wrong = {
        tuple(job["config"])
        for job, result in results(journal, step="check", kernel=kernel, kind=kind)
        if "problem" in result
    }
    times = {name: {} for name in MAPS}
    for job, result in results(journal, step="time", kernel=kernel, kind=kind):
        times[job["map"]][Config(*job["config"])] = result.get("us", math.inf)
    correct = {config for config in every if tuple(config) not in wrong}
    if smallest not in correct or any(found.keys() != correct for found in times.values()):
        return None
    if math.inf in map(min, (found.values() for found in times.values())):
        return None
    # the last one must be small enough for any number of channels
    fastest = {min(found, key=found.__getitem__) for found in times.values()} | {smallest}
    return sorted(fastest, key=lambda config: math.prod(config[:3]), reverse=True)


def save(table: dict, path: Path) -> None:
    """Write one line per kernel, so that changes are readable in a diff."""
    entries = []
    for name, entry in table.items():
        rows = [
            f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()
        ]
        entries.append(f" {json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n }")
    write_text(path, "{\n" + ",\n".join(entries) + "\n}\n")
    print(f"written: {path}", flush=True)


def main() -> None:
    args = parse_args()
    table = json.loads(configs.TABLE.read_text())
    if args.step == "write":
        write_table(args.journal, table, args.table, args.rehearse)
        return
    device = "cpu" if args.rehearse else torch.accelerator.current_accelerator().type
    jobs = [
        (kernel, kind, config)
        for kind in KINDS
        for kernel in MORE
        for config in candidates(table, kernel, kind, args.rehearse)
    ]
    journal = Journal(args.journal, args.limit)
    if args.step == "check":
        case = Case("check", "", 2, 256, (20, 36))
        case = dataclasses.replace(case, batch=1, channels=32, size=(3, 5)) if args.rehearse else case
        first, step = map(int, args.share.split("/"))
        for kernel, kind, config in jobs[first::step]:
            job = {"step": "check", "kernel": kernel, "kind": kind, "config": list(config)}
            journal.run(job, lambda k=kernel, d=kind, c=config: check(k, d, c, case, device))
        journal.exit()
    correct = {
        (job["kernel"], job["kind"], *job["config"])
        for job, result in results(args.journal, step="check")
        if "problem" not in result
    }
    cases = {case.name: case for case in family.CASES}
    for kernel, kind, config in jobs:
        for name in MAPS:
            if (kernel, kind, *config) not in correct:
                continue
            case = cases[name]
            case = dataclasses.replace(case.small(), channels=32, size=(3, 5)) if args.rehearse else case
            problem, grad = make_problem(case, KINDS[kind], device)

            def measure(k=kernel, p=problem, g=grad, c=config) -> dict:
                return {"us": microseconds(lambda: call(k, p, g, c), device)}

            job = {"step": "time", "kernel": kernel, "kind": kind, "map": name, "config": list(config)}
            journal.run(job, measure)
    journal.exit()


if __name__ == "__main__":
    main()
