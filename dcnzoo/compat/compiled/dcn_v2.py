"""``_ext``, the compiled module of DCNv2 and its forks. Deformable PSRoI pooling is not provided.

The geometry is (height, width) of kernel, stride, padding and dilation, then deformable_group.
"""

import torch
from torch import Tensor

from dcnzoo.compat.mmcv.deform_conv import as_read, gradient_of_read, modulated_deform_conv2d
from dcnzoo.compat.signatures import without_autocast


@without_autocast
def dcn_v2_forward(
    input: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [O, C, kH, kW]
    bias: Tensor,  # [O]
    offset: Tensor,  # [N, deformable_group·2·kH·kW, oH, oW], (y, x) pairs, in input pixels
    mask: Tensor,  # [N, deformable_group·kH·kW, oH, oW]
    *geometry: int,
) -> Tensor:  # [N, O, oH, oW]
    _, _, *sides, deformable_group = geometry
    stride, padding, dilation = zip(sides[::2], sides[1::2], strict=True)
    return modulated_deform_conv2d(
        input,
        offset,
        mask,
        weight,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        deform_groups=deformable_group,
    )


def dcn_v2_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor,
    mask: Tensor,
    grad_output: Tensor,  # [N, O, oH, oW]
    *geometry: int,
) -> list[Tensor]:
    """Return the gradients of ``input``, ``offset``, ``mask``, ``weight`` and ``bias``, in this order.

    As in the forward, the computation is in the dtype of ``offset``, and of an ``offset`` or ``mask`` that is
    larger than the output the same values are read; each gradient has its tensor's dtype and shape.
    """
    _, _, *sides, _ = geometry
    options = (sides[:2], sides[2:4], sides[4:], 1, None, [True] * 5)
    size = grad_output.shape[2:]
    fields = (as_read(offset, "offset", size), as_read(mask, "mask", size))
    tensors = (tensor.to(offset.dtype) for tensor in (grad_output, input, weight, *fields))
    gradients = torch.ops.dcnzoo._deform_conv_backward(*tensors, *options)
    pairs = zip(gradients, (input, weight, offset, mask, bias), strict=True)
    typed = [gradient_of_read(gradient, tensor).to(tensor.dtype) for gradient, tensor in pairs]
    return [typed[index] for index in (0, 2, 3, 1, 4)]
