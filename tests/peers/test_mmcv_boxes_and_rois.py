"""dcnzoo's PyTorch operators for ``mmcv._ext`` against mmcv's compiled ones, where those run on the CPU."""

import importlib
import random

import pytest
import torch

import dcnzoo.models  # noqa: F401
from dcnzoo.compat.mmcv import _ext as stand_in

compiled = importlib.import_module("mmcv._ext")
mmcv_ops = importlib.import_module("mmcv.ops")
CASES = range(200)
MORE = range(320)  # where mmcv does not ask the operator in cases without boxes
TOLERANCE = dict(atol=1e-5, rtol=1e-5)


@pytest.fixture
def on(monkeypatch):
    """Runs a function of mmcv.ops on the compiled operators, then on dcnzoo's."""

    def both(module, function):
        module, results = importlib.import_module(f"mmcv.ops.{module}"), []
        for extension in (compiled, stand_in):
            monkeypatch.setattr(module, "ext_module", extension)
            results.append(function())
        return results

    return both


class Case:
    """Random boxes and maps: no boxes, equal ones, of no area, coordinates that are whole numbers."""

    def __init__(self, seed):
        self.choose = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.whole = seed % 4 == 0
        self.degenerate = seed % 5 == 0

    def uniform(self, *shape, low=0.0, high=1.0):
        values = torch.rand(shape, generator=self.generator) * (high - low) + low
        return values.round() if self.whole and high > 2 else values

    def count(self, most=25):
        return self.choose.choice([0, 1, self.choose.randint(2, most)])

    def boxes(self, count):
        corner = self.uniform(count, 2, high=30)
        boxes = torch.cat([corner, corner + self.uniform(count, 2, high=20)], 1)
        if self.degenerate:
            boxes[::3, 2] = boxes[::3, 0]
        return boxes

    def rotated(self, count):
        angle = self.uniform(count, 1, low=-7 / 2, high=7 / 2)
        sizes = self.uniform(count, 2, high=20)
        if self.degenerate:
            sizes[::3, 0] = 0
        return torch.cat([self.uniform(count, 2, high=30), sizes, angle], 1)

    def scores(self, count):
        scores = torch.rand(count, generator=self.generator)
        return (scores * 4).round() / 4 if self.choose.random() < 0.4 else scores  # ties

    def some_equal(self, boxes, others):
        if len(boxes) and len(others):
            others[0] = boxes[0]

    def maps(self, channels=4):
        return torch.randn(2, channels, self.choose.randint(1, 9), 11, generator=self.generator)

    def rois(self, boxes):
        image = torch.randint(2, (len(boxes), 1), generator=self.generator).float()
        return torch.cat([image, boxes], 1)

    def pooling(self):
        """An output size and a scale; 0 or 2 samples."""
        size = self.choose.choice([(1, 1), (3, 2), (2, 4)])
        return size, self.choose.choice([0.5, 1.0]), self.choose.choice([0, 2])


@pytest.fixture
def compare(on):
    """A function of mmcv.ops, whose only gradient is its input's, on both."""

    def compare(module, function, input, tolerance=TOLERANCE, empty=None):
        want, got = on(module, lambda: outputs_and_gradients(function, [input]))
        if empty is not None:
            want[0][want[0] == empty] = 0
        torch.testing.assert_close(got, want, **tolerance)

    return compare


@pytest.mark.parametrize("seed", MORE)
def test_bbox_overlaps(on, seed):
    case = Case(seed)
    boxes, others = case.boxes(case.count()), case.boxes(case.count())
    case.some_equal(boxes, others)
    for mode in ("iou", "iof"):
        for offset in (0, 1):
            arguments = dict(mode=mode, offset=offset)
            want, got = on("bbox", lambda a=arguments: mmcv_ops.bbox_overlaps(boxes, others, **a))
            torch.testing.assert_close(got, want, equal_nan=True)
            arguments["aligned"] = True
            want, got = on("bbox", lambda a=arguments: mmcv_ops.bbox_overlaps(boxes, boxes.roll(1, 0), **a))
            torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("seed", CASES)
def test_nms(seed):
    case = Case(seed)
    boxes = case.boxes(case.count(60))
    for offset in (0, 1):
        arguments = (boxes, case.scores(len(boxes)), case.choose.choice([0.0, 0.3, 0.5, 1.0]), offset)
        assert stand_in.nms(*arguments).tolist() == compiled.nms(*arguments).tolist()


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms(on, seed, method):
    case = Case(seed)
    boxes = case.boxes(case.count(40))
    scores = case.scores(len(boxes))
    arguments = (boxes, scores, case.choose.choice([0.0, 0.3, 0.5]), 0.4, 0.05, method, seed % 2)
    want, got = on("nms", lambda: mmcv_ops.soft_nms(*arguments))
    assert got[1].tolist() == want[1].tolist()
    torch.testing.assert_close(got[0], want[0], equal_nan=True)


@pytest.mark.parametrize("seed", MORE)
def test_nms_match(on, seed):
    case = Case(seed)
    boxes = case.boxes(case.count(40))
    dets = torch.cat([boxes, case.scores(len(boxes))[:, None]], 1)
    threshold = case.choose.choice([0.0, 0.3, 0.5])
    want, got = on("nms", lambda: [g.tolist() for g in mmcv_ops.nms_match(dets, threshold)])
    assert got == want


@pytest.mark.parametrize("seed", CASES)
def test_box_iou_rotated(on, seed):
    case = Case(seed)
    boxes, others = case.rotated(case.count()), case.rotated(case.count())
    case.some_equal(boxes, others)
    for mode in ("iou", "iof"):
        for arguments in ((boxes, others, mode, False, seed % 2 == 0), (boxes, boxes.roll(1, 0), mode, True)):
            want, got = on("box_iou_rotated", lambda a=arguments: mmcv_ops.box_iou_rotated(*a))
            torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("seed", CASES)
def test_nms_rotated(on, seed):
    case = Case(seed)
    boxes = case.rotated(max(1, case.count(40)))
    labels = torch.randint(2, (len(boxes),), generator=case.generator) if seed % 3 == 0 else None
    arguments = (boxes, case.scores(len(boxes)), case.choose.choice([0.1, 0.3, 0.5]), labels, seed % 2 == 0)
    want, got = on("nms", lambda: mmcv_ops.nms_rotated(*arguments))
    assert got[1].tolist() == want[1].tolist()
    torch.testing.assert_close(got[0], want[0])


def outputs_and_gradients(function, tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    output = function(*leaves)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return output.detach(), *torch.autograd.grad((output * weight).sum(), leaves)


@pytest.mark.parametrize("seed", CASES)
def test_roi_align_rotated(compare, seed):
    case = Case(seed)
    boxes = case.rotated(case.count(6)) * torch.tensor([1.5, 1, 1, 1, 1]) - torch.tensor([9.0, 4, 0, 0, 0])
    rois, how = case.rois(boxes), (*case.pooling(), seed % 2 == 0, seed % 3 == 0)
    compare("roi_align_rotated", lambda x: mmcv_ops.roi_align_rotated(x, rois, *how), case.maps())


@pytest.mark.parametrize("seed", CASES)
def test_roi_align(compare, seed):
    case = Case(seed)
    rois = case.rois(case.boxes(case.count(6)) * 1.5 - 12)
    how = (*case.pooling(), case.choose.choice(["avg", "max"]), seed % 2 == 0)
    # -1e4: mmcv's maximum of no samples, of a RoI without height or width
    compare("roi_align", lambda x: mmcv_ops.roi_align(x, rois, *how), case.maps(), empty=-1e4)


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.parametrize("points", [1, 5])
def test_rotated_feature_align(compare, seed, points):
    case = Case(seed)
    input = case.maps()[: case.choose.choice([0, 1, 2])]
    boxes = case.rotated(input[:, 0].numel()).view(len(input), *input.shape[2:], 5) - 5
    function = mmcv_ops.rotated_feature_align
    compare("rotated_feature_align", lambda x: function(x, boxes, 0.5, points), input)


@pytest.mark.parametrize("seed", CASES)
def test_active_rotated_filter(compare, seed):
    case = Case(seed)
    planes, inputs, orientations, rotations = (case.choose.randint(1, 4) for _ in range(4))
    size = case.choose.choice([(1, 1), (3, 3), (2, 3)])
    entries = orientations * size[0] * size[1]
    orders = [torch.randperm(entries, generator=case.generator) + 1 for _ in range(rotations)]
    indices = torch.stack(orders, 1).view(orientations, *size, rotations).int()
    input = torch.randn(planes, inputs, orientations, *size, generator=case.generator)
    compare("active_rotated_filter", lambda x: mmcv_ops.active_rotated_filter(x, indices), input)


@pytest.mark.parametrize("seed", CASES)
def test_bezier_align(compare, seed):
    case = Case(seed)
    beziers = case.uniform(case.count(6), 16, low=-4, high=16)
    if case.degenerate:
        beziers[::3] = beziers[::3, :1]  # a point
    rois, how = case.rois(beziers), (*case.pooling(), seed % 2 == 0)
    compare("bezier_align", lambda x: mmcv_ops.bezier_align(x, rois, *how), case.maps())


@pytest.mark.parametrize("seed", CASES)
def test_psa_mask(compare, seed):
    case = Case(seed)
    mask = case.choose.choice([(1, 1), (3, 1), (3, 5), (7, 3)])
    size = (case.choose.choice([1, 2]), case.choose.randint(1, 3), case.choose.randint(1, 4))
    input = torch.randn(size[0], mask[0] * mask[1], *size[1:], generator=case.generator)
    layer = mmcv_ops.PSAMask(case.choose.choice(["collect", "distribute"]), mask)
    compare("psa_mask", layer, input, dict(rtol=0, atol=0))


@pytest.mark.parametrize("seed", CASES)
def test_points_in_boxes_cpu(on, seed):
    case = Case(seed)
    count = case.choose.choice([1, 4])
    angle = case.uniform(1, count, 1, high=3) * case.choose.choice([0, 1])
    boxes = torch.cat([case.uniform(1, count, 3, high=7), case.uniform(1, count, 3, high=8), angle], 2)
    points = case.uniform(1, case.count(), 3, high=9)
    want, got = on("points_in_boxes", lambda: mmcv_ops.points_in_boxes_cpu(points, boxes))
    assert torch.equal(got, want)


@pytest.mark.parametrize("seed", CASES)
def test_ms_deform_attn(monkeypatch, seed):
    """Against mmcv's own formula for the CPU, by grid_sample: it has no compiled one."""
    attention = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    monkeypatch.setattr(attention, "ext_module", stand_in)
    case = Case(seed)
    heads, channels, points, queries = (case.choose.randint(1, 4) for _ in range(4))
    shapes = [
        (case.choose.randint(1, 6), case.choose.randint(1, 7)) for _ in range(case.choose.randint(1, 3))
    ]
    batch, levels, total = case.choose.choice([1, 2, 3]), len(shapes), sum(h * w for h, w in shapes)
    reach = case.choose.choice([0.0, 0.5])  # beyond the maps
    tensors = [
        torch.randn(batch, total, heads, channels, generator=case.generator, dtype=torch.float64),
        case.uniform(batch, queries, heads, levels, points, 2, low=-reach, high=1 + reach).double(),
        torch.rand(batch, queries, heads, levels, points, generator=case.generator).double(),
    ]
    shapes = torch.tensor(shapes)
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)

    def ours(value, locations, weights):
        function = attention.MultiScaleDeformableAttnFunction.apply
        return function(value, shapes, starts, locations, weights, case.choose.choice([1, 64]))

    def theirs(value, locations, weights):
        return attention.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)

    for g, w in zip(*(outputs_and_gradients(f, tensors) for f in (ours, theirs)), strict=True):
        torch.testing.assert_close(g, w, atol=1e-9, rtol=1e-9)
