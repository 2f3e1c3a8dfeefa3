"""Call the operators from several threads for some time and report whether memory grew: ``nox -s crash``.

Runs in a separate process, whose memory nothing else uses. Its last output line is a JSON object.
"""

import argparse
import ctypes
import gc
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

# Without this, MKL (matrix products) caches freed memory, more with every larger size.
os.environ["MKL_DISABLE_FAST_MM"] = "1"  # MKL reads it when it is loaded

import torch

from tests import op_cases

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
WINDOWS, ROUNDS = 10, 5  # memory is the median of the rounds of a window
WARM_UP = 2  # windows
CALLERS = 4  # threads that call operators


OPERATORS = op_cases.operators(differentiable=False)


def one_call(rng: random.Random) -> str:
    """Call a random operator twice with a random sample, dtype and memory format, and compare the bits.

    test_fuzz.py compares such calls with the reference.
    """
    op = rng.choice(OPERATORS)
    sample = op.random_sample(rng, "")
    while op_cases.is_plain_convolution(sample):  # torch caches a compiled kernel per shape
        sample = op.random_sample(rng, "")
    sample = sample.to(rng.choice(DTYPES))
    if rng.random() < 0.5 and sample.tensors[0].dim() == 4:
        sample = sample.map(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t)
    for a, b in zip(op.results(sample), op.results(sample), strict=True):
        assert torch.equal(a, b) or a.isnan().any(), f"{op.name}: the same call gave other bits"
    return op.name


class MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h."""

    _fields_ = [("sizes", ctypes.c_size_t * 10)]


LIBC = ctypes.CDLL(None)
LIBC.mallinfo2.restype = MallInfo  # glibc 2.33 or later


def allocated() -> int:
    """Allocated bytes that are not freed, while no call runs."""
    gc.collect()
    sizes = LIBC.mallinfo2().sizes
    return sizes[7] + sizes[4]  # uordblks, hblkhd


def call_for(seconds: float, rng: random.Random, threads: int) -> Counter:
    """Call operators that use this number of threads; return how often each was called."""
    torch.set_num_threads(threads)
    counts, end = Counter(), time.monotonic() + seconds
    while time.monotonic() < end:
        counts[one_call(rng)] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--most", type=float, default=0.02, help="growth that passes")
    args = parser.parse_args()

    rounds = WINDOWS * ROUNDS
    durations = [args.seconds / rounds] * CALLERS
    generators = [random.Random(number) for number in range(CALLERS)]
    threads = [1 + number % 2 for number in range(CALLERS)]
    calls, readings = Counter(), []
    with ThreadPoolExecutor(CALLERS) as pool:
        for _ in range(rounds):
            calls += sum(pool.map(call_for, durations, generators, threads), Counter())
            readings.append(allocated())
    windows = [statistics.median(readings[i : i + ROUNDS]) for i in range(0, rounds, ROUNDS)]
    # a sanitizer's allocator reports zero bytes
    growth = windows[-1] / max(windows[WARM_UP], 1) - 1
    report = {
        "seconds": args.seconds,
        "calls": calls.total(),
        "fewest_calls_of_an_operator": min(calls[op.name] for op in OPERATORS),
        "allocated_mib": [round(size / 2**20, 2) for size in windows],
        "growth": round(growth, 4),
    }
    print(json.dumps(report))
    if growth > args.most:
        sys.exit(f"error: memory grew by {growth:.1%}, expected at most {args.most:.1%}")


if __name__ == "__main__":
    main()
