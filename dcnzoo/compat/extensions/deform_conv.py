"""The functions of ``deform_conv_ext`` (BasicSR) and ``deform_conv_cuda`` (EDVR, AlphaPose).

They are the functions of :mod:`dcnzoo.compat.mmcv._ext`, because mmcv's code has the same origin. Tensors
named ``output`` and ``grad_…`` are written in place; ``columns`` and ``ones`` are not used. Any batch size
works with any ``im2col_step``.
"""

from __future__ import annotations

from dcnzoo.compat.extensions.missing import missing
from dcnzoo.compat.mmcv._ext import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)

# names in deform_conv_cuda
deform_conv_forward_cuda = deform_conv_forward
deform_conv_backward_input_cuda = deform_conv_backward_input
deform_conv_backward_parameters_cuda = deform_conv_backward_parameters
modulated_deform_conv_cuda_forward = modulated_deform_conv_forward
modulated_deform_conv_cuda_backward = modulated_deform_conv_backward

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_input_cuda",
    "deform_conv_backward_parameters",
    "deform_conv_backward_parameters_cuda",
    "deform_conv_forward",
    "deform_conv_forward_cuda",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_cuda_backward",
    "modulated_deform_conv_cuda_forward",
    "modulated_deform_conv_forward",
]
__getattr__ = missing(__name__, __all__)
