"""``custom_op``, the compiled module of "Pytorch-Implmentation-of-Deformable-Convolution-Nd".

Its import defines ``torch.ops.custom_op.deform_conv1d``, ``deform_conv2d`` and ``deform_conv3d``, which the
project's layers call. :mod:`dcnzoo.compat.ndconv` documents their arguments.
"""

from dcnzoo.compat.ndconv import deform_conv1d, deform_conv2d, deform_conv3d
from dcnzoo.compat.operators import define

ARGUMENTS = (
    "(Tensor input, Tensor weight, Tensor offset_field, Tensor attn_mask, int[] kernel_size, int[] stride, "
    "int[] padding, int[] dilation, int groups, int deformable_groups_per_groups, Tensor? bias) -> Tensor"
)
define("custom_op", {f"{f.__name__}{ARGUMENTS}": f for f in (deform_conv1d, deform_conv2d, deform_conv3d)})
