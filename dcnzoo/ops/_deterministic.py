"""Deterministic gradients for ``torch.use_deterministic_algorithms``, where the kernels add atomically."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import reference
from ._arguments import memory_format


def deterministic(tensor: Tensor) -> bool:
    """Whether deterministic algorithms are required on a device whose kernels add atomically."""
    return tensor.device.type not in ("cpu", "meta") and torch.are_deterministic_algorithms_enabled()


def grad_input_in_order(
    grad_output: Tensor,  # [N, O, *out]
    input: Tensor,  # [N, C, *in]
    weight: Tensor,  # [O, C / groups, *kernel]
    offset: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:  # [N, C, *in]
    """The gradient of deformable convolution's input, bitwise identical at every call.

    It is the transposed convolution of ``grad_output``, one image at a time, which needs twice the memory of
    the image's columns: 2 · C · taps · pixels values.
    """
    kernel = weight.shape[2:]
    output_padding = [
        size - (out - 1) * s + 2 * p - d * (k - 1) - 1
        for size, out, s, p, d, k in zip(
            input.shape[2:], grad_output.shape[2:], stride, padding, dilation, kernel, strict=True
        )
    ]
    gradient = torch.empty_like(input, memory_format=memory_format(input))
    for image in range(input.shape[0]):
        shift, factor = (None if t is None else t[image : image + 1] for t in (offset, mask))
        tensors = (grad_output[image : image + 1], weight, shift, factor, None)
        geometry = (stride, padding, output_padding, dilation, groups)
        gradient[image] = reference.deform_conv_transpose(*tensors, *geometry)[0]
    return gradient


def pooling_grad_input_in_order(
    pool: Callable,  # of (maps, rois, *per_roi), linear in the maps, in plain PyTorch
    grad_output: Tensor,  # [K, C, oH, oW]
    input_size: Sequence[int],  # (N, C, H, W)
    rois: Tensor,  # [K, 5 or 6]
    *per_roi: Tensor,  # [K, …]
) -> Tensor:  # [N, C, H, W]
    """The gradient of the input of a RoI pooling, bitwise identical at every call.

    Differentiates ``pool``, whose derivative is torch's ``index_put_``, one RoI at a time, which bounds the
    memory.
    """
    wide = torch.promote_types(grad_output.dtype, torch.float32)
    total = grad_output.new_zeros(input_size, dtype=wide)
    for roi in range(len(rois)):
        one = [tensor[roi : roi + 1] for tensor in (rois, *per_roi)]
        pull = torch.func.vjp(lambda maps, one=one: pool(maps, *one), torch.zeros_like(total))[1]
        total = total + pull(grad_output[roi : roi + 1].to(wide))[0]
    return total.to(grad_output.dtype)
