"""``custom_op``, the compiled module of "Pytorch-Implmentation-of-Deformable-Convolution-Nd".

Its import defines ``torch.ops.custom_op.deform_conv1d``, ``deform_conv2d`` and ``deform_conv3d``, which the
project's layers call. :mod:`dcnzoo.compat.ndconv` documents their arguments.
"""

import torch

from dcnzoo.compat.ndconv import deform_conv1d, deform_conv2d, deform_conv3d

ARGUMENTS = (
    "(Tensor input, Tensor weight, Tensor offset_field, Tensor attn_mask, int[] kernel_size, int[] stride, "
    "int[] padding, int[] dilation, int groups, int deformable_groups_per_groups, Tensor? bias) -> Tensor"
)
_library = torch.library.Library("custom_op", "FRAGMENT")
for _function in (deform_conv1d, deform_conv2d, deform_conv3d):
    _library.define(f"{_function.__name__}{ARGUMENTS}")
    _library.impl(_function.__name__, _function, "CompositeImplicitAutograd")
