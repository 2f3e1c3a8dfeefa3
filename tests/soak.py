"""Call the operators from several threads for some time and report whether memory grew: ``nox -s crash``.

Runs in a separate process, whose memory nothing else uses. Its last output line is a JSON object.
"""

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

# Without this, MKL (matrix products) caches freed memory, more with every larger size.
os.environ["MKL_DISABLE_FAST_MM"] = "1"  # MKL reads it when it is loaded

import torch

from . import op_cases

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
M_ARENA_MAX = -8  # from malloc.h
WINDOWS, ROUNDS = 10, 5  # memory is the median of the rounds of a window
WARM_UP = 2  # windows
THREADS = 4  # that call operators


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

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


LIBC = ctypes.CDLL(None)
LIBC.mallinfo2.restype = MallInfo  # glibc 2.33 or later


def memory() -> dict[str, int]:
    """Anonymous resident bytes, and allocated bytes that are not freed, while no call runs.

    The first includes gaps and partly used pages, but no free pages; the second is exact.
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--most", type=float, default=0.02, help="growth that passes")
    args = parser.parse_args()

    LIBC.mallopt(M_ARENA_MAX, 1)  # separate heaps per thread would have gaps in each
    counts, failures, readings = [Counter() for _ in range(THREADS)], [], []
    pause = threading.Barrier(THREADS + 1)
    rounds = WINDOWS * ROUNDS

    def work(number: int) -> None:
        torch.set_num_threads(1 + number % 2)  # with one or two threads inside the operators
        rng = random.Random(number)
        for _ in range(rounds):
            end = time.monotonic() + args.seconds / rounds
            while time.monotonic() < end and not failures:
                try:
                    counts[number][one_call(rng)] += 1
                except BaseException:
                    failures.append(traceback.format_exc())
            pause.wait()
            pause.wait()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for worker in workers:
        worker.start()
    for _ in range(rounds):
        pause.wait()
        readings.append(memory())
        pause.wait()
    for worker in workers:
        worker.join()
    if failures:
        sys.exit(f"error: a call failed\n{failures[0]}")

    starts = range(0, rounds, ROUNDS)
    windows = {
        kind: [statistics.median(each[kind] for each in readings[i : i + ROUNDS]) for i in starts]
        for kind in readings[0]
    }
    # a sanitizer's allocator reports zero bytes
    growth = {kind: sizes[-1] / max(sizes[WARM_UP], 1) - 1 for kind, sizes in windows.items()}
    calls = sum(counts, Counter())
    report = {
        "seconds": args.seconds,
        "calls": calls.total(),
        "fewest_calls_of_an_operator": min(calls[op.name] for op in OPERATORS),
        "mib": {kind: [round(size / 2**20, 2) for size in sizes] for kind, sizes in windows.items()},
        "growth": {kind: round(share, 4) for kind, share in growth.items()},
    }
    print(json.dumps(report))
    for kind, share in growth.items():
        if share > args.most:
            sys.exit(f"error: {kind} memory grew by {share:.1%}, expected at most {args.most:.1%}")


if __name__ == "__main__":
    main()
