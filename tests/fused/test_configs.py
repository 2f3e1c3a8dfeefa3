"""The committed table of block sizes, and the choices from it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from dcnzoo.ops.fused import configs
from dcnzoo.ops.fused.configs import Config

KERNELS = ("forward", "grad_weight", "grad_samples")


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
