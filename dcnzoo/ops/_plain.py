"""The operators in plain PyTorch: without compiled kernels, and with ``DCNZOO_BACKEND=reference``.

They are much slower, autograd differentiates them, and most invalid arguments raise torch's own messages.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import _backend, _library, _torchvision


def keys() -> list[str]:
    """The dispatch keys of the devices on which plain PyTorch runs."""
    if _backend.backend == "reference":
        return list(_backend.DEVICES)
    without = [key for key in _backend.DEVICES if key.lower() not in _library.loaded]
    # with DCNZOO_BACKEND=fused, CUDA runs the Triton kernels
    return [key for key in without if key != "CUDA" or _backend.backend != "fused"]


@cache
def _warn(key: str) -> None:
    problems = _library.problems
    why = problems.get(key.lower(), problems.get("cpu", "dcnzoo has them only for CPU and CUDA"))
    warnings.warn(
        f"dcnzoo: no compiled kernels for {key}: {why.rstrip('.')}. Plain PyTorch runs instead, which "
        "is many times slower",
        stacklevel=2,
    )


def register(name: str, function: Callable, *, autograd: bool = True) -> None:
    """Run ``function`` as the operator ``dcnzoo::name`` on the devices of :func:`keys`.

    Where torchvision has a kernel for the device, it runs instead (:mod:`dcnzoo.ops._torchvision`).

    Args:
        autograd: whether autograd differentiates ``function``.
    """
    for key in keys():
        compiled = (
            _backend.compiled_kernel(f"dcnzoo::{name}", key) if key.lower() in _library.loaded else None
        )

        def kernel(
            keyset: object, *arguments: object, key: str = key, compiled: Any = compiled
        ) -> Tensor | tuple[Tensor, ...]:
            if compiled is None:
                if (result := _torchvision.run(name, key, arguments)) is not None:
                    return result
                _warn(key)
            else:  # DCNZOO_BACKEND=reference: the compiled kernel checks the arguments
                with torch.no_grad():
                    compiled.call_boxed(keyset, *arguments)
            return function(*arguments)

        _backend.override(name, kernel, key, with_keyset=True)
        if autograd:
            _backend.override(name, kernel, f"Autograd{key}", with_keyset=True)
