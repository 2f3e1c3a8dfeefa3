"""Time the operators on a GPU without the compiled CUDA library, or, with it, its kernels (``make gpu``).

``DCNZOO_CUDA=0`` leaves the library out: Triton's kernels run, next to plain PyTorch and torchvision. Each
result has the time of the first call, which compiles, and the error relative to plain PyTorch in float32.
"""

from functools import cache, partial

import torch

from benchmarks.cases import CASES, PASSES, RIVALS, Case, Contestant, convolution, operators, ours
from benchmarks.gpu.benchmark import measure, sample
from benchmarks.gpu.journal import Journal
from dcnzoo.ops import with_cuda

DTYPES = ("bfloat16", "float32")
CHOSEN = (
    ("ms_deform_attn", "encoder"), ("ms_deform_attn", "decoder"), ("dcnv3", "800px-1"), ("dcnv3", "800px-3"),
    ("dcnv4", "800px-1"), ("deform_conv2d", "c3-n2"), ("deform_roi_pool", "box-head"),
    ("roi_align", "box-head"), ("nms", "1000"), ("nms", "10000"),
)  # fmt: skip
BY_NAME = {(case.operator, case.name): case for case in CASES}
DEPTHWISE = partial(convolution, "depthwise", 2, 256, (50, 84), groups=256)
NARROW = partial(convolution, "narrow", 2, 256, (50, 84), groups=32)
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
def exact(case: Case, device: str) -> torch.Tensor:
    with torch.no_grad():
        return operators()[case.operator].reference(sample(case, torch.float32, device))


def main() -> None:
    journal, args = Journal.of_command_line()
    cases = [BY_NAME[key] for key in CHOSEN] + MORE
    if args.rehearse:
        cases = [case for case in cases if case.name in ("decoder", "box-head")]
    for case in cases:
        for dtype in DTYPES:
            for mode in PASSES[: 1 if case.operator == "nms" else None]:
                for name, prepare in contestants(case.operator).items():
                    if name == "torchvision" and dtype == "bfloat16":
                        continue  # it has no kernel
                    job = {"operator": case.operator, "case": case.name, "dtype": dtype}
                    job |= {"contestant": name, "mode": mode}
                    kind = getattr(torch, dtype)
                    run = partial(measure, case, name, None, prepare, kind, mode, args.device, exact)
                    journal.run(job, run)
        sample.cache_clear()
        exact.cache_clear()
    journal.exit()


if __name__ == "__main__":
    main()
