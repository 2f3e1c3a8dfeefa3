"""Operators on quadrilaterals and point sets, compared with mmcv's."""

import functools
import importlib

import pytest
import torch
from test_mmcv_boxes_and_rois import CASES, TOLERANCE, Case, mmcv_ops, stand_in

import dcnzoo.ops

# one library each, because two of the files define functions with the same names
KERNELS = {
    "hulls": (
        "convex_iou_cuda_kernel",
        dict(iou="convex_iou_cuda_kernel<double>", giou="convex_giou_cuda_kernel<double>"),
    ),
    "rectangles": ("min_area_polygons_cuda", dict(rectangles="min_area_polygons_cuda_kernel<double>")),
    "corners": (
        "diff_iou_rotated_cuda_kernel",
        dict(corners="diff_iou_rotated_sort_vertices_forward_cuda_kernel"),
    ),
    "inside": (
        "points_in_polygons_cuda_kernel",
        dict(inside="points_in_polygons_forward_cuda_kernel<double>"),
    ),
}


@pytest.fixture(scope="module")
def compiled(compile_kernels):
    @functools.cache
    def compiled(library):
        file, kernels = KERNELS[library]
        return compile_kernels(kernels, file)

    return compiled


def nine_points(case, count):
    return (case.uniform(count, 1, 2, high=25) + case.uniform(count, 9, 2, high=20)).flatten(1).double()


@pytest.mark.parametrize("seed", CASES)
def test_convex_iou(compiled, seed):
    case = Case(seed)
    points = nine_points(case, case.choose.choice([0, 1, 4]))
    boxes = case.quads(case.choose.choice([1, 5]), regular=True).double()
    got, want = points.new_zeros(2, len(points), len(boxes))
    stand_in.convex_iou(points, boxes, got)
    compiled("hulls")("iou", len(points), len(boxes), points, boxes, want)
    torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("seed", CASES)
def test_convex_giou(compiled, seed):
    case = Case(seed)
    points = nine_points(case, case.choose.choice([0, 1, 6]))
    boxes = case.quads(len(points), regular=True).double()
    got, want = points.new_zeros(2, len(points), 19)
    stand_in.convex_giou(points, boxes, got)
    compiled("hulls")("giou", len(points), len(points), points, boxes, want)
    torch.testing.assert_close(got[:, 18], want[:, 18], **TOLERANCE)
    # If a corner lies on a side, as with integer coordinates, mmcv mixes the two crossing lines. Ours must be
    # the derivative from one side or the other.
    differs = (got - want).abs() > 1e-5
    assert case.whole or not differs.any()
    for row, k in differs.nonzero().tolist():
        slopes = []
        for step in (1e-5, -1e-5):
            moved, output = points.clone(), torch.zeros_like(got)
            moved[row, k] += step
            stand_in.convex_giou(moved, boxes, output)
            slopes.append(float(output[row, 18] - got[row, 18]) / step)
        assert min(slopes) - 1e-4 <= got[row, k] <= max(slopes) + 1e-4


@pytest.mark.parametrize("seed", CASES)
def test_min_area_polygons(compiled, seed):
    case = Case(seed)
    points = nine_points(case, case.choose.choice([0, 1, 6]))
    got, want = points.new_zeros(2, len(points), 8)
    stand_in.min_area_polygons(points, got)
    compiled("rectangles")("rectangles", len(points), points, want)
    # several rectangles can have the minimal area, as around some triangles: mmcv's float32 rounding decides
    corners, others = got.view(-1, 4, 2), want.view(-1, 4, 2)
    same = (corners - others).abs().amax((1, 2)) < 1e-4
    areas = [(q[:, 1] - q[:, 0]).norm(dim=1) * (q[:, 2] - q[:, 1]).norm(dim=1) for q in (corners, others)]
    torch.testing.assert_close(*areas, atol=1e-4, rtol=1e-5)
    assert same.sum() >= len(points) - 2
    side = corners.roll(-1, 1) - corners
    to = points.view(-1, 9, 1, 2) - corners[:, None]
    inner = (side[:, None] * to).sum(-1) / side.square().sum(-1).clamp(min=1e-12)[:, None]
    assert ((inner > -1e-4) & (inner < 1 + 1e-4)).all()  # inside all four sides


@pytest.mark.parametrize("seed", CASES)
def test_points_in_polygons(compiled, seed):
    case = Case(seed)
    boxes = case.quads(case.choose.choice([1, 4])).double()
    if case.whole:
        boxes = boxes.round()
    points = case.uniform(case.choose.choice([0, 1, 9]), 2, high=30).double()
    if len(points) > 4:
        points[:4] = boxes[0].view(4, 2)  # corners
        points[4] = boxes[0].view(4, 2)[:2].mean(0)  # on a side
    got, want = points.new_zeros(2, len(points), len(boxes))
    stand_in.points_in_polygons_forward(points, boxes, got)
    counts = (len(points), len(boxes))
    compiled("inside")("inside", got.numel(), points, boxes, *counts, want, threads=(got.numel(), 1))
    assert torch.equal(got, want)


@pytest.mark.parametrize("seed", CASES)
def test_differentiable_iou(compiled, monkeypatch, seed):
    """Compare areas, because corners may start elsewhere. For equal boxes, float32 misses corners."""
    module, case = importlib.import_module("mmcv.ops.diff_iou_rotated"), Case(seed)
    count = case.choose.choice([1, 4, 20])
    boxes, others = case.rotated(count), case.rotated(count)
    equal = torch.zeros(count, dtype=torch.bool)
    equal[::3] = seed % 2 == 0
    others = torch.where(equal[:, None], boxes, others)

    class Theirs:
        @staticmethod
        def diff_iou_rotated_sort_vertices_forward(vertices, mask, number):
            order = torch.zeros(1, count, 9, dtype=torch.int32)
            compiled("corners")("corners", 1, count, 24, vertices, mask, number, order)
            return order

    results = []
    for extension in (Theirs, stand_in):
        monkeypatch.setattr(module, "ext_module", extension)
        leaf = boxes.clone().requires_grad_()
        iou = mmcv_ops.diff_iou_rotated_2d(leaf[None], others[None])[0]
        results.append((iou.detach(), *torch.autograd.grad(iou.sum(), leaf)))
    (want, want_grad), (got, got_grad) = results
    wide = (boxes[:, 2:4].amin(1) > 0.1) & (others[:, 2:4].amin(1) > 0.1)
    doubles = boxes.double(), others.double()
    torch.testing.assert_close(
        mmcv_ops.diff_iou_rotated_2d(*(t[None] for t in doubles))[0][wide],
        dcnzoo.ops.box_iou_rotated(*doubles, aligned=True)[wide],
        atol=1e-6,
        rtol=1e-6,
    )
    comparable = wide & ~equal
    torch.testing.assert_close(got[comparable], want[comparable], atol=1e-4, rtol=1e-4)
    if not case.whole:  # with integers, some corners lie on sides, where the two slopes differ
        torch.testing.assert_close(got_grad[comparable], want_grad[comparable], atol=1e-3, rtol=1e-3)


def test_modules_call_what_is_compared():
    """mmcv's functions call the operators with the same arguments as the tests above."""
    points = nine_points(Case(1), 3).float()
    boxes = Case(1).quads(3, regular=True)
    for name in ("convex_iou", "min_area_polygons", "points_in_polygons"):
        importlib.import_module(f"mmcv.ops.{name}").ext_module = stand_in
    assert mmcv_ops.convex_iou(points, boxes).shape == (3, 3)
    giou, gradient = mmcv_ops.convex_giou(points, boxes)
    assert giou.shape == (3,) and gradient.shape == (3, 18)
    assert mmcv_ops.min_area_polygons(points).shape == (3, 8)
    assert mmcv_ops.points_in_polygons(points[:, :2], boxes).shape == (3, 3)
