"""Every launch of the fused kernels, compiled for GPUs that are not there: it fits and spills nothing."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch

from .conftest import ROOT

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
sys.path.append(str(ROOT / "tools" / "benchmark"))
import fused_resources
from fused_resources import KERNELS, VARIANTS

pytestmark = pytest.mark.skipif(not fused_resources.CUOBJDUMP.exists(), reason="no cuobjdump beside Triton")


def check(architecture: int, kernel: str, variant: fused_resources.Variant, every: bool) -> None:
    configs = fused_resources.configurations(architecture, kernel, variant)
    for config in configs if every else configs[:1]:
        found = fused_resources.largest(architecture, kernel, config, variant)
        what = f"sm_{architecture}, {kernel}, {variant}, {tuple(config)}"
        assert found.spilled == 0, f"{what}: {found.spilled} bytes of a thread are spilled"
        assert 0 < found.registers * 32 * config.warps <= fused_resources.REGISTER_FILE, what
        assert 0 < found.shared <= fused_resources.MOST_SHARED[architecture], what


def test_launches_are_those_of_a_call():
    """The types, the block sizes and the precision reach the kernel as the call sets them."""
    variant = fused_resources.Variant(torch.float16, torch.float32, tf32=False)
    config = fused_resources.configurations(90, "forward", variant)[0]
    launches = fused_resources.launches_of("forward", config, variant)
    launch = next(each for each in launches if "output" in each.arguments)
    assert launch.arguments["input"].dtype == launch.arguments["output"].dtype == torch.float16
    offsets = [each.arguments["offset"] for each in launches if "offset" in each.arguments]
    assert offsets and all(offset.dtype == torch.float32 for offset in offsets)
    assert launch.options["num_warps"] == config.warps and launch.options["num_stages"] == config.stages
    assert "ieee" in launch.arguments.values()


@pytest.mark.parametrize("kernel", KERNELS)
def test_half_offsets_on_hopper(kernel):
    check(90, kernel, VARIANTS[0], every=False)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", fused_resources.MOST_SHARED)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_table(architecture, kernel, variant):
    check(architecture, kernel, variant, every=True)
