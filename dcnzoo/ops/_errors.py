"""The type of torch's errors, which C++ code on the stable ABI cannot throw: there all are RuntimeError."""

from __future__ import annotations

import re

import torch

_OUT_OF_MEMORY = re.compile(r"(CUDA|HIP|XPU) out of memory")


def raise_out_of_memory(error: RuntimeError) -> None:
    """Raises ``torch.OutOfMemoryError`` in the place of an error that says so; else returns."""
    if _OUT_OF_MEMORY.search(str(error)) and not isinstance(error, torch.OutOfMemoryError):
        raise torch.OutOfMemoryError(str(error)) from None
