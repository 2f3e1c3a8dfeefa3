"""The preferred kernels (``DCNZOO_BACKEND``), and whether Triton's run here. The choice: :mod:`._choice`."""

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec

import torch

from . import _library
from ._block_sizes import table

DEVICES = ("CPU", "CUDA", "XPU", "MPS", "PrivateUse1")  # dispatch keys; ROCm's is CUDA
BACKENDS = ("auto", "fused", "compiled", "reference")


def raise_out_of_memory(error: RuntimeError) -> None:
    """Raise ``torch.OutOfMemoryError`` if ``error`` reports that; C++ code on the stable ABI cannot."""
    if re.search(r"(CUDA|HIP|XPU) out of memory", str(error)) and not isinstance(
        error, torch.OutOfMemoryError
    ):
        raise torch.OutOfMemoryError(str(error)) from None


def _valid(name: str) -> str:
    if name not in BACKENDS:
        expected = f"{', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}"
        raise RuntimeError(f"DCNZOO_BACKEND: expected {expected}, got {name!r}")
    return name


backend = _valid(os.environ.get("DCNZOO_BACKEND", "auto"))


def use(name: str) -> None:
    """Switch the GPU operators to another backend, for benchmarks. Does not support ``reference``."""
    global backend
    backend = _valid(name)
    if backend == "fused" and "cuda" in _library.loaded:
        from . import _choice  # not above: it imports this module

        _choice.offer_fused("CUDA")


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Context in which :func:`use` applies, for tests."""
    before = backend
    use(name)
    try:
        yield
    finally:
        use(before)


def interprets() -> bool:
    """Whether Triton's interpreter may run the fused kernels on the CPU."""
    return backend == "fused" and bool(os.environ.get("TRITON_INTERPRET"))


def any_listed() -> bool:
    return any(entry["auto"] for entry in table().values())


@cache
def listed(device: torch.device) -> bool:
    """Whether the table lists fused kernels as faster here. On other GPUs, Triton is not imported."""
    if device.type != "cuda" or torch.version.hip is not None:
        return True  # the module of fused kernels decides
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return bool(table().get(architecture, {}).get("auto"))


@cache
def triton_works(device: torch.device) -> bool:
    """Whether Triton compiles and runs a small kernel here.

    Its driver alone shows too little: Triton needs a C compiler, Python's headers and a folder for its cache,
    and an old one cannot compile for a new GPU.
    """
    if find_spec("triton") is None:
        if backend == "fused":
            warnings.warn("DCNZOO_BACKEND=fused: no Triton; run pip install triton", stacklevel=2)
        return False
    try:
        from .fused import launch

        if device.type == "cpu" and not launch.INTERPRETED:
            return False
        launch.run_trial(device)
    except Exception as error:  # of any type: Triton runs the compiler and loads what it built
        warn_of_triton("a trial kernel", error)
        return False
    return True


def warn_of_triton(kernel: str, error: Exception) -> None:
    text = " ".join(str(error).split())[:400] or type(error).__name__
    warnings.warn(
        f"dcnzoo: Triton does not run {kernel}, so other kernels run: {text}. Triton needs a C compiler "
        "(gcc), Python's headers (python3-dev), a folder for its cache that can be written and is not "
        "damaged (TRITON_CACHE_DIR), and a version for this GPU",
        stacklevel=2,
    )


def tf32() -> bool:
    # The compiled kernels multiply with torch's matmul, so the fused ones follow the same setting.
    return torch.version.hip is None and torch.backends.cuda.matmul.fp32_precision == "tf32"


_implementations = torch.library.Library("dcnzoo", "IMPL")


def override(name: str, kernel: Callable, key: str, with_keyset: bool = False) -> None:
    """Register a kernel without torch's warning that it replaces another one, which is intended here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        _implementations.impl(name, kernel, key, with_keyset=with_keyset)
