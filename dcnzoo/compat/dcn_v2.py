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
    Pair,
    modulated_deform_conv2d,
)
from dcnzoo.compat.mmcv.plain import at_least_float32, gradients
from dcnzoo.compat.signatures import takes
from dcnzoo.layers.deform_roi_pool import branch
from dcnzoo.ops.reference import interpolate_clamped


def dcn_v2_conv(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, deformable_groups·2·kH·kW, oH, oW], (y, x) pairs, in input pixels
    mask: Tensor,  # [N, deformable_groups·kH·kW, oH, oW]
    weight: Tensor,  # [O, C, kH, kW]
    bias: Tensor,  # [O]
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    deformable_groups: int,
) -> Tensor:  # [N, O, oH, oW]
    geometry = (stride, padding, dilation, 1, deformable_groups)
    return modulated_deform_conv2d(input, offset, mask, weight, bias, *geometry)


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


def dcn_v2_psroi_pooling_forward(
    input: Tensor,  # [N, C, H, W], C = output_dim · group_size²
    rois: Tensor,  # [R, 5]: image, x1, y1, x2, y2, rounded to whole pixels
    trans: Tensor,  # [R, 2·classes, part_size, part_size], (x, y), in sizes of the RoI; not used if no_trans
    no_trans: int,
    spatial_scale: float,
    output_dim: int,
    group_size: int,
    pooled_size: int,
    part_size: int,
    sample_per_part: int,
    trans_std: float,
) -> tuple[Tensor, Tensor]:  # both [R, output_dim, pooled_size, pooled_size]
    """Deformable position-sensitive RoI pooling (Dai et al. 2017), in plain PyTorch.

    Each bin is the mean of its samples inside the map. The second result is their number.
    """
    height, width = input.shape[2:]
    rois = at_least_float32(rois)
    start = (rois[:, 1:3] + 0.5).floor() * spatial_scale - 0.5  # [R, 2], (x, y)
    size = (((rois[:, 3:5] + 0.5).floor() + 1) * spatial_scale - 0.5 - start).clamp(min=0.1)
    bins = torch.arange(pooled_size, device=input.device)
    samples = torch.arange(sample_per_part, device=input.device, dtype=rois.dtype) / sample_per_part
    share = (bins[:, None] + samples) / pooled_size  # [bin, sample]
    points = (start[..., None, None] + size[..., None, None] * share)[:, None]  # [R, 1, 2, bin, sample]
    x, y = points[:, :, 0, None, :, None], points[:, :, 1, :, None, :, None]  # [R, class, bin, bin, y, x]
    classes = 1
    if not no_trans:
        classes = trans.shape[1] // 2
        part = bins * part_size // pooled_size
        shift = trans[:, :, part][..., part].unflatten(1, (classes, 2)) * trans_std
        shift = (shift * size[:, None, :, None, None])[..., None, None]  # [R, class, 2, bin, bin, 1, 1]
        x, y = x + shift[:, :, 0], y + shift[:, :, 1]
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    count = inside.sum((-1, -2))  # [R, class, bin, bin]

    group = bins * group_size // pooled_size
    plane = rois[:, 0].long()[:, None, None] * group_size**2 + group[:, None] * group_size + group
    plane = plane[:, None] * classes + torch.arange(classes, device=input.device)[:, None, None]
    plane = plane[..., None, None]
    maps = at_least_float32(input).unflatten(1, (classes, -1, group_size**2))
    maps = maps.permute(2, 0, 3, 1, 4, 5).flatten(1, 3)  # [C / classes / group_size², N · …, H, W]
    samples = interpolate_clamped(lambda row, column: maps[:, plane, row, column], (height, width), y, x)
    means = (samples * inside).sum((-1, -2)) / count.clamp(min=1)
    output = means.permute(1, 2, 0, 3, 4).flatten(1, 2).to(input.dtype)
    return output, count.repeat_interleave(output_dim // classes, 1).to(input.dtype)


def dcn_v2_psroi_pooling_backward(
    grad_output: Tensor, input: Tensor, rois: Tensor, trans: Tensor, count: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    """The gradients of ``input`` and ``trans``. ``options`` are the forward's, from ``no_trans`` on."""

    def pool(input: Tensor, trans: Tensor) -> Tensor:
        return dcn_v2_psroi_pooling_forward(input, rois, trans, *options)[0]

    return gradients(pool, (input, trans), grad_output)


def dcn_v2_pooling(
    input: Tensor,  # [N, C, H, W], C = output_dim · group_size²
    rois: Tensor,  # [R, 5]
    offset: Tensor,  # [R, 2, part_size, part_size]; not used if no_trans
    spatial_scale: float,
    pooled_size: int,
    output_dim: int,
    no_trans: bool,
    group_size: int = 1,
    part_size: int | None = None,
    sample_per_part: int = 4,
    trans_std: float = 0.0,
) -> Tensor:  # [R, output_dim, pooled_size, pooled_size]
    numbers = (group_size, pooled_size, part_size or pooled_size, sample_per_part, trans_std)
    return dcn_v2_psroi_pooling_forward(input, rois, offset, no_trans, spatial_scale, output_dim, *numbers)[0]


POOLING = "self spatial_scale pooled_size output_dim no_trans group_size part_size sample_per_part trans_std"


class DCNv2Pooling(nn.Module):
    """Deformable PSRoI pooling with the offset as an input: ``forward(input, rois, offset)``.

    Args: those of :func:`dcn_v2_pooling` from ``spatial_scale`` on.
    """

    @takes(POOLING)
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, input: Tensor, rois: Tensor, offset: Tensor) -> Tensor:
        return dcn_v2_pooling(input, rois, offset, **self.options)


class DCNPooling(DCNv2Pooling):
    """Deformable PSRoI pooling that predicts offset and mask from the RoIs: ``forward(input, rois)``.

    Parameters: ``offset_mask_fc``, three linear layers of width ``deform_fc_dim``, whose last starts at zero.
    """

    @takes(f"{POOLING} deform_fc_dim")
    def __init__(self, deform_fc_dim: int = 1024, **options: Any) -> None:
        super().__init__(**options)
        if options["no_trans"]:
            return
        bins = options["pooled_size"] ** 2
        widths = (bins * options["output_dim"], deform_fc_dim, deform_fc_dim, bins * 3)
        self.offset_mask_fc = branch(*widths)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # type: ignore[override]
        pooled = dcn_v2_pooling(input, rois, input.new_empty(0), **{**self.options, "no_trans": True})
        if self.options["no_trans"]:
            return pooled
        bins = pooled.shape[2:]
        prediction = self.offset_mask_fc(pooled.flatten(1)).unflatten(1, (3, *bins))
        return super().forward(input, rois, prediction[:, :2]) * prediction[:, 2:].sigmoid()
