"""The committed table of block sizes, and the choices from it."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from dcnzoo.ops.fused import available
from dcnzoo.ops.fused import deform_conv as fused

KERNELS = ("forward", "grad_weight", "grad_samples")


@pytest.mark.parametrize(
    ("architecture", "entry"),
    [("sm_90", "sm_90"), ("sm_87", "default"), ("gfx942", "gfx9"), ("gfx1201", "gfx12")],
)
def test_an_architecture_has_the_entry_of_its_family(architecture, entry):
    assert available.entry_of(architecture) is available.table()[entry]


def test_unknown_architectures_have_what_runs_everywhere():
    small = {kernel: available.table()["sm_86"][kernel] for kernel in KERNELS}
    assert {kernel: available.table()["default"][kernel] for kernel in KERNELS} == small


def test_the_cheapest_and_of_equals_the_first(monkeypatch):
    listed = [[128, 256, 64, 8, 3], [128, 128, 64, 8, 3], [64, 128, 64, 4, 3]]
    monkeypatch.setattr(available, "table", lambda: {"sm_90": {"forward": {"half": listed}}})

    def chosen(cost) -> list[int]:
        return list(fused.choose("sm_90", "forward", torch.bfloat16, cost))

    assert chosen(lambda c: c.BLOCK_M) == listed[2]
    assert chosen(lambda c: c.BLOCK_N) == listed[1]


@pytest.mark.parametrize("name", ["deform_conv", "_deform_conv_backward"])
@pytest.mark.parametrize(
    ("capability", "size", "faster"),
    [((9, 0), 200, True), ((9, 0), 20, False), ((8, 0), 200, False), ((7, 5), 200, False)],
)
def test_faster_only_where_measured(monkeypatch, name, capability, size, faster):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(available, "architecture", available.architecture.__wrapped__)  # not cached
    input = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16)
    fields = {"offset": torch.empty(2, 18, size, size, device="meta"), "mask": None}
    assert available.is_faster(name, SimpleNamespace(input=input, **fields)) is faster
    assert not available.is_faster(name, SimpleNamespace(input=input, offset=None, mask=None))
