"""Deformable convolution for object detection.

``import dcnzoo`` imports neither torch nor OpenMMLab. It only registers import finders. They provide
``mmcv._ext`` if mmcv has no compiled module (:mod:`dcnzoo.compat.mmcv`), and the compiled modules that
``DCNZOO_PROVIDE`` lists (:mod:`dcnzoo.compat.extensions`).
"""

from typing import TYPE_CHECKING

from dcnzoo.compat import extensions as _extensions
from dcnzoo.compat import mmcv as _mmcv
from dcnzoo.version import __version__

if TYPE_CHECKING:
    from dcnzoo.layers.convert import from_deformable, to_deformable

__all__ = ["__version__", "from_deformable", "to_deformable"]

_mmcv.install()
_extensions.provide_from_environment()


def __getattr__(name: str):
    if name in ("from_deformable", "to_deformable"):  # imported on access, because they import torch
        from dcnzoo.layers import convert

        return getattr(convert, name)
    raise AttributeError(f"module 'dcnzoo' has no attribute {name!r}")
