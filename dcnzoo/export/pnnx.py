"""Deformable convolutions as modules of torchvision's class, which pnnx reads and writes for ncnn.

It is independent of the exports to ONNX: docs/runtimes/ncnn.md shows its use.
"""

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dcnzoo.layers.deform_conv import _DeformConvNd, _DeformConvTransposeNd


def for_pnnx(model: nn.Module) -> nn.Module:
    """Return a copy of a model for ``torch.jit.trace`` and pnnx, which writes it for ncnn.

    Its 2-D deformable convolutions are modules of torchvision's class, which ncnn has. Its outputs are a
    tuple of tensors: ``out0``, ``out1``, … of ncnn.

    Raises:
        ValueError: ncnn lacks a layer: it has other than two axes, is transposed, is padded with other
            values than zeros, has no offset, or several groups of offsets or masks.
    """
    model, seen = copy.deepcopy(model).eval(), set()
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in seen:  # a layer that several modules share: pnnx would read its weight as an input
                parent._modules[key] = copy.deepcopy(child)
            seen.add(child)
    modules: dict[str, Any] = dict(model.named_modules())
    for name, layer in modules.items():
        if type(layer).__name__ == "Focus":  # of YOLO
            vars(layer)["forward"] = partial(_focus, layer.conv)
        is_deformable = isinstance(layer, _DeformConvNd | _DeformConvTransposeNd)
        if is_deformable:
            groups = [getattr(layer, n, 1) for n in ("offset_groups", "mask_groups", "deform_groups")]
            is_plain = not layer.transposed and layer.padding_mode == "zeros" and max(groups) == 1
            if not (is_plain and layer.rank == 2 and getattr(layer, "offset_channels", 1)):
                expected = "2-D convolutions with one group of offsets, padded with zeros"
                raise ValueError(f"for_pnnx: model: expected {expected}, got {name}: {layer}")
            layer.torchvision = DeformConv2d(layer)
            vars(layer)["function"] = layer.torchvision
            layer.weight = layer.bias = None
    return _Flat(model)


class _Flat(nn.Module):
    """Returns a tuple of a model's outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(self.model(*inputs)))


def _focus(convolution: nn.Module, images: Tensor) -> Tensor:
    """Every second pixel in four ways, one after another: ncnn has no slices with steps."""
    channels = images.shape[1]
    eye = torch.eye(4 * channels).view(2, 2, channels, 4 * channels)  # x, y, input, output
    return convolution(F.conv2d(images, eye.permute(3, 2, 1, 0).contiguous(), stride=2))


class DeformConv2d(nn.Module):
    """A layer's convolution. pnnx finds it by torchvision's name of the class."""

    def __init__(self, layer: _DeformConvNd) -> None:
        super().__init__()
        import torchvision  # type: ignore[import-untyped]  # noqa: F401  defines the operator

        self.weight, self.bias = layer.weight, layer.bias
        self.geometry = (*layer.stride, *layer.padding, *layer.dilation, layer.groups)

    # the weight is this module's, the layer has none
    def forward(self, input: Tensor, _: None, offset: Tensor | None, mask: Tensor | None, *__: Any) -> Tensor:
        bias = input.new_zeros(self.weight.shape[0]) if self.bias is None else self.bias
        factors = input.new_zeros(input.shape[0], 1) if mask is None else mask
        # torch.jit.trace orders the inputs by their first use, and pnnx reads them in this order
        return torch.ops.torchvision.deform_conv2d(
            input, self.weight, offset, factors, bias, *self.geometry, 1, mask is not None
        )


DeformConv2d.__module__ = "torchvision.ops.deform_conv"
