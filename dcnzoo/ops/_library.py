"""Loads the compiled libraries ``_C_cpu.so`` and ``_C_cuda13.so`` (CUDA 13) from the folder of this file.

On Windows, the first is ``_C_cpu.dll``. If it does not load, this module defines the operators, and plain
PyTorch runs them.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..version import __version__

_FOLDER = Path(__file__).parent
_SCHEMAS = _FOLDER / "schemas.txt"  # written by setup.py
_SUFFIX = ".dll" if os.name == "nt" else ".so"
_BUILD = "The wheels for a platform have it; in a clone of dcnzoo, `make setup` builds it."

loaded: dict[str, Path] = {}  # device -> the library that was loaded
kernels: dict[str, dict[str, Any]] = {}  # device -> name of an operator -> its compiled kernel
problems: dict[str, str] = {}  # device -> why its library was not loaded
_definitions: torch.library.Library | None = None  # of the operators, if the CPU library does not load


def _schemas() -> list[str]:
    if not _SCHEMAS.exists():  # an empty list would leave exports without operators
        raise FileNotFoundError(f"{_SCHEMAS.name} is not in {_FOLDER}. {_BUILD}")
    return _SCHEMAS.read_text(encoding="utf-8").splitlines()


def names() -> list[str]:
    """Return the operators' names without ``dcnzoo::``; those of backwards begin with an underscore."""
    return [schema.partition("(")[0] for schema in _schemas()]


def _load(device: str, path: Path) -> None:
    if not path.exists():
        problems[device] = f"{path.name} is not in {path.parent}. {_BUILD}"
        return
    try:
        torch.ops.load_library(path)
    except OSError as error:
        problems[device] = f"{path.name} does not load: {error}. {_BUILD}"
        return
    loaded[device] = path
    kernels[device] = dict(_compiled_kernels(device))


def _compiled_kernels(device: str) -> Iterator[tuple[str, Any]]:
    """Yield each operator with its kernel, before a kernel in Python replaces it in torch's table."""
    for name in names():
        with contextlib.suppress(RuntimeError):  # the operator has none for this device
            yield name, torch.library.get_kernel(f"dcnzoo::{name}", device.upper())


def _load_cuda(cuda: str) -> None:
    """Load the newest library that was built for the CUDA of torch (``"13.0"``) or for an earlier one.

    A library of a later version would need a newer driver than torch does.
    """
    libraries = {int(path.stem.removeprefix("_C_cuda")): path for path in _FOLDER.glob("_C_cuda[0-9]*.so")}
    major = int(cuda.partition(".")[0])
    fitting = [version for version in libraries if version <= major]
    if libraries and not fitting:
        problems["cuda"] = f"it was built for CUDA {min(libraries)}, and this torch for CUDA {cuda}"
    else:
        _load("cuda", libraries[max(fitting)] if fitting else _FOLDER / f"_C_cuda{major}.so")


_load("cpu", _FOLDER / f"_C_cpu{_SUFFIX}")
if "cpu" in loaded:
    # The CPU library defines the schemas, the CUDA library only has kernels. The CUDA library needs
    # libtorch_cuda, which only a CUDA build of torch loads.
    if torch.version.hip is not None:
        problems["cuda"] = "this torch is a ROCm build, and dcnzoo has compiled kernels only for CPU and CUDA"
    elif torch.version.cuda is None:
        problems["cuda"] = "this torch is a CPU build"
    elif os.environ.get("DCNZOO_CUDA") == "0":
        problems["cuda"] = "DCNZOO_CUDA=0 leaves them out"
    else:
        _load_cuda(torch.version.cuda)
elif _SCHEMAS.exists():
    _definitions = torch.library.Library("dcnzoo", "FRAGMENT")
    for _schema in _schemas():
        _definitions.define(_schema)


implementations = torch.library.Library("dcnzoo", "IMPL")  # the kernels in Python


def _revision() -> str:
    """Return the version, and a checksum of the operators' Python files and libraries."""
    digest = hashlib.sha256()
    for path in sorted([*_FOLDER.rglob("*.py"), *loaded.values()]):
        digest.update(path.read_bytes())
    return f"dcnzoo {__version__} {digest.hexdigest()[:16]}"


# torch caches compiled code on disk, with the operators' names in the key. The code contains the derivatives
# that dcnzoo registers: with the same key, code of the old version would run after an upgrade.
torch.compiler.config.cache_key_tag += _revision()


def has_ops() -> bool:
    """Return whether the compiled operators are loaded."""
    return "cpu" in loaded


def is_defined() -> bool:
    """Return whether the operators can be called, compiled or not."""
    return has_ops() or _definitions is not None


def with_cuda() -> bool:
    """Return whether the compiled CUDA kernels are loaded and torch finds a GPU."""
    return "cuda" in loaded and torch.cuda.is_available()


def cpu_capability() -> str:
    """Return the instruction set that the CPU kernels use.

    On x86-64 ``default``, ``avx2``, ``avx512``, ``avx512_bf16`` or ``amx_bf16``, on Arm ``default`` or
    ``neon_bf16``. ``none`` without compiled operators.
    """
    return torch.ops.dcnzoo._cpu_capability() if has_ops() else "none"
