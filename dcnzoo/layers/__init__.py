"""Layers: modules on the functions of :mod:`dcnzoo.ops`. They need only torch."""

from dcnzoo.layers.calls import limit_offsets, measure_offsets
from dcnzoo.layers.deform_attn import DCNv3, DCNv4
from dcnzoo.layers.deform_conv import (
    DeformConv1d,
    DeformConv2d,
    DeformConv3d,
    DeformConvTranspose1d,
    DeformConvTranspose2d,
    DeformConvTranspose3d,
)
from dcnzoo.layers.deform_roi_pool import DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack
from dcnzoo.layers.ms_deform_attn import MultiScaleDeformableAttention
from dcnzoo.layers.offsets import (
    ModulationStatistics,
    OffsetConv1d,
    OffsetConv2d,
    OffsetConv3d,
    OffsetLinear,
    OffsetStatistics,
    accept_legacy_offsets,
    limit_offset,
    modulation_statistics,
    offset_parameter_groups,
    offset_statistics,
    track_offsets,
)
from dcnzoo.layers.packed import (
    MaskSigmoid,
    MaskSoftmax,
    PackedDeformConv1d,
    PackedDeformConv2d,
    PackedDeformConv3d,
    PackedDeformConvTranspose1d,
    PackedDeformConvTranspose2d,
    PackedDeformConvTranspose3d,
)

__all__ = [
    "DCNv3",
    "DCNv4",
    "DeformConv1d",
    "DeformConv2d",
    "DeformConv3d",
    "DeformConvTranspose1d",
    "DeformConvTranspose2d",
    "DeformConvTranspose3d",
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "MaskSigmoid",
    "MaskSoftmax",
    "ModulatedDeformRoIPoolPack",
    "ModulationStatistics",
    "MultiScaleDeformableAttention",
    "OffsetConv1d",
    "OffsetConv2d",
    "OffsetConv3d",
    "OffsetLinear",
    "OffsetStatistics",
    "PackedDeformConv1d",
    "PackedDeformConv2d",
    "PackedDeformConv3d",
    "PackedDeformConvTranspose1d",
    "PackedDeformConvTranspose2d",
    "PackedDeformConvTranspose3d",
    "accept_legacy_offsets",
    "limit_offset",
    "limit_offsets",
    "measure_offsets",
    "modulation_statistics",
    "offset_parameter_groups",
    "offset_statistics",
    "track_offsets",
]
