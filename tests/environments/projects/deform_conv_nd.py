"""Layers of Pytorch-Implmentation-of-Deformable-Convolution-Nd on ``custom_op``, beside the definition.

Its 1-d layer contains an ``nn.Conv3d`` and fails.
"""

from types import SimpleNamespace
from unittest import mock

import torch
from torch import nn

import dcnzoo

dcnzoo.provide("custom_op")
from deform_conv import DeformConv2d, DeformConv3d
from trial import compare

from dcnzoo.ops import reference


def definition(input, weight, offset_field, attn_mask, kernel_size, *others):
    *geometry, groups, _, bias = others
    return reference.deform_conv(input, weight, offset_field, attn_mask, bias, *geometry, groups)


options = dict(padding=1, groups=2, deformable_groups_per_groups=2)
plane, volume = DeformConv2d(4, 6, 3, **options), DeformConv3d(4, 6, 3, **options)
pictures = torch.rand(2, 4, 6, 5), torch.rand(2, 4, 4, 6, 5)
functions = SimpleNamespace(deform_conv2d=definition, deform_conv3d=definition)
compare(
    nn.ModuleList([plane, volume]),
    lambda: (plane(pictures[0]), volume(pictures[1])),
    mock.patch.object(torch.ops, "custom_op", functions),
)
