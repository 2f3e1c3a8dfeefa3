"""The file of the compiled CUDA library: no kernel of any architecture spills registers."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

import dcnzoo

LIBRARY = Path(dcnzoo.__file__).parent / "ops" / "_C_cuda.so"
MOST_REGISTERS = 255  # per thread, on every architecture since sm_35
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


def cuobjdump() -> str | None:
    """The cuobjdump of the CUDA toolkit, or else of Triton."""
    triton = find_spec("triton")
    beside = Path(triton.origin).parent / "backends" / "nvidia" / "bin" if triton else Path()
    return shutil.which("cuobjdump") or shutil.which(beside / "cuobjdump")


def test_no_kernel_spills():
    if not LIBRARY.exists():
        pytest.skip("no CUDA library: built without nvcc, or with DCNZOO_CUDA=0")
    if cuobjdump() is None:
        pytest.skip("no cuobjdump: neither the CUDA toolkit's nor Triton's")
    found = subprocess.run(
        [cuobjdump(), "--dump-resource-usage", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    kernels: dict[str, dict[str, tuple[int, ...]]] = {}
    for architecture, part in re.findall(r"arch = (sm_\w+)\n(.*?)(?=\nFatbin|\Z)", found, re.DOTALL):
        used = {name: tuple(map(int, numbers)) for name, *numbers in USAGE.findall(part)}
        if used:  # the CUDA runtime contains code without kernels, for other architectures
            kernels.setdefault(architecture, {}).update(used)
    first = next(iter(kernels.values()))
    for name in ("im2col", "aggregat", "nms", "roi_align", "rotated", "deform_roi_pool"):
        assert any(name in kernel for kernel in first), f"{name} is not in the library"
    for architecture, used in kernels.items():
        assert used.keys() == first.keys(), f"{architecture} has other kernels than {next(iter(kernels))}"
        for kernel, (registers, stack, local) in used.items():
            assert 0 < registers <= MOST_REGISTERS, f"{architecture}, {kernel}: {registers} registers"
            assert stack == local == 0, f"{architecture}, {kernel}: {stack + local} bytes not in registers"
