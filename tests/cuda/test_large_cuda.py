"""Sizes beyond 2³¹ elements on a GPU, as tests/ops/test_large.py tests on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from dcnzoo import ops
from dcnzoo.ops import reference, with_cuda
from tests import op_cases
from tests.helpers.large import ELEMENTS, MANY, REGION, far_rois, normal
from tests.helpers.operators import assert_same, moved, random_boxes

if not with_cuda():
    pytest.skip("no GPU, or no CUDA kernels: not run on a GPU", allow_module_level=True)


# one after the other: each needs most of the memory
one_at_a_time = pytest.mark.xdist_group("large")


def require_memory(gib: float) -> None:
    torch.cuda.empty_cache()  # of the tests before
    available = torch.cuda.mem_get_info()[0] / 2**30
    if available < gib:
        pytest.skip(f"needs {gib:g} GiB of the GPU's memory, {available:.1f} are available")


@one_at_a_time
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("channels", "side", "stride"),
    [pytest.param(9, 2**14, 8, id="map"), pytest.param(1, 2**14 + 8, 1, id="offset")],
)
def test_convolution_with_all_gradients(channels, side, stride, dtype):
    """A map or offsets beyond 2³¹ elements. The last pixels match the CPU's result for that corner."""
    require_memory(45)  # not both at once: float32 would need more than 80 GB
    last = 9  # pixels of the output
    corner = last * stride + REGION
    assert (side - corner) % stride == 0
    outputs = (side - 2) // stride + 1
    map = torch.zeros(1, channels, side, side, device="cuda", dtype=dtype)
    map[:, :, -corner:, -corner:] = normal(1, channels, corner, corner).cuda()
    weight = normal(4, channels, 2, 2, seed=1, dtype=dtype)
    offset = torch.zeros(1, 8, outputs, outputs, device="cuda", dtype=dtype)
    assert max(map.numel(), offset.numel()) > ELEMENTS
    # multiples of 1/64, for which coordinates are exact in float32
    near = ((normal(1, 8, last, last, seed=2) * 64).round() / 64).to(dtype)
    offset[:, :, -last:, -last:] = near.cuda()
    leaves = [map.requires_grad_(), weight.cuda().requires_grad_(), offset.requires_grad_()]
    output = ops.deform_conv2d(*leaves, stride=stride)
    small = [
        map[:, :, -corner:, -corner:].detach().cpu().double().requires_grad_(),
        weight.double().requires_grad_(),
        torch.zeros(1, 8, *[(corner - 2) // stride + 1] * 2, dtype=torch.float64),
    ]
    small[2][:, :, -last:, -last:] = near
    small[2].requires_grad_()
    expected = ops.deform_conv2d(*small, stride=stride)
    tolerance = {torch.float32: 1e-3, torch.bfloat16: 0.1}[dtype]
    close = {"rtol": tolerance, "atol": tolerance}
    ours, true_output = (t.detach()[:, :, -last:, -last:].cpu().double() for t in (output, expected))
    torch.testing.assert_close(ours, true_output, **close)
    grad, exact_grad = torch.zeros_like(output), torch.zeros_like(expected)
    for gradient in (grad, exact_grad):
        gradient[:, :, -last:, -last:] = normal(1, 4, last, last, seed=3, dtype=dtype).to(gradient)
    true = torch.autograd.grad(expected, small, exact_grad)
    for mine, exact in zip(torch.autograd.grad(output, leaves, grad), true, strict=True):
        part = mine[:, :, -exact.shape[2] :, -exact.shape[3] :]
        torch.testing.assert_close(part.cpu().double(), exact, **close)


@one_at_a_time
def test_pooling_of_a_map():
    require_memory(40)
    side, channels = 2**14, 9
    map = torch.zeros(1, channels, side, side, device="cuda")
    corner = normal(1, channels, REGION, REGION)
    map[:, :, -REGION:, -REGION:] = corner.cuda()
    map.requires_grad_()
    corner = corner.double().requires_grad_()
    far, near = far_rois(side)
    pooled = ops.roi_align(map, far.cuda(), (2, 4), sampling_ratio=2)
    expected = reference.roi_align(corner, near, (2, 4), sampling_ratio=2)
    torch.testing.assert_close(pooled.cpu().double(), expected, rtol=1e-4, atol=1e-4)
    grad = torch.autograd.grad(pooled.sum(), map)[0][:, :, -REGION:, -REGION:]
    true = torch.autograd.grad(expected.sum(), corner)[0]
    torch.testing.assert_close(grad.cpu().double(), true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "cases", "settings"), MANY)
def test_many_images_and_channels(name, cases, settings):
    sample = cases.make(f"many {name} {settings}", **settings).to(torch.float32)
    op = next(op for op in op_cases.operators() if op.name == name)
    assert_same(op, moved(sample), sample.to(torch.float64), 1e-3)


@one_at_a_time
def test_more_than_two_to_the_31_columns():
    channels, size = 240, 1024
    input = torch.randn(1, channels, size, size, device="cuda", dtype=torch.float16)
    weight = torch.randn(8, channels, 3, 3, device="cuda", dtype=torch.float16) / 50
    offset = torch.zeros(1, 18, size, size, device="cuda", dtype=torch.float16)
    assert channels * 9 * size * size > 2**31
    output = ops.deform_conv2d(input, weight, offset, padding=1)
    torch.testing.assert_close(output, F.conv2d(input, weight, padding=1), rtol=1e-2, atol=1e-2)


@one_at_a_time
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_of_a_large_batch(form):
    """Without im2col_step, columns take at most 256 MiB, not the 1.2 GB of 16 images."""
    torch.cuda.empty_cache()
    sizes = [(16, 128, 100, 168), (128, 128, 3, 3), (16, 18, 100, 168), (16, 9, 100, 168)]
    leaves = [torch.randn(size, device="cuda").contiguous(memory_format=form) for size in sizes]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    images = leaves[0].numel() * leaves[0].element_size()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.deform_conv2d(*leaves, padding=1).sum().backward()
    # output, its gradient and a copy by chunks, the gradient of the input in two formats, columns, a product
    assert torch.cuda.max_memory_allocated() - before < 5 * images + (256 << 20) * 1.5


def test_nms_of_many_boxes_decides_as_on_the_cpu():
    boxes, scores = random_boxes(20_000, 800, 60)
    kept = torch.ops.dcnzoo.nms(boxes.cuda(), scores.cuda(), 0.5, 0)
    assert torch.equal(kept.cpu(), torch.ops.dcnzoo.nms(boxes, scores, 0.5, 0))
