"""The file of the compiled CUDA library: no kernel of any architecture spills registers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import dcnzoo

from .conftest import ROOT

sys.path.append(str(ROOT / "tools" / "benchmark"))
from cuda_resources import cuobjdump, resources

LIBRARY = Path(dcnzoo.__file__).parent / "ops" / "_C_cuda.so"
MOST_REGISTERS = 255  # per thread, on every architecture since sm_35


def test_no_kernel_spills():
    if not LIBRARY.exists():
        pytest.skip("no CUDA library: built without nvcc, or with DCNZOO_CUDA=0")
    if cuobjdump() is None:
        pytest.skip("no cuobjdump: neither the CUDA toolkit's nor Triton's")
    kernels = resources(LIBRARY)
    first = next(iter(kernels.values()))
    for name in ("im2col", "aggregat", "nms", "roi_align", "rotated", "deform_roi_pool"):
        assert any(name in kernel for kernel in first), f"{name} is not in the library"
    for architecture, used in kernels.items():
        assert used.keys() == first.keys(), f"{architecture} has other kernels than {next(iter(kernels))}"
        for kernel, (registers, spilled, _) in used.items():
            assert 0 < registers <= MOST_REGISTERS, f"{architecture}, {kernel}: {registers} registers"
            assert spilled == 0, f"{architecture}, {kernel}: {spilled} bytes not in registers"
