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
WRAPPER = r"""
using D = double;
// a thread for each of N, in blocks of one row each
#define RUN(B, C, N, ...) \
  for (int b_ = 0; b_ < (B); ++b_) \
    for (int c_ = 0; c_ < (C); ++c_) emulate(1, N, [=] { blockIdx = dim3(0, c_, b_); __VA_ARGS__; })

extern "C" void im2col(int n, const D* im, int height, int width, int kh, int kw, int ph, int pw,
                       const int64_t* y, const int64_t* x, int count, D* col) {
  RUN(1, 1, 4, MaskedIm2colForward<D>(n, im, height, width, kh, kw, ph, pw, y, x, count, col));
}
extern "C" void col2im(int n, const D* col, int height, int width, int c, const int64_t* y, const int64_t* x,
                       int count, D* im) {
  RUN(1, 1, 4, MaskedCol2imForward<D>(n, col, height, width, c, y, x, count, im));
}
extern "C" void gather(int b, int c, int n, int m, const D* points, const int* index, D* out) {
  RUN(b, c, m, gather_points_forward_cuda_kernel<D>(b, c, n, m, points, index, out));
}
extern "C" void gather_backward(int b, int c, int n, int m, const D* grad, const int* index, D* out) {
  RUN(b, c, m, gather_points_backward_cuda_kernel<D>(b, c, n, m, grad, index, out));
}
extern "C" void group(int b, int c, int n, int m, int s, const D* points, const int* index, D* out) {
  RUN(b, c, m * s, group_points_forward_cuda_kernel<D>(b, c, n, m, s, points, index, out));
}
extern "C" void group_backward(int b, int c, int n, int m, int s, const D* grad, const int* index, D* out) {
  RUN(b, c, m * s, group_points_backward_cuda_kernel<D>(b, c, n, m, s, grad, index, out));
}
extern "C" void interpolate(int b, int c, int m, int n, const D* points, const int* index, const D* weight,
                            D* out) {
  RUN(b, c, n, three_interpolate_forward_cuda_kernel<D>(b, c, m, n, points, index, weight, out));
}
extern "C" void interpolate_backward(int b, int c, int n, int m, const D* grad, const int* index,
                                     const D* weight, D* out) {
  RUN(b, c, n, three_interpolate_backward_cuda_kernel<D>(b, c, n, m, grad, index, weight, out));
}
extern "C" void three_nn(int b, int n, int m, const D* target, const D* source, D* squares, int* index) {
  RUN(1, b, n, three_nn_forward_cuda_kernel<D>(b, n, m, target, source, squares, index));
}
extern "C" void knn(int b, int n, int m, int k, const D* points, const D* centres, int* index, D* squares) {
  RUN(1, b, m, knn_forward_cuda_kernel<D>(b, n, m, k, points, centres, index, squares));
}
extern "C" void ball_query(int b, int n, int m, D least, D most, int k, const D* centres, const D* points,
                           int* index) {
  RUN(1, b, m, ball_query_forward_cuda_kernel<D>(b, n, m, least, most, k, centres, points, index));
}
extern "C" void first_box(int b, int boxes_num, int m, const D* boxes, const D* points, int* output) {
  RUN(1, b, m, points_in_boxes_part_forward_cuda_kernel<D>(b, boxes_num, m, boxes, points, output));
}
extern "C" void all_boxes(int b, int boxes_num, int m, const D* boxes, const D* points, int* output) {
  RUN(1, b, m, points_in_boxes_all_forward_cuda_kernel<D>(b, boxes_num, m, boxes, points, output));
}
"""

# What mmcv's kernels cannot be asked here is tested by hand: tests/test_compat_mmcv_ops.py.
MODULES = ("gather_points", "group_points", "three_interpolate", "three_nn", "ball_query")


@pytest.fixture(scope="module")
def kernels(compile_kernels):
    return compile_kernels(WRAPPER, *FILES)


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
    kernels("gather", batch, channels, points, chosen, features, index, want[0])
    kernels("gather_backward", batch, channels, points, chosen, grad, index, want[1])
    assert_close(got, want)


@pytest.mark.parametrize("seed", CASES)
def test_group_points(kernels, seed):
    case = Case(seed)
    batch, channels, points, chosen, samples = case.sizes()
    features, index = case.normal(batch, channels, points), case.index(points, batch, chosen, samples)
    grad, got = with_grad(lambda f: mmcv_ops.grouping_operation(f, index), features)
    want = [torch.zeros_like(t) for t in got]
    sizes = (batch, channels, points, chosen, samples)
    kernels("group", *sizes, features, index, want[0])
    kernels("group_backward", *sizes, grad, index, want[1])
    assert_close(got, want)


@pytest.mark.parametrize("seed", CASES)
def test_three_interpolate(kernels, seed):
    case = Case(seed)
    batch, channels, points, wanted, _ = case.sizes()
    features, index = case.normal(batch, channels, points), case.index(points, batch, wanted, 3)
    weight = case.normal(batch, wanted, 3)
    grad, got = with_grad(lambda f: mmcv_ops.three_interpolate(f, index, weight), features)
    want = [torch.zeros_like(t) for t in got]
    kernels("interpolate", batch, channels, points, wanted, features, index, weight, want[0])
    kernels("interpolate_backward", batch, channels, wanted, points, grad, index, weight, want[1])
    assert_close(got, want)


@pytest.mark.parametrize("seed", CASES)
def test_three_nn(kernels, seed):
    case = Case(seed)
    batch, _, targets, sources, _ = case.sizes()
    target, source = case.points(batch, targets), case.points(batch, sources)
    distance, index = mmcv_ops.three_nn(target, source)
    squares, places = torch.zeros_like(distance), torch.zeros_like(index)
    kernels("three_nn", batch, targets, sources, target, source, squares, places)
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
    kernels("knn", batch, points, centres, k, sources, targets, places, want)
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
    kernels("ball_query", batch, points, centres, least, most, k, targets, sources, places)
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
    kernels("first_box", batch, count, points, boxes, sources, want)
    assert torch.equal(got, want)
    got, want = torch.zeros(2, batch, points, count, dtype=torch.int32)
    stand_in.points_in_boxes_all_forward(boxes, sources, got)
    kernels("all_boxes", batch, count, points, boxes, sources, want)
    assert torch.equal(got, want)
