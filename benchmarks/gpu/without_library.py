"""Time the operators on a GPU without the compiled CUDA library, or, with it, its kernels (``make gpu``).

``DCNZOO_CUDA=0`` leaves the library out: Triton's kernels run, next to plain PyTorch and torchvision. Each
result has the time of the first call, which compiles, and the error relative to plain PyTorch in float32.
"""

import time
from functools import cache, partial
from unittest import mock

import torch

from benchmarks.cases import CASES, PASSES, RIVALS, Case, Contestant, _convolution, operators, ours, passes
from benchmarks.gpu import tuning
from benchmarks.gpu.journal import Journal
from dcnzoo.ops import choose, with_cuda
from tests.op_cases import Sample

DTYPES = ("bfloat16", "float32")
CHOSEN = (
    ("ms_deform_attn", "encoder"), ("ms_deform_attn", "decoder"), ("dcnv3", "800px-1"), ("dcnv3", "800px-3"),
    ("dcnv4", "800px-1"), ("deform_conv2d", "c3-n2"), ("deform_roi_pool", "box-head"),
    ("roi_align", "box-head"), ("nms", "1000"), ("nms", "10000"),
)  # fmt: skip
BY_NAME = {(case.operator, case.name): case for case in CASES}
DEPTHWISE = partial(_convolution, "depthwise", 2, 256, (50, 84), groups=256)
NARROW = partial(_convolution, "narrow", 2, 256, (50, 84), groups=32)
MORE = [
    Case("deform_conv2d", "depthwise", "", DEPTHWISE),
    Case("deform_conv2d", "narrow", "", NARROW),
]


def contestants(operator: str) -> dict[str, Contestant]:
    if with_cuda():
        return {"dcnzoo compiled": partial(ours, operator, backend="compiled")}
    plain = lambda sample: partial(operators()[operator].reference, sample)  # noqa: E731
    rivals = {name: rival for name, rival in RIVALS.get(operator, {}).items() if name == "torchvision"}
    rivals = {"dcnzoo Triton": partial(ours, operator, backend="fused"), **rivals}
    # plain RoI pooling and NMS are loops in Python, which take a second
    return rivals if "roi" in operator or operator == "nms" else {**rivals, "plain PyTorch": plain}


@cache
def sample(case: Case, dtype: torch.dtype, device: str) -> Sample:
    if device == "cpu":  # Triton's interpreter is slow
        return next(iter(operators()[case.operator].samples())).to(dtype).leaves()
    return case.sample(dtype, device).leaves()


@cache
def exact(case: Case, device: str) -> torch.Tensor:
    with torch.no_grad():
        return operators()[case.operator].reference(sample(case, torch.float32, device))


def measure(case: Case, name: str, dtype: torch.dtype, mode: str, device: str) -> dict:
    own = sample(case, dtype, device)
    forward = contestants(case.operator)[name](own)
    run = passes(forward, own.given, mode)
    start = time.perf_counter()
    with torch.no_grad(), mock.patch.object(choose, "run_fused", wraps=choose.run_fused) as ran:
        output = forward()
    if ran.called != ("Triton" in name):
        raise RuntimeError(f"expected the kernels of {name}, {'Triton' if ran.called else 'other'} ones ran")
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    result: dict[str, object] = {"first_ms": 1e3 * (time.perf_counter() - start)}
    if mode == PASSES[0]:
        expected = exact(case, device)
        if case.operator == "nms":
            result["equal"] = torch.equal(output, expected)
        else:
            result["error"] = ((output.float() - expected).norm() / expected.norm()).item()
    if name.startswith("dcnzoo") and case.operator != "nms":  # nms waits for the GPU
        result["cached_us"] = tuning.microseconds(run, device)
    return result | tuning.flushed(run, device)


def main() -> None:
    journal, args = Journal.of_command_line()
    cases = [BY_NAME[key] for key in CHOSEN] + MORE
    if args.rehearse:
        cases = [case for case in cases if case.name in ("decoder", "box-head")]
    for case in cases:
        for dtype in DTYPES:
            for mode in PASSES[: 1 if case.operator == "nms" else None]:
                for name in contestants(case.operator):
                    if name == "torchvision" and dtype == "bfloat16":
                        continue  # it has no kernel
                    job = {"operator": case.operator, "case": case.name, "dtype": dtype}
                    job |= {"contestant": name, "mode": mode}
                    kind = getattr(torch, dtype)
                    journal.run(job, partial(measure, case, name, kind, mode, args.device))
        sample.cache_clear()
        exact.cache_clear()
    journal.exit()


if __name__ == "__main__":
    main()
