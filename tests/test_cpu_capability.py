"""The CPU kernels of every instruction set that this machine supports, not only the best."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dcnzoo.ops import cpu_capability

ROOT = Path(__file__).parent.parent
ARM = platform.machine() in ("aarch64", "arm64")
ALL = ["default", "neon_bf16"] if ARM else ["default", "avx2", "avx512", "avx512_bf16"]
PRINT = "import dcnzoo.ops; print(dcnzoo.ops.cpu_capability())"


def run(capability: str, *arguments: str) -> subprocess.CompletedProcess:
    # chosen once per process, hence the subprocess
    environment = {**os.environ, "DCNZOO_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


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


def test_unknown_capability_lists_the_valid_ones():
    done = run("sse9", "-c", PRINT)
    assert done.returncode != 0
    assert f"DCNZOO_CPU_CAPABILITY: expected {', '.join(ALL[:-1])} or {ALL[-1]}, got sse9" in done.stderr
