"""Operators of ``mmcv.ops`` on dcnzoo's operators: recorded results, gradients and half precision.

The results were recorded with dcnzoo 0.2, whose functions equalled mmcv's compiled operators, or its CUDA
kernels on CPU threads, in hundreds of random cases. ``python -m tests.compat.test_mmcv_ops`` records again.
"""

import importlib
import json
import math
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from shapely import MultiPoint, Point

import dcnzoo.compat.mmcv
import dcnzoo.models
from dcnzoo.compat import after_import, host
from dcnzoo.compat.mmcv import _ext

ops = importlib.import_module("mmcv.ops")
RECORDED = Path(__file__).parents[1] / "data/mmcv_ops.json"


def wave(*shape, pace, scale=1.0):
    """Values that look random and are the same in every version of torch."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(steps * pace) * scale).reshape(shape)


def fingerprint(tensor):
    """A weighted sum, in which every element has a different weight."""
    return (tensor.flatten() * torch.linspace(-1, 2, tensor.numel(), dtype=torch.float64)).sum().item()


# Boxes: some overlap, one has zero area

CORNERS = 10 + wave(20, 2, pace=1.3, scale=8.0)
BOXES = torch.cat([CORNERS, CORNERS + 6 + wave(20, 2, pace=0.7, scale=5.0)], 1).float()
BOXES[3, 2] = BOXES[3, 0]
SCORES = wave(20, pace=2.1).abs().float()
DETECTIONS = torch.cat([BOXES, SCORES[:, None]], 1)
TURNED = torch.cat(
    [CORNERS, 8 + wave(20, 2, pace=0.9, scale=5.0), wave(20, 1, pace=1.9, scale=3.0)], 1
).float()
TURNED[3, 2] = 0
SIGNS = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])


def quads(boxes):
    """The corners of rotated boxes."""
    u, v = (SIGNS * boxes[:, None, 2:4] / 2).unbind(-1)
    cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
    return torch.stack([boxes[:, :1] + u * cos - v * sin, boxes[:, 1:2] + u * sin + v * cos], -1).flatten(1)


def overlaps(function, boxes, **options):
    for mode in ("iou", "iof"):
        yield function(boxes[:8], boxes[5:], mode, **options)
        yield function(boxes[:8], boxes[:8] * 0.95, mode, aligned=True, **options)


HULLS = CORNERS.repeat(1, 9)[:6] + wave(6, 18, pace=1.7, scale=6.0)  # nine points each


def giou():
    output = HULLS.new_zeros(6, 19)
    _ext.convex_giou(HULLS, quads(TURNED[:6]).double(), output)
    return [output]


def soft_nms(method, offset):
    return ops.soft_nms(BOXES, SCORES, 0.3, 0.5, 0.05, method, offset)


RESULTS = {
    "nms": lambda: [*ops.nms(BOXES, SCORES, 0.3), *ops.nms(BOXES, SCORES, 0.3, offset=1)],
    **{
        f"soft_nms {m}": lambda m=m: [*soft_nms(m, 0), *soft_nms(m, 1)]
        for m in ("naive", "linear", "gaussian")
    },
    "nms_match": lambda: [torch.cat([g, g[:1] * 100]) for g in ops.nms_match(DETECTIONS, 0.3)],
    "box_iou_rotated": lambda: [*overlaps(ops.box_iou_rotated, TURNED)],
    "box_iou_rotated, counter-clockwise": lambda: [*overlaps(ops.box_iou_rotated, TURNED, clockwise=False)],
    "nms_rotated": lambda: ops.nms_rotated(TURNED, SCORES, 0.2),
    "nms_quadri": lambda: ops.nms_quadri(quads(TURNED), SCORES, 0.2),
    "convex_iou": lambda: [ops.convex_iou(HULLS.float(), quads(TURNED))],
    "convex_giou": giou,
    "min_area_polygons": lambda: [ops.min_area_polygons(HULLS.float()).view(6, 4, 2).sum(1)],  # any order
    "points_in_polygons": lambda: [ops.points_in_polygons(CORNERS.float(), quads(TURNED))],
}

# Operators with gradients: the function, and the tensors with a gradient

MAPS = wave(2, 4, 7, 9, pace=1.7) + wave(2, 4, 7, 9, pace=0.23)
# inside; across the border; outside; inverted
ROIS = torch.tensor(
    [[0, 1.25, 0.75, 7.125, 5.875], [1, -2.125, 3, 16, 8.75], [1, 40, 40, 50, 60], [0, 6, 6, 2, 2]]
).double()
ROIS_TURNED = torch.tensor([[1, 6.0, 5, 6, 4, 0.375], [0, 1, 8, 9, 2, -2], [0, 90, 90, 2, 2, 0]]).double()
ALIGNED = torch.cat([ROIS[:1, 1:].expand(63, 4), wave(63, 1, pace=0.2)], 1).repeat(2, 1).view(2, 7, 9, 5)
PLACES = torch.arange(9).view(3, 3)
ROTATIONS = (torch.stack([PLACES, PLACES.rot90().flatten().argsort().view(3, 3)], 2)[None] + 1).int()
TARGET = torch.tensor([0, 3, 1, 4, 2, 4, 0])  # 4: background
LOGITS, WEIGHT = wave(7, 4, pace=1.7, scale=4.0), wave(4, pace=0.8).abs()

DIFFERENTIABLE = {
    "roi_align avg": (lambda x: ops.roi_align(x, ROIS, (2, 3), 0.9, 2, "avg", True), MAPS),
    "roi_align max": (lambda x: ops.roi_align(x, ROIS[:2], (2, 3), 0.9, 0, "max", False), MAPS),
    "deform_roi_pool": (
        lambda x, offset: ops.deform_roi_pool(x, ROIS[:2], offset, (2, 3), 0.9, 2, 0.3),
        *(MAPS, wave(2, 2, 2, 3, pace=0.6)),
    ),
    "deform_roi_pool without": (lambda x: ops.deform_roi_pool(x, ROIS, None, (2, 3), 0.9, 2, 0.3), MAPS),
    "roi_align_rotated": (lambda x: ops.roi_align_rotated(x, ROIS_TURNED.to(x), (2, 3), 0.8, 0, True), MAPS),
    "roi_align_rotated, clockwise": (
        lambda x: ops.roi_align_rotated(x, ROIS_TURNED, (2, 3), 0.8, 2, False, True),
        MAPS,
    ),
    "riroi_align_rotated": (lambda x: ops.riroi_align_rotated(x, ROIS_TURNED, (1, 2), 0.8, 0, 4), MAPS),
    "rotated_feature_align": (lambda x: ops.rotated_feature_align(x, ALIGNED, 1.0, 1), MAPS),
    "rotated_feature_align of 5": (lambda x: ops.rotated_feature_align(x, ALIGNED, 0.8, 5), MAPS),
    "carafe": (lambda x, m: ops.carafe(x, m, 3, 2, 2), MAPS[..., :2, :3], wave(2, 18, 4, 6, pace=0.6)),
    "psa_mask collect": (ops.PSAMask("collect", (1, 3)), wave(1, 3, 2, 4, pace=1.1)),
    "psa_mask distribute": (ops.PSAMask("distribute", (3, 3)), wave(1, 9, 2, 4, pace=1.1)),
    "active_rotated_filter": (
        lambda x: ops.active_rotated_filter(x, ROTATIONS),
        wave(2, 3, 1, 3, 3, pace=1.1),
    ),
    "sigmoid_focal_loss": (lambda x: ops.sigmoid_focal_loss(x, TARGET, 1.7, 0.3, None, "none"), LOGITS),
    "sigmoid_focal_loss, weighted": (
        lambda x: ops.sigmoid_focal_loss(x, TARGET, 2.0, 0.3, WEIGHT, "none"),
        LOGITS,
    ),
}


def leaves_of(name, dtype=torch.float64):
    function, *tensors = DIFFERENTIABLE[name]
    return function, [t.detach().to(dtype).clone().requires_grad_() for t in tensors]


def figures(name):
    """The fingerprint of each output and gradient."""
    if name in RESULTS:
        tensors = RESULTS[name]()
    else:
        function, leaves = leaves_of(name)
        output = function(*leaves)
        tensors = [output, *torch.autograd.grad(output.sin().sum(), leaves)]
    return [fingerprint(t.detach().double().nan_to_num(7, 9)) for t in tensors]


@pytest.mark.parametrize("name", [*RESULTS, *DIFFERENTIABLE])
def test_recorded_results(name):
    assert figures(name) == pytest.approx(json.loads(RECORDED.read_text())[name], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["roi_align_rotated", "rotated_feature_align", "carafe", "sigmoid_focal_loss"]
)
def test_half_precision_is_computed_in_float32(name, dtype):
    """The result equals that of float32 for the same values, rounded once."""
    function, half = leaves_of(name, dtype)
    got = function(*half)
    assert got.dtype == dtype
    torch.testing.assert_close(got, function(*(t.float() for t in half)).to(dtype))


# By hand


def test_rotated_boxes_that_touch():
    """Equal boxes, rotated by quarter turns; a box and half of it; adjacent boxes."""
    others = [[3, 4, 2, 6, 0.7 + math.pi / 2], [3, 4, 6, 2, 0.7 + math.pi], [3, 4, 3, 2, 0.7]]
    others.append([3 + 6 * math.cos(0.7), 4 + 6 * math.sin(0.7), 6, 2, 0.7])
    box, others = torch.tensor([[3.0, 4, 6, 2, 0.7]]), torch.tensor(others)
    for overlap in (ops.box_iou_rotated(box, others), ops.box_iou_quadri(quads(box), quads(others))):
        torch.testing.assert_close(overlap[0], torch.tensor([1, 1, 0.5, 0]), atol=1e-5, rtol=0)


def test_quadrilaterals_that_are_not_rectangles():
    """Overlaps of their convex hulls, and points inside them, against shapely."""
    quads = 10 * torch.rand(12, 8, generator=torch.Generator().manual_seed(0))
    hulls = [MultiPoint(quad.view(4, 2).tolist()).convex_hull for quad in quads]
    expected = [[a.intersection(b).area / a.union(b).area for b in hulls] for a in hulls]
    torch.testing.assert_close(ops.box_iou_quadri(quads, quads), torch.tensor(expected))
    corners = torch.stack([torch.tensor(h.exterior.coords[:4]) for h in hulls]).flatten(1).float()
    inside = [[hull.contains(Point(point)) for hull in hulls] for point in CORNERS.tolist()]
    triangles = torch.tensor([len(h.exterior.coords) == 4 for h in hulls])  # their fourth corner is the first
    assert 0 < triangles.sum() < 12
    assert torch.equal(ops.points_in_polygons(CORNERS.float(), corners), torch.tensor(inside).float())


def test_boxes_with_scores_and_labels():
    """mmrotate's evaluation passes boxes with their scores in a sixth column; mmcv appends labels."""
    for overlap, boxes in ((ops.box_iou_rotated, TURNED), (ops.box_iou_quadri, quads(TURNED))):
        detections = torch.cat([boxes, torch.rand(len(boxes), 1)], 1)
        torch.testing.assert_close(overlap(detections, boxes), overlap(boxes, boxes))
    for nms, boxes in ((ops.nms_rotated, TURNED), (ops.nms_quadri, quads(TURNED))):
        kept, labelled = (nms(boxes, SCORES, 0.2, labels)[1] for labels in (None, torch.arange(20.0)))
        assert torch.equal(kept, labelled)


def test_nms_rotated_drops_a_box_at_the_threshold():
    """As in mmcv on the CPU, where the threshold is a float32. Recorded from compiled mmcv."""
    boxes = torch.tensor([[0.0, 0, 10, 10, 0], [0, 0, 5, 10, 0], [0, 0, 3, 10, 0]])
    scores = torch.tensor([3.0, 2.0, 1.0])
    for dtype, threshold, kept in (
        (torch.float32, 0.5, [0, 2]),
        (torch.float32, 0.3, [0]),
        (torch.float64, 0.5, [0, 2]),
        (torch.float64, 0.3, [0, 2]),  # 0.3 < float32(0.3)
        (torch.float32, 0.0, [0]),
    ):
        found = ops.nms_rotated(boxes.to(dtype), scores.to(dtype), threshold)[1]
        assert found.tolist() == kept, (dtype, threshold)


def test_soft_nms_keeps_mmcvs_order_of_equal_scores():
    """The best box swaps places with the first, and the last box replaces a suppressed one."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [10, 0, 11, 1], [0, 0, 1, 1], [20, 0, 21, 1], [30, 0, 31, 1]])
    scores = torch.tensor([0.5, 0.9, 0.9, 0.5, 0.5])
    # 1 | 0 2 3 4 -> 2 | 0 3 4, 0 is suppressed and 4 replaces it -> 4, 3
    _, order = ops.soft_nms(boxes, scores, 0.3, min_score=0.1, method="naive")
    assert order.tolist() == [1, 2, 4, 3]


def test_focal_loss_of_certain_logits_are_finite():
    logits = torch.tensor([[200.0, -200.0]]).requires_grad_()
    for target in (0, 1, 2):
        value = ops.sigmoid_focal_loss(logits, torch.tensor([target]), 2.0)
        assert value.isfinite() and torch.autograd.grad(value, logits)[0].isfinite().all()


@pytest.mark.parametrize("count", [0, 1, 20])
def test_masked_conv2d(count):
    """A convolution where the mask is set, zero elsewhere."""
    layer, input, mask = ops.MaskedConv2d(4, 6, 3, padding=1).double(), MAPS[:1], torch.zeros(63)
    mask[torch.randperm(63)[:count]] = 1
    mask = mask.view(1, 7, 9)
    expected = F.conv2d(input, layer.weight, layer.bias, padding=1) * mask
    torch.testing.assert_close(layer(input, mask), expected)


def test_carafe_of_mmcvs_layer_under_autocast():
    layer = ops.CARAFEPack(4, 2, compressed_channels=6)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(torch.randn(1, 4, 3, 5))
    assert output.shape == (1, 4, 6, 10)
    output.float().sum().backward()
    assert layer.channel_compressor.weight.grad.isfinite().all()


def of_pairs(boxes, others):
    return ops.diff_iou_rotated_2d(boxes[None], others[None])[0]


def test_differentiable_iou_of_rotated_boxes():
    """mmcv's function with dcnzoo's order of corners, against box_iou_rotated and finite differences."""
    random = torch.rand(2, 60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    boxes, others = random * torch.tensor([6, 6, 5, 5, 6]) + torch.tensor([0, 0, 1, 1, -3])
    expected = ops.box_iou_rotated(boxes, others, aligned=True)
    assert expected.max() > 0.5 and expected.min() == 0
    torch.testing.assert_close(of_pairs(boxes, others), expected, atol=1e-6, rtol=1e-5)
    meeting = expected > 0.01
    leaves = boxes[meeting].requires_grad_(), others[meeting].requires_grad_()
    assert torch.autograd.gradcheck(of_pairs, leaves, atol=1e-4)


def test_differentiable_iou_of_equal_boxes_and_of_one_in_the_other():
    for dtype in (torch.float32, torch.float64):
        box = torch.tensor([[3.0, 4, 6, 2, 0.7]], dtype=dtype, requires_grad=True)
        half = torch.tensor([[3.0, 4, 3, 2, 0.7]], dtype=dtype)
        inner = torch.tensor([[3.1, 4.2, 2, 1.2, 0.6]], dtype=dtype)
        for other, expected in ((box.detach(), 1), (half, 0.5), (inner, 0.2), (box.detach() + 20, 0)):
            iou = of_pairs(box, other)
            torch.testing.assert_close(iou, iou.new_tensor([expected]), atol=1e-5, rtol=0)
            assert torch.autograd.grad(iou.sum(), box)[0].isfinite().all()
    corner = torch.tensor([[1.0, 1, 2, 2, 0]])  # has a corner at the origin, where mmcv puts invalid corners
    torch.testing.assert_close(
        of_pairs(corner, corner * torch.tensor([1, 1, 1, 0.5, 1])), torch.tensor([0.5])
    )


def test_contours_grow_step_by_step_into_the_text():
    text = ["111110", "101011", "111110"]
    labels = ["100000", "000000", "000020"]
    expected = ["111120", "101022", "112220"]  # label 1 takes a pixel that both reach at the same step
    mask, label, expected = (
        torch.tensor([[*map(int, row)] for row in rows]) for rows in (text, labels, expected)
    )
    kernels = torch.stack([mask, label]).to(torch.uint8)
    assert ops.contour_expand(kernels, label.int(), 0, 2) == expected.tolist()
    assert ops.contour_expand(kernels, label.int(), 2, 2) == torch.zeros(3, 6).tolist(), "too small"


def test_pixels_join_the_kernel_like_them():
    score, mask = torch.arange(8.0).view(2, 4) / 8, torch.ones(2, 4, dtype=torch.bool)
    mask[1, 0] = False
    embedding = torch.tensor([[0.0, 0, 9, 1], [0, 0.1, 1, 1]])[..., None]
    label = torch.tensor([[1, 0, 0, 2], [0, 0, 0, 0]], dtype=torch.int32)
    groups = ops.pixel_group(score, mask, embedding, label, label.to(torch.uint8), 3, 0.5)
    assert groups[0] == [0, 0]
    assert groups[1] == pytest.approx([(0 + 1 + 5) / 24, 3, 0, 0, 1, 0, 1, 1])
    assert groups[2] == pytest.approx([(3 + 6 + 7) / 24, 3, 3, 0, 2, 1, 3, 1])


def test_nothing():
    """No boxes, no regions."""
    none, rois, maps = torch.zeros(0, 4), ROIS[:0], MAPS
    assert ops.nms(none, SCORES[:0], 0.5)[1].tolist() == ops.nms_match(torch.zeros(0, 5), 0.5) == []
    assert [tuple(t.shape) for t in ops.soft_nms(none, SCORES[:0])] == [(0, 5), (0,)]
    assert ops.box_iou_rotated(TURNED[:0], TURNED).shape == (0, 20)
    assert ops.box_iou_quadri(quads(TURNED[:0]), quads(TURNED)).shape == (0, 20)
    for pooled in (
        ops.deform_roi_pool(maps, rois, None, (3, 2)),
        ops.deform_roi_pool(maps, rois, maps.new_zeros(0, 2, 3, 2), (3, 2)),
        ops.roi_align_rotated(maps, ROIS_TURNED[:0], (3, 2), 1.0),
        ops.riroi_align_rotated(maps, ROIS_TURNED[:0], (3, 2), 1.0, 0, 4),
    ):
        assert pooled.shape == (0, 4, 3, 2)


# Names


def test_every_name_of_mmcv_ops_imports():
    missing = [name for name in ops.__all__ if not hasattr(ops, name)]
    assert not missing
    assert len(ops.__all__) > 90


def test_every_function_of_mmcv_exists_or_names_a_replacement():
    missing = []
    for path in (Path(find_spec("mmcv").origin).parent / "ops").glob("*.py"):
        for names in re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", path.read_text(), re.DOTALL):
            functions = {name: getattr(_ext, name) for name in re.findall(r"'(\w+)'", names)}
            missing += [(name, f) for name, f in functions.items() if hasattr(f, "instead")]
    assert missing
    for name, function in missing:
        expected = re.escape(function.instead)
        with pytest.raises(NotImplementedError, match=rf"^mmcv\.ops: {name}: .*{expected}"):
            function()


def test_one_finder_provides_one_name():
    host.known()["mmcv._ext"].provide()  # a second call has no effect
    assert sys.meta_path.count(after_import._finder) == 1
    assert not host.is_ours(find_spec("mmcv.ops"))
    assert find_spec("mmcv._ext").origin == str(dcnzoo.compat.mmcv.STAND_IN)
    assert "dcnzoo" in _ext.get_compiler_version() and "dcnzoo" in _ext.get_compiling_cuda_version()
    assert not hasattr(_ext, "__wrapped__")  # attributes that inspection looks up are not operators


if __name__ == "__main__":
    rows = (
        f"  {json.dumps(name)}: {[float(f'{x:.7g}') for x in figures(name)]}"
        for name in (*RESULTS, *DIFFERENTIABLE)
    )
    RECORDED.write_text("{\n" + ",\n".join(rows) + "\n}\n")
