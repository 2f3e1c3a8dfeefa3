"""``DCN`` and ``DCNv2``: deformable convolutions that predict their own offsets."""

from __future__ import annotations

import math

from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmengine.registry import MODELS
from mmengine.utils import deprecated_api_warning
from torch import Tensor, nn

from dcnzoo.layers.offsets import (
    OffsetConv2d,
    TracksOffsets,
    check_offset_limit,
    limit_offset,
    rename_legacy_offsets,
)
from dcnzoo.ops import deform_conv2d


def parse_dcn(dcn: bool | str | dict | None, owner: str) -> dict | None:
    """What ``dcn=…`` of a backbone or a neck means: the config of a convolution layer, or None.

    ``True`` and ``'v2'`` are DCNv2, ``'v1'`` is DCN, ``None`` and ``False`` are none. A dict is
    taken as it is (and copied: MMDetection's blocks take ``fallback_on_stride`` out of it).

    Raises:
        ValueError: anything else. ``owner`` is who was asked.
    """
    types = {"v1": "DCN", "v2": "DCNv2"}
    if dcn is None or dcn is False:
        return None
    if isinstance(dcn, dict) and "type" in dcn:
        return dcn.copy()
    if dcn is True or (isinstance(dcn, str) and dcn in types):
        layer = types["v2" if dcn is True else dcn]
        return dict(type=layer, deform_groups=1, fallback_on_stride=False)
    raise ValueError(
        f"{owner}: dcn: expected True, 'v1', 'v2', a dict with a type such as "
        f"dict(type='DCNv2', deform_groups=1), False or None, got {dcn!r}"
    )


class _Pack(TracksOffsets, nn.Module):
    """What both packs share: the offset convolution, the call, the names in old checkpoints.

    A mixin before mmcv's layer classes, which hold ``weight`` and the geometry. It subclasses them,
    not dcnzoo's, because mmengine's optimizer constructor knows a deformable layer by them.
    """

    _version = 2  # as mmcv's, so that state dicts look alike
    outputs_per_tap: int

    def _add_offset_conv(self, im2col_step: int | None, offset_limit: float | None) -> None:
        self.im2col_step = im2col_step
        self.offset_limit = check_offset_limit(type(self).__name__, offset_limit)
        self.conv_offset = OffsetConv2d(
            self.in_channels,
            self.deform_groups * self.outputs_per_tap * math.prod(self.kernel_size),
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The offset and the mask with which ``x`` is convolved."""
        out = self.conv_offset(x)
        offset = out[:, : out.shape[1] * 2 // self.outputs_per_tap]
        mask = out[:, offset.shape[1] :].sigmoid() if self.outputs_per_tap == 3 else None
        return offset if self.offset_limit is None else limit_offset(offset, self.offset_limit), mask

    def forward(self, x: Tensor) -> Tensor:
        offset, mask = self.predict(x)
        self._record_offsets(offset, x.shape[2:])
        return deform_conv2d(
            x,
            self.weight,
            offset,
            mask,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.im2col_step,
        )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        rename_legacy_offsets(state_dict, prefix, [""])
        super()._load_from_state_dict(state_dict, prefix, *args)

    __repr__ = nn.Module.__repr__

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, deform_groups={self.deform_groups}, "
            f"bias={self.bias is not None}, im2col_step={self.im2col_step}, "
            f"offset_limit={self.offset_limit}"
        )


@MODELS.register_module(force=True)
class DCN(_Pack, DeformConv2d):
    """Deformable convolution v1 (Dai et al. 2017): mmcv's ``DeformConv2dPack``.

    Takes that class's arguments, and ``bias=True``, which it refuses. ``im2col_step`` bounds memory
    and fits any batch size. ``offset_limit`` keeps offsets within so many pixels
    (:func:`dcnzoo.layers.limit_offset`). Parameters: ``weight``, ``bias`` if asked for, ``conv_offset``.
    """

    outputs_per_tap = 2  # y, x

    @deprecated_api_warning({"deformable_groups": "deform_groups"}, cls_name="DCN")
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = False,
        im2col_step: int | None = None,
        offset_limit: float | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups
        )
        bias = nn.Parameter(self.weight.new_zeros(out_channels)) if bias else None
        self.register_parameter("bias", bias)
        self._add_offset_conv(im2col_step, offset_limit)


@MODELS.register_module(force=True)
class DCNv2(_Pack, ModulatedDeformConv2d):
    """Deformable convolution v2 (Zhu et al. 2019): mmcv's ``ModulatedDeformConv2dPack``.

    Takes that class's arguments, ``im2col_step``, which bounds memory, and ``offset_limit``, as
    :class:`DCN`. Parameters: ``weight``, ``bias`` unless ``bias=False``, ``conv_offset``.
    """

    outputs_per_tap = 3  # y, x, mask

    @deprecated_api_warning({"deformable_groups": "deform_groups"}, cls_name="DCNv2")
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
        im2col_step: int | None = None,
        offset_limit: float | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            deform_groups,
            bias,
        )
        self._add_offset_conv(im2col_step, offset_limit)

    def init_weights(self) -> None:
        super().init_weights()
        if hasattr(self, "conv_offset"):  # mmcv's constructor calls this before it is there
            self.conv_offset.reset_parameters()
