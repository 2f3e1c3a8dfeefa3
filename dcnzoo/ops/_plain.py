"""The operators in plain PyTorch, for systems and devices without compiled kernels.

They are much slower, autograd differentiates them, and most invalid arguments raise torch's own messages.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

from torch import Tensor

from . import _backend, _library


def keys() -> list[str]:
    """The dispatch keys of the devices that have no compiled kernels."""
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
    """Run ``function`` as the operator ``dcnzoo::name`` on the devices that have no compiled kernels.

    Args:
        autograd: whether autograd differentiates ``function``.
    """
    for key in keys():

        def kernel(*arguments: object, key: str = key) -> Tensor | tuple[Tensor, ...]:
            _warn(key)
            return function(*arguments)

        _backend.override(name, kernel, key)
        if autograd:
            _backend.override(name, kernel, f"Autograd{key}")
