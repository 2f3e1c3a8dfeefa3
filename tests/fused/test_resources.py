"""Every launch of the fused kernels, compiled for GPUs that are not there: it fits and spills nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")
from dcnzoo.ops.fused.configs import Config

from . import resources
from .resources import KERNELS, MOST_SHARED, VARIANTS, Launch, Variant, compile_for

pytestmark = pytest.mark.skipif(resources.CUOBJDUMP is None, reason="no cuobjdump beside Triton")


def is_points(launch: Launch) -> bool:
    """Whether it computes the sampling points, the first launch of a call."""
    return "BLOCK_N" not in launch.kernel.arg_names


def check(architecture: int, kernel: str, variant: Variant, config: Config) -> None:
    for launch in resources.launches_of(kernel, config, variant):
        usage = compile_for(architecture, launch)
        what = f"sm_{architecture}, {kernel}, {variant}, {tuple(config)}"
        assert usage.spilled == 0, f"{what}: {usage.spilled} bytes of a thread are spilled"
        warps = launch.options.get("num_warps", 4)
        assert 0 < usage.registers * 32 * warps <= resources.REGISTER_FILE, what
        assert usage.shared <= MOST_SHARED[architecture], what
        if not is_points(launch):
            assert usage.shared > 0


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("kernel", KERNELS)
def test_first_choice(architecture, kernel):
    check(
        architecture,
        kernel,
        VARIANTS[0],
        resources.configurations(architecture, kernel, VARIANTS[0])[0],
    )


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MOST_SHARED)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_table(architecture, kernel, variant):
    for config in resources.configurations(architecture, kernel, variant):
        check(architecture, kernel, variant, config)
