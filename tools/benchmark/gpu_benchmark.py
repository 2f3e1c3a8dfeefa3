"""Time the operators on a GPU next to cuDNN, torchvision and plain PyTorch, in CUDA graphs (``make gpu``).

Every contestant runs in both memory formats where it has both. The error of each is measured against the
compiled kernels in float32; it excludes nobody. The field "auto" of the fused kernels' table is then updated.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import statistics
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from unittest import mock

import families
import gpu_model
import measure
import torch
from autotune import save, target
from convolutions import Case, deformable
from journal import Journal, results
from torch import Tensor

from dcnzoo.ops import fused
from dcnzoo.ops.fused import configs
from dcnzoo.ops.fused.configs import TABLE

KNOWN = families.load()
DTYPES = ("bfloat16", "float16", "float32")
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
EFFORT = {"cuda": measure.Effort(0.05, 5, 20), "cpu": measure.Effort(0.0, 1, 1)}


def convolution_cases() -> list[Case]:
    """ResNet-50 and FPN at batch 2, the largest first."""
    groups = ("ResNet-50", "FPN")
    cases = [c for c in KNOWN["deform_conv2d"].CASES if c.group in groups and c.batch == 2 and not c.optional]
    return sorted(cases, key=lambda case: (case.stride, -math.prod(case.size)))


def attention_cases() -> list[tuple[str, object]]:
    """DCNv3 and DCNv4 of InternImage at 800×1280, and Deformable DETR's attention, at batch 2."""
    found = []
    for family in ("dcnv4", "dcnv3", "ms_deform_attn"):
        groups = ("InternImage-T, 800×1280", "FlashInternImage-T, 800×1280", "Deformable DETR")
        cases = [c for c in KNOWN[family].CASES if c.group in groups]
        found += [(family, dataclasses.replace(case, batch=2)) for case in cases]
    return found


def small(case):
    """A case of the same kind for a rehearsal; convolutions run in Triton's interpreter."""
    if isinstance(case, Case):
        return dataclasses.replace(case, batch=1, channels=32, size=(3, 5))
    return case.small()


def convolution_contestants() -> dict[str, Callable]:
    family = KNOWN["deform_conv2d"]
    found = {}
    for name, form in FORMATS.items():
        for backend in ("fused", "compiled"):
            found[f"{backend} {name}"] = deformable("deform_conv2d", form, backend)
        suffix = "" if name == "NCHW" else " channels_last"
        found[f"cuDNN {name}"] = family.CONTESTANTS[f"F.conv2d{suffix}"]
    return {**found, "torchvision NCHW": family.CONTESTANTS["torchvision"]}


def attention_contestants(family: str) -> dict[str, Callable]:
    given = KNOWN[family].CONTESTANTS
    return {"compiled": given["dcnzoo"], "torch": given["reference grid_sample"]}


def jobs() -> Iterator[tuple[str, object, dict[str, Callable]]]:
    for case in convolution_cases():
        yield "deform_conv2d", case, convolution_contestants()
    for family, case in attention_cases():
        yield family, case, attention_contestants(family)


@cache
def tensors_of(case, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    return case.tensors(dtype, device)


@cache
def expected(family: str, case, dtype: torch.dtype, device: str) -> Tensor:
    """Output of the compiled kernels in float32, for the same values."""
    tensors = {
        name: t.float() if t is not None and t.is_floating_point() else t
        for name, t in tensors_of(case, dtype, device).items()
    }
    ours = "compiled NCHW" if family == "deform_conv2d" else "compiled"
    contestants = convolution_contestants() if family == "deform_conv2d" else attention_contestants(family)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.no_grad():
            return contestants[ours](case, tensors, 1).forward()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def measure_call(prepare, family: str, case, name: str, dtype: torch.dtype, mode: str, device: str) -> dict:
    tensors = tensors_of(case, dtype, device)
    call = prepare(case, tensors, torch.get_num_threads())
    result: dict[str, object] = {}
    with torch.no_grad(), mock.patch.object(fused, "forward", wraps=fused.forward) as ran:
        output = call.forward().double()
    if ran.called != name.startswith("fused"):
        raise RuntimeError(f"expected the {name} kernels, {'fused' if ran.called else 'other'} ones ran")
    if mode == "forward" and not name.startswith("cuDNN"):
        exact = expected(family, case, dtype, device).double()
        result["error"] = ((output - exact).norm() / exact.norm()).item()
        del exact
    del output
    form = FORMATS["NHWC" if name.endswith("NHWC") else "NCHW"]
    run = measure.make_pass(call, mode, case.out_shape, form)
    runner = measure.Runner(run, torch.get_num_threads(), device)
    runner.warm_up()
    while runner.wants_more(EFFORT[device]):
        runner.sample()
    timing = measure.Timing.of(runner.samples)
    result |= {"us": timing.median * 1e6, "spread": timing.spread, "graph": runner.graph is not None}
    kernels = name.split()[0] if family == "deform_conv2d" else "attention" if name == "compiled" else ""
    if kernels in ("fused", "compiled", "attention"):
        sizes = gpu_model.sizes_of(kernels, case)
        found = gpu_model.predict(kernels, sizes, mode != "forward", dtype.itemsize)
        result["model_us"] = [round(us, 1) for us in found.range()]
    if device == "cuda":
        runner.graph = None  # and its memory
        torch.cuda.empty_cache()
        memory = measure.cuda_memory(run, tensors)
        result["bytes"] = memory.extra + memory.needed - measure.size_of(list(tensors.values()))
    return result


def set_auto(journal: Path, table: dict) -> None:
    """List the types for which the fused kernels are faster in both passes and formats."""
    entry = dict(table.get(target(), table["default"]))
    reasons = []
    for dtype in DTYPES:
        ratios = {}
        for mode in measure.PASSES:
            for form in FORMATS:
                times = {
                    (job["contestant"], job["case"]): result.get("us")
                    for job, result in results(journal, family="deform_conv2d", dtype=dtype, mode=mode)
                }
                pairs = [
                    (times.get((f"compiled {form}", case.name)), times.get((f"fused {form}", case.name)))
                    for case in convolution_cases()
                ]
                if all(None not in pair for pair in pairs):
                    ratios[f"{mode} {form}"] = statistics.median(a / b for a, b in pairs)
        if len(ratios) < len(measure.PASSES) * len(FORMATS):
            continue  # not measured completely: keep what the table says
        entry["auto"] = [name for name in entry["auto"] if name != dtype]
        if min(ratios.values()) > 1:
            entry["auto"].append(dtype)
        reasons.append(f"{dtype} " + ", ".join(f"{value:.2f}× {name}" for name, value in ratios.items()))
    if reasons:
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "the interpreter"
        day = datetime.date.today().isoformat()
        entry["auto_reason"] = f"how many times faster than compiled, {where}, {day}: {'; '.join(reasons)}"
        table[target()] = entry


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--journal", type=Path, required=True, metavar="FILE", help="results")
    add("--table", type=Path, required=True, metavar="FILE", help="the table of block sizes to write")
    add("--limit", type=float, default=400, help="time in seconds (default: 400)")
    add("--rehearse", action="store_true", help="one small case of each family on the CPU")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = "cpu" if args.rehearse else "cuda"
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    journal = Journal(args.journal, args.limit)
    every = list(jobs())
    if args.rehearse:
        firsts = {family: (family, case, named) for family, case, named in reversed(every)}
        every = [(family, small(case), named) for family, case, named in firsts.values()]
    for dtype in DTYPES[: 1 if args.rehearse else None]:
        for family, case, contestants in every:
            for mode in measure.PASSES:
                for name, prepare in contestants.items():
                    if name.startswith("torchvision") and dtype == "bfloat16":
                        continue  # it has no kernel
                    job = {"family": family, "case": case.name, "shape": case.shape, "dtype": dtype}
                    job |= {"contestant": name, "mode": mode}
                    kind = getattr(torch, dtype)
                    journal.run(job, partial(measure_call, prepare, family, case, name, kind, mode, device))
            tensors_of.cache_clear()
            expected.cache_clear()
    table = json.loads((args.table if args.table.exists() else TABLE).read_text())
    configs.table.cache_clear()
    set_auto(args.journal, table)
    save(table, args.table)
    journal.exit()


if __name__ == "__main__":
    main()
