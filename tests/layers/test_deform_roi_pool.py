"""``dcnzoo.layers``: deformable RoI pooling."""

import numpy as np
import pytest
import torch

import dcnzoo.ops.reference as reference
from dcnzoo.layers import DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack
from dcnzoo.ops import roi_align
from tests.helpers.modules import assert_same, randomise

SIZE, SAMPLING = (3, 2), (0.5, 2, 0.3)
both_packs = pytest.mark.parametrize("pack", [DeformRoIPoolPack, ModulatedDeformRoIPoolPack])


def maps_and_rois():
    maps = torch.randn(2, 4, 9, 12, dtype=torch.float64)
    rois = torch.tensor([[1, 2.0, 3.0, 15.0, 11.0], [0, 4.0, 1.0, 21.0, 17.0], [1, 0.0, 0.0, 9.0, 16.0]])
    return maps, rois.double()


def test_deform_roi_pool():
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


@pytest.mark.parametrize("layer", [DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack])
def test_defaults(layer):
    """They are mmcv's: RoIs in pixels of the map, as many samples as a bin has pixels, a gamma of 0.1."""
    maps, rois = maps_and_rois()
    arguments = (SIZE,) if layer is DeformRoIPool else (SIZE, 4)
    layer = layer(*arguments).double()
    offset = torch.randn(3, 2, *SIZE, dtype=torch.float64)
    expected = reference.deform_roi_pool(maps, rois, offset, SIZE, 1.0, 0, 0.1)
    torch.testing.assert_close(DeformRoIPool.forward(layer, maps, rois, offset), expected)


@both_packs
def test_pack_predicts_offsets_and_mask(pack):
    """Initially, it equals RoIAlign."""
    maps, rois = maps_and_rois()
    layer = pack(SIZE, 4, 8, *SAMPLING).double()
    scale = 1 if pack is DeformRoIPoolPack else 0.5  # initial mask: sigmoid(0)
    torch.testing.assert_close(layer(maps, rois), roi_align(maps, rois, SIZE, *SAMPLING[:2]) * scale)
    randomise(layer, 0.5)
    pooled = reference.deform_roi_pool(maps, rois, None, SIZE, *SAMPLING).flatten(1)
    offset = layer.offset_fc(pooled).view(3, 2, *SIZE)
    assert offset.abs().max() > 0.1
    expected = reference.deform_roi_pool(maps, rois, offset, SIZE, *SAMPLING)
    if pack is ModulatedDeformRoIPoolPack:
        expected = expected * layer.mask_fc(pooled).view(3, 1, *SIZE)
    assert_same(layer(maps, rois), expected, list(layer.parameters()))
    assert layer(maps, rois[:0]).shape == (0, 4, 3, 2)


@both_packs
def test_sizes(pack):
    seven, four = np.int64(7), np.int64(4)
    for layer in (DeformRoIPool(seven), pack((seven, 7), four, four)):
        assert layer.output_size == (7, 7) and all(type(size) is int for size in layer.output_size)
    for size in ((3,), 3.0, 0, (2, -1), None):
        with pytest.raises(ValueError, match=r"Pool.*: output_size: expected an integer or 2 integers"):
            DeformRoIPool(size)
        with pytest.raises(ValueError, match=r"PoolPack: output_size: "):
            pack(size, 4)
