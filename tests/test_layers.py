"""``dcnzoo.layers``: an ``nn.Conv2d`` with offsets and a mask; RoI pools that move their bins."""

import pytest
import torch
from torch import nn

import dcnzoo.ops.reference as reference
from dcnzoo.layers import DeformConv2d, DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack
from dcnzoo.ops import roi_align

GEOMETRY = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}


def test_is_conv2d_without_offset_and_mask():
    torch.manual_seed(0)
    layer = DeformConv2d(4, 6, (3, 2), groups=2, **GEOMETRY)
    plain = nn.Conv2d(4, 6, (3, 2), groups=2, **GEOMETRY)
    layer.load_state_dict(plain.state_dict())  # the same parameters
    input = torch.randn(2, 4, 9, 7)
    assert torch.equal(layer(input), plain(input))


def test_starts_as_conv2d():
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3)
    torch.manual_seed(0)
    layer = DeformConv2d(4, 6, 3)
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bias, plain.bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("im2col_step", [None, 2])
def test_forward_and_backward(bias, with_mask, im2col_step):
    torch.manual_seed(0)
    layer = DeformConv2d(
        4, 6, (3, 2), groups=2, bias=bias, im2col_step=im2col_step, dtype=torch.float64, **GEOMETRY
    )
    input = torch.randn(3, 4, 9, 7, dtype=torch.float64)
    offset = torch.randn(3, 24, 5, 9, dtype=torch.float64).requires_grad_()
    mask = torch.rand(3, 24, 5, 9, dtype=torch.float64)[:, :12] if with_mask else None
    output = layer(input, offset, mask)
    expected = reference.deform_conv(input, layer.weight, offset, mask, layer.bias, *GEOMETRY.values(), 2)
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)
    inputs = [offset, *layer.parameters()]
    got, want = (torch.autograd.grad(o.square().sum(), inputs) for o in (output, expected))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-9, rtol=1e-9)


def test_arguments():
    layer = DeformConv2d(4, 6, 3, 2, 1, 1, 2, False, 8)
    assert layer.bias is None
    assert (layer.stride, layer.padding, layer.im2col_step) == ((2, 2), (1, 1), 8)
    assert "4, 6, kernel_size=(3, 3), stride=(2, 2)" in repr(layer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"stride": (1, 1, 1)},
            r"DeformConv2d: stride: expected an integer or 2 of them, got \(1, 1",
        ),
        (
            {"padding": "same"},
            r"DeformConv2d: padding: expected an integer or 2 of them, got 'same'",
        ),
        ({"groups": 3}, "in_channels must be divisible by groups"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeformConv2d(4, 6, 3, **arguments)


# RoI pools

SIZE, SAMPLING = (3, 2), (0.5, 2, 0.3)
both_packs = pytest.mark.parametrize("pack", [DeformRoIPoolPack, ModulatedDeformRoIPoolPack])


def maps_and_rois(channels=4):
    maps = torch.randn(2, channels, 9, 12, dtype=torch.float64)
    rois = torch.tensor([[1, 2.0, 3.0, 15.0, 11.0], [0, 4.0, 1.0, 21.0, 17.0], [1, 0.0, 0.0, 9.0, 16.0]])
    return maps, rois.double()


def test_deform_roi_pool():
    torch.manual_seed(0)
    maps, rois = maps_and_rois()
    offset = torch.randn(3, 2, *SIZE, dtype=torch.float64)
    layer = DeformRoIPool(SIZE, *SAMPLING)
    expected = reference.deform_roi_pool(maps, rois, offset, SIZE, *SAMPLING)
    torch.testing.assert_close(layer(maps, rois, offset), expected)
    torch.testing.assert_close(layer(maps, rois), roi_align(maps, rois, SIZE, *SAMPLING[:2]))
    assert DeformRoIPool(7).output_size == (7, 7) and DeformRoIPool([3, 2]).output_size == (3, 2)
    assert repr(layer) == (
        "DeformRoIPool(output_size=(3, 2), spatial_scale=0.5, sampling_ratio=2, gamma=0.3)"
    )


@both_packs
def test_pack_starts_as_roi_align(pack):
    maps, rois = maps_and_rois()
    layer = pack(SIZE, 4, 8, *SAMPLING).double()
    expected = roi_align(maps, rois, SIZE, *SAMPLING[:2])
    if pack is ModulatedDeformRoIPoolPack:
        expected = expected / 2  # the mask starts at sigmoid(0)
    torch.testing.assert_close(layer(maps, rois), expected)


@both_packs
def test_pack_predicts_offsets_and_mask(pack):
    torch.manual_seed(0)
    maps, rois = maps_and_rois()
    layer = pack(SIZE, 4, 8, *SAMPLING).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    pooled = reference.deform_roi_pool(maps, rois, None, SIZE, *SAMPLING).flatten(1)
    offset = layer.offset_fc(pooled).view(3, 2, *SIZE)
    assert offset.abs().max() > 0.1
    expected = reference.deform_roi_pool(maps, rois, offset, SIZE, *SAMPLING)
    if pack is ModulatedDeformRoIPoolPack:
        expected = expected * layer.mask_fc(pooled).view(3, 1, *SIZE)
    output = layer(maps, rois)
    torch.testing.assert_close(output, expected)
    parameters = list(layer.parameters())
    got, want = (torch.autograd.grad(o.square().sum(), parameters) for o in (output, expected))
    for g, w in zip(got, want, strict=True):
        assert g.any()
        torch.testing.assert_close(g, w)


@both_packs
def test_pack_without_rois(pack):
    maps, rois = maps_and_rois()
    assert pack(SIZE, 4, 8).double()(maps, rois[:0]).shape == (0, 4, 3, 2)


@both_packs
def test_pack_of_other_channels(pack):
    maps, rois = maps_and_rois(channels=5)
    with pytest.raises(
        RuntimeError, match=r"Pack: input: expected 4 channels \(output_channels\), got shape"
    ):
        pack(SIZE, 4, 8).double()(maps, rois)
