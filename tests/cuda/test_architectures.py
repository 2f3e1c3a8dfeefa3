"""The error for a GPU that the CUDA library was not built for."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from .conftest import ROOT

PROGRAM = """
#include <cstdio>
#include "common/architectures.h"
int main() { std::puts(dcnzoo::missing_architecture("im2col_kernel", 70, {750, 800, 1200}).c_str()); }
"""


def test_an_architecture_that_is_missing_is_named(tmp_path):
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None or not (ROOT / "ops").exists():
        pytest.skip("needs the sources and a C++ compiler")
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text(PROGRAM)
    subprocess.run(
        [compiler, "-std=c++17", "-Wall", "-Werror", f"-I{ROOT / 'ops'}", source, "-o", program], check=True
    )
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.strip()
    assert said == (
        "im2col_kernel: this GPU is sm_70, the library was built for sm_75, sm_80, sm_120; rebuild it: "
        "DCNZOO_CUDA_ARCHS=70 pip install -e . --no-build-isolation"
    )
