"""The CPU kernels of every instruction set that this machine supports, not only the best."""

import platform

import pytest

from dcnzoo.ops import cpu_capability

from ..processes import python_with_torch

ARM = platform.machine() in ("aarch64", "arm64")
ALL = ["default", "neon_bf16"] if ARM else ["default", "avx2", "avx512", "avx512_bf16"]
PRINT = "import dcnzoo.ops; print(dcnzoo.ops.cpu_capability())"
TEST = "import os, sys, pytest; os.environ.pop('PYTEST_XDIST_WORKER', 0); sys.exit(pytest.main(sys.argv[1:]))"


@pytest.mark.parametrize("capability", ALL)
def test_suite_passes_under_every_capability(capability):
    if capability == cpu_capability():
        pytest.skip("the whole suite runs under it")
    tried = python_with_torch(PRINT, status=None, DCNZOO_CPU_CAPABILITY=capability)
    if "the best of this machine" in tried.stderr:
        pytest.skip("this machine does not support it")
    assert tried.stdout.strip() == capability, tried.stderr
    chosen = "matches_reference or half_precision or passes or empty_maps or by_hand or of_shapely"
    names = ("ops", "deform_conv", "nms", "not_finite", "rotated_boxes")
    suite = [f"tests/ops/test_{name}.py" for name in names]
    options = ("-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", chosen)
    done = python_with_torch(TEST, *options, *suite, DCNZOO_CPU_CAPABILITY=capability)
    assert " passed" in done.stdout and "failed" not in done.stdout


def test_unknown_capability_lists_the_valid_ones():
    done = python_with_torch(PRINT, status=1, DCNZOO_CPU_CAPABILITY="sse9")
    assert f"DCNZOO_CPU_CAPABILITY: expected {', '.join(ALL[:-1])} or {ALL[-1]}, got sse9" in done.stderr
