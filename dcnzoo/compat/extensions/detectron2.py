"""The deformable convolutions of ``detectron2._C``, and the functions that detectron2's reports call.

The functions are as in :mod:`dcnzoo.compat.extensions.deform_conv`. Rotated boxes and the fast COCO
evaluation are not provided.
"""

from __future__ import annotations

from dcnzoo.compat.extensions.missing import missing
from dcnzoo.compat.mmcv._ext import (
    deform_conv_backward_input,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from dcnzoo.compat.mmcv._ext import deform_conv_backward_parameters as deform_conv_backward_filter

__all__ = [
    "deform_conv_backward_filter",
    "deform_conv_backward_input",
    "deform_conv_forward",
    "get_compiler_version",
    "get_cuda_version",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
]
__getattr__ = missing(__name__, __all__)


def get_compiler_version() -> str:
    return "none (detectron2._C is dcnzoo's)"


def get_cuda_version() -> str:
    return "none (detectron2._C is dcnzoo's)"
