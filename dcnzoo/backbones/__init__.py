"""Backbones built on deformable operators. They need torch alone; ``dcnzoo.models`` registers them.

Each returns the feature maps of the levels in ``out_indices``, finest first.
"""

from dcnzoo.backbones.intern_image import FlashInternImage, InternImage

__all__ = ["FlashInternImage", "InternImage"]
