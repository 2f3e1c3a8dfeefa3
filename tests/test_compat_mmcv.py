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

mmcv_ops = importlib.import_module("mmcv.ops")


def with_grad(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def gradients(output, inputs, seed=3):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    return torch.autograd.grad((output * weight).sum(), inputs)


# The module itself


def test_every_name_of_mmcv_ops_imports():
    missing = [name for name in mmcv_ops.__all__ if not hasattr(mmcv_ops, name)]
    assert not missing
    assert len(mmcv_ops.__all__) > 90


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("filtered_lrelu", r"mmcv\.ops\.filtered_lrelu with use_custom_op=False"),
        ("sync_bn_forward_mean", r"torch\.nn\.SyncBatchNorm"),
        ("pixel_group", r"mmcv with its compiled operators in place of mmcv-lite"),
    ],
)
def test_missing_operator_is_named(name, instead):
    message = rf"mmcv.ops: {name}: .* not provided by dcnzoo; use {instead}.*, or ask for it"
    with pytest.raises(NotImplementedError, match=message):
        getattr(_ext, name)(torch.zeros(1), 1, kernel=3)
    assert not hasattr(_ext, "__wrapped__")  # what inspection asks for is not an operator


def test_finder_is_last_and_knows_one_name():
    dcnzoo.compat.mmcv.install()  # again, to no effect
    finders = [f for f in sys.meta_path if f is dcnzoo.compat.mmcv._Finder]
    assert len(finders) == 1
    assert finders[0].find_spec("mmcv.ops") is None
    assert finders[0].find_spec("mmcv._ext").origin == str(dcnzoo.compat.mmcv.STAND_IN)


def test_compiler_versions_are_told():
    assert "dcnzoo" in _ext.get_compiler_version()
    assert "dcnzoo" in _ext.get_compiling_cuda_version()


# Deformable convolution, through mmcv's own classes and functions

SIZE, KERNEL, STRIDE, PADDING, DILATION = (9, 7), (3, 2), (2, 1), (1, 2), (1, 2)
OUT = (5, 9)


def deform_tensors(groups=2, deform_groups=2, batch=3, larger=(0, 0)):
    torch.manual_seed(0)
    taps = math.prod(KERNEL)
    height, width = OUT[0] + larger[0], OUT[1] + larger[1]
    return (
        torch.randn(batch, 4, *SIZE),
        torch.randn(6, 4 // groups, *KERNEL),
        torch.randn(batch, deform_groups * 2 * taps, height, width),
        torch.rand(batch, deform_groups * taps, height, width),
        torch.randn(6),
    )


def test_deform_conv2d():
    input, weight, offset, _, _ = with_grad(*deform_tensors())
    geometry = (STRIDE, PADDING, DILATION, 2)
    output = mmcv_ops.deform_conv2d(input, offset, weight, *geometry, 2)
    expected = reference.deform_conv(input, weight, offset, None, None, *geometry)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    inputs = (input, weight, offset)
    for got, want in zip(gradients(output, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("with_bias", [True, False])
def test_modulated_deform_conv2d(with_bias):
    input, weight, offset, mask, bias = with_grad(*deform_tensors())
    bias = bias if with_bias else None
    geometry = (STRIDE, PADDING, DILATION, 2)
    output = mmcv_ops.modulated_deform_conv2d(input, offset, mask, weight, bias, *geometry, 2)
    expected = reference.deform_conv(input, weight, offset, mask, bias, *geometry)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    inputs = [t for t in (input, weight, offset, mask, bias) if t is not None]
    for got, want in zip(gradients(output, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_layers_of_mmcv():
    layer = mmcv_ops.ModulatedDeformConv2d(4, 6, 3, stride=2, padding=1, deform_groups=2).double()
    input = torch.randn(2, 4, 7, 10, dtype=torch.float64)
    offset, mask = input.new_zeros(2, 36, 4, 5), input.new_ones(2, 18, 4, 5)
    expected = F.conv2d(input, layer.weight, layer.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(input, offset, mask), expected)
    layer = mmcv_ops.DeformConv2d(4, 6, 3, padding=1).double()
    expected = F.conv2d(input, layer.weight, padding=1)
    torch.testing.assert_close(layer(input, input.new_zeros(2, 18, 7, 10)), expected)


def test_ms_deform_attn():
    """The function that mmcv calls on a GPU, against the formula that it uses on the CPU."""
    module = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    torch.manual_seed(0)
    sizes, starts = torch.tensor([[6, 9], [3, 5]]), torch.tensor([0, 54])
    value, locations, weights = with_grad(
        torch.randn(3, 69, 2, 8), torch.rand(3, 7, 2, 2, 4, 2) * 1.4 - 0.2, torch.rand(3, 7, 2, 2, 4)
    )
    apply = module.MultiScaleDeformableAttnFunction.apply
    output = apply(value, sizes, starts, locations, weights, 2)
    expected = module.multi_scale_deformable_attn_pytorch(value, sizes.tolist(), locations, weights)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    inputs = (value, locations, weights)
    for got, want in zip(gradients(output, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_autocast_is_settled_by_mmcv():
    input, weight, offset, _, _ = deform_tensors()
    plain = mmcv_ops.deform_conv2d(input, offset, weight, STRIDE, PADDING, DILATION, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):  # float32 offsets: mmcv runs all in float32
        output = mmcv_ops.deform_conv2d(input, offset, weight, STRIDE, PADDING, DILATION, 2, 2)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, plain)


def test_larger_offsets_are_read_as_memory():
    """What DyHead does: offsets and mask of a finer level; the kernels read them from the start."""
    input, weight, offset, mask, bias = with_grad(*deform_tensors(larger=(3, 4)))
    geometry = (STRIDE, PADDING, DILATION, 2)
    output = mmcv_ops.modulated_deform_conv2d(input, offset, mask, weight, bias, *geometry, 2)
    taps = math.prod(KERNEL)

    def element(tensor, image, channel, y, x):
        flat = tensor[image].reshape(-1)
        return flat[(channel * OUT[0] + y) * OUT[1] + x]

    def as_read(tensor, channels):
        out = tensor.new_empty(len(tensor), channels, *OUT)
        for index in torch.ones(out.shape).nonzero().tolist():
            out[tuple(index)] = element(tensor, *index)
        return out

    read = [as_read(offset.detach(), 4 * taps), as_read(mask.detach(), 2 * taps)]
    expected = reference.deform_conv(input, weight, *read, bias, *geometry)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)

    grad_offset, grad_mask = gradients(output, (offset, mask))
    read = with_grad(*read)
    want = gradients(reference.deform_conv(input, weight, *read, bias, *geometry), read)
    for got, expected in zip((grad_offset, grad_mask), want, strict=True):
        used = expected[0].numel()
        torch.testing.assert_close(got.flatten(1)[:, :used], expected.flatten(1))
        assert not got.flatten(1)[:, used:].any()


def test_smaller_offsets_are_refused():
    input, weight, offset, mask, bias = deform_tensors()
    with pytest.raises(RuntimeError, match=r"offset: expected at least 24 × 5 × 9 .* got 24 × 4 × 9"):
        mmcv_ops.modulated_deform_conv2d(
            input, offset[:, :, 1:], mask, weight, bias, STRIDE, PADDING, DILATION, 2, 2
        )


@pytest.mark.parametrize(("name", "channels"), [("offset", 24), ("mask", 12)])
@pytest.mark.parametrize("extra", [1, 12])
def test_more_channels_are_refused(name, channels, extra):
    """They were taken for a larger map, and the first values read: of other taps and groups."""
    tensors = dict(zip(("input", "weight", "offset", "mask", "bias"), deform_tensors(), strict=True))
    tensors[name] = torch.cat([tensors[name], tensors[name][:, :extra]], 1)
    with pytest.raises(RuntimeError, match=rf"{name}: expected {channels} channels.* {channels + extra}[,)]"):
        mmcv_ops.modulated_deform_conv2d(
            *(tensors[name] for name in ("input", "offset", "mask", "weight", "bias")),
            *(STRIDE, PADDING, DILATION, 2, 2),
        )


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


def boxes_and_scores(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 20
    size = torch.rand(count, 2, generator=generator) * 15 + 2
    return torch.cat([corner, corner + size], 1), torch.rand(count, generator=generator)


def iou(a, b, offset=0):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms(offset):
    boxes, scores = boxes_and_scores(40)
    keep = []
    for i in scores.argsort(descending=True).tolist():
        if all(iou(boxes[i].tolist(), boxes[j].tolist(), offset) <= 0.3 for j in keep):
            keep.append(i)
    dets, indices = mmcv_ops.nms(boxes, scores, 0.3, offset=offset)
    assert indices.tolist() == keep
    assert 1 < len(keep) < 40
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[keep])


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms(method, offset):
    boxes, scores = boxes_and_scores(40, seed=1)
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
    boxes, scores = boxes_and_scores(30, seed=2)
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


@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_roi_align(pool_mode):
    """A linear map, read at the centres of the bins: average and gradient are known by hand."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(10.0), indexing="ij")
    input = torch.stack([2 * y + x, -x])[None].double().requires_grad_()
    rois = torch.tensor([[0, 2.0, 4.0, 8.0, 10.0]], dtype=torch.float64)  # x 2–8, y 4–10
    output = mmcv_ops.roi_align(input, rois, (3, 2), 1.0, 1, pool_mode, True)
    centre_y = torch.tensor([4.5, 6.5, 8.5], dtype=torch.float64)[:, None]  # of bins 2 high
    centre_x = torch.tensor([3.0, 6.0], dtype=torch.float64)[None]  # of bins 3 wide
    expected = torch.stack([2 * centre_y + centre_x, (0 * centre_y - centre_x)])
    torch.testing.assert_close(output[0], expected)
    (gradient,) = torch.autograd.grad(output[0, 1, 0, 0], input)
    assert gradient[0, 0].abs().sum() == 0
    torch.testing.assert_close(gradient[0, 1].sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(gradient[0, 1, 4:6, 3], torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_roi_align_gradient(pool_mode):
    torch.manual_seed(0)
    input = torch.randn(2, 3, 8, 9, dtype=torch.float64).requires_grad_()
    rois = torch.tensor([[1, 1.3, 0.7, 7.1, 5.9], [0, 0.0, 2.2, 3.9, 7.7]], dtype=torch.float64)
    arguments = ((2, 3), 0.9, 2, pool_mode, True)
    assert torch.autograd.gradcheck(lambda x: mmcv_ops.roi_align(x, rois, *arguments), input)


@pytest.mark.parametrize("with_offset", [True, False])
def test_deform_roi_pool(with_offset):
    torch.manual_seed(0)
    input = torch.randn(2, 3, 8, 9, dtype=torch.float64).requires_grad_()
    rois = torch.tensor([[1, 1.3, 0.7, 7.1, 5.9], [0, 0.0, 2.2, 3.9, 7.7]], dtype=torch.float64)
    offset = torch.randn(2, 2, 2, 3, dtype=torch.float64).requires_grad_() if with_offset else None
    arguments = ((2, 3), 0.9, 2, 0.3)
    output = mmcv_ops.deform_roi_pool(input, rois, offset, *arguments)
    expected = reference.deform_roi_pool(input, rois, offset, *arguments)
    torch.testing.assert_close(output, expected)
    inputs = (input, offset) if with_offset else (input,)
    for got, want in zip(gradients(output, inputs), gradients(expected, inputs), strict=True):
        assert got.any()
        torch.testing.assert_close(got, want)


def test_deform_roi_pool_without_rois():
    input = torch.randn(2, 3, 8, 9).requires_grad_()
    output = mmcv_ops.deform_roi_pool(input, torch.zeros(0, 5), torch.zeros(0, 2, 2, 3), (2, 3))
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
        scale = torch.cat([weight, torch.ones(1, dtype=torch.float64)])[target]
        expected = expected * scale[:, None]
    torch.testing.assert_close(output, expected)
    got, want = gradients(output, logits), gradients(expected, logits)
    torch.testing.assert_close(got[0], want[0])


@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_focal_loss(weighted):
    torch.manual_seed(0)
    logits = (torch.randn(6, 4, dtype=torch.float64) * 3).requires_grad_()
    target = torch.tensor([0, 3, -1, 1, 2, 0])  # -1: ignored
    weight = torch.rand(4, dtype=torch.float64) if weighted else None
    gamma, alpha = 1.7, 0.3
    output = mmcv_ops.softmax_focal_loss(logits, target, gamma, alpha, weight, "sum")

    entropy = F.cross_entropy(logits, target, weight=weight, reduction="none", ignore_index=-1)
    p = logits.softmax(1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    expected = (alpha * (1 - p) ** gamma * entropy).sum()
    torch.testing.assert_close(output, expected)
    got, want = (torch.autograd.grad(loss, logits)[0] for loss in (output, expected))
    torch.testing.assert_close(got, want)


def test_focal_loss_of_certain_logits_is_finite():
    logits = torch.tensor([[200.0, -200.0]]).requires_grad_()
    for target in (0, 1, 2):
        loss = mmcv_ops.sigmoid_focal_loss(logits, torch.tensor([target]))
        assert loss.isfinite()
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()
