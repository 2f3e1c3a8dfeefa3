"""Layers: ``nn.Module``s over the functions of :mod:`dcnzoo.ops`. They need torch only."""

from dcnzoo.layers.deform_conv import DeformConv2d
from dcnzoo.layers.deform_roi_pool import DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack

__all__ = ["DeformConv2d", "DeformRoIPool", "DeformRoIPoolPack", "ModulatedDeformRoIPoolPack"]
