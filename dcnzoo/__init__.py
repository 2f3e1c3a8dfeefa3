"""Deformable convolution for object detection.

``import dcnzoo`` is light: it imports neither OpenMMLab nor the operators, and only sees to it that
a later ``import mmcv.ops`` finds compiled operators where mmcv brings none
(:mod:`dcnzoo.compat.mmcv`).
"""

from dcnzoo.compat import mmcv as _mmcv
from dcnzoo.version import __version__

__all__ = ["__version__"]

_mmcv.install()
