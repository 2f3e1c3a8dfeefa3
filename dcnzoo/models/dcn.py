"""``DCN`` and ``DCNv2``: deformable convolutions that predict their own offsets."""

from __future__ import annotations

import math

from mmcv.cnn import build_conv_layer
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmengine.registry import MODELS
from mmengine.utils import deprecated_api_warning
from torch import Tensor, nn

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
    planned = ", which is not there yet" if dcn in ("v3", "v4") else ""
    raise ValueError(
        f"{owner}: dcn: expected True, 'v1', 'v2', a dict with a type such as "
        f"dict(type='DCNv2', deform_groups=1), False or None, got {dcn!r}{planned}"
    )


def deformable_like(conv: nn.Conv2d, dcn: dict) -> nn.Module:
    """The layer that ``dcn`` describes, with the channels, kernel and geometry of ``conv``."""
    return build_conv_layer(
        {key: value for key, value in dcn.items() if key != "fallback_on_stride"},
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
    )


class _NotByName(nn.Conv2d):
    pass


class OffsetConv2d(_NotByName):
    """Predicts offsets (and masks). Starts at zero and stays there until trained.

    A model's ``init_weights()`` initialises its convolutions by name, ``layer='Conv2d'``, which
    mmengine compares with a module's class and its direct bases. With one class in between, a
    Kaiming initialisation of the parent passes by, while everything that asks ``isinstance(…,
    nn.Conv2d)``, like mmengine's ``dcn_offset_lr_mult``, still knows it for a convolution.
    """

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def rename_legacy_offsets(state_dict: dict[str, Tensor], prefix: str, packs: list[str]) -> None:
    """Renames ``conv2_offset.weight``, as old checkpoints say, ``conv2.conv_offset.weight``.

    Args:
        state_dict: changed in place.
        prefix: of the module being loaded.
        packs: names of the DCN layers in that module ('' for itself).
    """
    for pack in packs:
        for parameter in ("weight", "bias"):
            old = f"{prefix}{pack}".removesuffix(".") + f"_offset.{parameter}"
            new = f"{prefix}{pack}".removesuffix(".") + f".conv_offset.{parameter}"
            new = new.removeprefix(".")
            if old in state_dict and new not in state_dict:
                state_dict[new] = state_dict.pop(old)


class _Pack(nn.Module):
    """What both packs share: the offset convolution, the call, the names in old checkpoints.

    A mixin before mmcv's layer classes, which hold ``weight`` and the geometry. It subclasses them,
    not dcnzoo's, because mmengine's optimizer constructor knows a deformable layer by them.
    """

    _version = 2  # as mmcv's, so that state dicts look alike
    outputs_per_tap: int

    def _add_offset_conv(self, im2col_step: int | None) -> None:
        self.im2col_step = im2col_step
        self.conv_offset = OffsetConv2d(
            self.in_channels,
            self.deform_groups * self.outputs_per_tap * math.prod(self.kernel_size),
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
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
            f"bias={self.bias is not None}, im2col_step={self.im2col_step}"
        )


@MODELS.register_module(force=True)
class DCN(_Pack, DeformConv2d):
    """Deformable convolution v1 (Dai et al. 2017): mmcv's ``DeformConv2dPack``.

    Takes that class's arguments, and ``bias=True``, which it refuses. ``im2col_step`` bounds memory
    and fits any batch size. Parameters: ``weight``, ``bias`` if asked for, ``conv_offset``.
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
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups
        )
        bias = nn.Parameter(self.weight.new_zeros(out_channels)) if bias else None
        self.register_parameter("bias", bias)
        self._add_offset_conv(im2col_step)

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.conv_offset(x), None)


@MODELS.register_module(force=True)
class DCNv2(_Pack, ModulatedDeformConv2d):
    """Deformable convolution v2 (Zhu et al. 2019): mmcv's ``ModulatedDeformConv2dPack``.

    Takes that class's arguments and ``im2col_step``, which bounds memory. Parameters: ``weight``,
    ``bias`` unless ``bias=False``, ``conv_offset``.
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
        self._add_offset_conv(im2col_step)

    def init_weights(self) -> None:
        super().init_weights()
        if hasattr(self, "conv_offset"):  # mmcv's constructor calls this before it is there
            self.conv_offset.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_offset(x)
        taps = out.shape[1] // 3
        return self._convolve(x, out[:, : 2 * taps], out[:, 2 * taps :].sigmoid())
