"""The file of the compiled CUDA library: no kernel of any architecture spills registers."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")  # has a cuobjdump
from tests.fused.resources import CUOBJDUMP, LIBRARY, library_usage

MOST_REGISTERS = 255  # per thread, on every architecture since sm_35


def test_no_kernel_spills():
    if not LIBRARY.exists():
        pytest.skip("no CUDA library: built without nvcc, or with DCNZOO_CUDA=0")
    if CUOBJDUMP is None:
        pytest.skip("no cuobjdump: neither the CUDA toolkit's nor Triton's")
    kernels = library_usage()
    first = next(iter(kernels.values()))
    for name in ("im2col", "aggregat", "nms", "roi_align", "rotated", "deform_roi_pool"):
        assert any(name in kernel for kernel in first), f"{name} is not in the library"
    for architecture, used in kernels.items():
        assert used.keys() == first.keys(), f"{architecture} has other kernels than {next(iter(kernels))}"
        for kernel, (registers, spilled, _) in used.items():
            assert 0 < registers <= MOST_REGISTERS, f"{architecture}, {kernel}: {registers} registers"
            assert spilled == 0, f"{architecture}, {kernel}: {spilled} bytes not in registers"
