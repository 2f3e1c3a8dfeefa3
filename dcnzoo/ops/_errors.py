"""torch's own exception types: C++ code on the stable ABI can only throw RuntimeError."""

from __future__ import annotations

import re

import torch

_OUT_OF_MEMORY = re.compile(r"(CUDA|HIP|XPU) out of memory")


def raise_out_of_memory(error: RuntimeError) -> None:
    """Raise ``torch.OutOfMemoryError`` if the message of ``error`` reports that; otherwise return."""
    if _OUT_OF_MEMORY.search(str(error)) and not isinstance(error, torch.OutOfMemoryError):
        raise torch.OutOfMemoryError(str(error)) from None
