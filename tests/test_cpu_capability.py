"""The CPU kernels of every instruction set that this machine supports, not only the best."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dcnzoo.ops import _library, cpu_capability

ROOT = Path(__file__).parent.parent
LIBRARY = str(_library.loaded["cpu"])
ARM = platform.machine() in ("aarch64", "arm64")
ALL = ["default", "neon_bf16"] if ARM else ["default", "avx2", "avx512", "avx512_bf16"]
PRINT = "import dcnzoo.ops; print(dcnzoo.ops.cpu_capability())"
# The instruction of the GEMM micro-kernel and its number of sums, which must stay in registers. (With SSE and
# AVX512-BF16, GCC also stores some of them.)
MICRO_KERNELS = (
    {"default": (r"fmla\s+v\d+\.4s", 24), "neon_bf16": (r"bfdot\s+v\d+\.4s", 24)}
    if ARM
    else {"avx2": (r"vfmadd\w+ps\s.*ymm", 12), "avx512": (r"vfmadd\w+ps\s.*zmm", 24)}
)


def run(capability: str, *arguments: str) -> subprocess.CompletedProcess:
    # chosen once per process, hence the subprocess
    environment = {**os.environ, "DCNZOO_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def tool(name: str, *arguments: str) -> str:
    """Run a program of binutils; under emulation, the one for this machine's code."""
    program = shutil.which(f"{platform.machine()}-linux-gnu-{name}") or name
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("capability", ALL)
def test_suite_passes_under_every_capability(capability):
    if capability == cpu_capability():
        pytest.skip("the whole suite runs under it")
    tried = run(capability, "-c", PRINT)
    if "the best of this machine" in tried.stderr:
        pytest.skip("this machine does not support it")
    assert tried.stdout.strip() == capability, tried.stderr
    chosen = "matches_reference or half_precision or passes or empty_maps or by_hand or of_shapely"
    names = ("ops", "deform_conv", "nms", "not_finite", "rotated_boxes")
    suite = [f"tests/test_{name}.py" for name in names]
    done = run(
        capability, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", chosen, *suite
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and "failed" not in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="objdump of Linux")
@pytest.mark.parametrize("capability", MICRO_KERNELS)
def test_micro_kernel_keeps_its_sums_in_registers(capability):
    instruction, sums = MICRO_KERNELS[capability]
    stored = "t" if capability.endswith("bf16") else "f"  # uint16_t or float
    kernel = re.compile(rf"\d+cpu_{capability.upper()}12micro_kernelIf{stored}Li{sums // 2}ELi2E\w*")
    names = set(kernel.findall(tool("nm", LIBRARY)))
    assert len(names) >= 3  # forward, and both products of the backward
    for name in names:
        code = tool("objdump", "--disassemble=_ZN6dcnzoo" + name, LIBRARY)
        count = len(re.findall(instruction, code))  # compilers make several versions of the loop
        assert count > 0 and count % sums == 0, name
        assert not re.search(r"\bq\d+, .*\[sp|[yz]mm\d+,.*%rsp|%rsp.*[yz]mm", code), code


def test_capability_is_the_one_asked_for():
    assert run("default", "-c", PRINT).stdout.strip() == "default"


def test_unknown_capability_lists_the_valid_ones():
    done = run("sse9", "-c", PRINT)
    assert done.returncode != 0
    assert f"DCNZOO_CPU_CAPABILITY: expected {', '.join(ALL[:-1])} or {ALL[-1]}, got sse9" in done.stderr
