"""Whether a program is traced or exported, and whether values can be read. For layers and exports, too."""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ._torch_private import transforms_active as transforms_active


def is_traced(value: object) -> bool:
    """Return whether ``value`` is a proxy of ``torch.fx.symbolic_trace``, which has nothing to check."""
    return isinstance(value, Proxy)


def exporting() -> bool:
    """Return whether ``torch.export``, ``torch.onnx.export`` or ``torch.jit.trace`` records a program.

    False under ``torch.compile``, which runs the program in this process.
    """
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


def sizes_are_numbers(call: Any) -> bool:
    """Return whether sizes are numbers, not symbols of ``torch.compile`` or ``torch.export``."""
    symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)
    sizes = (a.shape if isinstance(a, Tensor) else a if isinstance(a, list) else [a] for a in call)
    return not any(isinstance(size, symbols) for size in itertools.chain(*sizes))


def can_read(tensor: Any) -> bool:
    """Return whether Python may read a tensor's values and store results.

    Reading a value on a GPU waits until the GPU has finished.
    A traced, fake or meta tensor has no values. In a ``torch.func`` transform, they are invalid after it.
    """
    if torch.compiler.is_compiling() or exporting() or transforms_active() or not isinstance(tensor, Tensor):
        return False
    return not (tensor.is_meta or hasattr(tensor, "fake_mode") or get_proxy_mode())
