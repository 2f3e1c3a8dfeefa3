"""Layers: ``nn.Module``s over the functions of :mod:`dcnzoo.ops`. They need torch only."""

from dcnzoo.layers.deform_conv import DeformConv2d

__all__ = ["DeformConv2d"]
