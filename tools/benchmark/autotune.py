"""Measure block sizes of the fused kernels on this GPU and write them to dcnzoo/ops/fused/configs.json.

Selects, for each kernel and type, the fastest candidates on a large and on a small map. Then selects the
types for which the fused operator is faster than the compiled one, both forward and with its backward;
DCNZOO_BACKEND=auto uses the fused operator for these types. Candidates that do not compile or do not fit are
skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"half": "bfloat16", "float32": "float32"}
LARGE, SMALL = "p3-n2", "c5"
COMPARED = ("c3", "c4", "c5", "p3", "c3-n2", "c4-n2", "c5-n2", "p3-n2")
# in addition to the candidates in the table: BM, BN, BK, warps, stages
MORE = {
    "forward": {
        "half": [[128, 128, 64, 8, 3], [128, 256, 64, 8, 3], [64, 256, 32, 8, 3], [128, 128, 32, 8, 4]],
        "float32": [[128, 128, 32, 8, 2], [128, 64, 32, 8, 2]],
    },
    "grad_weight": {"half": [[32, 128, 128, 8, 2], [64, 128, 128, 8, 3]], "float32": [[32, 64, 64, 4, 2]]},
    "grad_samples": {"half": [[64, 64, 32, 8, 3], [32, 64, 64, 8, 2]], "float32": [[32, 64, 32, 8, 2]]},
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--table", type=Path, metavar="FILE", help="output file (default: the package's table)")
    add("--limit", type=float, default=180, help="total time in seconds (default: 180)")
    add("--rehearse", action="store_true", help="run without a GPU: tiny maps in Triton's interpreter")
    return parser.parse_args()


def time_of(function: Callable[[], object], seconds: float = 0.05) -> float:
    """Return the median seconds of a call; synchronise the device before and after."""
    import torch

    def synchronized() -> float:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return time.perf_counter()

    function()  # compiles
    function()
    samples, end = [], synchronized() + seconds
    while not samples or (synchronized() < end and len(samples) < 100):
        start = synchronized()
        function()
        samples.append(synchronized() - start)
    return statistics.median(samples)


def main() -> None:
    args = parse_args()
    if args.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    import torch
    import triton
    from convolutions import deformable
    from families import deform_conv2d as family

    from dcnzoo.ops import fused
    from dcnzoo.ops.fused import configs
    from dcnzoo.ops.fused.configs import Config

    args.table = args.table or configs.TABLE
    if not args.rehearse and not torch.accelerator.is_available():
        sys.exit("error: expected a GPU, torch finds none; --rehearse runs without one")
    device = "cpu" if args.rehearse else torch.accelerator.current_accelerator().type
    end = time.monotonic() + args.limit
    target = configs.target_of(fused.INTERPRETED)
    cases = {case.name: case for case in family.CASES}
    if args.rehearse:
        cases = {name: dataclasses.replace(case.small(), channels=32) for name, case in cases.items()}
    table = json.loads(configs.TABLE.read_text())
    entry = dict(table.get(target) or table["default"])

    def problem_of(name: str, dtype: torch.dtype):
        case = cases[name]
        t = case.tensors(dtype, device)
        input = t["input"].contiguous(memory_format=torch.channels_last)
        lists = ([case.stride] * 2, [case.padding] * 2, [1, 1])
        problem = fused.Problem(input, t["weight"], t["offset"], t["mask"], *lists, 1, allow_tf32=True)
        grad = torch.randn(case.out_shape).to(input).contiguous(memory_format=torch.channels_last)
        return problem, grad

    def call_of(kernel: str, problem, grad, config) -> Callable[[], object]:
        if kernel == "forward":
            return lambda: fused.forward(problem, None, config)
        if kernel == "grad_weight":
            return lambda: fused.grad_weight(problem, grad, config)
        return lambda: fused.grad_samples(problem, grad, True, True, True, config)

    def candidates(kernel: str, kind: str) -> list[Config]:
        known = [sizes for each in table.values() for sizes in each[kernel][kind]]
        every = [*entry[kernel][kind], *([] if args.rehearse else known + MORE[kernel][kind])]
        return list(dict.fromkeys(Config(*sizes) for sizes in every))

    def best(kernel: str, kind: str, name: str) -> Config | None:
        problem, grad = problem_of(name, getattr(torch, KINDS[kind]))
        times = {}
        for config in candidates(kernel, kind):
            if time.monotonic() > end:
                break
            try:
                times[config] = time_of(call_of(kernel, problem, grad, config))
            except Exception as error:  # does not compile, or exceeds the resources of a block
                print(f"{kernel} {kind} {tuple(config)}: {str(error).splitlines()[0][:100]}", flush=True)
        for config, seconds in sorted(times.items(), key=lambda item: item[1]):
            print(f"{kernel} {kind} {name} {tuple(config)}: {seconds * 1e6:.0f} µs", flush=True)
        return min(times, key=times.get, default=None)

    def ratio(name: str, dtype: torch.dtype, backward: bool) -> float:
        """Return time compiled / time fused."""
        tensors = cases[name].tensors(dtype, device)
        grad = torch.randn(cases[name].out_shape).to(device, dtype)
        times = []
        for backend in ("compiled", "fused"):
            call = deformable("deform_conv2d", torch.channels_last, backend)(cases[name], tensors, 1)

            def run(call=call) -> None:
                with contextlib.nullcontext() if backward else torch.no_grad():
                    output = call.forward()
                if backward:
                    torch.autograd.grad(output, call.leaves, grad)

            times.append(time_of(run))
        return times[0] / times[1]

    for kernel in MORE:
        entry[kernel] = dict(entry[kernel])
        for kind in KINDS:
            found = [config for name in (LARGE, SMALL) if (config := best(kernel, kind, name))]
            last = Config(*entry[kernel][kind][-1])  # small enough for any number of channels
            chosen = sorted({*found, last}, key=lambda c: math.prod(c[:3]), reverse=True)
            entry[kernel][kind] = [list(config) for config in chosen]
    day = datetime.date.today().isoformat()
    where = "Triton's interpreter" if args.rehearse else torch.cuda.get_device_name()
    entry["source"] = f"measured on {where}, torch {torch.__version__}, Triton {triton.__version__}, {day}"
    args.table.parent.mkdir(parents=True, exist_ok=True)
    table[target] = entry
    write(table, args.table)
    if args.rehearse:
        return

    configs.table.cache_clear()
    configs.TABLE = args.table
    entry["auto"], reasons = [], []
    torch.backends.cuda.matmul.allow_tf32 = True
    for name in ("float16", "bfloat16", "float32"):
        dtype = getattr(torch, name)
        if time.monotonic() > end:
            reasons.append(f"{name} not measured: no time left")
            continue
        forward, both = (
            statistics.median(ratio(case, dtype, backward) for case in COMPARED) for backward in (False, True)
        )
        reasons.append(f"{name} {forward:.2f}× forward, {both:.2f}× with the backward")
        if forward > 1 and both > 1:
            entry["auto"].append(name)
    entry["auto_reason"] = f"how many times faster than compiled, {where}, {day}: {'; '.join(reasons)}"
    print(entry["auto_reason"])
    write(table, args.table)


def write(table: dict, path: Path) -> None:
    """Write one line per kernel, so that changes are readable in a diff."""
    entries = []
    for target, entry in table.items():
        rows = [
            f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()
        ]
        entries.append(f" {json.dumps(target)}: {{\n" + ",\n".join(rows) + "\n }")
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n")
    print(f"written: {path}", flush=True)


if __name__ == "__main__":
    main()
