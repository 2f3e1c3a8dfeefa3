"""EDVR on ``deform_conv_ext``, beside the definition in PyTorch. Its functions refuse tensors of a CPU."""

import sys
from types import ModuleType
from unittest import mock

import torch

import dcnzoo

dcnzoo.provide("torchvision", "basicsr.models.ops.dcn.deform_conv_ext")
torch.Tensor.is_cuda = True
sys.modules["basicsr.version"] = version = ModuleType("basicsr.version")  # an installation writes it
vars(version).update(__version__="0", __gitsha__="")
from basicsr.models.archs.edvr_arch import EDVR
from trial import compare

from dcnzoo.ops import reference


def definition(input, offset, mask, weight, bias, *numbers):
    *sides, groups, _ = numbers
    pairs = [(number, number) for number in sides]
    return reference.deform_conv(input, weight, offset, mask, bias, *pairs, groups)


model = EDVR(num_feat=16, num_frame=3, deformable_groups=4, num_extract_block=1, num_reconstruct_block=1)
frames = torch.rand(2, 3, 3, 16, 24)
function = "basicsr.models.archs.arch_util.modulated_deform_conv"
compare(model, lambda: model(frames), mock.patch(function, definition))
