"""Register dcnzoo's deformable RoI pooling; mmcv registers none."""

from __future__ import annotations

from mmengine.registry import MODELS

from dcnzoo.layers import DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack

for layer in (DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack):
    MODELS.register_module(module=layer, force=True)
