"""Operators on sets of points, and others by index, against mmcv's CUDA kernels on threads of the host."""

import importlib

import pytest
import torch
from test_mmcv_cuda_only import Case as Numbers
from test_mmcv_cuda_only import assert_close, with_grad

import dcnzoo.models  # noqa: F401
from dcnzoo.compat.mmcv import _ext as stand_in

mmcv_ops = importlib.import_module("mmcv.ops")
CASES = range(200)
FILES = ("masked_conv2d", "gather_points", "group_points", "three_interpolate", "three_nn")
FILES += ("knn", "ball_query", "points_in_boxes")
KERNELS = {
    **{
        f"{name}_{way}": f"{name}_{way}_cuda_kernel<double>"
        for name in ("gather_points", "group_points", "three_interpolate")
        for way in ("forward", "backward")
    },
    **{name: f"{name}_forward_cuda_kernel<double>" for name in ("three_nn", "knn", "ball_query")},
    **{name: f"points_in_boxes_{name}_forward_cuda_kernel<double>" for name in ("part", "all")},
    "im2col": "MaskedIm2colForward<double>",
    "col2im": "MaskedCol2imForward<double>",
}

# What mmcv's kernels cannot be asked here is tested by hand: tests/test_compat_mmcv_ops.py.
MODULES = ("gather_points", "group_points", "three_interpolate", "three_nn", "ball_query")


def of(batch, points):
    """A block for each image, a thread for each point."""
    return dict(grid=(1, batch), threads=(points, 1))


@pytest.fixture(scope="module")
def kernels(compile_kernels):
    return compile_kernels(KERNELS, *(f"{name}_cuda_kernel" for name in FILES))


@pytest.fixture(autouse=True)
def on_the_stand_in(monkeypatch):
    for name in MODULES:
        monkeypatch.setattr(importlib.import_module(f"mmcv.ops.{name}"), "ext_module", stand_in)


class Case(Numbers):
    def __init__(self, seed):
        super().__init__(seed)
        self.whole = seed % 3 == 0  # coordinates, so that distances tie

    def points(self, *shape):
        points = self.normal(*shape, 3) * 2
        return points.round() if self.whole else points

    def index(self, below, *shape):
        return torch.randint(below, shape, generator=self.generator, dtype=torch.int32)

    def sizes(self):
        """Batch, channels, points, chosen points, samples of each."""
        return [self.choose.choice([0, 1, 3]), *(self.choose.randint(1, 5) for _ in range(4))]


@pytest.mark.parametrize("seed", CASES)
def test_masked_im2col(kernels, seed):
    case = Case(seed)
    channels, size = case.choose.randint(1, 4), (case.choose.randint(3, 7), case.choose.randint(3, 8))
    kernel, padding = (
        case.choose.choice([(1, 1), (3, 3), (3, 1), (2, 3)]),
        case.choose.choice([(0, 0), (1, 2)]),
    )
    im = case.normal(1, channels, *size)
    wanted = case.normal(*size) > case.choose.choice([-9, 0, 1, 9])  # all of them, some, none
    y, x = wanted.nonzero(as_tuple=True)
    got, want = im.new_zeros(2, channels * kernel[0] * kernel[1], len(y))
    stand_in.masked_im2col_forward(im, y, x, got, *kernel, *padding)
    kernels("im2col", channels * len(y), im, *size, *kernel, *padding, y, x, len(y), want)
    assert_close([got], [want])

    columns, (got, want) = case.normal(channels, len(y)), im.new_zeros(2, 1, channels, *size)
    stand_in.masked_col2im_forward(columns, y, x, got, *size, channels)
    kernels("col2im", columns.numel(), columns, *size, channels, y, x, len(y), want)
    assert_close([got], [want])


@pytest.mark.parametrize("seed", CASES)
def test_gather_points(kernels, seed):
    case = Case(seed)
    batch, channels, points, chosen, _ = case.sizes()
    features, index = case.normal(batch, channels, points), case.index(points, batch, chosen)
    grad, got = with_grad(lambda f: mmcv_ops.gather_points(f, index), features)
    want = [torch.zeros_like(t) for t in got]
    sizes, how = (batch, channels, points, chosen), dict(grid=(batch, channels), threads=(chosen, 1))
    kernels("gather_points_forward", *sizes, features, index, want[0], **how)
    kernels("gather_points_backward", *sizes, grad, index, want[1], **how)
    assert_close(got, want)


@pytest.mark.parametrize("seed", CASES)
def test_group_points(kernels, seed):
    case = Case(seed)
    batch, channels, points, chosen, samples = case.sizes()
    features, index = case.normal(batch, channels, points), case.index(points, batch, chosen, samples)
    grad, got = with_grad(lambda f: mmcv_ops.grouping_operation(f, index), features)
    want = [torch.zeros_like(t) for t in got]
    sizes = (batch, channels, points, chosen, samples)
    how = dict(grid=(batch, channels), threads=(chosen * samples, 1))
    kernels("group_points_forward", *sizes, features, index, want[0], **how)
    kernels("group_points_backward", *sizes, grad, index, want[1], **how)
    assert_close(got, want)


@pytest.mark.parametrize("seed", CASES)
def test_three_interpolate(kernels, seed):
    case = Case(seed)
    batch, channels, points, wanted, _ = case.sizes()
    features, index = case.normal(batch, channels, points), case.index(points, batch, wanted, 3)
    weight = case.normal(batch, wanted, 3)
    grad, got = with_grad(lambda f: mmcv_ops.three_interpolate(f, index, weight), features)
    want = [torch.zeros_like(t) for t in got]
    how = dict(grid=(batch, channels), threads=(wanted, 1))
    kernels(
        "three_interpolate_forward", batch, channels, points, wanted, features, index, weight, want[0], **how
    )
    kernels(
        "three_interpolate_backward", batch, channels, wanted, points, grad, index, weight, want[1], **how
    )
    assert_close(got, want)


@pytest.mark.parametrize("seed", CASES)
def test_three_nn(kernels, seed):
    case = Case(seed)
    batch, _, targets, sources, _ = case.sizes()
    target, source = case.points(batch, targets), case.points(batch, sources)
    distance, index = mmcv_ops.three_nn(target, source)
    squares, places = torch.zeros_like(distance), torch.zeros_like(index)
    kernels("three_nn", batch, targets, sources, target, source, squares, places, **of(batch, targets))
    assert torch.equal(index, places)
    squares[squares > 1e39] = torch.inf  # 1e40 in place of a point that is not there; in float32 infinity
    assert_close([distance], [squares.sqrt()])


@pytest.mark.parametrize("seed", CASES)
def test_knn(kernels, seed):
    """Of equal distances mmcv's heap takes any."""
    case = Case(seed)
    batch, _, points, centres, _ = case.sizes()
    k = case.choose.randint(1, 7)
    sources, targets = case.points(batch, points), case.points(batch, centres)
    index, places = torch.zeros(2, batch, centres, k, dtype=torch.int32)
    squares, want = torch.zeros(2, batch, centres, k, dtype=torch.float64)
    stand_in.knn_forward(sources, targets, index, squares, b=batch, n=points, m=centres, nsample=k)
    kernels("knn", batch, points, centres, k, sources, targets, places, want, **of(batch, centres))
    torch.testing.assert_close(squares, want)  # of float32
    if not case.whole:
        assert torch.equal(index, places)
    within = min(k, points)
    chosen = sources.gather(1, index[..., :within].long().flatten(1)[..., None].expand(-1, -1, 3))
    to = (chosen.view(batch, centres, within, 3) - targets[:, :, None]).square().sum(-1)
    torch.testing.assert_close(to, squares[..., :points])


@pytest.mark.parametrize("seed", CASES)
def test_ball_query(kernels, seed):
    case = Case(seed)
    batch, _, points, centres, k = case.sizes()
    points += 3
    sources, targets = case.points(batch, points), case.points(batch, centres)
    least, most = case.choose.choice([(0.0, 2.0), (1.0, 3.0), (0.5, 1.0), (2.0, 9.0)])
    index = mmcv_ops.ball_query(least, most, k, sources, targets)
    places = torch.zeros_like(index)
    kernels(
        "ball_query", batch, points, centres, least, most, k, targets, sources, places, **of(batch, centres)
    )
    assert torch.equal(index, places)


@pytest.mark.parametrize("seed", CASES)
def test_points_in_boxes(kernels, seed):
    case = Case(seed)
    batch, count, points, _, _ = case.sizes()
    sources = case.points(batch, points)
    sizes, angle = case.points(batch, count).abs() * 2, case.normal(batch, count, 1)
    if case.whole:
        angle = torch.zeros_like(angle)
    boxes = torch.cat([case.points(batch, count), sizes, angle], 2)
    got, want = torch.full((2, batch, points), -1, dtype=torch.int32)
    stand_in.points_in_boxes_part_forward(boxes, sources, got)
    kernels("part", batch, count, points, boxes, sources, want, **of(batch, points))
    assert torch.equal(got, want)
    got, want = torch.zeros(2, batch, points, count, dtype=torch.int32)
    stand_in.points_in_boxes_all_forward(boxes, sources, got)
    kernels("all", batch, count, points, boxes, sources, want, **of(batch, points))
    assert torch.equal(got, want)
