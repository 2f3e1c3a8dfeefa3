"""Comparisons with mmcv's compiled operators. They run where those are installed: ``make peers``."""

import ctypes
import importlib
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dcnzoo.compat.mmcv import EXTENSION, STAND_IN


def pytest_collection_modifyitems(items):
    compiled = find_spec("mmcv") and find_spec(EXTENSION).origin != str(STAND_IN)
    for item in items:
        if "peers" in item.path.parts:
            item.add_marker(pytest.mark.peers)
            if not compiled:
                item.add_marker(pytest.mark.skip("mmcv is not compiled here"))


EMULATION = Path(__file__).parents[1] / "cuda" / "emulation"
POINTER, WHOLE = ctypes.c_void_p, ctypes.c_int
KINDS = {torch.Tensor: lambda t: POINTER(t.data_ptr()), float: ctypes.c_double, int: WHOLE, bool: WHOLE}


@pytest.fixture(scope="session")
def compile_kernels(tmp_path_factory):
    """mmcv's CUDA kernels, whose source its package brings, on threads of the host.

    Of a wrapper of ``extern "C"`` functions and the names of the kernels' files a function: of the
    wrapper's function's name and its arguments, tensors, float (as double) and int.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")

    def compiled(wrapper, *names):
        folder = tmp_path_factory.mktemp("mmcv_kernels")
        first = ["#include <cfloat>", "#include <cmath>", "#include <cuda_runtime.h>", "using std::max;"]
        include = [f'#include "{name}_cuda_kernel.cuh"' for name in names]
        (folder / "wrapper.cpp").write_text("\n".join([*first, *include, wrapper]))
        (folder / "pytorch_cuda_helper.hpp").write_text('#include "common_cuda_helper.hpp"\n')  # no torch
        (folder / "cuda.h").write_text("")
        sources = Path(importlib.import_module("mmcv").__file__).parent / "ops/csrc/common/cuda"
        paths = [f"-I{path}" for path in (folder, EMULATION, sources)]
        library = folder / "kernels.so"
        flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-w"]
        subprocess.run([compiler, *flags, *paths, folder / "wrapper.cpp", "-o", library], check=True)
        library = ctypes.CDLL(library)
        return lambda name, *values: library[name](*(KINDS[type(value)](value) for value in values))

    return compiled
