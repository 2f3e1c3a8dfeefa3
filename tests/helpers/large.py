"""Tensors of more than 2³¹ elements."""

import torch
from torch import Tensor

from tests.op_cases import dcnv3, deform_conv, deform_conv_transpose, ms_deform_attn

ELEMENTS = 2**31
REGION = 40  # pixels at the far end on each axis


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def far_rois(side: int) -> tuple[Tensor, Tensor]:
    """RoIs in the far corner, some across the border, and the same RoIs in coordinates of the corner."""
    rois = torch.tensor([[0, 10.0, 12, 18, 28], [0, 20, 8, 28, 24], [0, 36, 30, 44, 46]])
    far = rois.clone()
    far[:, 1:] += side - REGION
    return far, rois.double()


IMAGES, CHANNELS = 100_000, 10_000
PIXEL = dict(size=(1, 1), kernel=(3, 3), padding=1)
GROUPS = dict(out_channels=CHANNELS, groups=CHANNELS, offset_groups=CHANNELS // 10)
MANY = [
    ("deform_conv2d", deform_conv, dict(batch=IMAGES, channels=2, **PIXEL)),
    ("deform_conv2d", deform_conv, dict(channels=CHANNELS, size=(5, 6))),
    ("deform_conv2d", deform_conv, dict(batch=1, channels=CHANNELS, size=(5, 6), **GROUPS)),
    ("deform_conv_transpose2d", deform_conv_transpose, dict(batch=IMAGES, out_channels=2, **PIXEL)),
    ("deform_conv_transpose2d", deform_conv_transpose, dict(out_channels=CHANNELS, size=(2, 3))),
    ("dcnv3", dcnv3, dict(batch=IMAGES, size=(1, 1), kernel_size=3)),
    ("dcnv3", dcnv3, dict(group=2, group_channels=CHANNELS // 2, size=(3, 4))),
    ("dcnv3", dcnv3, dict(group=CHANNELS // 2, group_channels=2, size=(3, 4))),
    ("ms_deform_attn", ms_deform_attn, dict(batch=IMAGES, queries=1, points=2, sizes=((1, 1),))),
    ("ms_deform_attn", ms_deform_attn, dict(queries=IMAGES, heads=1)),
    ("ms_deform_attn", ms_deform_attn, dict(channels=CHANNELS // 2, heads=2)),
]
