"""Launches of Triton kernels: indices, devices, and a trial."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret


def size_class(tensor: Tensor) -> int:
    """Return 0 for a tensor in less than 2 GiB of memory, else 1, as AMD's GPUs run other code for it.

    Return 2 if the indices of its elements also need 64 bits.
    """
    if tensor.untyped_storage().nbytes() < 2**31:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return 2 if last >= 2**31 - 1 else 1


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """Context that makes ``device`` current: Triton uses the current device, not that of the tensors."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


class Launch:
    """A kernel and the arguments that all calls with a plan share. A call adds the others, by name.

    Triton's own search for the compiled kernel takes most of the time of a launch. Here, the alignment of the
    call's tensors decides. Its numbers do not: they are arguments for which the kernel is not specialised.
    """

    def __init__(
        self,
        kernel: Any,
        arguments: Mapping[str, Any],
        *,
        warps: int = 4,
        stages: int = 1,
        fuse: bool = True,
        rows: bool = False,
    ) -> None:
        """Store those of ``arguments`` that the kernel takes.

        Args:
            fuse: whether a product and an addition may be rounded once.
            rows: whether the number of rows differs between calls, so that the tensors' size decides, too.
        """
        self.kernel, self.rows, self.compiled = kernel, rows, dict[tuple, Any]()
        # enable_fp_fusion is explicit, because Triton warns that its default will change
        self.options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": fuse}
        self.positions = {name: position for position, name in enumerate(kernel.arg_names)}
        self.values = [arguments.get(name) for name in kernel.arg_names]

    def __call__(self, programs: int, arguments: Mapping[str, Any], second: int = 1) -> None:
        """Launch ``programs`` by ``second`` programs."""
        if programs * second == 0:
            return
        values, key = self.values.copy(), []
        for name, value in arguments.items():
            values[self.positions[name]] = value
            if isinstance(value, Tensor):
                key.append((value.data_ptr() % 16, size_class(value)) if self.rows else value.data_ptr() % 16)
        compiled, grid = self.compiled.get(tuple(key)), (programs, second, 1)
        if compiled is not None:  # the launcher ignores arguments that are constants, such as USE_INT64
            compiled[grid](*values)
            return
        sizes = [size_class(value) for value in values if isinstance(value, Tensor)]
        values[self.positions["USE_INT64"]] = 2 in sizes
        compiled = self.kernel[grid](**dict(zip(self.positions, values, strict=True)), **self.options)
        if not INTERPRETED:
            self.compiled[tuple(key)] = compiled


@triton.jit
def trial_kernel(number):
    tl.device_assert(number + tl.program_id(0) >= 0)


def run_trial(device: torch.device) -> None:
    """Compile and launch a kernel without tensors, so that it also runs while ``torch.compile`` traces."""
    with current(device):
        trial_kernel[(1,)](1)
