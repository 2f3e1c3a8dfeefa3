"""FlashInternImage on ``DCNv4``, beside dcnzoo's definition in PyTorch, as the project has none."""

from unittest import mock

import torch

import dcnzoo

dcnzoo.provide("torchvision", "DCNv4")
from models.flash_intern_image import FlashInternImage
from trial import compare

from dcnzoo.ops import reference


def definition(input, offset_mask, *arguments):
    *numbers, group, group_channels, offset_scale, remove_center = arguments
    sides = [(number, number) for number in numbers]
    return reference.dcnv4(input, offset_mask, *sides, group, group_channels, offset_scale, remove_center)


model = FlashInternImage(
    core_op="DCNv4",
    channels=32,
    depths=[1, 1, 1, 1],
    groups=[2, 4, 8, 16],
    num_classes=5,
    drop_path_rate=0.0,
    dw_kernel_size=3,
)
pictures = torch.rand(2, 3, 64, 96)
plain = mock.patch("dcnzoo.layers.deform_attn.dcnv4", definition)
compare(model, lambda: model(pictures), plain)
