"""A segmentation network similar to BiRefNet (Zheng et al. 2024), written for torchvision's API.

A Swin encoder and four decoder blocks, each with an ASPP of deformable convolutions with kernel sizes 1, 3
and 7. The code does not use dcnzoo; the benchmark runs it unmodified.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer
from torchvision.ops import Conv2dNormActivation, DeformConv2d


class ModulatedConv(nn.Module):
    """A deformable convolution that predicts its offsets and a mask between 0 and 2."""

    def __init__(self, channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(channels, 2 * kernel**2, kernel, padding=kernel // 2)
        self.modulator = nn.Conv2d(channels, kernel**2, kernel, padding=kernel // 2)
        self.conv = DeformConv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        mask = 2 * self.modulator(x).sigmoid()
        return self.norm(self.conv(x, self.offset(x), mask)).relu()


class DeformableASPP(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(ModulatedConv(channels, width, kernel) for kernel in (1, 1, 3, 7))
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1), nn.ReLU())
        self.project = Conv2dNormActivation(5 * width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(x).expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))


class Segmenter(nn.Module):
    """``(N, 3, H, W)`` to logits ``(N, 1, H, W)``. The defaults are BiRefNet's with a Swin-T encoder.

    Args:
        embed_dim, depths: of torchvision's ``SwinTransformer``.
        inner: channels inside a decoder block.
        width: channels of an ASPP branch.
    """

    def __init__(
        self, embed_dim: int = 96, depths: tuple[int, ...] = (2, 2, 6, 2), inner: int = 64, width: int = 256
    ) -> None:
        super().__init__()
        heads = [3 * 2**stage for stage in range(4)]
        swin = SwinTransformer([4, 4], embed_dim, list(depths), heads, [7, 7], stochastic_depth_prob=0.0)
        self.encoder = swin.features
        channels = [embed_dim * 2**stage for stage in range(4)]
        self.decoder = nn.ModuleList(
            nn.Sequential(
                Conv2dNormActivation(channels[stage], inner),
                DeformableASPP(inner, width),
                Conv2dNormActivation(inner, channels[max(stage - 1, 0)], activation_layer=None),
            )
            for stage in range(4)
        )
        self.head = nn.Conv2d(embed_dim, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps, x = [], image
        for number, stage in enumerate(self.encoder):
            x = stage(x)
            if number % 2:  # skips patch embedding and merging
                maps.append(x.permute(0, 3, 1, 2))
        x = maps[3]
        for stage in (3, 2, 1, 0):
            x = self.decoder[stage](x)
            if stage:
                lateral = maps[stage - 1]
                x = F.interpolate(x, lateral.shape[2:], mode="bilinear", align_corners=False) + lateral
        return F.interpolate(self.head(x), image.shape[2:], mode="bilinear", align_corners=False)
