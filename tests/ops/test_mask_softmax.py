"""mask_softmax: the taps of each group sum to one; it can be scripted, and rejects wrong shapes."""

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


def test_one_number_is_every_axis_also_compiled():
    mask = torch.rand(1, 9, 2, 2)
    expected = dcnzoo.ops.mask_softmax2d(mask, (3, 3))
    compiled = torch.compile(dcnzoo.ops.mask_softmax2d, backend="eager", fullgraph=True, dynamic=True)
    for function in (dcnzoo.ops.mask_softmax2d, compiled):
        torch.testing.assert_close(function(mask, 3), expected)


@pytest.mark.parametrize(
    ("shape", "kernel", "message"),
    [
        ((1, 8, 2, 2), 3, "mask: .*9 channels.*got 8"),
        ((1, 0, 2, 2), 3, "mask: .*got 0"),
        ((9, 2, 2), 3, r"mask: .*got shape \(9, 2, 2\)"),
        ((1, 9, 2, 2), (3, 3, 1), "kernel_size: "),
        ((1, 9, 2, 2), (3, 0), "kernel_size: "),
    ],
)
def test_invalid_input_says_what_is_wrong(shape, kernel, message):
    with pytest.raises(RuntimeError, match=f"^mask_softmax2d: {message}"):
        dcnzoo.ops.mask_softmax2d(torch.zeros(shape), kernel)
