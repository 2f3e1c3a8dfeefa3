"""dcnv4: the layout of offset_mask. The arithmetic is that of dcnv3."""

from __future__ import annotations

import pytest
import torch

from dcnzoo.ops import dcnv3, dcnv4

from .op_cases import dcnv3 as dcnv3_cases
from .op_cases import dcnv4 as cases


@pytest.mark.parametrize("remove_center", [False, True])
@pytest.mark.parametrize("group", [1, 2, 5])
def test_is_dcnv3_with_the_fields_of_a_group_side_by_side(group, remove_center):
    sample = dcnv3_cases.make("layout", kernel_size=3, group=group, remove_center=remove_center)
    input, offset, mask = sample.tensors
    points = 9 - remove_center
    fields = torch.full((*offset.shape[:3], -(-group * points * 3 // 8) * 8), float("nan"), dtype=input.dtype)
    for g in range(group):  # channel by channel
        for p in range(points):
            fields[..., g * 3 * points + 2 * p] = offset[..., (g * points + p) * 2]
            fields[..., g * 3 * points + 2 * p + 1] = offset[..., (g * points + p) * 2 + 1]
            fields[..., g * 3 * points + 2 * points + p] = mask[..., g * points + p]
    assert torch.equal(dcnv4(input, fields, **sample.kwargs), dcnv3(*sample.tensors, **sample.kwargs))


def test_padding_has_a_gradient_of_zero():
    sample = cases.packed(dcnv3_cases.make("padding", kernel_size=3, group=3)).leaves()
    cases.call(sample).sum().backward()
    gradient = sample.tensors[1].grad
    assert gradient.shape[3] == 88 and (gradient[..., 81:] == 0).all()
    assert (gradient[..., :81] != 0).any(dim=(0, 1, 2)).all()


def test_bfloat16_backward_is_rounded_once():
    sample = cases.packed(dcnv3_cases.make("half", kernel_size=3, group_channels=16)).to(torch.bfloat16)
    exact, mine = sample.to(torch.float64).leaves(), sample.leaves()
    cases.reference(exact).sum().backward()
    cases.call(mine).sum().backward()
    for tensor, true in zip(mine.tensors, exact.tensors, strict=True):
        assert tensor.grad.dtype == torch.bfloat16
        tolerance = dict(rtol=2**-8, atol=1e-5 * true.grad.abs().max().item())
        torch.testing.assert_close(tensor.grad.double(), true.grad, **tolerance)
