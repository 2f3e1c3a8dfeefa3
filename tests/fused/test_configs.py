"""The committed table of block sizes, and what is chosen from it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from dcnzoo.ops.fused import configs
from dcnzoo.ops.fused.configs import Config

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")
KERNELS = ("forward", "grad_weight", "grad_samples")


@pytest.mark.parametrize("target", [*ARCHITECTURES, "default", "interpreter"])
def test_entries_are_whole(target):
    entry = configs.table()[target]
    assert entry["source"] and entry["auto_reason"]
    assert set(entry["auto"]) <= {"float32", "float16", "bfloat16"}
    for kernel in KERNELS:
        for kind in ("half", "float32"):
            found = [Config(*sizes) for sizes in entry[kernel][kind]]
            assert found
            for config in found:
                sizes = (config.BM, config.BN, config.BK)
                assert all(16 <= size <= 256 and size & (size - 1) == 0 for size in sizes)
                assert config.warps in (4, 8) and 1 <= config.stages <= 4
            areas = [config.BM * config.BN * config.BK for config in found]
            assert areas == sorted(areas, reverse=True), "from large to small"


def test_unknown_architectures_have_what_runs_everywhere():
    assert configs.entry_of("gfx942") is configs.table()["default"]
    small = {kernel: configs.table()["sm_86"][kernel] for kernel in KERNELS}
    assert {kernel: configs.table()["default"][kernel] for kernel in KERNELS} == small


def test_the_first_that_makes_enough_programs(monkeypatch):
    listed = [[128, 128, 32, 8, 3], [64, 128, 32, 4, 3], [64, 64, 32, 4, 3]]
    monkeypatch.setattr(configs, "table", lambda: {"sm_90": {"forward": {"half": listed}}})

    def chosen(pixels: int, widths: tuple[int, int]) -> Config:
        return configs.choose("sm_90", "forward", torch.bfloat16, widths, lambda c: pixels // c.BM)

    assert chosen(128 * 264, (256, 256)) == Config(*listed[0])
    assert chosen(128 * 264 - 1, (256, 256)) == Config(*listed[1])
    assert chosen(64 * 264 - 1, (256, 256)) == Config(*listed[2])
    assert chosen(128 * 264, (64, 256)) == Config(*listed[2]), "a block wider than all channels is not full"
    assert chosen(1, (16, 16)) == Config(*listed[2])
