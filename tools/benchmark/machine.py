"""Describe this machine and measure its limits (the roofline)."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from families import Work


def describe(device: str) -> dict[str, object]:
    """Return the facts that affect speed, without names that identify a computer."""
    from dcnzoo import __version__, ops

    facts: dict[str, object] = {
        "cpu": cpu_model(),
        "cores": cores(),
        "cpu_capability": ops.cpu_capability(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": has_bf16_instructions(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dcnzoo": __version__,
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
        facts["triton"] = version("triton") if find_spec("triton") else "none"
    return facts


def slug(facts: dict[str, object]) -> str:
    """Return a file name from the machine and the versions."""
    machine = facts.get("gpu") or f"{facts['cpu']} {facts['cores']} cores {facts['cpu_capability']}"
    text = f"{machine} torch {str(facts['torch']).split('+')[0]} dcnzoo {facts['dcnzoo']}"
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)):
        return found[1].strip()
    return platform.processor() or platform.machine()


def has_bf16_instructions() -> bool:
    """Whether the CPU has instructions for bfloat16 products (AVX512-BF16, AMX)."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and re.search(r"\bavx512_bf16\b|\bamx_bf16\b", cpuinfo.read_text()) is not None


@dataclass(frozen=True)
class Roofline:
    """Measured limits for a dtype and a number of threads.

    Attributes:
        flops: per second, of torch's fastest matrix product or convolution.
        gather: bytes per second, of sums of four weighted rows (bilinear samples) of a feature map, in the
            order of access of a 3×3 deformable convolution.
    """

    flops: float
    gather: float

    def better_of(self, other: Roofline) -> Roofline:
        return Roofline(max(self.flops, other.flops), max(self.gather, other.gather))

    def seconds(self, work: Work, mode: str) -> float:
        """Return the minimum time to sample first and multiply afterwards, both at full speed.

        Backward: two more products; the columns again, together with the gradient of the offsets; and the
        gradient of the input, a read and a write at every corner.
        """
        products, gathers = (1, 1) if mode == "forward" else (3, 4)
        return products * work.flops / self.flops + gathers * work.gathered / self.gather


def measure_roofline(dtype: torch.dtype, threads: int, seconds: float) -> Roofline:
    torch.set_num_threads(threads)
    return Roofline(_peak_flops(dtype, seconds / 2), _peak_gather(dtype, seconds / 2))


def _peak_flops(dtype: torch.dtype, seconds: float) -> float:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype)

    candidates: list[tuple[float, Callable[[], object]]] = []
    # the sizes of c3, c4, c5: output channels, depth of the product, pixels
    for channels, pixels in ((128, 16800), (256, 4200), (512, 1050)):
        depth = 9 * channels
        flops = 2 * pixels * depth * channels
        rows, weight = normal(pixels, depth), normal(channels, depth)
        candidates.append((flops, lambda x=rows, w=weight: F.linear(x, w)))
        if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            candidates.append((flops, lambda x=rows, w=weight: _onednn_linear(x, w)))
        side = round(pixels**0.5)
        image, kernel = normal(1, channels, side, side), normal(channels, channels, 3, 3)
        image = image.to(memory_format=torch.channels_last)
        flops = 2 * side * side * depth * channels
        candidates.append((flops, lambda x=image, w=kernel: F.conv2d(x, w, None, 1, 1)))
    return max(flops / _seconds(run, seconds / len(candidates)) for flops, run in candidates)


def _onednn_linear(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply by oneDNN; for float32, F.linear calls MKL, which has half the speed on AMD."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")


def _peak_gather(dtype: torch.dtype, seconds: float) -> float:
    height, width, channels = 50, 84, 256
    table = torch.randn(height * width, channels).to(dtype)
    generator = torch.Generator().manual_seed(0)
    pixel = torch.arange(height * width)
    tap = torch.tensor([[y, x] for y in (-1, 0, 1) for x in (-1, 0, 1)])
    place = torch.stack([pixel // width, pixel % width], dim=1)[:, None] + tap  # [pixels, 9, 2]
    corner = (place + torch.randn(place.shape, generator=generator) * 2).floor().long().flatten(0, 1)
    y, x = corner[:, 0].clamp(0, height - 2), corner[:, 1].clamp(0, width - 2)
    index = torch.stack([y * width + x, y * width + x + 1, (y + 1) * width + x, (y + 1) * width + x + 1], 1)
    weights = torch.rand(index.shape, generator=generator).to(dtype)
    best = 0.0
    # The results stay in the cache, like a tile of columns; try different sizes to amortise the call.
    for bags in (256, 512, 1024, 2048, 4096):
        chunks = list(zip(index.split(bags), weights.split(bags), strict=True))[:8]

        def run(chunks=chunks) -> None:
            for rows, factors in chunks:
                F.embedding_bag(rows, table, mode="sum", per_sample_weights=factors)

        read = sum(rows.numel() for rows, _ in chunks) * channels * table.element_size()
        best = max(best, read / _seconds(run, seconds / 5))
    return best


def _seconds(run: Callable[[], object], budget: float) -> float:
    """Return the shortest time: a limit is not a typical value."""

    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    with torch.no_grad():
        once()
        samples, end = [], time.perf_counter() + budget
        while len(samples) < 3 or time.perf_counter() < end:
            samples.append(once())
    return min(samples)
