"""torchvision's ``deform_conv2d`` and ``DeformConv2d`` on dcnzoo's operators.

They have the same arguments in the same order, the same layout of offset and mask, and the same border rule.
torchvision is not required. ``DeformConv2d`` is dcnzoo's own layer, which has torchvision's arguments,
parameters, initialisation and ``repr``. :func:`add_missing_kernels` extends torchvision's own operator.
"""

from functools import cache

import torch
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


@cache
def add_missing_kernels() -> torch.library.Library:
    """Register dcnzoo's operators as torchvision's ``deform_conv2d``, on devices where torchvision has none.

    torch runs a kernel of ``CompositeExplicitAutograd`` only where the device has no kernel of its own. The
    import of torchvision may come before or later. Its autograd calls the second operator.

    Returns:
        The registrations, which live as long as the process.
    """
    library = torch.library.Library("torchvision", "IMPL", "CompositeExplicitAutograd")
    library.impl("deform_conv2d", _forward)
    library.impl("_deform_conv2d_backward", _backward)
    return library


def _geometry(*numbers: int) -> tuple:
    """Return stride, padding, dilation, groups and im2col_step, from torchvision's numbers after ``bias``."""
    *sides, groups, _offset_groups, _use_mask = numbers
    return sides[:2], sides[2:4], sides[4:], groups, None


def _forward(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *numbers: int
) -> Tensor:
    modulated = mask if numbers[-1] else None
    return torch.ops.dcnzoo.deform_conv(input, weight, offset, modulated, bias, *_geometry(*numbers))


def _backward(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *numbers: int
) -> tuple[Tensor, ...]:
    """Return the gradients of ``input``, ``weight``, ``offset``, ``mask`` and ``bias``."""
    needed = [True, True, True, bool(numbers[-1]), True]
    modulated = mask if numbers[-1] else None
    backward = torch.ops.dcnzoo._deform_conv_backward
    gradients = list(backward(grad, input, weight, offset, modulated, *_geometry(*numbers), needed))
    if modulated is None:
        gradients[3] = torch.zeros_like(mask)  # torchvision's mask without values
    return tuple(gradients)
