"""The error for a GPU that the CUDA library was not built for."""

from __future__ import annotations

from .conftest import run_program

PROGRAM = """
#include <cstdio>
#include "common/architectures.h"
int main() { std::puts(dcnzoo::missing_architecture("im2col_kernel", 70, {750, 800, 1200}).c_str()); }
"""


def test_an_architecture_that_is_missing_is_named(tmp_path):
    said = run_program(PROGRAM, tmp_path).strip()
    assert said == (
        "im2col_kernel: this GPU is sm_70, the library was built for sm_75, sm_80, sm_120; rebuild it: "
        "DCNZOO_CUDA_ARCHS=70 pip install -e . --no-build-isolation"
    )
