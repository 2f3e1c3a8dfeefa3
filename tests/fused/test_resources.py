"""Compile every fused kernel for GPUs without having them: no register spills, and it fits."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import dcnzoo

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
from dcnzoo.ops.fused import POINTS, resources
from dcnzoo.ops.fused.configs import Config

pytestmark = pytest.mark.skipif(
    not resources.CUOBJDUMP.exists(), reason=f"no {resources.CUOBJDUMP.name} beside Triton"
)
TABLE = json.loads((Path(dcnzoo.__file__).parent / "ops/fused/configs.json").read_text())
# tensor-core instructions
PRODUCT = {80: "mma.sync", 86: "mma.sync", 89: "mma.sync", 90: "wgmma|mma.sync", 100: "tcgen05.mma|mma.sync"}


MATRIX_KERNELS = [kernel for kernel in resources.KERNELS if kernel != "points"]


def check_fits(found: resources.Resources, architecture: int, config: Config) -> None:
    assert found.stack == 0, f"{found.stack} bytes of a thread are spilled, {found.registers} registers"
    assert 0 < found.registers <= resources.MOST_REGISTERS
    assert found.registers * 32 * config.warps <= resources.REGISTER_FILE
    assert found.shared <= resources.MOST_SHARED[architecture]


def check(architecture: int, kernel: str, dtype: torch.dtype, config: Config) -> None:
    found = resources.compile_for(architecture, kernel, dtype, config)
    check_fits(found, architecture, config)
    assert re.search(PRODUCT[architecture], found.ptx)
    # the input is read 16 bytes at a time, along the channels, and through the L1 cache: cp.async.cg skips it
    assert re.search(r"ld\.global[a-z0-9.:_]*\.v4", found.ptx)
    if kernel == "grad_samples":
        # atomic additions are relaxed, and of four channels at once where the GPU can do that
        vector = r"\.v4" if architecture >= 90 else ""
        assert re.search(rf"(red|atom)\.[a-z.]*relaxed\.[a-z.]*add{vector}\.f32", found.ptx)
    else:
        assert "cp.async" in found.ptx, "the other operand is not copied in advance"


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_sampling_points(architecture):
    found = resources.compile_for(architecture, "points", torch.bfloat16, POINTS, offset_dtype=torch.bfloat16)
    check_fits(found, architecture, POINTS)


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("kernel", MATRIX_KERNELS)
def test_first_choice_does_not_spill(architecture, kernel):
    sizes = TABLE[f"sm_{architecture}"][kernel]["half"][0]
    check(architecture, kernel, torch.bfloat16, Config(*sizes))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PRODUCT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kernel", MATRIX_KERNELS)
def test_the_table_does_not_spill(architecture, dtype, kernel):
    kind = "float32" if dtype == torch.float32 else "half"
    for sizes in TABLE[f"sm_{architecture}"][kernel][kind]:
        check(architecture, kernel, dtype, Config(*sizes))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("kernel", MATRIX_KERNELS)
def test_float32_without_tf32_does_not_spill(architecture, kernel):
    for sizes in TABLE[f"sm_{architecture}"][kernel]["float32"]:
        found = resources.compile_for(architecture, kernel, torch.float32, Config(*sizes), precision="ieee")
        check_fits(found, architecture, Config(*sizes))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", MATRIX_KERNELS)
def test_long_indices_compile(kernel):
    sizes = TABLE["sm_90"][kernel]["half"][-1]
    found = resources.compile_for(90, kernel, torch.bfloat16, Config(*sizes), long_indices=True)
    assert found.shared <= resources.MOST_SHARED[90]
