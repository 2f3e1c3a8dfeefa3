"""Deformable convolution for object detection.

``import dcnzoo`` is light: it imports neither torch nor OpenMMLab, and only sees to it that
a later ``import mmcv.ops`` finds compiled operators where mmcv brings none
(:mod:`dcnzoo.compat.mmcv`).
"""

from dcnzoo.compat import mmcv as _mmcv
from dcnzoo.version import __version__

__all__ = ["__version__", "from_deformable", "to_deformable"]

_mmcv.install()


def __getattr__(name: str):
    if name in ("from_deformable", "to_deformable"):  # these import torch
        from dcnzoo.layers import convert

        return getattr(convert, name)
    raise AttributeError(f"module 'dcnzoo' has no attribute {name!r}")
