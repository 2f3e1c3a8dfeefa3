"""Comparisons with mmcv's compiled operators. They run if those are installed: ``make peers``.

The end of a run reports in how many cases each function of ``mmcv._ext`` was compared.
"""

import ctypes
import functools
import importlib
import os
import re
import shutil
import subprocess
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dcnzoo.compat.mmcv import EXTENSION, STAND_IN, _ext

ENOUGH = 200
CASES = defaultdict(set)  # function of dcnzoo's replacement for ``mmcv._ext``: tests that called it


def pytest_collection_modifyitems(items):
    compiled = find_spec("mmcv") and find_spec(EXTENSION).origin != str(STAND_IN)
    for item in items:
        if "peers" in item.path.parts:
            item.add_marker(pytest.mark.peers)
            if not compiled:
                item.add_marker(pytest.mark.skip("mmcv is not compiled here"))


def provided():
    """The functions of ``mmcv._ext`` that mmcv.ops loads and dcnzoo provides, without version functions."""
    for path in (Path(find_spec("mmcv").origin).parent / "ops").glob("*.py"):
        for names in re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", path.read_text(), re.DOTALL):
            for name in re.findall(r"'(\w+)'", names):
                if not name.startswith("get_comp") and not hasattr(getattr(_ext, name), "instead"):
                    yield name


@pytest.fixture(scope="session", autouse=True)
def counted():
    """Record the tests that call each function of the replacement, by pytest's PYTEST_CURRENT_TEST."""

    def noting(name, function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            CASES[name].add(os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0])
            return function(*args, **kwargs)

        return wrapper

    for name in provided():
        setattr(_ext, name, noting(name, getattr(_ext, name)))


def pytest_terminal_summary(terminalreporter):
    if CASES:
        counts = {name: len(CASES[name]) for name in sorted(provided())}
        told = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        few = ", ".join(name for name, count in counts.items() if count < ENOUGH) or "none"
        terminalreporter.write_line(f"cases compared with mmcv's operators: {told}")
        terminalreporter.write_line(f"in fewer than {ENOUGH}: {few}")


EMULATION = Path(__file__).parents[1] / "cuda" / "emulation"
POINTER, WHOLE = ctypes.c_void_p, ctypes.c_int
KINDS = {torch.Tensor: lambda t: POINTER(t.data_ptr()), float: ctypes.c_double, int: WHOLE, bool: WHOLE}
LAUNCHER = """
template <class T> using Wide = std::conditional_t<std::is_same_v<T, float>, double, T>;
template <auto> struct Launcher;
template <class... T, void (*kKernel)(T...)> struct Launcher<kKernel> {
  static void run(int batch, int channels, int threads, int rows, Wide<T>... values) {
    for (int b = 0; b < batch; ++b)
      for (int c = 0; c < channels; ++c)
        emulate(1, dim3(threads, rows), [=] { blockIdx = dim3(0, c, b); kKernel(T(values)...); });
  }
};
"""


@pytest.fixture(scope="session")
def compile_kernels(tmp_path_factory):
    """mmcv's CUDA kernels, whose source is in its package, on host threads.

    Takes the kernels' names and their files. Returns a function that takes a kernel's name and its arguments:
    tensors, float (as double) and int. ``grid`` is the number of blocks, ``threads`` the threads per block.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")

    def compiled(kernels, *files):
        folder = tmp_path_factory.mktemp("mmcv_kernels")
        includes = ["cfloat", "cmath", "type_traits", "cuda_runtime.h"]
        lines = [f"#include <{name}>" for name in includes]
        lines += ["using std::abs, std::isinf, std::isnan, std::max;", "#define __forceinline__ inline"]
        lines += [f'#include "{name}.cuh"' for name in files] + [LAUNCHER]
        lines += [f'extern "C" {{ auto* {name} = &Launcher<{k}>::run; }}' for name, k in kernels.items()]
        (folder / "kernels.cpp").write_text("\n".join(lines))
        (folder / "pytorch_cuda_helper.hpp").write_text('#include "common_cuda_helper.hpp"\n')  # no torch
        (folder / "cuda.h").write_text("")
        sources = Path(importlib.import_module("mmcv").__file__).parent / "ops/csrc/common/cuda"
        paths = [f"-I{path}" for path in (folder, EMULATION, sources)]
        library = folder / "kernels.so"
        flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-w"]
        subprocess.run([compiler, *flags, *paths, folder / "kernels.cpp", "-o", library], check=True)
        library = ctypes.CDLL(library)

        def launch(name, *values, grid=(1, 1), threads=(4, 1)):
            function = ctypes.CFUNCTYPE(None)(POINTER.in_dll(library, name).value)
            function(*map(WHOLE, (*grid, *threads)), *(KINDS[type(value)](value) for value in values))

        return launch

    return compiled
