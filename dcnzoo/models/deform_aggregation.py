"""dcnzoo's DCNv3 and DCNv4 in OpenMMLab's registry, by these names."""

from __future__ import annotations

from mmengine.registry import MODELS

from dcnzoo.layers import DCNv3, DCNv4

for layer in (DCNv3, DCNv4):
    MODELS.register_module(module=layer, force=True)
