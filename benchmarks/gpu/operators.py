"""Time the operators on a GPU next to cuDNN, torchvision and plain PyTorch, in CUDA graphs (``make gpu``).

Every contestant runs in both memory formats where it has both. The error of each is measured against the
compiled kernels in float32. The field "auto" of the fused kernels' table is then updated.
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
from tests.op_cases import Sample

DTYPES = ("bfloat16", "float16", "float32")
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
CONVOLUTIONS = [
    c for c in CASES if c.operator == "deform_conv2d" and c.name.endswith("-n2") and not c.optional
]
ATTENTIONS = [c for c in CASES if c.operator != "deform_conv2d" and c.name.endswith("-n2")]


def contestants(operator: str) -> dict[str, tuple[torch.memory_format, Contestant]]:
    """Return name -> (memory format of the input, contestant)."""
    nchw = torch.contiguous_format
    if operator != "deform_conv2d":
        slow = RIVALS[operator].get("grid_sample")
        rivals = {"torch": (nchw, slow)} if slow else {}
        return {"compiled": (nchw, lambda s, _: ours(operator, s, "compiled")), **rivals}
    listed: dict[str, tuple[torch.memory_format, Contestant]] = {
        "torchvision NCHW": (nchw, RIVALS[operator]["torchvision"])
    }
    for name, form in FORMATS.items():
        for backend in ("fused", "compiled"):
            listed[f"{backend} {name}"] = form, lambda s, _, b=backend: ours(operator, s, b)
        listed[f"cuDNN {name}"] = form, lambda s, _: plain(operator, s)
    return listed


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


def measure(
    case: Case,
    form: torch.memory_format,
    prepare: Contestant,
    name: str,
    dtype: torch.dtype,
    mode: str,
    device: str,
) -> dict:
    own = in_format(sample(case, dtype, device), form).leaves()
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
    result["us"] = microseconds(run, device, captured=not name.startswith("torchvision"))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        result["bytes"] = torch.cuda.max_memory_allocated() - before
    return result


def microseconds(run: Callable[[], object], device: str, captured: bool) -> float:
    """Return the median time of a call, on a GPU from a CUDA graph.

    Args:
        captured: False for torchvision, whose kernels use the default stream: a graph would not contain them.
            Its calls follow each other without a pause, so that the CPU's work overlaps with the GPU's.
    """
    if device == "cpu":
        start = time.perf_counter()
        run()
        return 1e6 * (time.perf_counter() - start)
    if captured:
        return 1e3 * triton.testing.do_bench_cudagraph(run, rep=50, return_mode="median")
    times = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(10_000_000)  # the CPU gets ahead
        start.record()
        for _ in range(5):
            run()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / 5)
    return statistics.median(times)


def set_auto(journal: Path, table: dict) -> None:
    """List, for each type, the output pixels from which the fused kernels are faster in both formats."""
    entry = dict(table.get(tuning.target(), table["default"]))
    auto = dict(entry["auto"])
    measured = []
    for dtype in DTYPES:
        times: dict[str, dict[tuple[str, str], float]] = {}
        for mode in PASSES:
            times[mode] = {
                (job["contestant"], job["case"]): result["us"]
                for job, result in results(journal, operator="deform_conv2d", dtype=dtype, mode=mode)
                if "us" in result
            }
        pairs = [
            (f"{backend} {form}", case.name)
            for backend in ("fused", "compiled")
            for form in FORMATS
            for case in CONVOLUTIONS
        ]
        if any(pair not in times[mode] for mode in PASSES for pair in pairs):
            continue  # not measured completely: keep what the table says
        forward, both = (times[mode] for mode in PASSES)
        backward = {pair: both[pair] - forward[pair] for pair in pairs}
        least = {"forward": least_pixels(forward), "backward": least_pixels(backward)}
        auto[dtype] = {name: pixels for name, pixels in least.items() if pixels is not None}
        measured.append(dtype)
    if measured:
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "the interpreter"
        entry["auto"] = {dtype: least for dtype, least in auto.items() if least}
        entry["auto_reason"] = (
            f"output pixels from which fused is faster than compiled in both memory formats: "
            f"{', '.join(measured)} measured on {where}, {datetime.date.today().isoformat()}"
        )
        table[tuning.target()] = entry


def least_pixels(times: dict[tuple[str, str], float]) -> int | None:
    """Return the size of the smallest case from which fused is faster in all larger ones; None: in none."""
    least = None
    for case in sorted(CONVOLUTIONS, key=output_pixels, reverse=True):
        if any(times[f"fused {form}", case.name] > times[f"compiled {form}", case.name] for form in FORMATS):
            break
        least = output_pixels(case)
    return least


@cache
def output_pixels(case: Case) -> int:
    offset = case.make().tensors[2]
    return offset.shape[0] * offset.shape[2:].numel()


def main() -> None:
    journal, args = Journal.of_command_line()
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    cases = [CONVOLUTIONS[0], ATTENTIONS[3]] if args.rehearse else [*CONVOLUTIONS, *ATTENTIONS]
    for dtype in DTYPES[: 1 if args.rehearse else None]:
        for case in cases:
            for mode in PASSES:
                for name, (form, prepare) in contestants(case.operator).items():
                    if name.startswith("torchvision") and dtype == "bfloat16":
                        continue  # it has no kernel
                    job = {"operator": case.operator, "case": case.name, "dtype": dtype}
                    job |= {"contestant": name, "mode": mode}
                    kind = getattr(torch, dtype)
                    journal.run(job, partial(measure, case, form, prepare, name, kind, mode, args.device))
            sample.cache_clear()
            expected.cache_clear()
    table = json.loads(fused.TABLE.read_text())
    set_auto(args.file, table)
    tuning.save(table, args.file.with_name("configs.json") if args.rehearse else fused.TABLE)
    journal.exit()


if __name__ == "__main__":
    main()
