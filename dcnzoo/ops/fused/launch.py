"""Launches of Triton kernels: indices, devices, and a trial."""

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRETED = triton.knobs.runtime.interpret
MOST_COMPILED = 20_000  # entries of _compiled: each size of a map has its own
_compiled: dict[tuple, Any] = {}


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def size_class(tensor: Tensor) -> int:
    """Return 0 for a tensor in less than 2 GiB of memory, else 1, as AMD's GPUs run other code for it.

    Return 2 if the indices of its elements also need 64 bits.
    """
    if tensor.untyped_storage().nbytes() < 2**31:  # the usual case, tested at every launch
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return 2 if last >= 2**31 - 1 else 1


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """Context that makes ``device`` current: Triton uses the current device, not that of the tensors."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


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
    """Launch ``programs`` by ``second`` programs. The kernel gets those of ``arguments`` that it takes.

    Args:
        fuse: whether a product and an addition may be rounded once.
    """
    if programs == 0:
        return
    # Triton's own search for the compiled kernel takes most of the time of a launch. Calls with the same key
    # have the same compiled kernel.
    arguments["USE_INT64"] = False
    values = [arguments[name] for name in kernel.arg_names]
    key = [kernel.fn, device, warps, stages, fuse]
    for value in values:
        if isinstance(value, Tensor):
            size = size_class(value)
            key += (value.dtype, value.data_ptr() % 16, size)
            arguments["USE_INT64"] |= size == 2
        else:
            key.append(value)
    if arguments["USE_INT64"]:
        values = [arguments[name] for name in kernel.arg_names]
    grid, known = (programs, second, 1), tuple(key)
    with current(device):
        if (compiled := _compiled.get(known)) is not None:
            compiled[grid](*values)
            return
        compiled = kernel[grid](
            **dict(zip(kernel.arg_names, values, strict=True)),
            num_warps=warps,
            num_stages=stages,
            enable_fp_fusion=fuse,  # explicit, because Triton warns that the default will change
        )
    if len(_compiled) >= MOST_COMPILED:
        _compiled.clear()
    if not INTERPRETED:
        _compiled[known] = compiled


@triton.jit
def trial_kernel(number):
    tl.device_assert(number + tl.program_id(0) >= 0)


def run_trial(device: torch.device) -> None:
    """Compile and launch a kernel without tensors, so that it also runs while ``torch.compile`` traces."""
    with current(device):
        trial_kernel[(1,)](1)
