"""Every public layer, with inputs."""

import torch
from torch import nn

from dcnzoo import layers
from tests.helpers.modules import randomise

BOXES = torch.tensor([[1, 2.0, 3.0, 15.0, 11.0], [0, 4.0, 1.0, 21.0, 17.0], [1, 0.0, 0.0, 9.0, 16.0]])
SHAPES, STARTS = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])


def maps(rank: int) -> torch.Tensor:
    return torch.randn(2, 4, *[(11,), (7, 10), (4, 6, 5)][rank - 1])


def convolution(rank: int, name: str = "PackedDeformConv", **options):
    """A layer with kernel size 3. Its 5 output channels differ from its 4 input channels."""
    layer = getattr(layers, f"{name}{rank}d")(4, 5, 3, padding=1, **options)
    return layer, (maps(rank), *(() if name.startswith("Packed") else fields(rank)))


def fields(rank):
    size, taps = maps(rank).shape[2:], 3**rank
    return torch.randn(2, taps * rank, *size), torch.rand(2, taps, *size)


def attention():
    query, value = torch.randn(2, 6, 8), torch.randn(2, 26, 8)
    layer = layers.MultiScaleDeformableAttention(8, num_heads=2, num_levels=2, num_points=3)
    return layer, (query, torch.rand(2, 6, 2, 2), value, SHAPES, STARTS)


def last(layer):
    return layer, (torch.randn(2, 7, 10, 8),)


def pool(layer, *offset):
    return layer, (maps(2), BOXES, *offset)


VERSIONS = {
    "v1": {},
    "v2": {"modulated": True},
    "softmax": {"modulated": True, "mask_activation": "softmax", "offset_limit": 2.0},
    "separable": {"modulated": True, "prediction": "separable"},
}
CASES = {
    **{
        f"PackedDeformConv{kind}{rank}d-{name}": lambda kind=kind, rank=rank, options=options: convolution(
            rank, f"PackedDeformConv{kind}", **options
        )
        for kind in ("", "Transpose")
        for rank, names in ((1, ("softmax",)), (2, ("v1", "v2", "softmax", "separable")), (3, ("v2",)))
        for name, options in VERSIONS.items()
        if name in names and (kind, name) != ("Transpose", "separable")
    },
    **{
        f"DeformConv{kind}{rank}d": lambda kind=kind, rank=rank: convolution(rank, f"DeformConv{kind}")
        for kind in ("", "Transpose")
        for rank in (1, 2, 3)
    },
    "DCNv3": lambda: last(layers.DCNv3(8, group=2)),
    "DCNv3-center": lambda: last(layers.DCNv3(8, group=2, center_feature_scale=True, stride=2)),
    "DCNv3-batch norm": lambda: last(layers.DCNv3(8, group=4, norm_layer="BN", act_layer="ReLU")),
    "DCNv4": lambda: last(layers.DCNv4(8, group=2)),
    "DCNv4-sequence": lambda: (layers.DCNv4(8, group=2), (torch.randn(2, 49, 8),)),
    "DCNv4-bare": lambda: last(layers.DCNv4(8, group=2, without_pointwise=True, remove_center=True)),
    "DCNv4-center": lambda: last(layers.DCNv4(8, group=2, center_feature_scale=True, dw_kernel_size=3)),
    "MultiScaleDeformableAttention": attention,
    "DeformRoIPool": lambda: pool(layers.DeformRoIPool((3, 2), 0.5, 2), torch.randn(3, 2, 3, 2)),
    "DeformRoIPoolPack": lambda: pool(layers.DeformRoIPoolPack((3, 2), 4, 8, 0.5, 2)),
    "ModulatedDeformRoIPoolPack": lambda: pool(layers.ModulatedDeformRoIPoolPack((3, 2), 4, 8, 0.5, 2)),
    "MaskSigmoid": lambda: (layers.MaskSigmoid(2), (torch.randn(2, 18, 4, 5),)),
    "MaskSoftmax": lambda: (layers.MaskSoftmax(9), (torch.randn(2, 18, 4, 5),)),
    "OffsetConv1d": lambda: (layers.OffsetConv1d(4, 6, 3), (maps(1),)),
    "OffsetConv2d": lambda: (layers.OffsetConv2d(4, 6, 3), (maps(2),)),
    "OffsetConv3d": lambda: (layers.OffsetConv3d(4, 6, 3), (maps(3),)),
    "OffsetLinear": lambda: (layers.OffsetLinear(4, 6), (torch.randn(2, 4),)),
}


def randomised(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A layer with random offsets and masks, so that an incorrect program fails."""
    layer, given = CASES[name]()
    return randomise(layer).eval(), given
