"""Layers: modules on the functions of :mod:`dcnzoo.ops`. They need only torch."""

from dcnzoo.layers.deform_attn import DCNv3 as DCNv3
from dcnzoo.layers.deform_attn import DCNv4 as DCNv4
from dcnzoo.layers.deform_conv import DeformConv1d as DeformConv1d
from dcnzoo.layers.deform_conv import DeformConv2d as DeformConv2d
from dcnzoo.layers.deform_conv import DeformConv3d as DeformConv3d
from dcnzoo.layers.deform_conv import DeformConvTranspose1d as DeformConvTranspose1d
from dcnzoo.layers.deform_conv import DeformConvTranspose2d as DeformConvTranspose2d
from dcnzoo.layers.deform_conv import DeformConvTranspose3d as DeformConvTranspose3d
from dcnzoo.layers.deform_roi_pool import DeformRoIPool as DeformRoIPool
from dcnzoo.layers.deform_roi_pool import DeformRoIPoolPack as DeformRoIPoolPack
from dcnzoo.layers.deform_roi_pool import ModulatedDeformRoIPoolPack as ModulatedDeformRoIPoolPack
from dcnzoo.layers.masks import MaskSigmoid as MaskSigmoid
from dcnzoo.layers.masks import MaskSoftmax as MaskSoftmax
from dcnzoo.layers.ms_deform_attn import MultiScaleDeformableAttention as MultiScaleDeformableAttention
from dcnzoo.layers.offsets import OffsetConv1d as OffsetConv1d
from dcnzoo.layers.offsets import OffsetConv2d as OffsetConv2d
from dcnzoo.layers.offsets import OffsetConv3d as OffsetConv3d
from dcnzoo.layers.offsets import OffsetLinear as OffsetLinear
from dcnzoo.layers.offsets import accept_legacy_offsets as accept_legacy_offsets
from dcnzoo.layers.offsets import limit_offset as limit_offset
from dcnzoo.layers.offsets import offset_parameter_groups as offset_parameter_groups
from dcnzoo.layers.packed import PackedDeformConv1d as PackedDeformConv1d
from dcnzoo.layers.packed import PackedDeformConv2d as PackedDeformConv2d
from dcnzoo.layers.packed import PackedDeformConv3d as PackedDeformConv3d
from dcnzoo.layers.packed import PackedDeformConvTranspose1d as PackedDeformConvTranspose1d
from dcnzoo.layers.packed import PackedDeformConvTranspose2d as PackedDeformConvTranspose2d
from dcnzoo.layers.packed import PackedDeformConvTranspose3d as PackedDeformConvTranspose3d
from dcnzoo.layers.statistics import ModulationStatistics as ModulationStatistics
from dcnzoo.layers.statistics import OffsetStatistics as OffsetStatistics
from dcnzoo.layers.statistics import modulation_statistics as modulation_statistics
from dcnzoo.layers.statistics import offset_statistics as offset_statistics
from dcnzoo.layers.statistics import track_offsets as track_offsets

__all__ = [name for name, value in vars().items() if "dcnzoo.layers" in getattr(value, "__module__", "")]
