"""Operators on quadrilaterals and sets of points against mmcv's."""

import functools
import importlib

import pytest
import torch
from test_mmcv_boxes_and_rois import CASES, TOLERANCE, Case, mmcv_ops, on, stand_in  # noqa: F401  a fixture

# each its own library: two of the files define functions of the same names
KERNELS = {
    "hulls": ("convex_iou_cuda_kernel", dict(iou="convex_iou_cuda_kernel", giou="convex_giou_cuda_kernel")),
    "rectangles": ("min_area_polygons_cuda", dict(rectangles="min_area_polygons_cuda_kernel")),
    "inside": ("points_in_polygons_cuda_kernel", dict(inside="points_in_polygons_forward_cuda_kernel")),
}


@pytest.fixture(scope="module")
def compiled(compile_kernels):
    @functools.cache
    def compiled(library):
        file, kernels = KERNELS[library]
        return compile_kernels({name: f"{kernel}<double>" for name, kernel in kernels.items()}, file)

    return compiled


def quads(case, count, regular=False):
    """Convex; not all rectangles, and in every fifth case some without area, unless ``regular``."""
    x, y, width, height, angle = case.rotated(count).unbind(1)
    flat = case.degenerate and not regular
    width, height = (width, height) if flat else (width + 1, height + 1)
    signs = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])[None]
    u, v = (signs * torch.stack([width, height], 1)[:, None] / 2).unbind(-1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    corners = torch.stack([x[:, None] + u * cos - v * sin, y[:, None] + u * sin + v * cos], -1)
    moved = (torch.rand(corners.shape, generator=case.generator) - 0.5) * (
        0 if flat else case.choose.choice([0.0, 0.4])
    )
    corners = corners + moved
    return (corners.flip(1) if case.choose.random() < 0.5 else corners).flatten(1)


@pytest.mark.parametrize("seed", CASES)
def test_box_iou_quadri(on, seed):  # noqa: F811
    case = Case(seed)
    boxes, others = quads(case, case.count()), quads(case, case.count())
    case.some_equal(boxes, others)
    for mode in ("iou", "iof"):
        for arguments in ((boxes, others, mode), (boxes, boxes.roll(1, 0), mode, True)):
            want, got = on("box_iou_quadri", lambda a=arguments: mmcv_ops.box_iou_quadri(*a))
            torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("seed", CASES)
def test_nms_quadri(on, seed):  # noqa: F811
    case = Case(seed)
    boxes = quads(case, max(1, case.count(40)))
    labels = torch.randint(2, (len(boxes),), generator=case.generator) if seed % 3 == 0 else None
    arguments = (boxes, case.scores(len(boxes)), case.choose.choice([0.1, 0.3, 0.5]), labels)
    want, got = on("nms", lambda: mmcv_ops.nms_quadri(*arguments))
    assert got[1].tolist() == want[1].tolist()
    torch.testing.assert_close(got[0], want[0])


def nine_points(case, count):
    return (case.uniform(count, 1, 2, high=25) + case.uniform(count, 9, 2, high=20)).flatten(1).double()


@pytest.mark.parametrize("seed", CASES)
def test_convex_iou(compiled, seed):
    case = Case(seed)
    points = nine_points(case, case.choose.choice([0, 1, 4]))
    boxes = quads(case, case.choose.choice([1, 5]), regular=True).double()
    got, want = points.new_zeros(2, len(points), len(boxes))
    stand_in.convex_iou(points, boxes, got)
    compiled("hulls")("iou", len(points), len(boxes), points, boxes, want)
    torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("seed", CASES)
def test_convex_giou(compiled, seed):
    case = Case(seed)
    points = nine_points(case, case.choose.choice([0, 1, 6]))
    boxes = quads(case, len(points), regular=True).double()
    got, want = points.new_zeros(2, len(points), 19)
    stand_in.convex_giou(points, boxes, got)
    compiled("hulls")("giou", len(points), len(points), points, boxes, want)
    torch.testing.assert_close(got[:, 18], want[:, 18], **TOLERANCE)
    # Where a corner lies on a side, as of whole numbers, mmcv mixes the two lines that cut there: ours has to
    # be the derivative from one side or the other.
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
    # rectangles of the same area, as around some triangles, differ by mmcv's rounding, which is float32's
    corners, others = got.view(-1, 4, 2), want.view(-1, 4, 2)
    same = (corners - others).abs().amax((1, 2)) < 1e-4
    areas = [(q[:, 1] - q[:, 0]).norm(dim=1) * (q[:, 2] - q[:, 1]).norm(dim=1) for q in (corners, others)]
    torch.testing.assert_close(*areas, atol=1e-4, rtol=1e-5)
    assert same.sum() >= len(points) - 2
    side = corners.roll(-1, 1) - corners
    to = points.view(-1, 9, 1, 2) - corners[:, None]
    inner = (side[:, None] * to).sum(-1) / side.square().sum(-1).clamp(min=1e-12)[:, None]
    assert ((inner > -1e-4) & (inner < 1 + 1e-4)).all()  # within all four sides


@pytest.mark.parametrize("seed", CASES)
def test_points_in_polygons(compiled, seed):
    case = Case(seed)
    boxes = quads(case, case.choose.choice([1, 4])).double()
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


def test_modules_call_what_is_compared():
    """mmcv's functions hand over their arguments as above."""
    points = nine_points(Case(1), 3).float()
    boxes = quads(Case(1), 3, regular=True)
    for name in ("convex_iou", "min_area_polygons", "points_in_polygons"):
        importlib.import_module(f"mmcv.ops.{name}").ext_module = stand_in
    assert mmcv_ops.convex_iou(points, boxes).shape == (3, 3)
    giou, gradient = mmcv_ops.convex_giou(points, boxes)
    assert giou.shape == (3,) and gradient.shape == (3, 18)
    assert mmcv_ops.min_area_polygons(points).shape == (3, 8)
    assert mmcv_ops.points_in_polygons(points[:, :2], boxes).shape == (3, 3)
