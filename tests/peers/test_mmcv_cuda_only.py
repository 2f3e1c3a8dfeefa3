"""Operators that mmcv has only for GPUs, compared with its CUDA kernels on host threads."""

import importlib
import math
import random

import pytest
import torch

import dcnzoo.models  # noqa: F401
from dcnzoo.compat.mmcv import _ext as stand_in

mmcv_ops = importlib.import_module("mmcv.ops")
CASES = range(200)
FILES = ("carafe_naive", "sigmoid_focal_loss", "riroi_align_rotated", "deform_roi_pool")
KERNELS = {
    **{
        f"{name}_{way}": f"{name}_{way}_cuda_kernel<double>"
        for name in FILES
        for way in ("forward", "backward")
    },
    "im2col": "MaskedIm2colForward<double>",
    "col2im": "MaskedCol2imForward<double>",
}


@pytest.fixture(scope="module")
def kernels(compile_kernels):
    return compile_kernels(KERNELS, *(f"{name}_cuda_kernel" for name in (*FILES, "masked_conv2d")))


class Case:
    def __init__(self, seed):
        self.choose = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def rois(self, count, reach):
        """Boxes inside, across and outside the map; some on whole pixels, some inverted."""
        corner = (torch.rand(count, 2, generator=self.generator, dtype=torch.float64) - 0.3) * reach
        size = (torch.rand(count, 2, generator=self.generator, dtype=torch.float64) - 0.1) * reach
        boxes = torch.cat([corner, corner + size], 1)
        return boxes.round() if self.choose.random() < 0.3 else boxes


def with_grad(function, *inputs):
    leaves = [t.clone().requires_grad_() for t in inputs]
    output = function(*leaves)
    grad = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return grad, [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def assert_close(got, want):
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-9, rtol=1e-9)


@pytest.fixture(autouse=True)
def on_the_stand_in(monkeypatch):
    for name in ("carafe", "focal_loss", "riroi_align_rotated", "deform_roi_pool"):
        monkeypatch.setattr(importlib.import_module(f"mmcv.ops.{name}"), "ext_module", stand_in)


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.parametrize("ratio", [0, 2])
def test_deform_roi_pool(kernels, seed, ratio):
    """Across the border without the offsets' gradient: dcnzoo's is that of the extended border pixel."""
    across, generator = seed % 2, torch.Generator().manual_seed(seed)
    low, high, gamma = (-10.0, 45.0, 0.4) if across else (5.0, 25.0, 0.1)
    count = 0 if seed % 9 == 8 else 1 + seed % 6

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    corners = (uniform(count, 2, 2) * (high - low) + low).sort(dim=1).values
    if seed % 5 == 4:  # zero area
        corners[::2, 1, seed % 2] = corners[::2, 0, seed % 2]
    rois = torch.cat([torch.randint(2, (count, 1), generator=generator).double(), corners.flatten(1)], 1)
    input, offset, how = uniform(2, 3, 15, 18) - 0.5, (uniform(count, 3, 2, 2) - 0.5) * 2, (0.5, ratio, gamma)
    offset = offset.movedim(3, 1).contiguous()
    leaves = [input.clone().requires_grad_(), offset.clone().requires_grad_()]
    output = mmcv_ops.deform_roi_pool(leaves[0], rois, leaves[1], (3, 2), *how)
    grad = uniform(*output.shape) - 0.5
    # without RoIs, mmcv returns no gradient for the offset
    got = [output.detach(), *torch.autograd.grad(output, leaves, grad, materialize_grads=True)]

    want, where = [torch.zeros_like(t) for t in got], (3, 2, *how, *input.shape[1:])
    kernels("deform_roi_pool_forward", output.numel(), input, rois, offset, want[0], *where)
    kernels("deform_roi_pool_backward", output.numel(), grad, input, rois, offset, *want[1:], *where)
    assert_close(got[: 3 - across], want[: 3 - across])


@pytest.mark.parametrize("seed", CASES)
def test_riroi_align_rotated(kernels, seed):
    case = Case(seed)
    count, orientations = case.choose.choice([0, 1, 4]), case.choose.choice([1, 4, 8])
    input, size = case.normal(2, 2 * orientations, 7, 9), case.choose.choice([(1, 1), (3, 2), (2, 4)])
    image = torch.randint(2, (count, 1), generator=case.generator).double()
    angle = case.normal(count, 1) * 4
    if seed % 5 == 0:  # whole steps of orientation; 1e-6 keeps mmcv's float32 rounding from changing the step
        angle = angle.round() * (2 * math.pi / orientations) + 1e-6
    rois = torch.cat([image, case.rois(count, 10), angle], 1)
    how = (case.choose.choice([0.5, 1.0]), case.choose.choice([0, 2]))
    clockwise = seed % 2 == 0
    grad, got = with_grad(
        lambda x: mmcv_ops.riroi_align_rotated(x, rois, size, *how, orientations, clockwise), input
    )
    want = [torch.zeros_like(t) for t in got]
    where = (rois, *how, clockwise, 2, *input.shape[2:], *size, orientations)
    kernels("riroi_align_rotated_forward", grad.numel(), input, *where, want[0])
    kernels("riroi_align_rotated_backward", grad.numel(), grad, *where, want[1])
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-6, rtol=1e-6)  # mmcv converts float32 to an integer


@pytest.mark.parametrize("seed", CASES)
def test_carafe(kernels, seed):
    case = Case(seed)
    kernel, groups, scale = (case.choose.choice(values) for values in ([1, 3, 5], [1, 2], [1, 2, 3]))
    size, batch = (case.choose.randint(1, 5), case.choose.randint(1, 5)), case.choose.choice([0, 1, 2])
    input, upper = case.normal(batch, 4, *size), [scale * s for s in size]
    masks = case.normal(batch, groups * kernel**2, *upper)
    grad, got = with_grad(lambda x, m: mmcv_ops.carafe(x, m, kernel, groups, scale), input, masks)

    want = [torch.zeros_like(t) for t in got]
    how = (kernel, groups, scale, 4, *upper)
    kernels("carafe_naive_forward", grad.numel(), input, masks, want[0], *how)
    kernels("carafe_naive_backward", grad.numel(), grad, input, masks, *want[1:], *how)
    assert_close(got, want)


@pytest.mark.parametrize("seed", CASES)
def test_focal_loss(kernels, seed):
    """No background class with weights: mmcv would read past their end."""
    case = Case(seed)
    count, classes = case.choose.choice([0, 1, 7]), case.choose.randint(1, 5)
    gamma, alpha, weighted = case.choose.choice([0.0, 1.0, 1.7, 2.0]), case.choose.random(), seed % 2 == 0
    logits = case.normal(count, classes) * case.choose.choice([1.0, 5.0])
    target = torch.randint(classes + (not weighted), (count,), generator=case.generator)
    weight = torch.rand(classes, generator=case.generator, dtype=torch.float64) if weighted else None

    output, of_input = torch.zeros_like(logits), torch.zeros_like(logits)
    pointer, numbers = weight if weighted else torch.empty(0, dtype=torch.float64), (gamma, alpha, classes)
    kernels("sigmoid_focal_loss_forward", logits.numel(), logits, target, pointer, output, *numbers)
    kernels("sigmoid_focal_loss_backward", logits.numel(), logits, target, pointer, of_input, *numbers)
    logits.requires_grad_()
    got = mmcv_ops.sigmoid_focal_loss(logits, target, gamma, alpha, weight, "sum")
    # the kernel computes the exponential in float32
    for g, w in zip((got, *torch.autograd.grad(got, logits)), (output.sum(), of_input), strict=True):
        torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", CASES)
def test_masked_im2col(kernels, seed):
    case = Case(seed)
    channels, size = case.choose.randint(1, 4), (case.choose.randint(3, 7), case.choose.randint(3, 8))
    kernel, padding = (
        case.choose.choice([(1, 1), (3, 3), (3, 1), (2, 3)]),
        case.choose.choice([(0, 0), (1, 2)]),
    )
    im = case.normal(1, channels, *size)
    wanted = case.normal(*size) > case.choose.choice([-9, 0, 1, 9])  # all, some or none
    y, x = wanted.nonzero(as_tuple=True)
    got, want = im.new_zeros(2, channels * kernel[0] * kernel[1], len(y))
    stand_in.masked_im2col_forward(im, y, x, got, *kernel, *padding)
    kernels("im2col", channels * len(y), im, *size, *kernel, *padding, y, x, len(y), want)
    assert_close([got], [want])

    columns, (got, want) = case.normal(channels, len(y)), im.new_zeros(2, 1, channels, *size)
    stand_in.masked_col2im_forward(columns, y, x, got, *size, channels)
    kernels("col2im", columns.numel(), columns, *size, channels, y, x, len(y), want)
    assert_close([got], [want])
