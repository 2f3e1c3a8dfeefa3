"""Backbones built on deformable operators. They need only torch; ``dcnzoo.models`` registers them.

``ViTAdapter`` around a vision transformer by its name also needs timm.

The network ``internimage_t()`` returns the feature maps of its levels, finest first.
``internimage_t(num_classes=1000)`` is the official ImageNet classifier and returns logits.
``dcnzoo.compat.timm`` registers the same networks in timm.
"""

from dcnzoo.backbones.intern_image import FlashInternImage, InternImage
from dcnzoo.backbones.sizes import (
    flash_internimage_b,
    flash_internimage_l,
    flash_internimage_s,
    flash_internimage_t,
    internimage_b,
    internimage_g,
    internimage_h,
    internimage_l,
    internimage_s,
    internimage_t,
    internimage_xl,
)
from dcnzoo.backbones.vit_adapter import ViTAdapter

__all__ = [
    "FlashInternImage",
    "InternImage",
    "ViTAdapter",
    "flash_internimage_b",
    "flash_internimage_l",
    "flash_internimage_s",
    "flash_internimage_t",
    "internimage_b",
    "internimage_g",
    "internimage_h",
    "internimage_l",
    "internimage_s",
    "internimage_t",
    "internimage_xl",
]
