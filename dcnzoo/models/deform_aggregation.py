"""dcnzoo's DCNv3 and DCNv4 in OpenMMLab's registry, and the norm of FlashInternImage's FPN, ``LN2d``."""

from __future__ import annotations

from mmengine.registry import MODELS

from dcnzoo.layers import DCNv3, DCNv4
from dcnzoo.layers.channels_last import LayerNorm2d

for layer in (DCNv3, DCNv4):
    MODELS.register_module(module=layer, force=True)
MODELS.register_module("LN2d", module=LayerNorm2d, force=True)
