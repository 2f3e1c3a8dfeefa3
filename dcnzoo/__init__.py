"""Deformable convolution for object detection.

``import dcnzoo`` is light: it imports neither torch nor OpenMMLab. It only adds finders, so that a later
``import mmcv.ops`` works where mmcv has no compiled module (:mod:`dcnzoo.compat.mmcv`), and so does an import
of the compiled modules that ``DCNZOO_PROVIDE`` names (:mod:`dcnzoo.compat.extensions`).
"""

from dcnzoo.compat import extensions as _extensions
from dcnzoo.compat import mmcv as _mmcv
from dcnzoo.version import __version__

__all__ = ["__version__", "from_deformable", "to_deformable"]

_mmcv.install()
_extensions.provide_from_environment()


def __getattr__(name: str):
    if name in ("from_deformable", "to_deformable"):  # these import torch
        from dcnzoo.layers import convert

        return getattr(convert, name)
    raise AttributeError(f"module 'dcnzoo' has no attribute {name!r}")
