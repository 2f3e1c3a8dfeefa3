"""Calls the operators from several threads for a time and says whether memory grew: ``make soak``.

In a process of its own, whose memory nothing else uses. The last line it prints is a JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import re
import statistics
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

# MKL, which multiplies for the reference, keeps what it has freed otherwise: more with every larger size.
os.environ["MKL_DISABLE_FAST_MM"] = "1"  # read when it is loaded

import torch
from torch import Tensor

from dcnzoo import ops
from dcnzoo.ops import reference

from . import oracles
from .op_cases import Sample, dcnv3, dcnv4, deform_conv, deform_conv_transpose, ms_deform_attn

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
COMPARED = 20  # one call of so many is compared with the reference
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
M_ARENA_MAX = -8  # of malloc.h
WINDOWS, ROUNDS = 10, 5  # memory is the median of the rounds of a window
WARM_UP = 2  # windows


def convolution(rng: random.Random, rank: int, transposed: bool) -> Sample:
    groups = rng.choice([1, 1, 1, 2, 4])
    # With neither it is torch's convolution, which keeps compiled kernels for every new shape.
    offset_groups = rng.choice([None, 1, groups])
    mask_groups = rng.choice([1, groups] if offset_groups is None else [None, 1, groups])
    make = deform_conv_transpose.make if transposed else deform_conv.make
    most = {1: 300, 2: 24, 3: 9}[rank]
    return make(
        str(rng.random()),
        batch=rng.randint(0, 5),
        channels=groups * rng.randint(1, 40),
        out_channels=groups * rng.randint(1, 40),
        size=tuple(rng.randint(5, most) for _ in range(rank)),
        kernel=tuple(rng.randint(1, 3) for _ in range(rank)),
        offset_groups=offset_groups,
        mask_groups=mask_groups,
        bias=rng.random() < 0.5,
        spread=rng.choice([0.5, 3.0, 30.0]),
        groups=groups,
        stride=tuple(rng.randint(1, 3) for _ in range(rank)),
        padding=rng.randint(0, 1),
        dilation=rng.randint(1, 2),
        im2col_step=rng.choice([None, 1, 3]),
    )


def aggregation(rng: random.Random) -> Sample:
    return dcnv3.make(
        str(rng.random()),
        batch=rng.randint(0, 3),
        size=(rng.randint(5, 24), rng.randint(5, 24)),
        kernel_size=rng.choice([3, 5]),
        stride=rng.randint(1, 2),
        group=rng.randint(1, 4),
        group_channels=rng.randint(1, 40),
        offset_scale=rng.choice([0.5, 1.0, 2.0]),
        remove_center=rng.random() < 0.5,
    )


def attention(rng: random.Random) -> Sample:
    return ms_deform_attn.make(
        str(rng.random()),
        batch=rng.randint(0, 3),
        queries=rng.randint(0, 99),
        heads=rng.randint(1, 8),
        channels=rng.randint(1, 40),
        points=rng.randint(1, 5),
        sizes=tuple((rng.randint(1, 20), rng.randint(1, 20)) for _ in range(rng.randint(1, 4))),
    )


def normal(rng: random.Random, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def boxes(rng: random.Random, count: int) -> Tensor:
    corner = normal(rng, count, 2) * 12
    return torch.cat([corner, corner + normal(rng, count, 2).abs() * 12], dim=1)


def pooling(rng: random.Random, deformable: bool) -> Sample:
    images, count, bins = rng.randint(1, 3), rng.randint(0, 12), (rng.randint(1, 7), rng.randint(1, 7))
    input = normal(rng, images, rng.randint(1, 40), rng.randint(1, 24), rng.randint(1, 24))
    image = torch.tensor([[float(rng.randrange(images))] for _ in range(count)], dtype=torch.float64)
    tensors = (input, torch.cat([image.view(count, 1), boxes(rng, count)], dim=1))
    settings = {"output_size": bins, "spatial_scale": 0.5, "sampling_ratio": rng.randint(0, 3)}
    if deformable:
        return Sample("", (*tensors, normal(rng, count, 2, *bins)), settings)
    return Sample("", tensors, {**settings, "pool_mode": rng.choice(["avg", "max"])})


def suppression(rng: random.Random) -> Sample:
    count = rng.randint(0, 200)
    return Sample("", (boxes(rng, count), normal(rng, count)), {"iou_threshold": rng.random()})


def plain(function):
    return lambda sample: function(*sample.tensors, **sample.kwargs)


def kept(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return torch.tensor(oracles.nms(boxes, scores, iou_threshold, 0), dtype=torch.long)


# a random sample, the function, its oracle, and which of the tensors have gradients
CALLS = {
    **{
        f"{module.__name__.rsplit('.', 1)[1]}{rank}d": (
            lambda rng, rank=rank, transposed=transposed: convolution(rng, rank, transposed),
            module.call,
            module.reference,
            range(5),
        )
        for module, transposed in ((deform_conv, False), (deform_conv_transpose, True))
        for rank in (1, 2, 3)
    },
    "dcnv3": (aggregation, dcnv3.call, dcnv3.reference, range(3)),
    "dcnv4": (lambda rng: dcnv4.packed(aggregation(rng)), dcnv4.call, dcnv4.reference, range(2)),
    "ms_deform_attn": (attention, ms_deform_attn.call, ms_deform_attn.reference, range(3)),
    "roi_align": (lambda rng: pooling(rng, False), plain(ops.roi_align), plain(oracles.roi_align), (0,)),
    "deform_roi_pool": (
        lambda rng: pooling(rng, True),
        plain(ops.deform_roi_pool),
        plain(reference.deform_roi_pool),
        (0, 2),
    ),
    "nms": (suppression, plain(ops.nms), plain(kept), ()),
}


def results(function, sample: Sample, differentiable) -> list[Tensor]:
    """The output and its gradients."""
    leaves = [None if t is None else t.detach() for t in sample.tensors]
    wanted = [leaves[i].requires_grad_() for i in differentiable if leaves[i] is not None]
    output = function(Sample("", tuple(leaves), sample.kwargs))
    if not wanted:
        return [output]
    # of no RoIs, or no pixels, the reference's result depends on nothing
    output = output + sum(t.flatten()[:0].sum() for t in wanted)
    grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    gradients = torch.autograd.grad(output, wanted, grad.to(output.dtype))
    return [output.detach(), *gradients]


def one_call(rng: random.Random) -> str:
    """A random operator on a random sample, in a random dtype and memory format."""
    name = rng.choice(list(CALLS))
    make, function, oracle, differentiable = CALLS[name]
    dtype = rng.choice(DTYPES)
    sample = make(rng).to(dtype)
    if rng.random() < 0.5 and sample.tensors[0].dim() == 4:
        sample = sample.map(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t)
    # RoIAlign leaps at a map's border, where rounding decides
    if rng.randrange(COMPARED) or ("roi" in name and dtype != torch.float64):
        first, second = (results(function, sample, differentiable) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b) or a.isnan().any(), f"{name}: the same call gave other bits"
        return name
    if name == "nms" and dtype not in (torch.float32, torch.float64):
        return name
    exact = sample.to(torch.float64)
    if dtype not in (torch.float32, torch.float64):
        differentiable = ()  # whose rounding is in proportion to what is summed, not to the sum
    for mine, true in zip(
        results(function, sample, differentiable), results(oracle, exact, differentiable), strict=True
    ):
        scale = max(1.0, true.abs().max().item()) if true.numel() else 1.0
        bound = TOLERANCE[dtype] * scale
        torch.testing.assert_close(
            mine.double(),
            true.double(),
            rtol=0,
            atol=bound,
            msg=lambda text: f"{name}, {dtype}, {sample.kwargs}: {text}",
        )
    return name


class MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


LIBC = ctypes.CDLL(None)
LIBC.mallinfo2.restype = MallInfo  # glibc 2.33 or later


def memory() -> dict[str, int]:
    """Bytes while no call is made: resident that no file backs, and those that were asked for and not freed.

    The first has gaps and whole pages in it, without the free pages at hand; the second is exact.
    """
    gc.collect()
    LIBC.malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    info = LIBC.mallinfo2()
    return {
        "resident": int(re.search(r"RssAnon:\s*(\d+) kB", status)[1]) * 2**10,
        "allocated": info.uordblks + info.hblkhd,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1800, help="default: 1800")
    parser.add_argument("--threads", type=int, default=4, help="that call operators (default: 4)")
    parser.add_argument("--most", type=float, default=0.02, help="growth that passes (default: 0.02)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leak", type=int, default=0, help="bytes to leak at every call, to see it noticed")
    args = parser.parse_args()

    LIBC.mallopt(M_ARENA_MAX, 1)  # a heap for each thread would leave gaps in each
    counts, failures, leaked, readings, calls = Counter(), [], [], [], []
    pause = threading.Barrier(args.threads + 1)
    rounds = WINDOWS * ROUNDS

    def work(number: int) -> None:
        torch.set_num_threads(1 + number % 2)  # both without and with threads of the operators' own
        rng = random.Random(args.seed * 1000 + number)
        for _ in range(rounds):
            end = time.monotonic() + args.seconds / rounds
            while time.monotonic() < end and not failures:
                try:
                    counts[number, one_call(rng)] += 1
                except BaseException:
                    failures.append(traceback.format_exc())
                if args.leak:
                    leaked.append(b"\1" * args.leak)
            pause.wait()
            pause.wait()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(args.threads)]
    for worker in workers:
        worker.start()
    for _ in range(rounds):
        pause.wait()
        readings.append(memory())
        calls.append(sum(counts.values()))
        pause.wait()
    for worker in workers:
        worker.join()
    if failures:
        sys.exit(f"error: a call failed\n{failures[0]}")

    windows = {
        kind: [
            statistics.median(reading[kind] for reading in readings[first : first + ROUNDS])
            for first in range(0, rounds, ROUNDS)
        ]
        for kind in readings[0]
    }
    # a sanitizer's allocator tells of no bytes
    growth = {kind: sizes[-1] / max(sizes[WARM_UP], 1) - 1 for kind, sizes in windows.items()}
    between = calls[-1 - ROUNDS // 2] - calls[WARM_UP * ROUNDS + ROUNDS // 2]
    per_operator = Counter()
    for (_, name), count in counts.items():
        per_operator[name] += count
    report = {
        "seconds": args.seconds,
        "threads": args.threads,
        "calls": calls[-1],
        "fewest_calls_of_an_operator": min(per_operator[name] for name in CALLS),
        "mib": {kind: [round(size / 2**20, 2) for size in sizes] for kind, sizes in windows.items()},
        "growth": {kind: round(share, 4) for kind, share in growth.items()},
        "allocated_bytes_a_call": round(
            (windows["allocated"][-1] - windows["allocated"][WARM_UP]) / between, 1
        ),
    }
    print(json.dumps(report))
    for kind, share in growth.items():
        if share > args.most:
            sys.exit(f"error: {kind} memory grew by {share:.1%}, expected at most {args.most:.1%}")


if __name__ == "__main__":
    main()
