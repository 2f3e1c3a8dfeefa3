"""The module ``dcn_v2`` of DCNv2 and its forks, and the functions of its compiled module ``_ext``.

CenterTrack and FairMOT import ``DCN`` from it. The layers have the original arguments and parameters, so
state dicts load.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dcnzoo.compat.mmcv.deform_conv import (
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    modulated_deform_conv2d,
)
from dcnzoo.compat.signatures import takes

dcn_v2_conv = takes("input offset mask weight bias stride padding dilation deform_groups")(
    modulated_deform_conv2d
)
ARGUMENTS = "self in_channels out_channels kernel_size stride padding dilation deformable_groups"


class DCNv2(ModulatedDeformConv2d):
    """Deformable convolution v2, with offset and mask as inputs: ``forward(x, offset, mask)``."""

    __init__ = takes(ARGUMENTS)(ModulatedDeformConv2d.__init__)


class DCN(ModulatedDeformConv2dPack):
    """Deformable convolution v2 that predicts its own offsets and mask.

    State dicts with the original name of the prediction, ``conv_offset_mask``, load. With
    ``extra_offset_mask`` (EDVR, FaPN), the call is ``forward([x, features])``, and the prediction is from the
    features.
    """

    @takes(f"{ARGUMENTS} extra_offset_mask")
    def __init__(self, extra_offset_mask: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.extra_offset_mask = extra_offset_mask

    @property
    def conv_offset_mask(self) -> nn.Module:
        """The prediction by its original name, which YOLACT++ initialises."""
        return self.conv_offset

    def forward(self, input: Any, main_path: object = None) -> Tensor:  # type: ignore[override]
        """``input`` is a tensor or a list of two. ``main_path`` has no effect; FaPN passes it."""
        if not self.extra_offset_mask:
            return super().forward(input)
        x, features = input
        return self._convolve(x, *self.predict(features))


def dcn_v2_forward(input, weight, bias, offset, mask, *geometry: int) -> Tensor:
    """The geometry is (height, width) of kernel, stride, padding and dilation, then deformable_group."""
    _, _, *sides, deformable_group = geometry
    stride, padding, dilation = zip(sides[::2], sides[1::2], strict=True)
    return dcn_v2_conv(input, offset, mask, weight, bias, stride, padding, dilation, deformable_group)


def dcn_v2_backward(input, weight, bias, offset, mask, grad_output, *geometry: int) -> list[Tensor]:
    """The gradients of ``input``, ``offset``, ``mask``, ``weight`` and ``bias``, in this order."""
    _, _, *sides, _ = geometry
    options = (sides[:2], sides[2:4], sides[4:], 1, None, [True] * 5)
    backward = torch.ops.dcnzoo._deform_conv_backward
    input, weight, offset, mask, bias = backward(grad_output, input, weight, offset, mask, *options)
    return [input, offset, mask, weight, bias]
