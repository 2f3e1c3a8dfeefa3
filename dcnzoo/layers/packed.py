"""Deformable convolutions that predict their own offsets and masks."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from dcnzoo.layers import state_dicts
from dcnzoo.layers.channels_last import ChannelNorm
from dcnzoo.layers.deform_conv import (
    DeformConv1d,
    DeformConv2d,
    DeformConv3d,
    DeformConvTranspose1d,
    DeformConvTranspose2d,
    DeformConvTranspose3d,
    _DeformConvNd,
    _DeformConvTransposeNd,
)
from dcnzoo.layers.masks import MaskSigmoid, MaskSoftmax
from dcnzoo.layers.offsets import OFFSET_CONVS, limit_offset
from dcnzoo.layers.statistics import TracksOffsets
from dcnzoo.ops._arguments import transforms_active


class _Pack(TracksOffsets, nn.Module):
    """Mixin of all packed layers. It must precede the class of the convolution."""

    if TYPE_CHECKING:  # for type checkers only: TorchScript must not see these annotations
        rank: ClassVar[int]
        in_channels: int
        transposed: bool
        _refuse: Callable[..., NoReturn]
        _integer: Callable[..., int]
        _is_unbatched: Callable[[Tensor], bool]
        weight: Tensor
        bias: Tensor | None
        conv_offset: Any
        offset_features: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        deformable: bool = True,
        modulated: bool = False,
        offset_groups: int = 1,
        mask_groups: int = 1,
        offset_activation: nn.Module | None = None,
        mask_activation: str | nn.Module | None = "sigmoid",
        offset_limit: float | None = None,
        prediction: str = "dense",
        float32_offsets: bool = False,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        im2col_step: int | None = None,
        **more: Any,  # of a transposed convolution
    ) -> None:
        for name, value in more.items():
            if name != "output_padding" or not isinstance(self, _DeformConvTransposeNd):
                expected = "offset_groups" if name == "deform_groups" else "no argument of this name"
                self._refuse(name, expected, repr(value), TypeError)
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation)
        options = dict(groups=groups, bias=bias, padding_mode=padding_mode, im2col_step=im2col_step)
        super().__init__(*sizes, **options, device=device, dtype=dtype, **more)
        sampled = "out_channels" if self.transposed else "in_channels"  # the channels that the groups split
        channels, taps = getattr(self, sampled), math.prod(self.kernel_size)
        for name, count in (("offset_groups", offset_groups), ("mask_groups", mask_groups)):
            if channels % self._integer(name, count):
                self._refuse(name, f"a divisor of {sampled} ({channels})", count)
        self._check_prediction(offset_activation, offset_limit, prediction)
        activation = self._make_mask_activation(mask_activation, taps)
        if not modulated:
            self._require_defaults(
                "modulated",
                mask_groups=mask_groups != 1,
                mask_activation=mask_activation not in ("sigmoid", None),
            )
        if not deformable:
            self._require_defaults(
                "deformable",
                offset_limit=offset_limit is not None,
                offset_activation=offset_activation is not None,
                offset_groups=offset_groups != 1,
            )
        self.float32_offsets = float32_offsets
        self.offset_groups, self.mask_groups = offset_groups, mask_groups
        self.offset_limit = None if offset_limit is None else float(offset_limit)
        self.offset_channels = offset_groups * taps * self.rank if deformable else 0
        self.mask_channels = mask_groups * taps if modulated else 0
        self.conv_offset = self.offset_features = None
        if self.offset_channels + self.mask_channels:
            self._add_predictor(prediction, device=device, dtype=dtype)
        self.offset_activation = offset_activation if deformable else None
        self.mask_activation = activation if modulated else None

    def _make_mask_activation(self, activation: str | nn.Module | None, taps: int) -> nn.Module | None:
        if activation is None or isinstance(activation, nn.Module):
            return activation
        if activation == "sigmoid":
            return MaskSigmoid()
        if activation == "softmax":
            return MaskSoftmax(taps)
        self._refuse("mask_activation", "'sigmoid', 'softmax', an nn.Module or None", repr(activation))

    def _add_predictor(self, prediction: str, **options: Any) -> None:
        """Add ``conv_offset``, and with a separable prediction ``offset_features`` before it."""
        channels = self.in_channels
        geometry: dict[str, Any] = dict(kernel_size=1)  # one prediction for each pixel of the input
        if not self.transposed:  # the layer's geometry, so that the prediction has the output's size
            names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            geometry = {name: getattr(self, name) for name in names}
        if prediction == "separable":
            depthwise = getattr(nn, f"Conv{self.rank}d")
            self.offset_features = nn.Sequential(
                depthwise(channels, channels, **geometry, groups=channels, **options),
                ChannelNorm(channels, **options),
                nn.GELU(),
            )
            geometry = dict(kernel_size=1)
        outputs = self.offset_channels + self.mask_channels
        self.conv_offset = OFFSET_CONVS[self.rank](channels, outputs, **geometry, **options)

    def _check_prediction(self, offset_activation: object, offset_limit: Any, prediction: str) -> None:
        if offset_activation is not None and not isinstance(offset_activation, nn.Module):
            self._refuse("offset_activation", "an nn.Module or None", repr(offset_activation))
        is_number = isinstance(offset_limit, (int, float)) and not isinstance(offset_limit, bool)
        if offset_limit is not None and not (is_number and 0 < offset_limit < math.inf):
            self._refuse("offset_limit", "a positive number of pixels or None", repr(offset_limit))
        if prediction not in ("dense", "separable") or (prediction == "separable" and self.transposed):
            expected = "'dense'" if self.transposed else "'dense' or 'separable'"
            self._refuse("prediction", expected, repr(prediction))

    def _require_defaults(self, without: str, **differs: bool) -> None:
        for name, is_other in differs.items():
            if is_other:
                self._refuse(name, f"the default: it has no effect without {without}=True", "another value")

    def predict(self, input: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the offset and the mask for ``input``, or None for one that the layer does not predict."""
        offset: Tensor | None = None
        mask: Tensor | None = None
        unbatched = self._is_unbatched(input)
        if self.conv_offset is not None:
            if unbatched:
                input = input.unsqueeze(0)
            prediction = self._predict_raw(input)
            if self.offset_channels > 0:
                raw = prediction[:, : self.offset_channels]
                if self.offset_activation is not None:
                    raw = self.offset_activation(raw)
                if self.offset_limit is not None:
                    raw = limit_offset(raw, self.offset_limit)
                offset = raw.squeeze(0) if unbatched else raw
            if self.mask_channels > 0:
                raw = prediction[:, self.offset_channels :]
                if self.mask_activation is not None:
                    raw = self.mask_activation(raw)
                mask = raw.squeeze(0) if unbatched else raw
        return offset, mask

    def _match_memory_format(self, output: Tensor, input: Tensor) -> Tensor:
        """Return the output, channels-last if the input or the weight is, as torch's convolution does."""
        if torch.jit.is_scripting():
            return output
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(output.dim())
        if last is None or self.weight.dim() != output.dim() or transforms_active():  # vmap hides strides
            return output
        is_last = [(x.stride(-1), x.stride(1)) == (x.shape[1], 1) for x in (input, self.weight)]
        return output.contiguous(memory_format=last) if any(is_last) else output

    def _predict_raw(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            is_float32 = all(each.dtype == torch.float32 for each in self.conv_offset.parameters())
            if self.float32_offsets and is_float32 and torch.is_autocast_enabled(input.device.type):
                with torch.autocast(input.device.type, enabled=False):
                    return self._convolve_features(input.float())
        return self._convolve_features(input)

    def _convolve_features(self, input: Tensor) -> Tensor:
        if self.offset_features is not None:
            input = self.offset_features(input)
        return self.conv_offset(input)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        state_dicts.convert(self, state_dict, prefix, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, modulated={self.mask_channels > 0}"
        if not self.offset_channels:
            text += ", deformable=False"
        for name, default in (("offset_groups", 1), ("mask_groups", 1), ("offset_limit", None)):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text


class _PackedDeformConvNd(_Pack, _DeformConvNd):
    # no offset and mask arguments: the layer predicts them itself
    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        offset, mask = self.predict(input)
        if not torch.jit.is_scripting():
            self._record_offsets(offset, input.shape[-self.rank :])
            self._record_modulation(mask)
        return self._match_memory_format(self._convolve(input, offset, mask), input)


class _PackedDeformConvTransposeNd(_Pack, _DeformConvTransposeNd):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        *,
        device=None,  # torch.nn.utils.skip_init needs it by name
        **options: Any,
    ) -> None:
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(*sizes, bias, output_padding=output_padding, device=device, **options)

    # no offset and mask arguments: the layer predicts them itself
    def forward(  # type: ignore[override]
        self, input: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        offset, mask = self.predict(input)
        output = self._convolve(input, offset, mask, output_size)
        if not torch.jit.is_scripting():
            self._record_offsets(offset, output.shape[-self.rank :])
            self._record_modulation(mask)
        return self._match_memory_format(output, input)


class PackedDeformConv1d(_PackedDeformConvNd, DeformConv1d):
    """:class:`DeformConv1d` that predicts its offsets. Arguments as in :class:`PackedDeformConv2d`."""


class PackedDeformConv2d(_PackedDeformConvNd, DeformConv2d):
    """:class:`DeformConv2d` that predicts its offsets, and with ``modulated=True`` its mask.

    The prediction starts at zero. Without a mask, or with a mask that starts at 1, the layer therefore starts
    as an ordinary convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in ``nn.Conv2d``.
        deformable: whether to predict offsets.
        modulated: whether to predict a mask (DCNv2).
        offset_groups, mask_groups: number of equal groups of input channels with their own offsets or mask.
            Independent of each other and of ``groups``.
        offset_activation: an ``nn.Module`` applied to the predicted offsets.
        mask_activation: ``'sigmoid'`` (DCNv2: the mask starts at ½), ``'softmax'`` over the taps of each
            group (DCNv3: at 1/K), None, or an ``nn.Module`` such as ``MaskSigmoid(scale=2)``, whose mask
            starts at 1.
        offset_limit: bounds offsets to this number of input pixels (:func:`dcnzoo.layers.limit_offset`). Use
            it if offsets diverge in training.
        prediction: ``'dense'``: a convolution predicts the offsets, as in the papers. ``'separable'``: a
            depthwise convolution, a layer norm, GELU and a pointwise convolution do, as in DCNv3. Choose it
            for depthwise layers, for which a dense one costs many times more than the layer itself.
        float32_offsets: predict offsets and mask in float32 under autocast. bfloat16 rounds an offset of
            1 pixel to 1/128 pixel, and larger offsets more coarsely.
        im2col_step: maximum number of images processed at a time, to bound memory.

    Parameters: ``weight``, ``bias``, and those of ``conv_offset``, a convolution with the geometry of the
    layer that predicts the offsets of all groups and then the masks, as in mmcv. Also loads state dicts
    with two convolutions: tvdcn's, and ``conv_offset`` and ``conv_mask`` of dcnzoo before 0.2.

    ``predict(input)`` returns the offset and the mask that ``forward(input)`` uses.
    """


class PackedDeformConv3d(_PackedDeformConvNd, DeformConv3d):
    """:class:`DeformConv3d` that predicts its offsets. Arguments as in :class:`PackedDeformConv2d`."""


class PackedDeformConvTranspose1d(_PackedDeformConvTransposeNd, DeformConvTranspose1d):
    """:class:`DeformConvTranspose1d` that predicts its offsets.

    Arguments as in :class:`PackedDeformConvTranspose2d`.
    """


class PackedDeformConvTranspose2d(_PackedDeformConvTransposeNd, DeformConvTranspose2d):
    """:class:`DeformConvTranspose2d` that predicts its offsets, and with ``modulated=True`` its mask.

    Arguments as in :class:`PackedDeformConv2d`, with ``output_padding`` after ``dilation``. Offsets are in
    output pixels, and groups split the **output** channels. Pointwise convolutions predict offset and mask
    for each input pixel.
    """


class PackedDeformConvTranspose3d(_PackedDeformConvTransposeNd, DeformConvTranspose3d):
    """:class:`DeformConvTranspose3d` that predicts its offsets.

    Arguments as in :class:`PackedDeformConvTranspose2d`.
    """
