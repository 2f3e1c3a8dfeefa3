"""Measure block sizes of the fused kernels on this GPU, in three steps.

check: compiles every candidate and compares its results with the reference. Several processes share the work.
time: measures the correct candidates on several maps, in CUDA graphs.
write: writes the fastest one for each map to the table. A kernel and type that was not measured completely
keeps its entry.
"""

import datetime
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from benchmarks.cases import CASES, in_format
from benchmarks.gpu.journal import Journal, results
from dcnzoo.ops import reference
from dcnzoo.ops._arguments import arguments_of
from dcnzoo.ops.fused import available
from dcnzoo.ops.fused import deform_conv as fused
from dcnzoo.ops.fused.deform_conv import Config
from dcnzoo.utils.files import write_text
from tests.op_cases import Sample, deform_conv

KINDS = {"half": torch.bfloat16, "float32": torch.float32}
MAPS = ("p3-n2", "c3-n2", "c4-n2", "c5-n2", "c5")
# Largest norm of the error, relative to the norm of the reference in float64: bfloat16 and TF32.
LARGEST_ERROR = {"half": 1e-2, "float32": 2e-3}
MORE = {  # in addition to the candidates in the table: BM, BN, BK, warps, stages
    "forward": {
        "half": [
            *([128, 256, 64, 16, 2], [128, 256, 64, 8, 1], [128, 256, 32, 16, 3], [128, 128, 64, 8, 1]),
            *([128, 128, 32, 8, 4], [64, 256, 64, 8, 1], [64, 256, 32, 8, 3]),
        ],
        "float32": [[128, 128, 32, 8, 2], [128, 64, 32, 8, 2], [64, 128, 32, 8, 1]],
    },
    "grad_samples": {"half": [[64, 64, 256, 8, 1]], "float32": [[32, 32, 64, 8, 2]]},
    "grad_weight": {"half": [], "float32": []},
}


def candidates(table: dict, kernel: str, kind: str, rehearse: bool) -> list[Config]:
    known = [sizes for entry in table.values() for sizes in entry[kernel][kind]]
    own = table.get(target(), table["default"])[kernel][kind]
    every = [*own, *([] if rehearse else known + MORE[kernel][kind])]
    return list(dict.fromkeys(Config(*sizes) for sizes in every if len(sizes) == len(Config._fields)))


def target() -> str:
    return fused.architecture(torch.device("cpu") if fused.INTERPRETED else torch.device("cuda", 0))


def plan(kernel: str, call: Any, grad: Tensor, config: Config) -> Callable[[], tuple[Tensor, ...]]:
    """Return a function that runs a kernel, and the points that it needs, for a call of ``deform_conv``."""
    if kernel == "forward":
        output = fused.deform_conv(call, config)
        return lambda: (output(call),)
    positions = [1] if kernel == "grad_weight" else [0, 2, 3]
    needed = [position in positions for position in range(5)]
    arguments = {name: value for name, value in call._asdict().items() if name != "bias"}
    backward = arguments_of("_deform_conv_backward")(grad_output=grad, **arguments, output_mask=needed)
    gradients = fused.deform_conv_backward(backward, config)

    def run() -> tuple[Tensor, ...]:
        results = gradients(backward)
        return tuple(results[position] for position in positions)

    return run


def sample(name: str, rehearse: bool) -> Sample:
    """Return a case of deform_conv2d; "check": a small one."""
    if not rehearse and name != "check":
        return next(case for case in CASES if (case.operator, case.name) == ("deform_conv2d", name)).make()
    batch, channels, size = (1, 32, (3, 5)) if rehearse else (2, 256, (20, 36))
    sizes = dict(batch=batch, channels=channels, out_channels=channels, size=size)
    return deform_conv.make(name, **sizes, kernel=(3, 3), bias=False, padding=1)


@cache
def make_call(name: str, dtype: torch.dtype, device: str) -> tuple[Any, Tensor]:
    """Return a call of ``deform_conv`` and the gradient of its output."""
    case = sample(name, device == "cpu").to(dtype).map(lambda tensor: tensor.to(device))
    input, weight, offset, mask, _ = in_format(case, torch.channels_last).tensors
    numbers = ([case.kwargs.get("stride", 1)] * 2, [1, 1], [1, 1], 1, None)
    call = arguments_of("deform_conv")(input, weight, offset, mask, None, *numbers)
    size = (len(input), len(weight), *offset.shape[2:])
    return call, torch.randn(size).to(input).contiguous(memory_format=torch.channels_last)


@cache
def expected(name: str, dtype: torch.dtype, device: str) -> dict[str, tuple[Tensor, ...]]:
    """Return output and gradients of the reference in float64, by kernel."""
    call, grad = make_call(name, dtype, device)
    tensors = (call.input, call.weight, call.offset, call.mask)
    leaves = [tensor.detach().double().requires_grad_() for tensor in tensors]
    geometry = (call.stride, call.padding, call.dilation, call.groups)
    output = reference.deform_conv(*leaves, None, *geometry)
    of_input, of_weight, *of_fields = torch.autograd.grad(output, leaves, grad.double())
    samples = (of_input, *of_fields)
    return {"forward": (output.detach(),), "grad_weight": (of_weight,), "grad_samples": samples}


def check(kernel: str, kind: str, config: Config, device: str) -> dict:
    """Compare with the reference.

    Raises:
        ValueError: the error is too large.
    """
    call, grad = make_call("check", KINDS[kind], device)
    exact = expected("check", KINDS[kind], device)[kernel]
    for like in exact:  # torch reuses this memory: elements that the kernel does not write are NaN
        torch.full_like(like, float("nan"), dtype=KINDS[kind])
    found = plan(kernel, call, grad, config)()
    errors = [((f.double() - e).norm() / e.norm()).item() for f, e in zip(found, exact, strict=True)]
    if not all(error <= LARGEST_ERROR[kind] for error in errors):  # also NaN
        raise ValueError(f"wrong result: errors of {', '.join(f'{error:.1e}' for error in errors)}")
    return {"error": max(errors)}


def microseconds(function: Callable[[], object], device: str, rep: int = 20, captured: bool = True) -> float:
    """Return the median time of a call. On a GPU, it is measured in a CUDA graph.

    Without ``captured``, calls follow each other without a pause: the CPU's work overlaps with the GPU's.
    """
    if device == "cpu":
        start = time.perf_counter()
        function()
        return 1e6 * (time.perf_counter() - start)
    if captured:
        return 1e3 * triton.testing.do_bench_cudagraph(function, rep=rep, return_mode="median")
    times = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(10_000_000)  # the CPU gets ahead
        start.record()
        for _ in range(5):
            function()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / 5)
    return statistics.median(times)


def flushed(function: Callable[[], object], device: str) -> dict[str, float]:
    """Return median, p20 and p80 of a call's microseconds, with the L2 cache flushed before each call."""
    if device == "cpu":
        return {"us": microseconds(function, device)}
    low, median, high = triton.testing.do_bench(function, warmup=10, rep=60, quantiles=[0.2, 0.5, 0.8])
    return {"us": 1e3 * median, "p20_us": 1e3 * low, "p80_us": 1e3 * high}


def set_block_sizes(journal: Path, table: dict, rehearse: bool) -> None:
    """Replace the lists of candidates in the table that were measured completely."""
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
    table[target()] = entry


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


def save(table: dict, folder: Path, rehearse: bool) -> None:
    """Write the table to the folder of the results and, unless it is rehearsed, into the package.

    It has one line per kernel, so that changes are readable in a diff.
    """
    entries = []
    for name, entry in table.items():
        rows = (f'  "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in entry.items())
        entries.append(f' "{name}": {{\n' + ",\n".join(rows) + "\n }")
    for path in [folder / "configs.json"] if rehearse else [folder / "configs.json", available.TABLE]:
        write_text(path, "{\n" + ",\n".join(entries) + "\n}\n")
        print(f"written: {path}", flush=True)


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True  # the block sizes of float32 are for TF32
    journal, args = Journal.of_command_line()
    table = json.loads(available.TABLE.read_text())
    if args.step == "write":
        set_block_sizes(args.file, table, args.rehearse)
        save(table, args.file.parent, args.rehearse)
        return
    every = [
        (kernel, kind, config)
        for kind in KINDS
        for kernel in MORE
        for config in candidates(table, kernel, kind, args.rehearse)
    ]
    if args.step == "check":
        check_all(journal, every, args.device)
    else:
        time_correct_ones(journal, every, args.device)
    journal.exit()


def check_all(journal: Journal, every: Iterable[tuple[str, str, Config]], device: str) -> None:
    for kernel, kind, config in every:
        job = {"step": "check", "kernel": kernel, "kind": kind, "config": list(config)}
        journal.run(job, partial(check, kernel, kind, config, device))


def time_correct_ones(journal: Journal, every: Iterable[tuple[str, str, Config]], device: str) -> None:
    """Time the candidates that :func:`check_all` has found to be correct, on each map."""
    correct = {
        (job["kernel"], job["kind"], *job["config"])
        for job, result in results(journal.path, step="check")
        if "problem" not in result
    }
    for kernel, kind, config in every:
        if (kernel, kind, *config) not in correct:
            continue
        for name in MAPS:
            job = {"step": "time", "kernel": kernel, "kind": kind, "map": name, "config": list(config)}
            call, grad = make_call(name, KINDS[kind], device)
            journal.run(job, partial(time_call, kernel, call, grad, config, device))


def time_call(kernel: str, call: Any, grad: Tensor, config: Config, device: str) -> dict:
    return {"us": microseconds(plan(kernel, call, grad, config), device)}


if __name__ == "__main__":
    main()
