"""Launches of Triton kernels: indices, devices, and a trial."""

import contextlib
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRETED = triton.knobs.runtime.interpret


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def extent(tensor: Tensor) -> int:
    """Distance in memory from the first element to the end of the last one, in elements."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """Context that makes ``device`` current: Triton uses the current device, not that of the tensors."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


@cache
def target(device: torch.device) -> str:
    """The architecture of a device as a key of the table: ``sm_90``, ``gfx942``, ``interpreter``.

    Raises:
        RuntimeError: Triton finds no driver or no C compiler.
    """
    if INTERPRETED:
        return "interpreter"
    with current(device):
        target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def launch(
    kernel: Any,
    programs: int,
    device: torch.device,
    arguments: dict[str, Any],
    *,
    second: int = 1,
    warps: int = 4,
    stages: int = 1,
    fuse: bool = True,
) -> None:
    """Launch ``programs`` by ``second`` programs with those of the arguments that the kernel has.

    Args:
        fuse: whether a product and an addition may be rounded once.
    """
    if programs == 0:
        return
    tensors = [a for a in arguments.values() if isinstance(a, Tensor)]
    arguments = {**arguments, "USE_INT64": max(map(extent, tensors)) >= 2**31}
    with current(device):
        kernel[(programs, second)](
            **{name: arguments[name] for name in kernel.arg_names},
            num_warps=warps,
            num_stages=stages,
            enable_fp_fusion=fuse,  # explicit, because Triton warns that the default will change
        )


@triton.jit
def trial_kernel(number):
    tl.device_assert(number + tl.program_id(0) >= 0)


def run_trial(device: torch.device) -> None:
    """Compile and launch a kernel without tensors, so that it also runs while ``torch.compile`` traces."""
    with current(device):
        trial_kernel[(1,)](1)
