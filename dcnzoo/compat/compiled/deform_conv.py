"""``deform_conv_ext``, the compiled module of BasicSR and EDVR.

Its functions are those of :mod:`dcnzoo.compat.mmcv._ext`, because mmcv's code has the same origin: tensors
named ``output`` and ``grad_…`` are written in place; ``columns`` and ``ones`` are not used.
"""

from dcnzoo.compat.mmcv._ext import (  # noqa: F401  functions of the module
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
