"""The layer of DCNv2 on ``_ext``, beside the definition in PyTorch."""

from unittest import mock

import torch

import dcnzoo

dcnzoo.provide("_ext")
from dcn_v2 import DCN
from trial import compare

from dcnzoo.ops import reference


def definition(input, offset, mask, weight, bias, stride, padding, dilation, groups):
    return reference.deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, 1)


layer = DCN(4, 6, (3, 2), stride=(2, 1), padding=1, deformable_groups=2)
picture = torch.rand(2, 4, 9, 8)
compare(layer, lambda: layer(picture), mock.patch("dcn_v2.dcn_v2_conv", definition))
