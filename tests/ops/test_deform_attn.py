"""dcnv3, dcnv4, ms_deform_attn, flash_deform_attn: agreement with F.grid_sample, the layouts, edge cases."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from dcnzoo.ops import dcnv3, dcnv4, flash_deform_attn, ms_deform_attn, reference
from tests.helpers.modules import assert_same
from tests.op_cases import dcnv3 as dcnv3_cases
from tests.op_cases import dcnv4 as dcnv4_cases
from tests.op_cases import ms_deform_attn as ms_cases
from tests.op_cases import results

F64 = {"dtype": torch.float64}
DCNV3 = [pytest.param(s, id=s.name) for s in dcnv3_cases.samples() if s.tensors[0].numel()]


def dcnv3_formula(
    input, offset, mask, kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove
):
    """Compute the paper's formula on the map padded with zeros, in coordinates from 0 to 1."""
    (kernel_h, kernel_w), (dilation_h, dilation_w) = kernel_size, dilation
    padded = F.pad(input, [0, 0, padding[1], padding[1], padding[0], padding[0]])
    batch, height, width, channels = padded.shape
    out_h, out_w = offset.shape[1:3]
    middle_h, middle_w = dilation_h * (kernel_h - 1) // 2, dilation_w * (kernel_w - 1) // 2
    y = (middle_h + 0.5 + torch.arange(out_h, **F64) * stride[0]) / height
    x = (middle_w + 0.5 + torch.arange(out_w, **F64) * stride[1]) / width
    centres = torch.stack([x.expand(out_h, -1), y[:, None].expand(-1, out_w)], -1)  # (oH, oW, 2)
    taps = [
        ((i * dilation_w - middle_w) / width, (j * dilation_h - middle_h) / height)
        for i in range(kernel_w)
        for j in range(kernel_h)
        if not (remove and i == kernel_w // 2 and j == kernel_h // 2)
    ]
    taps = torch.tensor(taps, **F64)
    moved = offset.view(batch, out_h, out_w, group, len(taps), 2) / torch.tensor([width, height], **F64)
    at = centres[:, :, None, None] + (taps + moved) * offset_scale
    at = (2 * at - 1).permute(0, 3, 1, 2, 4, 5).reshape(batch * group, out_h * out_w, len(taps), 2)
    maps = padded.view(batch, height, width, group, group_channels).permute(0, 3, 4, 1, 2).flatten(0, 1)
    samples = F.grid_sample(maps, at, "bilinear", "zeros", align_corners=False)
    weights = mask.view(batch, out_h * out_w, group, len(taps)).transpose(1, 2).flatten(0, 1)
    out = (samples * weights[:, None]).sum(-1)
    return out.view(batch, channels, out_h, out_w).permute(0, 2, 3, 1)


@pytest.mark.parametrize("sample", DCNV3)
def test_dcnv3_agrees_with_grid_sample(sample):
    leaves = sample.leaves()
    expected = dcnv3_formula(*leaves.tensors, *dcnv3_cases.geometry(sample))
    assert_same(dcnv3_cases.call(leaves), expected, leaves.tensors)


def test_hand_worked_order_of_taps():
    """On a map of 10·row + column, each tap by itself shows its position."""
    input = (torch.arange(4.0, **F64)[:, None] * 10 + torch.arange(5.0, **F64)).view(1, 4, 5, 1)
    offset = torch.zeros(1, 2, 4, 12, **F64)
    for tap, (row, column) in enumerate([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]):
        mask = torch.zeros(1, 2, 4, 6, **F64)
        mask[..., tap] = 1
        output = dcnv3(input, offset, mask, (3, 2), 1, 0, 1, 1, 1, 1.0)
        assert output[0, 1, 2, 0] == 10 * (1 + row) + 2 + column
        moved = offset.clone()
        moved[..., 2 * tap] = 0.5  # x comes first
        moved[..., 2 * tap + 1] = -0.25
        output = dcnv3(input, moved, mask, (3, 2), 1, 0, 1, 1, 1, 1.0)
        assert output[0, 1, 1, 0] == 10 * (1 + row - 0.25) + 1 + column + 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_offsets_stay_exact_beside_half_input(dtype):
    """Near x = 300, the steps of float16 are 0.25 pixels and those of bfloat16 2 pixels."""
    input = torch.arange(400.0).div(64).to(dtype).view(1, 1, 400, 1)
    offset = torch.full((1, 1, 400, 2), 0.0)
    offset[..., 0] = 0.25
    mask = torch.ones(1, 1, 400, 1)
    output = dcnv3(input, offset, mask, 1, 1, 0, 1, 1, 1, 1.0)
    exact = dcnv3(input.double(), offset.double(), mask.double(), 1, 1, 0, 1, 1, 1, 1.0)
    assert output.dtype == dtype
    assert torch.equal(output, exact.to(dtype))
    with torch.autocast("cpu", dtype):
        assert torch.equal(dcnv3(input.float(), offset, mask, 1, 1, 0, 1, 1, 1, 1.0), output)
        fields = torch.cat([offset, mask, torch.zeros(1, 1, 400, 5)], dim=3)
        assert torch.equal(dcnv4(input.float(), fields, 1, 1, 0, 1, 1, 1, 1.0), output)


# dcnv4, whose arithmetic is that of dcnv3


@pytest.mark.parametrize("remove_center", [False, True])
@pytest.mark.parametrize("group", [1, 2, 5])
def test_is_dcnv3_with_the_fields_of_a_group_side_by_side(group, remove_center):
    sample = dcnv3_cases.make("layout", kernel_size=3, group=group, remove_center=remove_center)
    input, offset, mask = sample.tensors
    points = 9 - remove_center
    fields = torch.full((*offset.shape[:3], -(-group * points * 3 // 8) * 8), float("nan"), dtype=input.dtype)
    for g in range(group):  # channel by channel
        for p in range(points):
            fields[..., g * 3 * points + 2 * p] = offset[..., (g * points + p) * 2]
            fields[..., g * 3 * points + 2 * p + 1] = offset[..., (g * points + p) * 2 + 1]
            fields[..., g * 3 * points + 2 * points + p] = mask[..., g * points + p]
    assert torch.equal(dcnv4(input, fields, **sample.kwargs), dcnv3(*sample.tensors, **sample.kwargs))


def test_padding_has_a_gradient_of_zero():
    sample = dcnv4_cases.packed(dcnv3_cases.make("padding", kernel_size=3, group=3)).leaves()
    dcnv4_cases.call(sample).sum().backward()
    gradient = sample.tensors[1].grad
    assert gradient.shape[3] == 88 and (gradient[..., 81:] == 0).all()
    assert (gradient[..., :81] != 0).any(dim=(0, 1, 2)).all()


def bfloat16_samples(channels):
    """Yield small calls, with and without Inf in the map, and a decoder's, with fewer samples than pixels."""
    grid = dcnv3_cases.make("half", kernel_size=3, group=2, group_channels=channels)
    attention, packed = ms_cases.make("half", channels=channels), dcnv4_cases.packed(grid)
    decoder = ms_cases.make("few", channels=channels, queries=2, points=3)
    for cases, sample in (
        (dcnv3_cases, grid),
        (dcnv4_cases, packed),
        (ms_cases, attention),
        (ms_cases, decoder),
    ):
        half = sample.to(torch.bfloat16)
        yield cases, half
        half.tensors[0].view(-1)[channels // 2 :: 97] = math.inf
        yield cases, half


@pytest.mark.parametrize("channels", [1, 5, 8, 16, 24, 32, 40, 48, 64, 80])
def test_bfloat16_forward_is_that_of_float32_rounded_once(channels):
    """Channels fill pairs of vectors, single vectors and parts of them, with and without Inf in the map."""
    for cases, half in bfloat16_samples(channels):
        expected = cases.call(half.to(torch.float32)).bfloat16()
        torch.testing.assert_close(cases.call(half), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("fields", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [1, 5, 16, 24, 40])
def test_bfloat16_backward_is_that_of_float32_rounded_once(channels, fields):
    """Offsets and weights may be float32, and then so are their gradients."""
    for cases, half in bfloat16_samples(channels):
        input, *others = half.tensors
        mixed = dataclasses.replace(half, tensors=(input, *(tensor.to(fields) for tensor in others)))
        grad = torch.ones_like(cases.call(mixed))
        expected = results(cases.call, mixed.to(torch.float32), grad.float())
        for mine, true in zip(results(cases.call, mixed, grad), expected, strict=True):
            torch.testing.assert_close(mine, true.to(mine.dtype), rtol=0, atol=0, equal_nan=True)


# ms_deform_attn and flash_deform_attn


MS_DEFORM_ATTN = [pytest.param(s, id=s.name) for s in ms_cases.samples() if all(t.numel() for t in s.tensors)]


def ms_deform_attn_formula(value, spatial_shapes, level_start_index, locations, weights):
    """Deformable DETR's plain PyTorch function."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = torch.zeros(batch * heads, channels, queries, **F64)
    for level, ((height, width), start) in enumerate(
        zip(spatial_shapes.tolist(), level_start_index.tolist(), strict=True)
    ):
        maps = value[:, start : start + height * width].view(batch, height, width, heads, channels)
        maps = maps.permute(0, 3, 4, 1, 2).flatten(0, 1)
        at = 2 * locations[:, :, :, level].transpose(1, 2).reshape(batch * heads, queries, points, 2) - 1
        samples = F.grid_sample(maps, at, "bilinear", "zeros", align_corners=False)
        factors = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        out = out + (samples * factors).sum(-1)
    return out.view(batch, heads * channels, queries).transpose(1, 2)


@pytest.mark.parametrize("sample", MS_DEFORM_ATTN)
def test_ms_deform_attn_agrees_with_grid_sample(sample):
    mine, other = sample.leaves(), sample.leaves()
    output, expected = ms_cases.call(mine), ms_deform_attn_formula(*ms_cases.arguments(other))
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    grad = torch.linspace(-1, 1, output.numel(), **F64).view(output.shape)
    got = torch.autograd.grad(output, mine.tensors, grad)
    torch.testing.assert_close(got, torch.autograd.grad(expected, other.tensors, grad), rtol=1e-10, atol=1e-9)


def test_hand_worked():
    """Two levels of one row. Locations are normalised to the level; pixel i has its centre at i + 0.5."""
    value = torch.tensor([1.0, 2, 3, 4, 50, 70], **F64).view(1, 6, 1, 1)
    sizes, starts = torch.tensor([[1, 4], [1, 2]]), torch.tensor([0, 4])
    locations = torch.tensor([[0.5, 0.5], [0.5, 0.5]], **F64).view(1, 1, 1, 2, 1, 2)
    weights = torch.tensor([1.0, 0.1], **F64).view(1, 1, 1, 2, 1)
    # halfway between 2 and 3, and between 50 and 70
    assert ms_deform_attn(value, sizes, starts, locations, weights).item() == pytest.approx(2.5 + 6)
    locations[0, 0, 0, 0, 0, 0] = 0.125 + 0.25  # pixel 1
    locations[0, 0, 0, 1, 0, 0] = 0  # half a pixel outside
    assert ms_deform_attn(value, sizes, starts, locations, weights).item() == pytest.approx(2 + 2.5)


def test_levels_may_lie_anywhere_in_the_value():
    sample = ms_cases.make("places", sizes=((4, 5), (3, 2)))
    value, locations, weights = sample.tensors
    swapped = torch.cat([value[:, 20:], value[:, :3], value[:, :20]], dim=1)
    output = ms_deform_attn(
        swapped, sample.kwargs["spatial_shapes"], torch.tensor([9, 0]), locations, weights
    )
    torch.testing.assert_close(output, ms_cases.call(sample))


def test_flash_deform_attn():
    sample = ms_cases.make("flash", points=3)
    value, locations, _ = sample.tensors
    logits = torch.randn(*locations.shape[:3], 2 * 3, **F64)
    levels = (sample.kwargs["spatial_shapes"], sample.kwargs["level_start_index"])
    together = torch.cat([locations.flatten(3), logits], dim=3).requires_grad_()
    output = flash_deform_attn(value, *levels, together)
    weights = logits.softmax(-1).unflatten(3, (2, 3))
    torch.testing.assert_close(output, reference.ms_deform_attn(value, *levels, locations, weights))
    assert torch.autograd.gradcheck(lambda t: flash_deform_attn(value, *levels, t), together, fast_mode=True)
    with pytest.raises(RuntimeError, match=r"^flash_deform_attn: sampling_loc_attn: .*got \(2, 7, 3, 17\)"):
        flash_deform_attn(value, *levels, together[..., 1:])
    for sizes, both, name in (([(4, 5)], together, "spatial_shapes"), (levels[0], None, "sampling_loc_attn")):
        with pytest.raises(TypeError, match=f"^flash_deform_attn: {name}: expected a tensor, got"):
            flash_deform_attn(value, sizes, levels[1], both)


def test_vmap_over_levels_is_refused():
    sample = ms_cases.make("vmap")
    levels = [torch.stack([t] * 2) for t in sample.kwargs.values()]
    value, *rest = (torch.stack([t] * 2) for t in sample.tensors)
    with pytest.raises(RuntimeError, match=r"^ms_deform_attn: spatial_shapes, .*: expected .* vmap axis"):
        torch.vmap(ms_deform_attn)(value, *levels, *rest)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("wanted", [(0,), (1, 2), (0, 1, 2)], ids=str)
def test_gradients_of_few_samples_on_a_large_map(dtype, wanted):
    """The CPU kernel does not copy such a map."""
    sample = ms_cases.make("large", queries=9, heads=2, channels=16, sizes=((99, 98), (5, 6)))
    sample = dataclasses.replace(sample, constant=tuple({0, 1, 2} - {*wanted}))
    mine, true = results(ms_cases.call, sample.to(dtype)), results(ms_cases.reference, sample)
    for got, expected in zip(mine[1:], true[1:], strict=True):
        assert expected.abs().max() > 0.01
        tolerance = dict(rtol=1e-4, atol=1e-3 if dtype.itemsize == 4 else 1e-9)
        torch.testing.assert_close(got.double(), expected, **tolerance)


def test_levels_of_int32_are_those_of_int64():
    value, shapes, starts, *points = ms_cases.arguments(ms_cases.make("levels"))
    expected = ms_deform_attn(value, shapes, starts, *points)
    assert torch.equal(ms_deform_attn(value, shapes.int(), starts.int(), *points), expected)
    with pytest.raises(RuntimeError, match="spatial_shapes: expected int64, got"):
        ms_deform_attn(value, shapes.float(), starts, *points)
