"""Sizes beyond 2³¹ elements, many images, many channels.

The largest tensors are zeros that use no memory until they are written. All reads are at their far end.
"""

import math
import mmap
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from dcnzoo import ops
from dcnzoo.ops import reference
from tests.helpers.large import ELEMENTS, MANY, REGION, far_rois, normal
from tests.helpers.operators import assert_same
from tests.op_cases import operators

MAP_NORESERVE = 0x4000  # on Linux

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory that is not there until written: Linux")


def untouched(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


@pytest.fixture
def require_memory(tmp_path_factory):
    """Skip the test if less is free. Only one test at a time runs, even with several pytest workers."""

    def require(gib: float) -> None:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
        if available < gib:
            pytest.skip(f"needs {gib:g} GiB of memory, {available:.1f} are available")

    with FileLock(tmp_path_factory.getbasetemp().parent / "large.lock"):
        yield require


# Sides for which coordinates are exact in float32. The last has more pixels than int32 can count, for which
# the CPU requires float64.
MAPS = [
    (torch.float32, 2**14, 9),
    pytest.param(torch.bfloat16, 2**14, 9, marks=pytest.mark.slow),
    (torch.float64, 46_400, 2),
]
every_map = pytest.mark.parametrize("dtype, side, channels", MAPS, ids=str)


def far_map(side: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A map [1, side, side, channels], and its far corner as [1, channels, REGION, REGION] in float64."""
    map = untouched(1, side, side, channels, dtype=dtype)
    assert map.numel() > ELEMENTS
    corner = map[:, -REGION:, -REGION:]
    corner.copy_(normal(*corner.shape))
    return map, corner.permute(0, 3, 1, 2).double()


def far_points(side: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return side - REGION + torch.randint(1, 64 * REGION, shape, generator=generator).double() / 64


@linux
@every_map
def test_convolution_of_a_map(dtype, side, channels):
    map, corner = far_map(side, channels, dtype)
    stride, outputs, taps = side // 4, 4, 6  # taps of a 3×2 kernel
    points = far_points(side, taps, 2, outputs, outputs)
    grid = torch.arange(outputs) * stride
    regular = torch.stack(
        [torch.stack(torch.meshgrid(grid + tap // 2, grid + tap % 2, indexing="ij")) for tap in range(taps)]
    )
    half = dtype == torch.bfloat16
    wide = torch.float32 if half else dtype
    offset = (points - regular).flatten(0, 1)[None].to(wide)
    mask = normal(1, taps, outputs, outputs, seed=2).sigmoid().to(wide)
    weight = normal(5, channels, 3, 2, seed=3, dtype=dtype)
    mine = [
        t.requires_grad_(not half) for t in (weight, offset, mask)
    ]  # half: gradients would need a copy in float32
    output = ops.deform_conv2d(map.permute(0, 3, 1, 2), *mine, stride=stride)

    exact = [t.detach().double().requires_grad_() for t in mine]
    moved = (exact[1].view(taps, 2, outputs, outputs) + regular) - (side - REGION)
    columns = reference.sample_multilinear(
        corner, moved.movedim(1, 0).flatten(1)[None]
    )  # [1, C, taps · outputs²]
    columns = columns.view(channels, taps, outputs, outputs) * exact[2][0]
    expected = torch.einsum("ocyx,cyxhw->ohw", exact[0], columns.unflatten(1, (3, 2)))[None]
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    if half:
        return
    grad = normal(*output.shape, seed=4, dtype=dtype)
    for a, b in zip(
        torch.autograd.grad(output, mine, grad),
        torch.autograd.grad(expected, exact, grad.double()),
        strict=True,
    ):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * 10)


@linux
def test_deform_attn_of_a_map():
    side, channels = 2**14, 9
    map, corner = far_map(side, channels, torch.float32)
    stride, points, outputs = side // 4, 9, 4
    places = far_points(side, outputs, outputs, points, 2)  # (x, y)
    grid, tap = torch.arange(outputs) * stride, torch.arange(points)
    regular = torch.stack(
        [
            (grid[None, :, None] + tap // 3).expand(outputs, -1, -1),
            (grid[:, None, None] + tap % 3).expand(-1, outputs, -1),
        ],
        dim=-1,
    )
    weights = normal(1, outputs, outputs, points, seed=2).softmax(-1)
    offset = (places - regular).flatten(2)[None]
    sampled = ops.dcnv3(map, offset.float(), weights.float(), 3, stride, 0, 1, 1, channels, 1.0)
    flat = (places - (side - REGION)).flip(-1).movedim(-1, 0).flatten(1)[None]
    values = reference.sample_multilinear(corner, flat).view(channels, outputs, outputs, points)
    expected = (values * weights[0]).sum(-1).permute(1, 2, 0)[None]
    torch.testing.assert_close(sampled.double(), expected, rtol=1e-5, atol=1e-5)

    queries = outputs * outputs
    locations = ((places + 0.5) / side).view(1, queries, 1, 1, points, 2).float()
    attended = ops.ms_deform_attn(
        map.view(1, side * side, 1, channels),
        torch.tensor([[side, side]]),
        torch.tensor([0]),
        locations,
        weights.view(1, queries, 1, 1, points).float(),
    )
    expected = expected.view(1, queries, channels)
    # the precision of a location is 2⁻²⁴ of the side
    torch.testing.assert_close(attended.double(), expected, rtol=0.02, atol=0.02)


@linux
def test_pooling_of_a_map():
    side, channels = 2**14, 9
    map, corner = far_map(side, channels, torch.float32)
    map = map.view(1, channels, side, side)  # the far corner of the last channel
    map[:, :, -REGION:, -REGION:] = corner
    far, near = far_rois(side)
    pooled = ops.roi_align(map, far, (2, 4), sampling_ratio=2)
    torch.testing.assert_close(
        pooled.double(), reference.roi_align(corner, near, (2, 4), sampling_ratio=2), rtol=1e-5, atol=1e-5
    )
    offset = normal(len(far), 2, 2, 4).clamp(-1, 1).round().requires_grad_()
    near_offset = offset.detach().double().requires_grad_()
    settings = {"output_size": (2, 4), "sampling_ratio": 2, "gamma": 0.25}
    pooled = ops.deform_roi_pool(map, far, offset, **settings)
    expected = reference.deform_roi_pool(corner, near, near_offset, **settings)
    torch.testing.assert_close(pooled.double(), expected, rtol=1e-5, atol=1e-5)
    grad = torch.autograd.grad(pooled.sum(), offset)[0]
    torch.testing.assert_close(
        grad.double(), torch.autograd.grad(expected.sum(), near_offset)[0], rtol=1e-4, atol=1e-4
    )


@linux
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_of_more_elements(dtype, require_memory):
    """Check the forward and, in float32, all gradients. The input's gradient is as large as the input."""
    require_memory(11 if dtype == torch.float32 else 3)
    images, last = 2**20 + 3, 5
    input = untouched(images, 4, 16, 32, dtype=dtype)
    assert input.numel() > ELEMENTS
    input[-last:] = normal(last, 4, 16, 32)
    offset = normal(images, 2, 1, 1, seed=1, dtype=dtype).abs() * 8
    weight = normal(3, 4, 1, 1, seed=2, dtype=dtype)
    output = ops.deform_conv2d(input, weight, offset, stride=32)
    few = [t.double().requires_grad_() for t in (input[-last:], weight, offset[-last:])]
    expected = reference.deform_conv(*few, None, None, (32, 32), (0, 0), (1, 1), 1)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(output[-last:].double(), expected, rtol=tolerance, atol=tolerance)
    assert not output[:-last].any()
    if dtype == torch.bfloat16:
        return
    wanted = [input, weight, offset]
    arguments = ([32, 32], [0, 0], [1, 1], 1, None, [True, True, True, False, False])
    grad = torch.zeros_like(output)
    grad[-last:] = normal(*grad[-last:].shape, seed=3)
    gradients = torch.ops.dcnzoo._deform_conv_backward(grad, *wanted, None, *arguments)[:3]
    true = torch.autograd.grad(expected, few, grad[-last:].double())
    for place, (mine, exact) in enumerate(zip(gradients, true, strict=True)):
        assert mine.shape == wanted[place].shape
        part = mine if place == 1 else mine[-last:]
        torch.testing.assert_close(part.double(), exact, rtol=1e-4, atol=1e-4)
    assert not gradients[0][-last - 1000 : -last].any() and not gradients[2][:-last].any()


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, (46_400,) * 2), (torch.float32, (2**24 + 1,)), (torch.bfloat16, (2**24 + 1,))],
)
def test_what_cannot_be_counted_is_refused(dtype, size):
    one, rank = torch.zeros(1, dtype=dtype), len(size)
    shapes = [(1, 1, *size), (1, 1, *[1] * rank), (1, rank, *[1] * rank)]
    with pytest.raises(RuntimeError, match=rf"deform_conv{rank}d: input: .*pixels"):
        getattr(ops, f"deform_conv{rank}d")(*(one.expand(shape) for shape in shapes), stride=size)


def test_more_pixels_than_float32_counts():
    size, stride = 2**24 + 50, 2**23
    input = normal(1, 1, size, dtype=torch.float64)
    weight = normal(1, 1, 3, seed=1, dtype=torch.float64)
    output = ops.deform_conv1d(input, weight, torch.zeros(1, 3, 3, dtype=torch.float64), stride=stride)
    expected = torch.stack([(input[0, 0, i : i + 3] * weight[0, 0]).sum() for i in (0, stride, 2 * stride)])
    torch.testing.assert_close(output.flatten(), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cases", "settings"), MANY)
def test_many_images_and_channels(name, cases, settings):
    sample = cases.make(f"many {name} {settings}", **settings).to(torch.float32)
    op = next(op for op in operators() if op.name == name)
    # a weight's gradient sums one term per image
    assert_same(op, sample, sample.to(torch.float64), 1e-3)
