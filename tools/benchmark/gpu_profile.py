"""List the kernels of a few calls on a GPU: time by torch's profiler, bytes and instructions by ncu.

Without ncu, or where it may not read the counters, only times are listed.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import measure
import torch
from gpu_benchmark import (
    attention_cases,
    attention_contestants,
    convolution_cases,
    convolution_contestants,
    small,
)
from journal import Journal
from torch.profiler import ProfilerActivity

CONVOLUTIONS = ("p3-n2", "c4-n2")
CALLS = 5
METRICS = {
    "gpu__time_duration.sum": "us",
    "dram__bytes.sum": "memory_bytes",
    "lts__t_bytes.sum": "l2_bytes",
    "smsp__inst_executed.sum": "instructions",
    "launch__registers_per_thread": "registers",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
}


def calls() -> list[dict]:
    """Return the jobs: bfloat16, forward and backward, the most important ones first."""
    found = [
        {"family": "deform_conv2d", "case": case, "contestant": name}
        for case in CONVOLUTIONS
        for name in ("fused NHWC", "compiled NHWC", "cuDNN NHWC")
    ]
    others = {(family, case.name) for family, case in attention_cases()}
    for family, case in (("dcnv4", "800px-1"), ("ms_deform_attn", "encoder")):
        assert (family, case) in others
        found.append({"family": family, "case": case, "contestant": "compiled"})
    return found


def prepared(job: dict, rehearse: bool) -> Callable[[], object]:
    if job["family"] == "deform_conv2d":
        case = next(case for case in convolution_cases() if case.name == job["case"])
        prepare = convolution_contestants()[job["contestant"]]
    else:
        case = next(c for family, c in attention_cases() if (family, c.name) == (job["family"], job["case"]))
        prepare = attention_contestants(job["family"])[job["contestant"]]
    case = small(case) if rehearse else case
    call = prepare(case, case.tensors(torch.bfloat16, "cpu" if rehearse else "cuda"), 1)
    run = measure.make_pass(call, "forward+backward", case.out_shape)
    run()  # compiles
    return run


def times(job: dict, rehearse: bool) -> dict:
    """Return the mean microseconds of each kernel in a call, and how often it runs."""
    run = prepared(job, rehearse)
    activity = ProfilerActivity.CPU if rehearse else ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity]) as profile:
        for _ in range(CALLS):
            run()
        if not rehearse:
            torch.cuda.synchronize()
    of = "self_cpu_time_total" if rehearse else "self_device_time_total"
    kernels = [
        {"kernel": event.key, "us": getattr(event, of) / CALLS, "count": event.count / CALLS}
        for event in profile.key_averages()
        if getattr(event, of)
    ]
    if not kernels:
        raise RuntimeError("the profiler recorded no kernel")
    return {"kernels": sorted(kernels, key=lambda kernel: -kernel["us"])[:12]}


def counters(job: dict, seconds: float) -> dict:
    """Run a call in another process under ncu; return its counters for each kernel."""
    command = ["ncu", "--clock-control=none", "--csv", "--page=raw", "--print-units=base"]
    command += ["--profile-from-start=off", "--target-processes=all", f"--metrics={','.join(METRICS)}"]
    command += [sys.executable, __file__, "--one", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))[1:]  # the first row holds the units
    if not rows:
        raise RuntimeError(f"ncu: {(done.stdout + done.stderr)[-200:]}")
    kernels = []
    for row in rows:
        values = {
            name: float(row[metric].replace(",", "")) for metric, name in METRICS.items() if row.get(metric)
        }
        if "us" in values:
            values["us"] /= 1e3  # from ns
        kernels.append({"kernel": row["Kernel Name"], **values})
    return {"kernels": kernels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--journal", type=Path, metavar="FILE", help="results")
    add("--limit", type=float, default=120, help="time in seconds (default: 120)")
    add("--one", metavar="JOB", help="run this call once, for ncu")
    add("--rehearse", action="store_true", help="small cases on the CPU")
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = not args.one  # its trials would also be profiled
    if args.one:
        run = prepared(json.loads(args.one), False)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        run()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
        return
    journal = Journal(args.journal, args.limit)
    jobs = calls()[-3:] if args.rehearse else calls()
    for job in jobs:
        journal.run({**job, "by": "torch"}, lambda job=job: times(job, args.rehearse))
    if shutil.which("ncu") is None or args.rehearse:
        print("ncu skipped", flush=True)
        jobs = []
    for job in jobs:
        journal.run({**job, "by": "ncu"}, lambda job=job: counters(job, 60))
    journal.exit()


if __name__ == "__main__":
    main()
