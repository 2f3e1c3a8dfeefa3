"""DCNv3 and DCNv4 in OpenMMLab's registry: as layers, and as replacements for a convolution.

This module also registers deformable RoI pooling, and ``LN2d``, the norm in FlashInternImage's FPN.
"""

from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from dcnzoo.layers import DCNv3, DCNv4, DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack
from dcnzoo.layers.base import refuse
from dcnzoo.layers.channels_last import ChannelNorm

# mmcv registers no RoI pooling
for layer in (DCNv3, DCNv4, DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack):
    MODELS.register_module(module=layer, force=True)
MODELS.register_module("LN2d", module=ChannelNorm, force=True)


class _Conv(nn.Module):
    """Use the channels-last layer ``dcn`` like an ``nn.Conv2d``: input and output are ``(N, C, H, W)``."""

    operator: type[DCNv3] | type[DCNv4]
    dcn: DCNv3 | DCNv4

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        group: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if out_channels != in_channels:
            refuse(self, "out_channels", f"{in_channels}, the value of in_channels", out_channels)
        if groups != 1:
            refuse(self, "groups", "1 (the operator's groups are set by group)", groups)
        self.dcn = self.operator(
            in_channels,
            kernel_size=self._number("kernel_size", kernel_size),
            stride=self._number("stride", stride),
            pad=self._number("padding", padding),
            dilation=self._number("dilation", dilation),
            group=max(1, in_channels // 16) if group is None else group,
            **options,
        )

    def _number(self, argument: str, value: int | tuple[int, int]) -> int:
        values = {value} if isinstance(value, int) else set(value)
        if len(values) != 1:
            refuse(self, argument, "the same value for both axes", value)
        return values.pop()

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C, oH, oW]
        return self.dcn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@MODELS.register_module(force=True)
class DCNv3Conv(_Conv):
    """:class:`dcnzoo.layers.DCNv3` as a replacement for a convolution: ``dcn='v3'`` of a backbone or neck.

    Args:
        in_channels, out_channels: must be equal.
        kernel_size, stride, padding, dilation: of the convolution; ``padding`` must preserve the size.
        groups: must be 1.
        bias: ignored; the output projection always has a bias.
        group: number of channel groups that share sampling positions; by default 16 channels per group.
        **options: further arguments of the layer.

    Raises:
        ValueError: an argument is not supported.
    """

    operator = DCNv3


@MODELS.register_module(force=True)
class DCNv4Conv(_Conv):
    """:class:`dcnzoo.layers.DCNv4` as a replacement for a convolution: ``dcn='v4'`` of a backbone or neck.

    Arguments as for :class:`DCNv3Conv`, but ``bias`` applies to the output projection. Unlike in the layer,
    the mask initially averages the taps, as in DCNv3: with the layer's mask of zeros, the BatchNorm that
    follows would only see zeros.
    """

    operator = DCNv4
    dcn: DCNv4

    def __init__(self, *args: Any, bias: bool = True, **options: Any) -> None:
        super().__init__(*args, output_bias=bias, **options)
        self.dcn.set_mask_start(self.dcn.group / self.dcn.taps)
        self.dcn.offset_mask.reset_parameters()
