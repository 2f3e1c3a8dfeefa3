"""Backbones built on deformable operators. They need only torch; ``dcnzoo.models`` registers them.

``ViTAdapter`` also needs timm if you give the vision transformer by its name.

The network ``internimage_t()`` returns the feature maps of its levels, finest first.
``internimage_t(num_classes=1000)`` is the official ImageNet classifier and returns logits.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dcnzoo.backbones import sizes
from dcnzoo.backbones.intern_image import FlashInternImage, InternImage
from dcnzoo.backbones.vit_adapter import ViTAdapter

__all__ = ["FlashInternImage", "InternImage", "ViTAdapter", *sizes.SIZES]
globals().update({name: sizes.function_of(name) for name in sizes.SIZES})

if TYPE_CHECKING:  # the functions of the published sizes

    def __getattr__(name: str) -> Callable[..., InternImage]: ...
