"""Arguments of torchvision's deform_conv2d."""

import torch

from tests.op_cases.deform_conv import make

GEOMETRY = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}


def tensors(groups=2, offset_groups=2, dtype=torch.float64):
    """input (3, 4, 9, 7), offset, weight (8, 4 / groups, 3, 2), bias, mask."""
    sizes = dict(batch=3, channels=4, out_channels=8, size=(9, 7), groups=groups)
    sample = make("torchvision", **sizes, offset_groups=offset_groups, mask_groups=2, **GEOMETRY)
    input, weight, offset, mask, bias = sample.to(dtype).tensors
    return input, offset, weight, bias, mask
