"""Layers that ``torch.vmap``, the exporter or a runtime does not handle as PyTorch does."""

from collections.abc import Callable
from typing import Any

import torch
from mmcv import ops as mmcv_ops
from mmdet.models.dense_heads import tood_head
from torch import Tensor, nn

from dcnzoo.export.fixed_size import running_max
from dcnzoo.ops import deform_conv2d


def sample_shifted(self: tood_head.TOODHead, feat: Tensor, offset: Tensor) -> Tensor:
    """Replace ``TOODHead.deform_sampling``. In ``torch.vmap``, its weight of ones would differ by image."""
    channels = feat.shape[1]
    ones = torch.ones(channels, 1, 1, 1, dtype=feat.dtype, device=feat.device)
    return deform_conv2d(feat, ones, offset, groups=channels)


def without_autograd(function: Callable) -> staticmethod:
    """Replace ``forward`` of an autograd function of mmcv, which makes the size of its output a constant."""
    return staticmethod(lambda ctx, *arguments: function(*arguments))


def corner_pool(self: mmcv_ops.CornerPool, x: Tensor) -> Tensor:
    """Replace ``CornerPool.forward``."""
    axis, flip = self.cummax_dim_flip[self.mode]
    return running_max(x.flip(axis), axis).flip(axis) if flip else running_max(x, axis)


def normalise_groups(self: nn.GroupNorm, x: Tensor) -> Tensor:  # [N, C, …, W]
    """Replace ``GroupNorm.forward``: means of rows first, then of the rows' means.

    The exporter writes ``InstanceNormalization``, whose error in onnxruntime grows with the number of values:
    2e-5 at 537,600, which changes the order of DINO's queries.
    """
    y = x.reshape(x.shape[0], self.num_groups, -1, x.shape[-1])
    y = y - y.mean(3, keepdim=True).mean(2, keepdim=True)
    y = y * (y.square().mean(3, keepdim=True).mean(2, keepdim=True) + self.eps).rsqrt()
    y = y.reshape(x.shape)
    if self.weight is None:
        return y
    shape = (-1, *[1] * (x.dim() - 2))
    return y * self.weight.view(shape) + self.bias.view(shape)


def convolve(
    conv2d: Callable,
    input: Tensor,  # [N, groups·c, H, W]
    weight: Tensor,  # [groups·C, c, 1, 1]
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Call ``F.conv2d``, or compute grouped 1 × 1 convolutions as products of matrices.

    With weights that are computed for each image, ``torch.vmap`` multiplies ``groups`` by the number of
    images, but ONNX stores it as a constant.
    """
    if groups == 1 or weight.shape[2:] != (1, 1):
        return conv2d(input, weight, bias, stride, padding, dilation, groups)
    rows = input.unflatten(1, (groups, -1)).flatten(3)
    output = (weight.flatten(1).unflatten(0, (groups, -1)) @ rows).flatten(1, 2)
    output = output.unflatten(2, input.shape[2:])
    return output if bias is None else output + bias[:, None, None]
