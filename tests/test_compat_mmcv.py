"""``mmcv.ops`` on dcnzoo's operators: every name is there, and what runs agrees with an oracle."""

import importlib
import math
import sys

import pytest
import torch
import torch.nn.functional as F

import dcnzoo.compat.mmcv
import dcnzoo.models
import dcnzoo.ops.reference as reference
from dcnzoo.compat.mmcv import _ext

from . import oracles
from .test_nms import random_boxes

mmcv_ops = importlib.import_module("mmcv.ops")


def with_grad(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def gradients(output, inputs):
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=output.dtype)
    return torch.autograd.grad((output * weight).sum(), inputs)


def assert_same(output, expected, inputs):
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients(output, inputs), gradients(expected, inputs))


# The module itself


def test_every_name_of_mmcv_ops_imports():
    missing = [name for name in mmcv_ops.__all__ if not hasattr(mmcv_ops, name)]
    assert not missing
    assert len(mmcv_ops.__all__) > 90


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("filtered_lrelu", "use_custom_op=False"),
        ("sync_bn_forward_mean", r"torch\.nn\.SyncBatchNorm"),
        ("pixel_group", "mmcv-lite"),
    ],
)
def test_missing_operator_is_named(name, instead):
    with pytest.raises(NotImplementedError, match=rf"mmcv.ops: {name}: .*{instead}"):
        getattr(_ext, name)(torch.zeros(1), 1, kernel=3)
    assert not hasattr(_ext, "__wrapped__")  # what inspection asks for is not an operator


def test_finder_is_last_and_knows_one_name():
    dcnzoo.compat.mmcv.install()  # again, to no effect
    finders = [f for f in sys.meta_path if f is dcnzoo.compat.mmcv._Finder]
    assert len(finders) == 1
    assert finders[0].find_spec("mmcv.ops") is None
    assert finders[0].find_spec("mmcv._ext").origin == str(dcnzoo.compat.mmcv.STAND_IN)


def test_compiler_versions_are_told():
    assert "dcnzoo" in _ext.get_compiler_version() and "dcnzoo" in _ext.get_compiling_cuda_version()


# Deformable convolution, through mmcv's own classes and functions

SIZE, KERNEL, OUT = (9, 7), (3, 2), (5, 9)
GEOMETRY = ((2, 1), (1, 2), (1, 2), 2)  # stride, padding, dilation, groups


def deform_tensors(larger=(0, 0)):
    torch.manual_seed(0)
    height, width = OUT[0] + larger[0], OUT[1] + larger[1]
    return (
        torch.randn(3, 4, *SIZE, dtype=torch.float64),
        torch.randn(6, 2, *KERNEL, dtype=torch.float64),
        torch.randn(3, 24, height, width, dtype=torch.float64),
        torch.rand(3, 12, height, width, dtype=torch.float64),
        torch.randn(6, dtype=torch.float64),
    )


@pytest.mark.parametrize("with_bias", [True, False, None])
def test_deform_conv2d(with_bias):
    """v1 has neither bias nor mask."""
    input, weight, offset, mask, bias = with_grad(*deform_tensors())
    if with_bias is None:
        mask = bias = None
        output = mmcv_ops.deform_conv2d(input, offset, weight, *GEOMETRY, 2)
    else:
        bias = bias if with_bias else None
        output = mmcv_ops.modulated_deform_conv2d(input, offset, mask, weight, bias, *GEOMETRY, 2)
    expected = reference.deform_conv(input, weight, offset, mask, bias, *GEOMETRY)
    assert_same(output, expected, [t for t in (input, weight, offset, mask, bias) if t is not None])


def test_ms_deform_attn():
    """The function that mmcv calls on a GPU, against the formula that it uses on the CPU."""
    module = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    torch.manual_seed(0)
    sizes, starts = torch.tensor([[6, 9], [3, 5]]), torch.tensor([0, 54])
    value, locations, weights = with_grad(
        torch.randn(3, 69, 2, 8).double(),
        torch.rand(3, 7, 2, 2, 4, 2).double() * 1.4 - 0.2,
        torch.rand(3, 7, 2, 2, 4).double(),
    )
    output = module.MultiScaleDeformableAttnFunction.apply(value, sizes, starts, locations, weights, 2)
    plain = module.multi_scale_deformable_attn_pytorch.__wrapped__  # on F.grid_sample
    assert_same(output, plain(value, sizes.tolist(), locations, weights), (value, locations, weights))


def test_autocast_is_settled_by_mmcv():
    input, weight, offset, _, _ = (t.float() for t in deform_tensors())
    plain = mmcv_ops.deform_conv2d(input, offset, weight, *GEOMETRY, 2)
    with torch.autocast("cpu", torch.bfloat16):  # float32 offsets: mmcv runs all in float32
        output = mmcv_ops.deform_conv2d(input, offset, weight, *GEOMETRY, 2)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, plain)


@pytest.mark.parametrize("module", [mmcv_ops, dcnzoo.compat.mmcv], ids=["mmcv", "dcnzoo"])
def test_larger_offsets_are_read_as_memory(module):
    """What DyHead does: offsets and mask of a finer level; the kernels read them from the start."""
    input, weight, offset, mask, bias = with_grad(*deform_tensors(larger=(3, 4)))
    output = module.modulated_deform_conv2d(input, offset, mask, weight, bias, *GEOMETRY, 2)

    def as_read(tensor):
        channels = tensor.shape[1]
        return tensor.flatten(1)[:, : channels * OUT[0] * OUT[1]].view(-1, channels, *OUT)

    expected = reference.deform_conv(input, weight, as_read(offset), as_read(mask), bias, *GEOMETRY)
    assert_same(output, expected, (input, weight, offset, mask, bias))


@pytest.mark.parametrize(
    ("name", "index", "message"),
    [
        ("offset", (slice(None), slice(None), slice(1, None)), "at least 24 × 5 × 9 .* got 24 × 4 × 9"),
        # taken for a larger map they would be read as other taps and groups
        ("offset", (slice(None), [*range(24), 0]), "24 channels.* 25[,)]"),
        ("mask", (slice(None), [*range(12), *range(12)]), "12 channels.* 24[,)]"),
    ],
)
def test_other_shapes_are_refused(name, index, message):
    given = dict(zip(("input", "weight", "offset", "mask", "bias"), deform_tensors(), strict=True))
    given[name] = given[name][index]
    tensors = (given[name] for name in ("input", "offset", "mask", "weight", "bias"))
    with pytest.raises(RuntimeError, match=f"{name}: expected {message}"):
        mmcv_ops.modulated_deform_conv2d(*tensors, *GEOMETRY, 2)


@pytest.mark.parametrize("chosen", [0, 1, 20])
def test_masked_conv2d(chosen):
    """Convolved where the mask is set, zero elsewhere."""
    torch.manual_seed(0)
    layer = mmcv_ops.MaskedConv2d(4, 6, (3, 1), padding=(1, 0)).double()
    input = torch.randn(1, 4, 5, 7, dtype=torch.float64)
    mask = torch.zeros(35)
    mask[torch.randperm(35)[:chosen]] = 1
    mask = mask.view(1, 5, 7)
    expected = F.conv2d(input, layer.weight, layer.bias, padding=(1, 0)) * mask
    torch.testing.assert_close(layer(input, mask), expected)


# Boxes


def iou(a, b, offset=0):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms(offset):
    boxes, scores = random_boxes(40, 20, 15)
    keep = oracles.nms(boxes, scores, 0.3, offset)
    dets, indices = mmcv_ops.nms(boxes, scores, 0.3, offset=offset)
    assert indices.tolist() == keep and 1 < len(keep) < 40
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[keep])


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms(method, offset):
    boxes, scores = random_boxes(40, 20, 15, seed=1)
    left = {i: (boxes[i].tolist(), s) for i, s in enumerate(scores.tolist())}
    expected = []
    while left:
        best = max(left, key=lambda i: left[i][1])
        box, score = left.pop(best)
        expected.append((best, score))
        for i, (other, value) in list(left.items()):
            overlap = iou(box, other, offset)
            if method == "gaussian":
                value *= math.exp(-(overlap**2) / 0.5)
            elif overlap >= 0.3:
                value *= 0 if method == "naive" else 1 - overlap
            left[i] = (other, value)
            if value < 0.05:
                del left[i]
    dets, indices = mmcv_ops.soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert indices.tolist() == [i for i, _ in expected]
    assert 1 < len(expected) < 40
    torch.testing.assert_close(dets[:, :4], boxes[indices])
    torch.testing.assert_close(dets[:, 4], torch.tensor([s for _, s in expected]))


def test_nms_match():
    boxes, scores = random_boxes(30, 20, 15, seed=2)
    order = scores.argsort(descending=True).tolist()
    expected, used = [], set()
    for position, i in enumerate(order):
        if i in used:
            continue
        later = [j for j in order[position + 1 :] if j not in used]
        match = [j for j in later if iou(boxes[i].tolist(), boxes[j].tolist()) >= 0.3]
        used.update(match)
        expected.append([i, *match])
    groups = mmcv_ops.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.3)
    assert [g.tolist() for g in groups] == expected
    assert max(map(len, expected)) > 1


def test_no_boxes():
    empty = torch.zeros(0, 4)
    assert mmcv_ops.nms(empty, torch.zeros(0), 0.5)[1].tolist() == []
    dets, indices = mmcv_ops.soft_nms(empty, torch.zeros(0))
    assert (dets.shape, indices.tolist()) == ((0, 5), [])
    assert mmcv_ops.nms_match(torch.zeros(0, 5), 0.5) == []


# RoIAlign


ROIS = torch.tensor([[1, 1.3, 0.7, 7.1, 5.9], [0, 0.0, 2.2, 3.9, 7.7]], dtype=torch.float64)


@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_roi_align(pool_mode):
    """A linear map, read at the centres of the bins: known by hand."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(10.0), indexing="ij")
    input = torch.stack([2 * y + x, -x])[None].double()
    rois = torch.tensor([[0, 2.0, 4.0, 8.0, 10.0]], dtype=torch.float64)  # x 2–8, y 4–10
    output = mmcv_ops.roi_align(input, rois, (3, 2), 1.0, 1, pool_mode, True)
    centre_y = torch.tensor([4.5, 6.5, 8.5], dtype=torch.float64)[:, None]  # of bins 2 high
    centre_x = torch.tensor([3.0, 6.0], dtype=torch.float64)[None]  # of bins 3 wide
    torch.testing.assert_close(output[0], torch.stack([2 * centre_y + centre_x, 0 * centre_y - centre_x]))
    arguments = ((2, 3), 0.9, 2, pool_mode, True)
    input = torch.randn(2, 3, 8, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    function = lambda x: mmcv_ops.roi_align(x, ROIS, *arguments)  # noqa: E731
    assert torch.autograd.gradcheck(function, input.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("with_offset", [True, False])
def test_deform_roi_pool(with_offset):
    torch.manual_seed(0)
    input = torch.randn(2, 3, 8, 9, dtype=torch.float64).requires_grad_()
    offset = torch.randn(2, 2, 2, 3, dtype=torch.float64).requires_grad_() if with_offset else None
    arguments = ((2, 3), 0.9, 2, 0.3)
    output = mmcv_ops.deform_roi_pool(input, ROIS, offset, *arguments)
    expected = reference.deform_roi_pool(input, ROIS, offset, *arguments)
    assert_same(output, expected, (input, offset) if with_offset else (input,))
    output = mmcv_ops.deform_roi_pool(input, ROIS[:0], offset[:0] if with_offset else None, *arguments)
    assert output.shape == (0, 3, 2, 3)
    assert not torch.autograd.grad(output.sum(), input)[0].any()


# Focal losses


@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_focal_loss(weighted):
    torch.manual_seed(0)
    logits = (torch.randn(7, 4, dtype=torch.float64) * 3).requires_grad_()
    target = torch.tensor([0, 3, 1, 4, 2, 4, 0])  # 4: background
    weight = torch.rand(4, dtype=torch.float64) if weighted else None
    gamma, alpha = 1.7, 0.3
    output = mmcv_ops.sigmoid_focal_loss(logits, target, gamma, alpha, weight, "none")
    y = F.one_hot(target, 5)[:, :4].double()
    p = logits.sigmoid()
    chosen = y * p + (1 - y) * (1 - p)
    balance = y * alpha + (1 - y) * (1 - alpha)
    entropy = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    expected = balance * (1 - chosen) ** gamma * entropy
    if weighted:
        expected = expected * torch.cat([weight, torch.ones(1, dtype=torch.float64)])[target][:, None]
    assert_same(output, expected, [logits])


@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_focal_loss(weighted):
    torch.manual_seed(0)
    logits = (torch.randn(6, 4, dtype=torch.float64) * 3).requires_grad_()
    target = torch.tensor([0, 3, -1, 1, 2, 0])  # -1: ignored
    weight = torch.rand(4, dtype=torch.float64) if weighted else None
    output = mmcv_ops.softmax_focal_loss(logits, target, 1.7, 0.3, weight, "sum")
    entropy = F.cross_entropy(logits, target, weight=weight, reduction="none", ignore_index=-1)
    p = logits.softmax(1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    assert_same(output, (0.3 * (1 - p) ** 1.7 * entropy).sum(), [logits])


def test_focal_loss_of_certain_logits_is_finite():
    logits = torch.tensor([[200.0, -200.0]]).requires_grad_()
    for target in (0, 1, 2):
        loss = mmcv_ops.sigmoid_focal_loss(logits, torch.tensor([target]))
        assert loss.isfinite()
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()
