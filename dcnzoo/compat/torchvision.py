"""torchvision's ``deform_conv2d`` and ``DeformConv2d`` on dcnzoo's operators.

They have the same arguments in the same order, the same layout of offset and mask, and the same border rule.
torchvision is not required. ``DeformConv2d`` is dcnzoo's own layer, which has torchvision's arguments,
parameters, initialisation and ``repr``.
"""

from torch import Tensor

from dcnzoo import ops
from dcnzoo.layers import DeformConv2d

__all__ = ["DeformConv2d", "deform_conv2d"]


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, G·2·kH·kW, oH, oW], (y, x) pairs, in input pixels
    weight: Tensor,  # [O, C / groups, kH, kW]
    bias: Tensor | None = None,  # [O]
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    mask: Tensor | None = None,  # [N, M·kH·kW, oH, oW]
) -> Tensor:  # [N, O, oH, oW]
    """:func:`dcnzoo.ops.deform_conv2d` with torchvision's arguments.

    ``groups`` follows from the shapes: the channels of ``input`` divided by those of ``weight``. As in
    torchvision, ``stride``, ``padding`` and ``dilation`` may be single integers.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid.
    """
    groups = 1  # the operator reports a wrong number of dimensions
    if input.dim() in (3, 4) and weight.dim() == 4:
        channels, per_group = input.shape[-3], weight.shape[1]
        if per_group == 0 or channels % per_group != 0:
            raise RuntimeError(
                f"deform_conv2d: weight: expected a number of input channels that divides the {channels} "
                f"of input, got {per_group} (torchvision's order is input, offset, weight)"
            )
        groups = channels // per_group
    return ops.deform_conv2d(input, weight, offset, mask, bias, stride, padding, dilation, groups)
