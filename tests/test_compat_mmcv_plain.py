"""Operators of ``mmcv.ops`` in plain PyTorch, through mmcv's own functions, against small oracles."""

import importlib
import math

import pytest
import shapely.affinity
import torch
import torch.nn.functional as F

import dcnzoo.models  # noqa: F401

mmcv_ops = importlib.import_module("mmcv.ops")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients_agree(function, *inputs):
    assert torch.autograd.gradcheck(function, [t.clone().requires_grad_() for t in inputs], fast_mode=True)


# Boxes

BOXES = torch.tensor([[0.0, 0, 10, 8], [5, 4, 9, 20], [30, 30, 40, 31], [5, 5, 5, 9]])


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_bbox_overlaps(mode, offset):
    def overlap(a, b):
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
        areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
        base = sum(areas) - width * height if mode == "iou" else areas[0]
        return width * height / base if base else math.nan  # of a box without area, as in mmcv

    others = BOXES[[2, 0, 1]]
    expected = torch.tensor([[overlap(a, b) for b in others.tolist()] for a in BOXES.tolist()])
    got = mmcv_ops.bbox_overlaps(BOXES, others, mode, offset=offset)
    torch.testing.assert_close(got, expected, equal_nan=True)
    aligned = mmcv_ops.bbox_overlaps(BOXES[:3], others, mode, aligned=True, offset=offset)
    torch.testing.assert_close(aligned, expected[:3].diagonal(), equal_nan=True)
    assert mmcv_ops.bbox_overlaps(BOXES[:0], others).shape == (0, 3)


def test_soft_nms_keeps_mmcvs_order_of_equal_scores():
    """Worked by hand: the best changes places with the first, the last takes a fallen one's place."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [10, 0, 11, 1], [0, 0, 1, 1], [20, 0, 21, 1], [30, 0, 31, 1]])
    scores = torch.tensor([0.5, 0.9, 0.9, 0.5, 0.5])
    # 1 | 0 2 3 4 -> 2 | 0 3 4, 0 falls: 4 in its place -> 4, 3
    _, order = mmcv_ops.soft_nms(boxes, scores, 0.3, min_score=0.1, method="naive")
    assert order.tolist() == [1, 2, 4, 3]


def rectangle(box, clockwise):
    """In the plane with y upwards, where what is clockwise on the screen is not."""
    x, y, width, height, angle = box
    around = shapely.affinity.rotate(
        shapely.box(-width / 2, -height / 2, width / 2, height / 2),
        angle if clockwise else -angle,
        origin=(0, 0),
        use_radians=True,
    )
    return shapely.affinity.translate(around, x, y)


def rotated_overlap(box, other, mode="iou", clockwise=True):
    areas = box[2] * box[3], other[2] * other[3]
    if min(areas) == 0:
        return 0.0
    shared = rectangle(box, clockwise).intersection(rectangle(other, clockwise)).area
    return shared / (areas[0] + areas[1] - shared if mode == "iou" else areas[0])


def rotated(count, seed):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([20.0, 20, 15, 8, 3.5])
    return torch.rand(count, 5, generator=generator) * scale + torch.tensor([0.0, 0, 1, 1, 0])


@pytest.mark.parametrize("clockwise", [True, False])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_box_iou_rotated(mode, clockwise):
    boxes, others = rotated(8, 0), rotated(11, 1)
    others[3], others[4, 2] = boxes[0], 0  # the same box; one without area
    expected = [[rotated_overlap(a, b, mode, clockwise) for b in others.tolist()] for a in boxes.tolist()]
    got = mmcv_ops.box_iou_rotated(boxes, others, mode, clockwise=clockwise)
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert (got > 0.1).sum() > 10 and got[0, 3] == 1
    aligned = mmcv_ops.box_iou_rotated(boxes, others[:8], mode, aligned=True, clockwise=clockwise)
    torch.testing.assert_close(aligned, got.diagonal())
    assert mmcv_ops.box_iou_rotated(boxes[:0], others).shape == (0, 11)


def test_rotated_boxes_that_touch():
    """Equal boxes, turned by quarters; halves of each other; side by side."""
    box = torch.tensor([[3.0, 4, 6, 2, 0.7]])
    others = [[3, 4, 2, 6, 0.7 + math.pi / 2], [3, 4, 6, 2, 0.7 + math.pi], [3, 4, 3, 2, 0.7]]
    others.append([3 + 6 * math.cos(0.7), 4 + 6 * math.sin(0.7), 6, 2, 0.7])
    got = mmcv_ops.box_iou_rotated(box, torch.tensor(others))[0]
    torch.testing.assert_close(got, torch.tensor([1, 1, 0.5, 0]), atol=1e-5, rtol=0)


def test_nms_rotated():
    boxes = rotated(30, 2)
    scores = torch.rand(30, generator=torch.Generator().manual_seed(3))
    keep = []
    for i in scores.argsort(descending=True).tolist():
        if all(rotated_overlap(boxes[i].tolist(), boxes[j].tolist()) < 0.2 for j in keep):
            keep.append(i)
    dets, indices = mmcv_ops.nms_rotated(boxes, scores, 0.2)
    assert indices.tolist() == keep and 1 < len(keep) < 30
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[keep])


# Regions


def test_roi_pool():
    input, scale, size = random(2, 3, 7, 9), 0.5, (3, 2)
    # inside; across the border; outside; turned over, which stays zero
    rois = [[0, 2.0, 3.0, 12.3, 9.9], [1, -5.2, 6, 30, 17], [1, 40, 40, 50, 60], [0, 9, 9, 2, 2]]

    def expected(roi, channel, i, j):
        image, x1, y1, x2, y2 = roi
        left, top, width, height = x1 * scale, y1 * scale, (x2 + 1 - x1) * scale, (y2 + 1 - y1) * scale
        if width <= 0 or height <= 0:
            return 0.0
        rows = range(math.floor(top + i * height / 3), math.ceil(top + (i + 1) * height / 3))
        columns = range(math.floor(left + j * width / 2), math.ceil(left + (j + 1) * width / 2))
        inside = [(y, x) for y in rows for x in columns if 0 <= y < 7 and 0 <= x < 9]
        return max((input[image, channel, y, x].item() for y, x in inside), default=0.0)

    boxes = torch.tensor(rois, dtype=torch.float64)
    got = mmcv_ops.roi_pool(input, boxes, size, scale)
    for index in torch.ones(got.shape).nonzero().tolist():
        assert got[tuple(index)].item() == expected(rois[index[0]], *index[1:])
    assert not got[2:].any() and got[0].all() and got[1].any() and not got[1].all()
    gradients_agree(lambda x: mmcv_ops.roi_pool(x, boxes[:3], size, scale), input)
    assert mmcv_ops.roi_pool(input, boxes[:0], size, scale).shape == (0, 3, 3, 2)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("turn", [0, 1])
def test_roi_align_rotated(sampling_ratio, turn):
    """Turned by nothing it is RoIAlign; turned by a quarter, RoIAlign's turned output."""
    input, centre = random(2, 3, 12, 14), torch.tensor([[1, 6.5, 5.0], [0, 1.3, 7.6]]).double()
    sides = torch.tensor([6.0, 4.0]).double()
    rois = torch.cat([centre, sides.expand(2, 2), torch.full((2, 1), turn * math.pi / 2)], 1)
    half, bins = (sides.flip(0) if turn else sides) / 2, (3, 2) if turn else (2, 3)
    upright = torch.cat([centre[:, :1], centre[:, 1:] - half, centre[:, 1:] + half], 1)
    expected = mmcv_ops.roi_align(input, upright, bins, 1.0, sampling_ratio).rot90(turn, (2, 3))
    for clockwise in (True, False):  # counter-clockwise by the same angle, negative
        got = mmcv_ops.roi_align_rotated(input, rois, (2, 3), 1.0, sampling_ratio, True, clockwise)
        torch.testing.assert_close(got, expected)
        rois[:, 5] *= -1


def test_roi_align_rotated_gradient():
    rois = torch.tensor([[1, 6.0, 5, 6, 4, 0.4], [0, 1, 8, 9, 2, -2], [0, 90, 90, 2, 2, 0]]).double()
    for how in ((0.8, 0, True), (0.8, 2, False)):
        gradients_agree(lambda x, h=how: mmcv_ops.roi_align_rotated(x, rois, (2, 3), *h), random(2, 2, 5, 7))
    assert mmcv_ops.roi_align_rotated(random(1, 2, 5, 7), rois[:0], 2, 1.0).shape == (0, 2, 2, 2)


def bilinear(plane, y, x):
    """At a point inside the map."""
    top, left = min(int(y), len(plane) - 2), min(int(x), plane.shape[1] - 2)
    down, across = y - top, x - left
    upper, lower = ((1 - across) * plane[r, left] + across * plane[r, left + 1] for r in (top, top + 1))
    return ((1 - down) * upper + down * lower).item()


def test_border_align():
    input = random(2, 12, 6, 8)
    boxes = torch.tensor([[[1, 0.5, 6.2, 4], [2, 2, 2, 5]], [[0, 0, 7, 5], [3.3, 1.1, 4.9, 1.8]]]).double()
    got = mmcv_ops.border_align(input, boxes, 4)
    assert got.shape == (2, 3, 2, 4)
    for n, c, k, side in torch.ones(got.shape).nonzero().tolist():
        x1, y1, x2, y2 = boxes[n, k].tolist()
        a, b = [((x1, y1), (x2, y1)), ((x1, y1), (x1, y2)), ((x1, y2), (x2, y2)), ((x2, y1), (x2, y2))][side]
        points = [(a[0] + (b[0] - a[0]) * t / 4, a[1] + (b[1] - a[1]) * t / 4) for t in range(5)]
        expected = max(bilinear(input[n, 3 * side + c], y, x) for x, y in points)
        assert got[n, c, k, side].item() == pytest.approx(expected, abs=1e-12)
    across = torch.tensor([[[-9, -3, 20, 2.2]], [[1, 1, 30, 30]]]).double()  # outside is zero
    boxes = torch.cat([boxes, across], 1)
    gradients_agree(lambda x: mmcv_ops.border_align(x, boxes, 3), input[:, :4, :4, :5])
    assert mmcv_ops.border_align(input, boxes[:, :0], 3).shape == (2, 3, 0, 4)


# Features


def test_carafe():
    """Of each pixel's neighbourhood the sum, weighted with a mask of its own."""
    features, masks = random(2, 4, 3, 2), random(2, 2 * 9, 6, 4, seed=1)
    around = F.unfold(features, 3, padding=1).view(2, 2, 2, 9, 3, 2)  # image, group, channel, tap, y, x
    around = around.repeat_interleave(2, -2).repeat_interleave(2, -1)
    expected = (around * masks.view(2, 2, 1, 9, 6, 4)).sum(3).flatten(1, 2)
    for function in (mmcv_ops.carafe, mmcv_ops.carafe_naive):
        torch.testing.assert_close(function(features, masks, 3, 2, 2), expected)
    gradients_agree(lambda f, m: mmcv_ops.carafe(f, m, 3, 2, 2), features, masks)


def test_carafe_of_mmcvs_layer_under_autocast():
    layer = mmcv_ops.CARAFEPack(4, 2, compressed_channels=6)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(torch.randn(1, 4, 3, 5))
    assert output.shape == (1, 4, 6, 10)
    output.float().sum().backward()
    assert layer.channel_compressor.weight.grad.isfinite().all()


def test_rotated_feature_align():
    """A linear map, whose value at a point is known; its corners add up to four times the centre."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    input = torch.stack([2 * y + x, -x])[None].double()
    boxes = torch.tensor([3.5, 4.0, 3.0, 2.0, 0.6]).double().expand(1, 8, 9, 5)  # y, x, …
    at_centre = torch.tensor([2 * 3.5 + 4, -4.0])[:, None, None]
    for points in (1, 5):
        got = mmcv_ops.rotated_feature_align(input, boxes, 1.0, points)
        torch.testing.assert_close(got[0], input[0] + points * at_centre)
    boxes = boxes[:, :4, :5] - 2
    gradients_agree(lambda x: mmcv_ops.rotated_feature_align(x, boxes, 1.0, 5), random(1, 2, 4, 5))


def test_active_rotated_filter():
    """Turned by a quarter and by none."""
    places = torch.arange(9).view(3, 3)
    goes_to = places.rot90().flatten().argsort().view(3, 3)
    indices = torch.stack([places, goes_to], 2)
    filters = random(2, 3, 1, 3, 3)
    got = mmcv_ops.active_rotated_filter(filters, (indices[None] + 1).int()).view(2, 2, 3, 3, 3)
    torch.testing.assert_close(got[:, 0], filters[:, :, 0])
    torch.testing.assert_close(got[:, 1], filters[:, :, 0].rot90(1, (2, 3)))
    gradients_agree(lambda x: mmcv_ops.active_rotated_filter(x, (indices[None] + 1).int()), filters)


# Points


def test_points_by_index():
    features, generator = random(2, 3, 6), torch.Generator().manual_seed(1)
    indices = torch.randint(6, (2, 4, 5), generator=generator, dtype=torch.int32)
    first = indices[:, :, 0].contiguous()
    expected = torch.stack([f[:, i.long()] for f, i in zip(features, indices, strict=True)])
    assert torch.equal(mmcv_ops.grouping_operation(features, indices), expected)
    assert torch.equal(mmcv_ops.gather_points(features, first), expected[..., 0])
    gradients_agree(lambda x: mmcv_ops.grouping_operation(x, indices), features)
    gradients_agree(lambda x: mmcv_ops.gather_points(x, first), features)


def test_three_nearest_points():
    source, target = random(2, 5, 3), random(2, 4, 3, seed=1)
    distance, indices = mmcv_ops.three_nn(target, source)
    expected = torch.cdist(target, source).topk(3, largest=False)
    assert torch.equal(indices.long(), expected.indices)
    torch.testing.assert_close(distance, expected.values)
    features, weight = random(2, 3, 5, seed=2), random(2, 4, 3, seed=3)
    picked = torch.stack([f[:, i.long()] for f, i in zip(features, indices, strict=True)])
    got = mmcv_ops.three_interpolate(features, indices, weight)
    torch.testing.assert_close(got, (picked * weight[:, None]).sum(-1))
    gradients_agree(lambda x: mmcv_ops.three_interpolate(x, indices, weight), features)
    far, where = mmcv_ops.three_nn(target, source[:, :2])  # fewer than three
    assert far[..., 2].isinf().all() and not where[..., 2].any()


def test_softmax_focal_loss_of_certain_logits_is_finite():
    logits = torch.tensor([[200.0, -200.0]]).requires_grad_()
    for gamma in (0.0, 0.5, 2.0):
        loss = mmcv_ops.softmax_focal_loss(logits, torch.tensor([0]), gamma)
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """As the float32 result of the same values, rounded once."""
    input = random(2, 8, 6, 7).to(dtype)
    rois = torch.tensor([[1, 1, 2, 5, 6], [0, 0, 0, 3, 3.0]], dtype=dtype)
    turned = torch.tensor([[1, 3, 2, 5, 6, 0.5], [0, 2, 2, 3, 3.0, 0]], dtype=dtype)
    boxes = rois[:, 1:].expand(2, 2, 4)
    masks, logits = random(2, 9, 12, 14).to(dtype), random(5, 3).to(dtype) * 4
    target = torch.tensor([0, 1, 2, 3, 1])
    calls = {
        "roi_pool": lambda cast: mmcv_ops.roi_pool(cast(input), cast(rois), 2, 0.5),
        "roi_align_rotated": lambda cast: mmcv_ops.roi_align_rotated(cast(input), cast(turned), 2, 1.0),
        "border_align": lambda cast: mmcv_ops.border_align(cast(input), cast(boxes), 3),
        "carafe": lambda cast: mmcv_ops.carafe(cast(input), cast(masks), 3, 1, 2),
        "sigmoid": lambda cast: mmcv_ops.sigmoid_focal_loss(cast(logits), target, 2.0, 0.25, None, "none"),
    }
    for name, call in calls.items():
        got, expected = call(lambda t: t), call(torch.Tensor.float)
        assert got.dtype == dtype, name
        torch.testing.assert_close(got, expected.to(dtype), msg=lambda text, n=name: f"{n}: {text}")
