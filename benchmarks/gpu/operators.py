"""Time the operators on a GPU next to cuDNN, torchvision and plain PyTorch, in CUDA graphs (``make gpu``).

Every contestant runs in both memory formats where it has both. The error of each is measured against the
compiled kernels in float32; it excludes nobody. The field "auto" of the fused kernels' table is then updated.
"""

from __future__ import annotations

import datetime
import json
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from unittest import mock

import torch
import triton
from torch import Tensor

from benchmarks.cases import CASES, PASSES, RIVALS, Case, Contestant, in_format, ours, passes, plain
from benchmarks.gpu import tuning
from benchmarks.gpu.journal import Journal, results
from dcnzoo.ops import fused
from dcnzoo.ops.fused import configs
from tests.op_cases import Sample

DTYPES = ("bfloat16", "float16", "float32")
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
CONVOLUTIONS = [
    c for c in CASES if c.operator == "deform_conv2d" and c.name.endswith("-n2") and not c.optional
]
ATTENTIONS = [c for c in CASES if c.operator != "deform_conv2d" and c.name.endswith("-n2")]


def contestants(operator: str) -> dict[str, Contestant]:
    if operator != "deform_conv2d":
        found = {"compiled": lambda s, _: ours(operator, s, "compiled")}
        slow = RIVALS[operator].get("grid_sample")
        return found | ({"torch": slow} if slow else {})
    found = {"torchvision NCHW": RIVALS[operator]["torchvision"]}
    for name, form in FORMATS.items():
        for backend in ("fused", "compiled"):
            found[f"{backend} {name}"] = lambda s, _, f=form, b=backend: ours(operator, in_format(s, f), b)
        found[f"cuDNN {name}"] = lambda s, _, f=form: plain(operator, in_format(s, f))
    return found


@cache
def sample(case: Case, dtype: torch.dtype, device: str) -> Sample:
    if case.operator == "deform_conv2d" and device == "cpu":  # Triton's interpreter is slow
        return tuning.sample("check", True).to(dtype)
    return case.sample(dtype, device).leaves()


@cache
def expected(case: Case, dtype: torch.dtype, device: str) -> Tensor:
    """Output of the compiled kernels in float32, for the same values."""
    given = sample(case, dtype, device).map(lambda t: t.float() if t.is_floating_point() else t)
    allowed, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    try:
        with torch.no_grad():
            return ours(case.operator, given, "compiled")()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def measure(case: Case, prepare: Contestant, name: str, dtype: torch.dtype, mode: str, device: str) -> dict:
    own = sample(case, dtype, device).leaves()
    forward = prepare(own, torch.get_num_threads())
    result: dict[str, object] = {}
    with torch.no_grad(), mock.patch.object(fused, "forward", wraps=fused.forward) as ran:
        output = forward().double()
    if ran.called != name.startswith("fused"):
        raise RuntimeError(f"expected the {name} kernels, {'fused' if ran.called else 'other'} ones ran")
    if mode == "forward" and not name.startswith("cuDNN"):
        exact = expected(case, dtype, device).double()
        result["error"] = ((output - exact).norm() / exact.norm()).item()
    run = passes(forward, own.given, mode)
    result["us"] = microseconds(run, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        result["bytes"] = torch.cuda.max_memory_allocated() - before
    return result


def microseconds(run: Callable[[], object], device: str) -> float:
    """Return the median time of a call, on a GPU from a CUDA graph."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return 1e6 * (time.perf_counter() - start)
    return 1e3 * triton.testing.do_bench_cudagraph(run, rep=50, return_mode="median")


def set_auto(journal: Path, table: dict) -> None:
    """List the types for which the fused kernels are faster in both passes and formats."""
    entry = dict(table.get(tuning.target(), table["default"]))
    reasons = []
    for dtype in DTYPES:
        ratios = {}
        for mode in PASSES:
            times = {
                (job["contestant"], job["case"]): result.get("us")
                for job, result in results(journal, operator="deform_conv2d", dtype=dtype, mode=mode)
            }
            for form in FORMATS:
                pairs = [
                    (times.get((f"compiled {form}", case.name)), times.get((f"fused {form}", case.name)))
                    for case in CONVOLUTIONS
                ]
                if all(None not in pair for pair in pairs):
                    ratios[f"{mode} {form}"] = statistics.median(a / b for a, b in pairs)
        if len(ratios) < len(PASSES) * len(FORMATS):
            continue  # not measured completely: keep what the table says
        entry["auto"] = [name for name in entry["auto"] if name != dtype]
        if min(ratios.values()) > 1:
            entry["auto"].append(dtype)
        reasons.append(f"{dtype} " + ", ".join(f"{value:.2f}× {name}" for name, value in ratios.items()))
    if reasons:
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "the interpreter"
        day = datetime.date.today().isoformat()
        entry["auto_reason"] = f"how many times faster than compiled, {where}, {day}: {'; '.join(reasons)}"
        table[tuning.target()] = entry


def main() -> None:
    journal, args = Journal.of_command_line()
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    cases = [CONVOLUTIONS[0], ATTENTIONS[3]] if args.rehearse else [*CONVOLUTIONS, *ATTENTIONS]
    for dtype in DTYPES[: 1 if args.rehearse else None]:
        for case in cases:
            for mode in PASSES:
                for name, prepare in contestants(case.operator).items():
                    if name.startswith("torchvision") and dtype == "bfloat16":
                        continue  # it has no kernel
                    job = {"operator": case.operator, "case": case.name, "dtype": dtype}
                    job |= {"contestant": name, "mode": mode}
                    kind = getattr(torch, dtype)
                    journal.run(job, partial(measure, case, prepare, name, kind, mode, args.device))
            sample.cache_clear()
            expected.cache_clear()
    table = json.loads(configs.TABLE.read_text())
    set_auto(args.file, table)
    tuning.save(table, args.file.with_name("configs.json") if args.rehearse else configs.TABLE)
    journal.exit()


if __name__ == "__main__":
    main()
