"""roi_align: worked by hand, and its edges; more in tests/op_cases."""

from __future__ import annotations

import pytest
import torch

from dcnzoo.ops import roi_align

MODES = [
    {"pool_mode": mode, "sampling_ratio": ratio, "aligned": aligned}
    for mode in ("avg", "max")
    for ratio in (0, 1, 3)
    for aligned in (True, False)
]


def example(rois: int = 7, size=(9, 13), channels: int = 3, seed: int = 0):
    """Maps and RoIs in float64, some of which reach over every border."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
    corner = torch.rand(rois, 2, generator=generator, dtype=torch.float64) * 34 - 8
    extent = torch.rand(rois, 2, generator=generator, dtype=torch.float64) * 20
    image = torch.arange(rois, dtype=torch.float64)[:, None] % 2
    return maps, torch.cat([image, corner, corner + extent], 1)


def test_hand_worked():
    """A map that is linear in x pools to x, of which pixel i has the centre i + 0.5."""
    maps = torch.arange(8.0).expand(1, 1, 6, 8)
    roi = torch.tensor([[0, 2.0, 1.0, 6.0, 5.0]])
    torch.testing.assert_close(
        roi_align(maps, roi, 2), torch.tensor([[2.5, 4.5], [2.5, 4.5]]).view(1, 1, 2, 2)
    )
    shifted = roi_align(maps, roi, 2, aligned=False)
    torch.testing.assert_close(shifted, torch.tensor([[3.0, 5.0], [3.0, 5.0]]).view(1, 1, 2, 2))
    largest = roi_align(maps, roi, 2, sampling_ratio=2, pool_mode="max")
    torch.testing.assert_close(largest, torch.tensor([[3.0, 5.0], [3.0, 5.0]]).view(1, 1, 2, 2))


def test_samples_outside_the_map_are_zero_and_count():
    ones = torch.ones(1, 1, 4, 4)
    # up to one pixel outside, the border is read; beyond, zero
    half_outside = torch.tensor([[0, -4.0, 0.0, 4.0, 4.0]])
    row = roi_align(ones, half_outside, (1, 8), sampling_ratio=1)[0, 0, 0]
    assert row.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert roi_align(ones, half_outside, 1, sampling_ratio=8).item() == 5 / 8


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_empty_and_degenerate(mode):
    inf, nan = float("inf"), float("nan")
    maps = torch.full((1, 2, 5, 6), 3.0, requires_grad=True)
    assert roi_align(maps, torch.zeros(0, 5), 3, pool_mode=mode).shape == (0, 2, 3, 3)
    assert roi_align(maps[:, :0], torch.zeros(4, 5), 3, pool_mode=mode).shape == (4, 0, 3, 3)
    nothing = torch.tensor(
        [
            [0, 4, 4, 1, 1],  # negative size
            [0, 2, 2, 2, 2],  # no size
            [0, nan, 0, 3, 3],
            [0, 0, 0, inf, 3],
            [0, -1e30, -1e30, 1e30, 1e30],
            [0, 1e8, 1e8, 2e8, 2e8],
        ]
    )
    output = roi_align(maps, nothing, 3, pool_mode=mode)
    assert (output == 0).all()
    output.sum().backward()
    assert (maps.grad == 0).all()
    # far larger than the map: all samples on the map are found, in no more time than the map takes
    huge = roi_align(maps, torch.tensor([[0, -1e6, -1e6, 1e6, 1e6]]), 1, pool_mode=mode)
    torch.testing.assert_close(huge, torch.full_like(huge, 3.0 if mode == "max" else 3 * 7 * 8 / 4e12))


def test_each_roi_reads_its_own_image():
    maps = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    rois = torch.tensor([[2, 0, 0, 4, 4], [0, 0, 0, 4, 4], [1, 0, 0, 4, 4.0]])
    assert roi_align(maps, rois, 1).flatten().tolist() == [3, 1, 2]
