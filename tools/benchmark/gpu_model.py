"""Predict how long the kernels take on an H100, from bytes, instructions and products; write docs/gpu.md.

    python tools/benchmark/gpu_model.py            # print the table
    python tools/benchmark/gpu_model.py --write    # also replace the table in docs/gpu.md

A prediction is a range: the largest of the times of memory, L2 cache, instructions and tensor cores (all
overlap), and their sum (none overlaps). ``make gpu ARGS=benchmark`` prints it beside the measured time.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from sections import replace_section

# Measured on an H100 80 GB: bytes/s of a copy, read and written; flop/s of a bfloat16 product of 8192 × 8192.
MEMORY, TENSOR = 3.0e12, {2: 798e12, 4: 399e12}  # TF32, 4 bytes per element: assumed to have half the rate
# Assumed: bytes/s of the L2 cache, and warp instructions/s (132 multiprocessors, 4 per cycle, 1.7 GHz).
L2, ISSUE = 5.5e12, 132 * 4 * 1.7e9
L2_BYTES = 50e6  # larger intermediate results go to memory
L1_HITS = 0.5  # share of the reads of corners: neighbouring taps and pixels read the same ones
TILE = 256  # output channels of a program: each tile samples again
# Instructions of a thread per sample (a channel at a tap of a pixel): convert, multiply and add at 4 corners,
# and a share of addresses, loads and stores. Scalar: one channel per load; vector: 16 bytes per load.
VECTOR_READ, SCALAR_READ, VECTOR_ADD, SCALAR_ADD = 8.6, 18.0, 6.0, 14.0


@dataclass(frozen=True)
class Prediction:
    memory: float = 0.0  # bytes
    l2: float = 0.0  # bytes
    instructions: float = 0.0  # of a thread
    flops: float = 0.0  # on tensor cores
    item: int = 2

    def __add__(self, other: Prediction) -> Prediction:
        own, others = ((p.memory, p.l2, p.instructions, p.flops) for p in (self, other))
        return Prediction(*(a + b for a, b in zip(own, others, strict=True)), item=self.item)

    def microseconds(self) -> dict[str, float]:
        times = {
            "memory": self.memory / MEMORY,
            "L2": self.l2 / L2,
            "instructions": self.instructions / 32 / ISSUE,
            "tensor cores": self.flops / TENSOR[self.item],
        }
        return {name: 1e6 * seconds for name, seconds in times.items()}

    def range(self) -> tuple[float, float]:
        return max(self.microseconds().values()), sum(self.microseconds().values())


@dataclass(frozen=True)
class Sizes:
    """What a call reads and computes, in elements."""

    samples: float  # channels · taps · pixels
    input: float
    fields: float  # offsets and masks, or locations and weights
    output: float
    weight: float = 0.0
    outputs: int = 0  # channels that a sample is multiplied with; 0: no product
    pixels: float = 0.0

    @classmethod
    def of_convolution(cls, case) -> Sizes:
        taps = case.kernel**case.rank
        pixels = case.batch * math.prod(case.out_size)
        return cls(
            samples=pixels * taps * case.channels,
            input=case.batch * case.channels * math.prod(case.size),
            fields=pixels * taps * (case.rank + 1) * case.offset_groups,
            output=pixels * case.channels,
            weight=case.channels**2 // case.groups * taps,
            outputs=case.channels // case.groups,
            pixels=pixels,
        )

    @classmethod
    def of_attention(cls, case) -> Sizes:
        """dcnv3, dcnv4 (9 taps) or ms_deform_attn: an offset and a weight for all channels of a group."""
        if hasattr(case, "queries"):
            groups, channels, pixels = case.heads, case.channels, case.pixels
            points = case.batch * case.queries * groups * len(case.levels) * case.points
        else:
            groups, channels, pixels = case.groups, case.channels // case.groups, math.prod(case.size)
            points = case.batch * pixels * groups * 9
        input = case.batch * pixels * groups * channels
        return cls(points * channels, input, 3 * points, math.prod(case.out_shape))


def predict(kernels: str, s: Sizes, backward: bool, item: int) -> Prediction:
    """Predict a forward pass, or forward and backward. ``kernels``: fused, compiled or attention."""
    read = 4 * s.samples * item * (1 - L1_HITS)
    atomic = 4 * s.samples * 4 * 2  # float32, read and written
    maps = (s.input + s.fields + s.output + s.weight) * item
    sums = 2 * maps + s.input * 8  # of the backward; the input's gradient is cleared and converted
    product = 2 * s.samples * s.outputs
    tiles = max(1, math.ceil(s.outputs / TILE))
    weights = s.weight * item * math.ceil(s.pixels / 128)

    def work(memory: float = 0, l2: float = 0, instructions: float = 0, flops: float = 0) -> Prediction:
        return Prediction(memory, l2, instructions, flops, item)

    def sampling(per_sample: float) -> Prediction:
        return work(l2=read, instructions=s.samples * per_sample)

    if kernels in ("fused", "attention"):
        forward = work(maps, tiles * read + weights, tiles * s.samples * VECTOR_READ, product)
        of_samples = sampling(VECTOR_READ + VECTOR_ADD) + work(sums, weights + atomic, flops=product)
        of_weight = work(maps, tiles * read, tiles * s.samples * VECTOR_READ, product)
        back = of_samples + of_weight if kernels == "fused" else of_samples
    else:
        columns = s.samples * item
        columns = work(memory=columns, l2=columns) if columns > L2_BYTES else work(l2=columns)  # one pass
        im2col = sampling(SCALAR_READ) + work(memory=maps) + columns
        gemm = work(memory=s.output * item, flops=product) + columns
        forward = im2col + gemm + work(memory=2 * s.output * item)
        of_input = work(s.input * 8, atomic, s.samples * SCALAR_ADD) + columns
        of_fields = sampling(SCALAR_READ) + work(memory=maps) + columns
        back = im2col + gemm + gemm + of_input + of_fields  # gradients of weight and columns
    return forward + back if backward else forward


def table() -> list[list[str]]:
    from gpu_benchmark import attention_cases, convolution_cases

    head = ["kernels", "case", "pass", "memory", "L2", "instructions", "tensor cores", "predicted"]
    rows = [head]
    calls = [
        (kernels, kernels, case)
        for case in convolution_cases()
        if case.stride == 1
        for kernels in ("fused", "compiled")
    ]
    calls += [(family, "attention", case) for family, case in attention_cases() if family != "dcnv3"]
    for name, kernels, case in calls:
        sizes = sizes_of(kernels, case)
        for backward in (False, True):
            found = predict(kernels, sizes, backward, 2)
            times = [f"{time:.0f}" for time in found.microseconds().values()]
            low, high = found.range()
            mode = "forward+backward" if backward else "forward"
            rows.append([name, case.name, mode, *times, f"{low:.0f}–{high:.0f} µs"])
    return rows


def sizes_of(kernels: str, case) -> Sizes:
    return Sizes.of_attention(case) if kernels == "attention" else Sizes.of_convolution(case)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="replace the table in docs/gpu.md")
    replace_section("model", table(), parser.parse_args().write)


if __name__ == "__main__":
    main()
