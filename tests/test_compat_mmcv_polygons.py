"""Operators of ``mmcv.ops`` that rotated detection, text spotting and point sets ask for, by hand.

``make peers`` compares them with mmcv's in hundreds of random cases.
"""

import importlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import dcnzoo.models  # noqa: F401
from dcnzoo.compat.mmcv import _ext

from .test_compat_mmcv_plain import gradients_agree, random

mmcv_ops = importlib.import_module("mmcv.ops")
SQUARE = [[0.0, 0, 2, 0, 2, 2, 0, 2]]
# of the square from 1 to 3, and points within
POINTS = [[1.0, 1, 3, 1, 3, 3, 1, 3, 2, 2, 1.5, 2, 2, 1.5, 2.5, 2, 1, 1]]


def test_box_iou_quadri_of_rectangles_is_that_of_rotated_boxes():
    generator = torch.Generator().manual_seed(0)
    scale, least = torch.tensor([20.0, 20, 15, 8, 3.5]), torch.tensor([0.0, 0, 1, 1, 0])
    boxes = torch.rand(9, 5, generator=generator) * scale + least
    signs = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    u, v = (signs * boxes[:, None, 2:4] / 2).unbind(-1)
    cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
    quads = torch.stack([boxes[:, :1] + u * cos - v * sin, boxes[:, 1:2] + u * sin + v * cos], -1).flatten(1)
    expected = mmcv_ops.box_iou_rotated(boxes, boxes)
    torch.testing.assert_close(mmcv_ops.box_iou_quadri(quads, quads), expected, atol=1e-5, rtol=1e-5)
    assert 10 < (expected > 0.05).sum() < 80
    scores = torch.rand(9, generator=generator)
    _, kept = mmcv_ops.nms_quadri(quads, scores, 0.1)
    assert kept.tolist() == mmcv_ops.nms_rotated(boxes, scores, 0.1)[1].tolist()
    assert mmcv_ops.box_iou_quadri(quads[:0], quads).shape == (0, 9)


def test_convex_iou_and_giou():
    points, square = torch.tensor(POINTS), torch.tensor(SQUARE)
    assert mmcv_ops.convex_iou(points, square).item() == pytest.approx(1 / 7)
    turned = square.view(1, 4, 2).flip(1).flatten(1)
    giou, gradient = mmcv_ops.convex_giou(points, turned)
    assert giou.item() == pytest.approx(1 / 7 - 1 / 8)  # around both: a hexagon of 8
    assert not gradient[0, 8:].any() and gradient[0, :8].any()  # within the hull, and a corner's copy
    assert mmcv_ops.convex_iou(square[:, [0, 1, 2, 3, 4, 5, 6, 7] + [0, 1] * 5], square).item() == 1


def test_convex_giou_gradient():
    points, quads = random(3, 18), random(3, 1, 2) + torch.tensor(SQUARE).view(4, 2).double()

    def giou(points, row=18):
        output = points.new_zeros(3, 19)
        _ext.convex_giou(points, quads.flatten(1), output)
        return output[:, row] if row == 18 else output[:, :18]

    gradient, step = giou(points, row=0), 1e-6
    for k in range(18):
        moved = points.clone()
        moved[:, k] += step
        torch.testing.assert_close((giou(moved) - giou(points)) / step, gradient[:, k], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", range(10))
def test_convex_giou_gradient_where_corners_lie_on_sides(seed):
    """Points on a grid, many of them on a side of the quadrilateral: the derivative where there is one."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(0, 7, (4, 18), generator=generator).double()
    low = torch.randint(0, 3, (4, 2), generator=generator)
    width, height = torch.randint(2, 5, (2, 4, 1), generator=generator)
    quads = torch.cat([low, low + width * torch.tensor([1, 0]), low + torch.cat([width, height], 1)], 1)
    quads = torch.cat([quads, low + height * torch.tensor([0, 1])], 1).double()

    def giou(points):
        output = points.new_zeros(4, 19)
        _ext.convex_giou(points, quads, output)
        return output[:, :18], output[:, 18]

    (gradient, value), step, compared = giou(points), 1e-6, 0
    for k in range(18):
        move = step * torch.eye(18, dtype=torch.float64)[k]
        right, left = (giou(points + move)[1] - value) / step, (value - giou(points - move)[1]) / step
        smooth = (right - left).abs() < 1e-4
        compared += int(smooth.sum())
        torch.testing.assert_close(gradient[smooth, k], right[smooth], atol=1e-4, rtol=0)
    assert compared > 20


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.9])
def test_min_area_polygons(angle):
    """Of points of a rectangle 6 by 2, its corners."""
    corners = torch.tensor([[3.0, 1], [-3, 1], [-3, -1], [3, -1]])
    within = torch.tensor([[0.0, 0], [1, 0.5], [-2, -0.5], [2, 0.9], [0, 1]])
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    points = torch.cat([within, corners]) @ turn
    got = mmcv_ops.min_area_polygons(points.view(1, 18)).view(4, 2)
    distance = torch.cdist(got, corners @ turn)
    assert distance.min(1).values.max() < 1e-5 and distance.min(0).values.max() < 1e-5


def test_points_in_polygons():
    points = torch.tensor([[1.0, 1], [1.9, 0.1], [3, 1], [-1, 1], [1, 2.5]])
    got = mmcv_ops.points_in_polygons(points, torch.tensor(SQUARE))
    assert got[:, 0].tolist() == [1, 1, 0, 0, 0]


def test_bezier_align_of_straight_curves():
    """Each bin is RoIAlign's, moved by half a bin: mmcv samples around where a bin begins."""
    input, size = random(2, 3, 12, 14), (2, 3)
    x1, y1, x2, y2 = 2.0, 3.0, 8.0, 7.0
    across = [x1 + (x2 - x1) * t / 3 for t in range(4)]
    upper = [v for x in across for v in (x, y1)]
    lower = [v for x in reversed(across) for v in (x, y2)]
    beziers = torch.tensor([[1.0, *upper, *lower]], dtype=torch.float64)
    moved = torch.tensor([[1.0, x1 - 1, y1 - 1, x2 - 1, y2 - 1]], dtype=torch.float64)
    expected = mmcv_ops.roi_align(input, moved, size, 1.0, 2, "avg", True)
    torch.testing.assert_close(mmcv_ops.bezier_align(input, beziers, size, 1.0, 2, True), expected)
    gradients_agree(lambda x: mmcv_ops.bezier_align(x, beziers, size, 0.7, 0, True), input[:, :1])
    assert mmcv_ops.bezier_align(input, beziers[:0], size).shape == (0, 3, 2, 3)


def test_riroi_align_rotated():
    """Turned by whole orientations it is the rotated RoIAlign with its channels moved on."""
    input = random(1, 8, 9, 9)
    for turns in (0, 1, 3):
        rois = torch.tensor([[0, 4.0, 5, 5, 3, turns * math.pi / 2 + 1e-9]], dtype=torch.float64)
        plain = mmcv_ops.roi_align_rotated(input, rois, (2, 3), 1.0, 2, False, False)
        expected = plain.unflatten(1, (2, 4)).roll(turns, 2).flatten(1, 2)
        got = mmcv_ops.riroi_align_rotated(input, rois, (2, 3), 1.0, 2, 4, False)
        torch.testing.assert_close(got, expected, atol=1e-7, rtol=1e-7)
    rois[0, 5] = 0.6
    gradients_agree(lambda x: mmcv_ops.riroi_align_rotated(x, rois, (1, 2), 0.8, 0, 4), input[..., :5])


def test_prroi_pool():
    """A linear map's mean over a bin is its value at the centre; gradients of features and RoIs."""
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    input = torch.stack([2 * y + x, -x])[None]
    rois = torch.tensor([[0, 1.5, 2.25, 7.5, 6.25]])
    got = mmcv_ops.prroi_pool(input, rois, (2, 3), 1.0)
    centre_y, centre_x = torch.tensor([3.25, 5.25])[:, None], torch.tensor([2.5, 4.5, 6.5])
    expected = torch.stack([2 * centre_y + centre_x, (0 * centre_y - centre_x)])[None]
    torch.testing.assert_close(got, expected)

    input, rois = random(2, 2, 5, 6), torch.tensor([[1, 0.3, -0.7, 3.9, 3.1], [0, 2.2, 1.6, 9, 4.4]]).double()
    grad = random(2, 2, 2, 3, seed=1)

    def pooled(input, rois):
        output = input.new_zeros(2, 2, 2, 3)
        _ext.prroi_pool_forward(input, rois, output, 2, 3, 0.9)
        return output

    of_input, of_rois, output = torch.zeros_like(input), torch.zeros_like(rois), pooled(input, rois)
    _ext.prroi_pool_backward(grad, rois, of_input, 2, 3, 0.9)
    _ext.prroi_pool_coor_backward(output, grad, input, rois, of_rois, 2, 3, 0.9)
    step = random(*input.shape, seed=2)
    rise = ((pooled(input + step, rois) - output) * grad).sum()  # linear
    torch.testing.assert_close((of_input * step).sum(), rise)
    for k in range(1, 5):
        moved = rois.clone()
        moved[:, k] += 1e-6
        slope = ((pooled(input, moved) - output) * grad).sum((1, 2, 3)) / 1e-6
        torch.testing.assert_close(of_rois[:, k], slope, atol=1e-4, rtol=1e-4)
    assert mmcv_ops.prroi_pool(torch.zeros(1, 2, 3, 3), torch.zeros(0, 5), (2, 3)).shape == (0, 2, 2, 3)


@pytest.mark.parametrize("kind", ["collect", "distribute"])
def test_psa_mask(kind):
    input = random(1, 3, 2, 4)  # of 1×3 taps
    got = mmcv_ops.PSAMask(kind, (1, 3))(input).view(2, 4, 2, 4)
    for y, x, v, u in torch.ones(2, 4, 2, 4).nonzero().tolist():
        (h, w), (i, j) = ((v, u), (y, x)) if kind == "collect" else ((y, x), (v, u))
        expected = input[0, j - w + 1, h, w] if i == h and abs(j - w) <= 1 else 0
        assert got[y, x, v, u] == expected
    gradients_agree(mmcv_ops.PSAMask(kind, (1, 3)), input)


def test_points():
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [5, 5, 5]]])
    index, squares = torch.zeros(1, 1, 5, dtype=torch.int32), torch.zeros(1, 1, 5)
    _ext.knn_forward(points, points[:, :1], index, squares, b=1, n=4, m=1, nsample=5)
    assert index.flatten().tolist() == [0, 1, 2, 3, 0]
    assert squares.flatten().tolist() == [0, 1, 4, 75, 1e10]
    # of the second point: the first, itself, and the third at √5; of the third: the first, the second, itself
    assert mmcv_ops.ball_query(0.5, 2.5, 4, points, points[:, 1:3]).tolist() == [[[0, 1, 2, 0], [0, 1, 2, 0]]]
    assert mmcv_ops.ball_query(0, 1.5, 3, points, points[:, 3:]).tolist() == [[[3, 3, 3]]]
    chosen = torch.zeros(1, 3, dtype=torch.int32)
    _ext.furthest_point_sampling_forward(points, torch.full((1, 4), 1e10), chosen, b=1, n=4, m=3)
    assert chosen.tolist() == [[0, 3, 2]]
    box = torch.tensor([[[0.0, 0, -1, 2.5, 5, 2, 0]]])
    assert mmcv_ops.points_in_boxes_cpu(points, box).flatten().tolist() == [1, 1, 1, 0]
    turned = torch.tensor([[[0.0, 0, -1, 2.5, 5, 2, math.pi / 2]]])
    assert mmcv_ops.points_in_boxes_cpu(points, turned).flatten().tolist() == [1, 1, 0, 0]


def test_chamfer_distance_gradient():
    points, others = random(2, 3, 2), random(2, 4, 2, seed=1)
    leaves = [t.float().requires_grad_() for t in (points, others)]
    one, other, *_ = mmcv_ops.chamfer_distance(*leaves)
    squares = torch.cdist(*leaves).square()
    expected = squares.amin(2).sum() + 2 * squares.amin(1).sum()
    torch.testing.assert_close(one.sum() + 2 * other.sum(), expected)
    want = torch.autograd.grad(expected, leaves)
    for g, w in zip(torch.autograd.grad(one.sum() + 2 * other.sum(), leaves), want, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize(
    ("kernel", "displacement", "stride", "padding", "dilation", "spread"),
    [(1, 1, 1, 0, 1, 1), (3, 1, 2, 1, 1, 2), (2, 2, 1, 0, 2, 1), (3, 0, 1, 1, 1, 1)],
)
def test_correlation(kernel, displacement, stride, padding, dilation, spread):
    """All products of pixels, of which each output adds up those of its window."""
    first, second = (random(1, 2, 5, 6, seed=seed).requires_grad_() for seed in (0, 1))
    got = mmcv_ops.Correlation(kernel, displacement, stride, padding, dilation, spread)(first, second)
    products = F.pad(torch.einsum("cyx,cvu->yxvu", first[0], second[0]), [9] * 8)  # zero outside
    want = torch.zeros_like(got)
    for _, a, b, h, w in torch.ones(got.shape).nonzero().tolist():
        for i, j in itertools.product(range(kernel), repeat=2):
            y, x = 9 + h * stride - padding + i * dilation, 9 + w * stride - padding + j * dilation
            v, u = y + (a - displacement) * spread, x + (b - displacement) * spread
            want[0, a, b, h, w] += products[y, x, v, u]
    torch.testing.assert_close(got, want)
    gradients = (torch.autograd.grad(t.sin().sum(), (first, second), retain_graph=True) for t in (got, want))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 3, 4, 1)])
def test_fused_bias_leakyrelu(shape):
    """Second derivatives too."""
    apply = importlib.import_module("mmcv.ops.fused_bias_leakyrelu").FusedBiasLeakyReLUFunction.apply
    tensors, results = [random(*shape).requires_grad_(), random(3, seed=1).requires_grad_()], []
    plain = lambda x, b: F.leaky_relu(x + b.view(-1, *(1,) * (x.dim() - 2)), 0.2) * 1.5  # noqa: E731
    for function in (lambda x, b: apply(x, b, 0.2, 1.5), plain):
        output = function(*tensors)
        grad = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(shape).requires_grad_()
        gradients = torch.autograd.grad(output, tensors, grad, create_graph=True)
        again = torch.autograd.grad(sum((g**2).sum() for g in gradients), grad)
        results.append([t.detach() for t in (output, *gradients, *again)])
    torch.testing.assert_close(*results)
