"""The CPU kernels of every instruction set that this machine supports, not only the best."""

import platform
import re

import pytest

from dcnzoo.ops import cpu_capability
from tests.helpers.processes import python_with_torch

ARM = platform.machine() in ("aarch64", "arm64")
ALL = ["default", "neon_bf16"] if ARM else ["default", "avx2", "avx512", "avx512_bf16", "amx_bf16"]
PRINT = "import dcnzoo.ops; print(dcnzoo.ops.cpu_capability())"
TEST = "import os, sys, pytest; os.environ.pop('PYTEST_XDIST_WORKER', 0); sys.exit(pytest.main(sys.argv[1:]))"
# files of tests, and pytest's -k; AMX has its own kernels only for convolutions of bfloat16
SUITE = ("ops", "deform_conv", "deform_attn", "nms", "not_finite")
CHOSEN = "matches_reference or half_precision or passes or empty_maps or by_hand or rounded"
LARGE = """
import torch
from dcnzoo.ops import deform_conv2d
input, weight = torch.rand(1, 3, 820, 820).double(), torch.rand(2, 3, 1, 1).double()
output = deform_conv2d(input, weight, torch.zeros(1, 2, 820, 820).double())
torch.testing.assert_close(output, torch.nn.functional.conv2d(input, weight))
print("equal")
"""
SUITE_OF_AMX = ("ops", "deform_conv", "deform_attn", "not_finite")
CHOSEN_OF_AMX = "bfloat16 or share_blocks or (half and deform_conv)"


# all other tests run with the best instruction set; most CPUs have AVX2
@pytest.mark.parametrize(
    "capability",
    [pytest.param(c, marks=[] if c in ("avx2", "neon_bf16") else pytest.mark.slow) for c in ALL],
)
def test_suite_passes_under_every_capability(capability):
    if capability == cpu_capability():
        pytest.skip("the whole suite runs under it")
    tried = python_with_torch(PRINT, status=None, DCNZOO_CPU_CAPABILITY=capability)
    if "DCNZOO_CPU_CAPABILITY: expected" in tried.stderr:
        pytest.skip("this machine or the compiler does not support it")
    assert tried.stdout.strip() == capability, tried.stderr
    names, chosen = (SUITE_OF_AMX, CHOSEN_OF_AMX) if capability.startswith("amx") else (SUITE, CHOSEN)
    suite = [f"tests/ops/test_{name}.py" for name in names]
    options = ("-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", chosen)
    done = python_with_torch(TEST, *options, *suite, DCNZOO_CPU_CAPABILITY=capability)
    assert " passed" in done.stdout and "failed" not in done.stdout
    assert f"cpu capability: {capability}\n" in done.stdout


def test_a_block_has_all_channels_of_a_point():
    """The three channels of a large map share their points, and are more than the vector's two doubles."""
    assert "equal" in python_with_torch(LARGE, DCNZOO_CPU_CAPABILITY="default").stdout


def test_unknown_capability_lists_the_valid_ones():
    done = python_with_torch(PRINT, status=1, DCNZOO_CPU_CAPABILITY="sse9")
    listed = re.search("DCNZOO_CPU_CAPABILITY: expected (.*), got sse9", done.stderr)[1]
    assert re.split(", | or ", listed) in (ALL, ALL[:-1])  # not every compiler supports the last one
