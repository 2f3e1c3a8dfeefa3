"""Time the operators on a GPU next to cuDNN, torchvision and plain PyTorch (``make gpu``).

A call is timed between events, with the L2 cache flushed before it, and again in a CUDA graph, with the
inputs in the cache if they fit. Every contestant runs in both memory formats where it has both, and its
output is compared with that of the compiled kernels in float32. Then the field "auto" of the fused kernels'
table is updated.
"""

import datetime
import itertools
import json
import time
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch

from benchmarks.cases import (
    CASES,
    PASSES,
    RIVALS,
    Case,
    Contestant,
    in_format,
    operators,
    ours,
    passes,
    plain,
)
from benchmarks.gpu import tuning
from benchmarks.gpu.journal import Journal, results
from dcnzoo.ops import run as runner
from dcnzoo.ops.fused import available
from tests.op_cases import Sample

DTYPES = ("bfloat16", "float32", "float16")
FORMATS = {"": torch.contiguous_format, " channels_last": torch.channels_last}
LARGE = [case for case in CASES if case.name.endswith("-n2")]
CONVOLUTIONS = [case for case in LARGE if case.operator == "deform_conv2d" and not case.optional]
ATTENTIONS = [case for case in LARGE if case.operator != "deform_conv2d"]


def contestants(name: str) -> dict[str, tuple[torch.memory_format, Contestant]]:
    """Return contestants by name, with the memory format of the input; ``dcnzoo``: the compiled kernels."""
    nchw, rivals = torch.contiguous_format, RIVALS.get(name, {})
    compiled, floor = partial(ours, name, backend="compiled"), partial(plain, name)
    chosen: dict[str, tuple[torch.memory_format, Contestant]] = {
        rival: (nchw, rivals[rival])
        for rival in ("torchvision", "grid_sample")
        if rival in rivals and find_spec(rival.replace("grid_sample", "torch"))
    }
    if name != "deform_conv2d":
        return {"dcnzoo": (nchw, compiled), **chosen}
    for suffix, form in FORMATS.items():
        chosen[f"dcnzoo{suffix}"] = form, compiled
        chosen[f"dcnzoo fused{suffix}"] = form, partial(ours, name, backend="fused")
        chosen[f"F.conv2d{suffix}"] = form, floor
    return chosen


@cache
def sample(case: Case, dtype: torch.dtype, device: str) -> Sample:
    if device == "cuda":
        return case.sample(dtype, device).leaves()
    if case.operator == "deform_conv2d":  # Triton's interpreter is slow
        return tuning.sample("check", True).to(dtype)
    return next(iter(operators()[case.operator].samples())).to(dtype).leaves()


@cache
def exact(case: Case, device: str) -> torch.Tensor:
    """Return the compiled kernels' output in float32; tests/cuda compares them with the reference."""
    matmul = torch.backends.cuda.matmul
    allowed, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        with torch.no_grad():
            return ours(case.operator, sample(case, torch.float32, device), backend="compiled")()
    finally:
        matmul.allow_tf32 = allowed


def measure(
    case: Case,
    name: str,
    form: torch.memory_format | None,
    prepare: Contestant,
    dtype: torch.dtype,
    mode: str,
    device: str,
    expected: Callable[[Case, str], torch.Tensor] = exact,
) -> dict:
    """Return a contestant's error and times; ``first_ms``: those of the first call, which compiles.

    Args:
        form: the memory format of images; None: that of the sample.
        expected: returns the exact output of a case on a device.
    """
    own = sample(case, dtype, device)
    if form is not None:
        own = in_format(own, form).leaves()
    forward = prepare(own)
    run = passes(forward, own.given, mode)
    start = time.perf_counter()
    with torch.no_grad(), mock.patch.object(runner, "run_fused", wraps=runner.run_fused) as ran:
        output = forward()
    if ran.called != ("fused" in name or "Triton" in name):
        raise RuntimeError(f"expected the kernels of {name}, {'Triton' if ran.called else 'other'} ones ran")
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    result: dict[str, object] = {"first_ms": 1e3 * (time.perf_counter() - start)}
    if case.operator == "nms":
        result["equal"] = torch.equal(output, expected(case, device))
    elif not name.startswith("F."):  # an ordinary convolution computes something else
        target = expected(case, device)
        result["error"] = ((output.float() - target).norm() / target.norm()).item()
    result |= tuning.flushed(run, device)
    if case.operator != "nms" and name != "plain PyTorch":  # these wait for the GPU
        # torchvision's kernels use the default stream: a graph would not contain them
        result["cached_us"] = tuning.microseconds(run, device, 20, name != "torchvision")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        result["bytes"] = torch.cuda.max_memory_allocated() - before
    return result


def set_auto(journal: Path, table: dict) -> None:
    """Set ``auto`` in the table: the output pixels from which fused kernels are faster in both formats.

    The times are those of CUDA graphs. Those of the fused kernels include the extra time that Python needs to
    launch them.
    """
    entry = dict(table.get(tuning.target(), table["default"]))
    auto = dict(entry["auto"])
    measured = []
    kernels = [f"{kind}{form}" for kind in ("dcnzoo", "dcnzoo fused") for form in FORMATS]
    pairs = [(name, case.name) for name in kernels for case in CONVOLUTIONS]
    for dtype in DTYPES:
        forward, both = (
            {
                (job["contestant"], job["case"]): result["cached_us"]
                for job, result in results(journal, operator="deform_conv2d", dtype=dtype, mode=mode)
                if "cached_us" in result
            }
            for mode in PASSES
        )
        if any(pair not in times for times in (forward, both) for pair in pairs):
            continue  # not measured completely: the table keeps its entry
        backward = {pair: both[pair] - forward[pair] for pair in pairs}
        least = {"forward": least_pixels(forward, 75), "backward": least_pixels(backward, 175)}
        auto[dtype] = {name: pixels for name, pixels in least.items() if pixels is not None}
        measured.append(dtype)
    if measured:
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "the interpreter"
        entry["auto"] = {dtype: least for dtype, least in auto.items() if least}
        entry["auto_reason"] = (
            f"output pixels from which fused, with its launches, is faster than compiled in both formats: "
            f"{', '.join(measured)} measured on {where}, {datetime.date.today().isoformat()}"
        )
        table[tuning.target()] = entry


def least_pixels(times: dict[tuple[str, str], float], launches: float) -> int | None:
    """Return the output pixels from which fused is faster in every case; None if there are none.

    Args:
        launches: extra microseconds that Python needs to launch the fused kernels, on a fast CPU.
    """
    least = None
    for case in sorted(CONVOLUTIONS, key=output_pixels, reverse=True):
        if any(
            times[f"dcnzoo fused{form}", case.name] + launches > times[f"dcnzoo{form}", case.name]
            for form in FORMATS
        ):
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
    dtypes = DTYPES[: 1 if args.rehearse else None]
    for dtype, case in itertools.product(dtypes, cases):
        every = contestants(case.operator)
        for mode, name in itertools.product(PASSES, every):
            if (name, dtype) == ("torchvision", "bfloat16"):
                continue  # it has no kernel
            job = {"operator": case.operator, "case": case.name, "dtype": dtype}
            job |= {"contestant": name, "mode": mode}
            kind = getattr(torch, dtype)
            journal.run(job, partial(measure, case, name, *every[name], kind, mode, args.device))
        sample.cache_clear()
        exact.cache_clear()
    table = json.loads(available.TABLE.read_text())
    set_auto(args.file, table)
    tuning.save(table, args.file.parent, args.rehearse)
    journal.exit()


if __name__ == "__main__":
    main()
