"""mask_softmax: the taps of each group sum to one; it scripts, and says what does not fit."""

from __future__ import annotations

import math

import pytest
import torch

import dcnzoo.ops

KERNEL = {1: (3,), 2: (3, 2), 3: (2, 3, 2)}
SIZE = (4, 5, 3)


def function_of(rank: int):
    return getattr(dcnzoo.ops, f"mask_softmax{rank}d")


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 3])
def test_softmax_over_the_taps_of_each_group(rank, groups):
    taps = math.prod(KERNEL[rank])
    generator = torch.Generator().manual_seed(rank)
    mask = torch.randn(2, groups * taps, *SIZE[:rank], generator=generator, dtype=torch.float64)
    result = function_of(rank)(mask, KERNEL[rank])
    assert result.shape == mask.shape
    for group in range(groups):
        part = slice(group * taps, (group + 1) * taps)
        exponentials = mask[:, part].exp()
        torch.testing.assert_close(result[:, part], exponentials / exponentials.sum(1, keepdim=True))
    scripted = torch.jit.script(function_of(rank))
    torch.testing.assert_close(scripted(mask, KERNEL[rank]), result)
    compiled = torch.compile(function_of(rank), backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(mask, KERNEL[rank]), result)
    leaf = mask.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda m: function_of(rank)(m, KERNEL[rank]), leaf, fast_mode=True)


def test_one_number_is_every_axis():
    mask = torch.rand(1, 9, 2, 2)
    torch.testing.assert_close(dcnzoo.ops.mask_softmax2d(mask, 3), dcnzoo.ops.mask_softmax2d(mask, (3, 3)))


@pytest.mark.parametrize(
    ("shape", "kernel", "message"),
    [
        ((1, 8, 2, 2), 3, "mask: expected a multiple of 9 channels, the taps of kernel (3, 3), got 8"),
        ((1, 0, 2, 2), 3, "mask: expected a multiple of 9 channels, the taps of kernel (3, 3), got 0"),
        ((9, 2, 2), 3, "mask: expected 4 dimensions, got shape (9, 2, 2)"),
        ((), 3, "mask: expected 4 dimensions, got shape ()"),
        ((1, 9, 2, 2), (3, 3, 1), "kernel_size: expected 2 values, got (3, 3, 1)"),
        ((1, 9, 2, 2), (3, 0), "kernel_size: expected at least 1, got (3, 0)"),
    ],
)
def test_invalid_input_says_what_is_wrong(shape, kernel, message):
    with pytest.raises(RuntimeError) as error:
        dcnzoo.ops.mask_softmax2d(torch.zeros(shape), kernel)
    assert str(error.value) == f"mask_softmax2d: {message}"
