"""``DCN`` and ``DCNv2``: deformable convolutions that predict their own offsets."""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import build_conv_layer
from mmcv.ops import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    modulated_deform_conv2d,
)
from mmengine.registry import MODELS
from mmengine.utils import deprecated_api_warning
from torch import Tensor, nn

from dcnzoo.compat import patches
from dcnzoo.compat.mmcv import largest_step, runs_on_dcnzoo
from dcnzoo.compat.mmcv.deform_conv import OffsetPack


def parse_dcn(dcn: bool | str | dict | None, owner: str) -> dict | None:
    """Convert the argument ``dcn`` of a backbone or a neck to the config of a convolution layer, or None.

    ``True`` and ``'v2'`` select DCNv2, ``'v1'`` DCN, ``'v3'`` and ``'v4'`` DCNv3 and DCNv4 as replacements
    for a convolution. ``None`` and ``False`` select none. A dict is copied, because MMDetection's blocks
    remove ``fallback_on_stride`` from it.

    Args:
        owner: class name for the error message.

    Raises:
        ValueError: any other value, or a dict whose ``type`` is not registered.
    """
    layers = {
        "v1": dict(type="DCN", deform_groups=1),
        "v2": dict(type="DCNv2", deform_groups=1),
        "v3": dict(type="DCNv3Conv"),
        "v4": dict(type="DCNv4Conv"),
    }
    if dcn is None or dcn is False:
        return None
    if isinstance(dcn, dict) and "type" in dcn:
        with MODELS.switch_scope_and_registry(None) as registry:
            if isinstance(dcn["type"], str) and registry.get(dcn["type"]) is None:
                raise ValueError(
                    f"{owner}: dcn: type: expected the name of a registered convolution, 'DCN', 'DCNv2', "
                    f"'DCNv3Conv', 'DCNv4Conv' or your own, got {dcn['type']!r}"
                )
        return dcn.copy()
    if dcn is True or (isinstance(dcn, str) and dcn in layers):
        return {**layers["v2" if dcn is True else dcn], "fallback_on_stride": False}
    raise ValueError(
        f"{owner}: dcn: expected True, 'v1', 'v2', 'v3', 'v4', a dict with a type such as "
        f"dict(type='DCNv2', deform_groups=1), False or None, got {dcn!r}"
    )


def check_stages(owner: str, stage_with_dcn: Sequence[bool], number: int) -> tuple[bool, ...]:
    """Return ``stage_with_dcn`` as a tuple.

    Raises:
        ValueError: it does not have one value for each of ``number`` stages.
    """
    if len(stage_with_dcn) != number:
        raise ValueError(
            f"{owner}: stage_with_dcn: expected {number} values, one for each stage, got {stage_with_dcn}"
        )
    return tuple(stage_with_dcn)


def deformable_like(conv: nn.Conv2d, dcn: dict) -> nn.Module:
    """Build the layer that ``dcn`` describes, with the channels, kernel and geometry of ``conv``."""
    layer = {key: value for key, value in dcn.items() if key != "fallback_on_stride"}
    sizes = (conv.in_channels, conv.out_channels, conv.kernel_size)
    geometry = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")}
    return build_conv_layer(layer, *sizes, bias=conv.bias is not None, **geometry)


class WithDCN:
    """Makes 3×3 convolutions deformable in the blocks of ResNets of mmpretrain, mmsegmentation and mmpose.

    - ``dcn``: True or ``'v2'`` (DCNv2), ``'v1'`` (DCN), ``'v3'``, ``'v4'`` or a layer's dict; see
      :func:`dcnzoo.openmmlab.models.dcn.parse_dcn`.
    - ``stage_with_dcn``: by default all stages but the first, c3–c5.
    """

    def __init__(self, *args, dcn=None, stage_with_dcn=None, **kwargs) -> None:
        owner = type(self).__name__
        dcn = parse_dcn(dcn, owner)
        super().__init__(*args, **kwargs)
        if stage_with_dcn is None:
            stage_with_dcn = (False, *[True] * (len(self.res_layers) - 1))
        stage_with_dcn = check_stages(owner, stage_with_dcn, len(self.res_layers))
        for name, deformable in zip(self.res_layers, stage_with_dcn, strict=True):
            for block in getattr(self, name) if dcn and deformable else ():
                block.conv2 = deformable_like(block.conv2, dcn)
        self._freeze_stages()  # again, to freeze the new layers too


@patches.replace(MODELS, "dcnzoo's operator; any batch, offset_limit, statistics of offsets")
class DCN(OffsetPack, DeformConv2dPack):
    """Deformable convolution v1 (Dai et al. 2017), compatible with mmcv's ``DeformConv2dPack``.

    Accepts the same arguments, and also ``bias=True``, which mmcv refuses. ``im2col_step`` limits memory and
    need not divide the batch size. ``offset_limit`` limits the offsets to that many pixels
    (:func:`dcnzoo.layers.limit_offset`). Parameters: ``weight``, ``conv_offset`` and, with ``bias=True``,
    ``bias``.
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
        # skips the constructor of mmcv's pack, which would add its own offset convolution
        geometry = (kernel_size, stride, padding, dilation, groups, deform_groups)
        DeformConv2d.__init__(self, in_channels, out_channels, *geometry)
        bias = nn.Parameter(self.weight.new_zeros(out_channels)) if bias else None
        self.register_parameter("bias", bias)
        self._add_offset_conv(im2col_step, offset_limit)

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        if runs_on_dcnzoo("deform_conv", x.device):
            return super()._convolve(x, offset, mask)
        geometry = (self.stride, self.padding, self.dilation, self.groups, self.deform_groups)
        step = largest_step(x.shape[0], self.im2col_step)
        output = deform_conv2d(x.contiguous(), offset.contiguous(), self.weight, *geometry, False, step)
        return output if self.bias is None else output + self.bias[:, None, None].to(output.dtype)


@patches.replace(MODELS, "dcnzoo's operator; any batch, offset_limit, statistics of offsets")
class DCNv2(OffsetPack, ModulatedDeformConv2dPack):
    """Deformable convolution v2 (Zhu et al. 2019), compatible with mmcv's ``ModulatedDeformConv2dPack``.

    Accepts the same arguments, and ``im2col_step`` and ``offset_limit`` as :class:`DCN`. Parameters:
    ``weight``, ``conv_offset`` and, unless ``bias=False``, ``bias``.
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
        geometry = (kernel_size, stride, padding, dilation, groups, deform_groups)
        ModulatedDeformConv2d.__init__(self, in_channels, out_channels, *geometry, bias)
        self._add_offset_conv(im2col_step, offset_limit)

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        if runs_on_dcnzoo("modulated_deform_conv", x.device):
            return super()._convolve(x, offset, mask)
        geometry = (self.stride, self.padding, self.dilation, self.groups, self.deform_groups)
        offset_mask = (offset.contiguous(), mask.contiguous())
        return modulated_deform_conv2d(x.contiguous(), *offset_mask, self.weight, self.bias, *geometry)

    def init_weights(self) -> None:
        super().init_weights()
        if hasattr(self, "conv_offset"):  # mmcv's constructor calls this method before it exists
            self.conv_offset.reset_parameters()
