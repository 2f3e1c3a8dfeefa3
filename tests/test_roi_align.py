"""roi_align: values and gradients against a loop over samples, and its edges."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing

from dcnzoo.ops import roi_align

from . import oracles

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
MODES = [
    {"pool_mode": mode, "sampling_ratio": ratio, "aligned": aligned}
    for mode in ("avg", "max")
    for ratio in (0, 1, 3)
    for aligned in (True, False)
]
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda m: "-".join(map(str, m.values())))


def example(rois: int = 7, size=(9, 13), channels: int = 3, seed: int = 0):
    """Maps and RoIs in float64, some of which reach over every border."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
    corner = torch.rand(rois, 2, generator=generator, dtype=torch.float64) * 34 - 8
    extent = torch.rand(rois, 2, generator=generator, dtype=torch.float64) * 20
    image = torch.arange(rois, dtype=torch.float64)[:, None] % 2
    return maps, torch.cat([image, corner, corner + extent], 1)


@every_mode
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_matches_loop(mode, dtype):
    maps, rois = example()
    mine, true = maps.to(dtype, copy=True).requires_grad_(), maps.clone().requires_grad_()
    output = roi_align(mine, rois.to(dtype), (3, 2), 0.5, **mode)
    expected = oracles.roi_align(true, rois, (3, 2), 0.5, **mode)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * 4}
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, **close)
    grad = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape)
    output.backward(grad.to(dtype))
    expected.backward(grad)
    torch.testing.assert_close(mine.grad.double(), true.grad, **close)


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


@every_mode
def test_sizes_around_the_kernels_blocks(mode):
    for channels, size in ((1, (1, 1)), (17, (1, 40)), (33, (5, 70))):
        maps, rois = example(channels=channels, size=size)
        torch.testing.assert_close(
            roi_align(maps, rois, (2, 3), **mode), oracles.roi_align(maps, rois, (2, 3), **mode)
        )


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradcheck_and_opcheck(mode, ratio):
    maps, rois = example(rois=4)
    maps.requires_grad_()
    function = lambda m: roi_align(m, rois, (2, 3), 0.5, ratio, mode)  # noqa: E731
    assert torch.autograd.gradcheck(function, (maps,))
    assert torch.autograd.gradgradcheck(function, (maps,))
    arguments = (0.5, ratio, int(mode == "avg"), True)
    overload = torch.ops.dcnzoo.roi_align.default
    torch.library.opcheck(overload, (maps, rois, 2, 3, *arguments))
    output, argmax_y, argmax_x = overload(maps.detach(), rois, 2, 3, *arguments)
    torch.library.opcheck(
        torch.ops.dcnzoo._roi_align_backward.default,
        (torch.ones_like(output), rois, argmax_y, argmax_x, list(maps.shape), *arguments),
    )


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_compile_once_for_all_sizes(mode):
    torch._dynamo.reset()
    compilations = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(
        lambda m, r: roi_align(m, r, (3, 2), 0.5, 0, mode).relu(),
        backend=compilations,
        fullgraph=True,
        dynamic=True,
    )
    for count, size in ((6, (9, 13)), (7, (10, 8)), (11, (5, 14))):
        maps, rois = example(count, size)
        maps.requires_grad_()
        output = compiled(maps, rois)
        torch.testing.assert_close(output, roi_align(maps, rois, (3, 2), 0.5, 0, mode).relu())
        output.sum().backward()
        assert maps.grad.abs().sum() > 0
    assert compilations.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(dtype):
    maps, rois = example()
    maps = maps.to(dtype)
    output = roi_align(maps, rois.float(), (3, 2), 0.5)
    exact = oracles.roi_align(maps.double(), rois, (3, 2), 0.5)
    assert output.dtype == dtype
    torch.testing.assert_close(
        output.double(), exact, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps
    )
    maps.requires_grad_()
    roi_align(maps, rois, 2).sum().backward()
    assert maps.grad.dtype == dtype


def test_memory_formats():
    maps, rois = example()
    expected = roi_align(maps, rois, 2)
    for same in (
        maps.contiguous(memory_format=torch.channels_last),
        maps.transpose(0, 3).contiguous().transpose(0, 3),
    ):
        torch.testing.assert_close(roi_align(same, rois, 2), expected)
    torch.testing.assert_close(roi_align(maps, rois.t().contiguous().t(), 2), expected)


def test_same_bits_for_every_number_of_threads():
    maps, rois = example(rois=40, channels=40)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = maps.float().requires_grad_()
            output = roi_align(leaf, rois.float(), 3)
            output.sum().backward()
            results.append((output, leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for output, grad in results[1:]:
        assert torch.equal(output, results[0][0]) and torch.equal(grad, results[0][1])


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


MAPS, ROIS = example()
INVALID = {
    "input: expected 4 dimensions (N, C, H, W), got shape (3, 9, 13)": {"input": MAPS[0]},
    "input: expected float64, float32, bfloat16 or float16, got Int": {"input": MAPS.int()},
    "input: expected at least 1 pixel in height and width, got shape (2, 3, 0, 13)": {
        "input": MAPS[:, :, :0]
    },
    "rois: expected shape (K, 5), each (image, x1, y1, x2, y2), got (7, 4)": {"rois": ROIS[:, 1:]},
    "rois: expected float64, float32, bfloat16 or float16, got Long": {"rois": ROIS.long()},
    "rois: expected image numbers in [0, 2), got 2 in row 1": {"rois": ROIS + torch.eye(1, 5)},
    "rois: expected image numbers in [0, 2), got -1 in row 0": {"rois": ROIS - torch.eye(1, 5)},
    "output_size: expected at least (1, 1), got (0, 2)": {"output_size": (0, 2)},
    "spatial_scale: expected a positive number, got 0": {"spatial_scale": 0.0},
    "sampling_ratio: expected at most 4194304, got 5000000": {"sampling_ratio": 5_000_000},
    "pool_mode: expected 'avg' or 'max', got 'sum'": {"pool_mode": "sum"},
}


@pytest.mark.parametrize("message", INVALID)
def test_invalid_input_says_what_is_wrong(message):
    arguments = {"input": MAPS, "rois": ROIS, "output_size": 2, **INVALID[message]}
    with pytest.raises(RuntimeError) as error:
        roi_align(**arguments)
    assert str(error.value) == f"roi_align: {message}"
