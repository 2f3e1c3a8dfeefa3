"""dcnzoo's PyTorch operators for ``mmcv._ext`` compared with mmcv's compiled CPU operators."""

import importlib
import random

import pytest
import torch

import dcnzoo.models  # noqa: F401
from dcnzoo.compat.mmcv import _ext as stand_in

compiled = importlib.import_module("mmcv._ext")
mmcv_ops = importlib.import_module("mmcv.ops")
CASES = range(200)
MORE = range(320)  # more cases if mmcv does not call the operator without boxes
TOLERANCE = dict(atol=1e-5, rtol=1e-5)


@pytest.fixture
def on(monkeypatch):
    """Run a function of mmcv.ops on the compiled operators, then on dcnzoo's."""

    def both(module, function):
        module, results = importlib.import_module(f"mmcv.ops.{module}"), []
        for extension in (compiled, stand_in):
            monkeypatch.setattr(module, "ext_module", extension)
            results.append(function())
        return results

    return both


class Case:
    """Random boxes and maps, including no boxes, equal boxes, zero areas and integer coordinates."""

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

    def quads(self, count, regular=False):
        """Convex, not all rectangles. Unless ``regular``, every fifth case has some of zero area."""
        x, y, width, height, angle = self.rotated(count).unbind(1)
        flat = self.degenerate and not regular
        width, height = (width, height) if flat else (width + 1, height + 1)
        signs = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])[None]
        u, v = (signs * torch.stack([width, height], 1)[:, None] / 2).unbind(-1)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        corners = torch.stack([x[:, None] + u * cos - v * sin, y[:, None] + u * sin + v * cos], -1)
        moved = (torch.rand(corners.shape, generator=self.generator) - 0.5) * (
            0 if flat else self.choose.choice([0.0, 0.4])
        )
        corners = corners + moved
        return (corners.flip(1) if self.choose.random() < 0.5 else corners).flatten(1)

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


def outputs_and_gradients(function, tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    output = function(*leaves)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return output.detach(), *torch.autograd.grad((output * weight).sum(), leaves)


def roi_align_rotated(case, seed):
    boxes = case.rotated(case.count(6)) * torch.tensor([1.5, 1, 1, 1, 1]) - torch.tensor([9.0, 4, 0, 0, 0])
    rois, how = case.rois(boxes), (*case.pooling(), seed % 2 == 0, seed % 3 == 0)
    return lambda x: mmcv_ops.roi_align_rotated(x, rois, *how), case.maps()


def roi_align(case, seed):
    rois = case.rois(case.boxes(case.count(6)) * 1.5 - 12)
    how = (*case.pooling(), case.choose.choice(["avg", "max"]), seed % 2 == 0)
    return lambda x: mmcv_ops.roi_align(x, rois, *how), case.maps()


def rotated_feature_align(case, seed):
    input = case.maps()[: case.choose.choice([0, 1, 2])]
    boxes = case.rotated(input[:, 0].numel()).view(len(input), *input.shape[2:], 5) - 5
    return lambda x: mmcv_ops.rotated_feature_align(x, boxes, 0.5, 1 + 4 * (seed % 2)), input


def active_rotated_filter(case, seed):
    planes, inputs, orientations, rotations = (case.choose.randint(1, 4) for _ in range(4))
    size = case.choose.choice([(1, 1), (3, 3), (2, 3)])
    entries = orientations * size[0] * size[1]
    orders = [torch.randperm(entries, generator=case.generator) + 1 for _ in range(rotations)]
    indices = torch.stack(orders, 1).view(orientations, *size, rotations).int()
    input = torch.randn(planes, inputs, orientations, *size, generator=case.generator)
    return lambda x: mmcv_ops.active_rotated_filter(x, indices), input


def psa_mask(case, seed):
    mask = case.choose.choice([(1, 1), (3, 1), (3, 5), (7, 3)])
    size = (case.choose.choice([1, 2]), case.choose.randint(1, 3), case.choose.randint(1, 4))
    input = torch.randn(size[0], mask[0] * mask[1], *size[1:], generator=case.generator)
    return mmcv_ops.PSAMask(case.choose.choice(["collect", "distribute"]), mask), input


FUNCTIONS = (
    roi_align_rotated,
    roi_align,
    rotated_feature_align,
    active_rotated_filter,
    psa_mask,
)


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.parametrize("make", FUNCTIONS)
def test_functions_of_one_input(on, make, seed):
    function, input = make(Case(seed), seed)
    want, got = on(make.__name__, lambda: outputs_and_gradients(function, [input]))
    if make is roi_align:
        want[0][want[0] == -1e4] = 0  # mmcv's maximum of zero samples, for RoIs of zero height or width
    torch.testing.assert_close(got, want, **(dict(rtol=0, atol=0) if make is psa_mask else TOLERANCE))


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.parametrize("kind", ["rotated", "quadri"])
def test_nms_of_turned_boxes(on, kind, seed):
    case = Case(seed)
    count = max(1, case.count(40))
    boxes = case.rotated(count) if kind == "rotated" else case.quads(count)
    labels = torch.randint(2, (len(boxes),), generator=case.generator) if seed % 3 == 0 else None
    arguments = (boxes, case.scores(len(boxes)), case.choose.choice([0.1, 0.3, 0.5]), labels)
    how = (seed % 2 == 0,) if kind == "rotated" else ()
    want, got = on("nms", lambda: getattr(mmcv_ops, f"nms_{kind}")(*arguments, *how))
    assert got[1].tolist() == want[1].tolist()
    torch.testing.assert_close(got[0], want[0])


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.parametrize("kind", ["rotated", "quadri"])
def test_iou_of_turned_boxes(on, kind, seed):
    case = Case(seed)
    make = case.rotated if kind == "rotated" else case.quads
    boxes, others = make(case.count()), make(case.count())
    case.some_equal(boxes, others)
    if seed % 6 == 0:  # detections: a sixth column has the scores
        boxes = torch.cat([boxes, case.scores(len(boxes))[:, None]], 1)
    function, how = getattr(mmcv_ops, f"box_iou_{kind}"), (seed % 2 == 0,) if kind == "rotated" else ()
    for mode in ("iou", "iof"):
        for arguments in ((boxes, others, mode, False, *how), (boxes, boxes.roll(1, 0), mode, True)):
            want, got = on(f"box_iou_{kind}", lambda a=arguments: function(*a))
            torch.testing.assert_close(got, want, **TOLERANCE)


def text_kernels(case, size):
    """Labels of some rectangles of pixels, a mask of text, and the number of labels."""
    labels = torch.zeros(size, dtype=torch.int32)
    for label in range(1, case.choose.choice([1, 2, 4])):
        y, x = (case.choose.randrange(side) for side in size)
        labels[y : y + 3, x : x + 2] = label
    text = (case.uniform(*size) < case.choose.choice([0.0, 0.6, 0.9, 1.0])) | (labels > 0)
    return labels, text, int(labels.max()) + 1


@pytest.mark.parametrize("seed", CASES)
def test_contour_expand(on, seed):
    case = Case(seed)
    labels, text, _ = text_kernels(case, (case.choose.randint(1, 20), case.choose.randint(1, 25)))
    kernels = [text, text & (case.uniform(*text.shape) < 0.7), labels > 0][: case.choose.randint(1, 3)]
    masks, least = torch.stack(kernels).to(torch.uint8), case.choose.choice([0, 2, 5])
    want, got = on("contour_expand", lambda: mmcv_ops.contour_expand(masks, labels, least, len(masks)))
    assert got == want


@pytest.mark.parametrize("seed", CASES)
def test_pixel_group(on, seed):
    case = Case(seed)
    labels, text, count = text_kernels(case, (case.choose.randint(1, 20), case.choose.randint(1, 25)))
    embedding = torch.randn(*text.shape, 4, generator=case.generator) + labels[..., None]
    contour = ((labels > 0) & (case.uniform(*text.shape) < 0.8)).to(torch.uint8)
    arguments = (
        case.uniform(*text.shape),
        text,
        embedding,
        labels,
        contour,
        count,
        case.choose.choice([0.5, 2.0]),
    )
    want, got = on("pixel_group", lambda: mmcv_ops.pixel_group(*arguments))
    assert [len(region) for region in got] == [len(region) for region in want]
    for one, other in zip(got, want, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("seed", CASES)
def test_ms_deform_attn(monkeypatch, seed):
    """mmcv has no compiled operator for the CPU: compare with its formula on grid_sample."""
    attention = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    monkeypatch.setattr(attention, "ext_module", stand_in)
    case = Case(seed)
    heads, channels, points, queries = (case.choose.randint(1, 4) for _ in range(4))
    shapes = [
        (case.choose.randint(1, 6), case.choose.randint(1, 7)) for _ in range(case.choose.randint(1, 3))
    ]
    batch, levels, total = case.choose.choice([1, 2, 3]), len(shapes), sum(h * w for h, w in shapes)
    reach = case.choose.choice([0.0, 0.5])  # distance beyond the maps
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
