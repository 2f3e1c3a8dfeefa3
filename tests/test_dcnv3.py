"""dcnv3: the meaning of a tap, and agreement with independent formulas. dcnv4: the layout of offset_mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dcnzoo.ops import dcnv3, dcnv4, ms_deform_attn

from .modules import assert_same
from .op_cases import dcnv3 as cases
from .op_cases import dcnv4 as dcnv4_cases

F64 = {"dtype": torch.float64}
ALL = [pytest.param(s, id=s.name) for s in cases.samples() if s.tensors[0].numel()]


def grid_sample_formula(
    input, offset, mask, kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove
):
    """The paper's plain PyTorch: on the map padded with zeros, in coordinates from 0 to 1."""
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


@pytest.mark.parametrize("sample", ALL)
def test_agrees_with_grid_sample(sample):
    leaves = sample.leaves()
    expected = grid_sample_formula(*leaves.tensors, *cases.geometry(sample))
    assert_same(cases.call(leaves), expected, leaves.tensors)


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


def test_what_is_no_tensor_is_named():
    tensors = cases.make("no tensor").tensors
    for index, name in enumerate(("input", "offset", "mask")):
        for wrong in (None, tensors[0].numpy()):
            with pytest.raises(TypeError, match=f"^dcnv3: {name}: .* got {type(wrong).__name__}$"):
                dcnv3(*tensors[:index], wrong, *tensors[index + 1 :], (3, 2), 1, 1, 1, 2, 3, 1.0)
    with pytest.raises(TypeError, match=r"^dcnv4: offset_mask: .* got list$"):
        dcnv4(tensors[0], [1.0], 3, 1, 1, 1, 2, 3, 1.0)
    with pytest.raises(TypeError, match=r"^ms_deform_attn: spatial_shapes: .* got list$"):
        ms_deform_attn(tensors[0], [(7, 10)], torch.zeros(1), tensors[0], tensors[0])


# dcnv4, whose arithmetic is that of dcnv3


@pytest.mark.parametrize("remove_center", [False, True])
@pytest.mark.parametrize("group", [1, 2, 5])
def test_is_dcnv3_with_the_fields_of_a_group_side_by_side(group, remove_center):
    sample = cases.make("layout", kernel_size=3, group=group, remove_center=remove_center)
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
    sample = dcnv4_cases.packed(cases.make("padding", kernel_size=3, group=3)).leaves()
    dcnv4_cases.call(sample).sum().backward()
    gradient = sample.tensors[1].grad
    assert gradient.shape[3] == 88 and (gradient[..., 81:] == 0).all()
    assert (gradient[..., :81] != 0).any(dim=(0, 1, 2)).all()


def test_bfloat16_backward_is_rounded_once():
    sample = dcnv4_cases.packed(cases.make("half", kernel_size=3, group_channels=16)).to(torch.bfloat16)
    exact, mine = sample.to(torch.float64).leaves(), sample.leaves()
    dcnv4_cases.reference(exact).sum().backward()
    dcnv4_cases.call(mine).sum().backward()
    for tensor, true in zip(mine.tensors, exact.tensors, strict=True):
        assert tensor.grad.dtype == torch.bfloat16
        tolerance = dict(rtol=2**-8, atol=1e-5 * true.grad.abs().max().item())
        torch.testing.assert_close(tensor.grad.double(), true.grad, **tolerance)
