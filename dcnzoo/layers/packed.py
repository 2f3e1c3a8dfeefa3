"""Deformable convolutions that predict their own offsets and masks."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dcnzoo.layers import offsets, state_dicts
from dcnzoo.layers.base import integer, refuse
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
from dcnzoo.layers.offsets import limit_offset
from dcnzoo.layers.statistics import record_modulation, record_offsets
from dcnzoo.ops.tracing import is_traced, transforms_active


@dataclasses.dataclass(frozen=True)
class PredictionOptions:
    """What a packed layer predicts, and how; :class:`PackedDeformConv2d` describes the options."""

    deformable: bool = True
    modulated: bool = False
    offset_groups: int = 1
    mask_groups: int = 1
    offset_activation: nn.Module | None = None
    mask_activation: str | nn.Module | None = "sigmoid"
    offset_limit: float | None = None
    prediction: str = "dense"
    float32_offsets: bool = False

    def check(self, layer: Any) -> None:
        sampled = "out_channels" if layer.transposed else "in_channels"  # the channels that the groups split
        channels, limit, activation = getattr(layer, sampled), self.offset_limit, self.mask_activation
        for name in ("offset_groups", "mask_groups"):
            if channels % integer(layer, name, count := getattr(self, name)):
                refuse(layer, name, f"a divisor of {sampled} ({channels})", count)
        if not isinstance(self.offset_activation, nn.Module | None):
            refuse(layer, "offset_activation", "an nn.Module or None", repr(self.offset_activation))
        is_number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if limit is not None and not (is_number and 0 < limit < math.inf):
            refuse(layer, "offset_limit", "a positive number of pixels or None", repr(limit))
        expected = ("dense",) if layer.transposed else ("dense", "separable")
        if self.prediction not in expected:
            refuse(layer, "prediction", " or ".join(map(repr, expected)), repr(self.prediction))
        if not (isinstance(activation, nn.Module | None) or activation in ("sigmoid", "softmax")):
            refuse(layer, "mask_activation", "'sigmoid', 'softmax', an nn.Module or None", repr(activation))
        if not self.modulated:
            self._require_defaults(layer, "modulated", "mask_groups", "mask_activation")
        if not self.deformable:
            self._require_defaults(layer, "deformable", "offset_limit", "offset_activation", "offset_groups")

    def _require_defaults(self, layer: Any, without: str, *names: str) -> None:
        for name in names:
            if getattr(self, name) not in (None, getattr(type(self), name)):
                expected = f"the default: it has no effect without {without}=True"
                refuse(layer, name, expected, "another value")


def _add_prediction(layer: Any, options: dict[str, Any], **factory: Any) -> None:
    """Add the numbers and the modules that :func:`predict` reads to a convolution.

    The modules are children of the layer itself, because mmengine's ``dcn_offset_lr_mult`` and TorchScript
    need them there.
    """
    for name, value in options.items():
        if name not in PredictionOptions.__dataclass_fields__:
            expected = "offset_groups" if name == "deform_groups" else "no argument of this name"
            refuse(layer, name, expected, repr(value), TypeError)
    chosen, taps = PredictionOptions(**options), math.prod(layer.kernel_size)
    chosen.check(layer)
    layer.float32_offsets = chosen.float32_offsets
    layer.offset_groups, layer.mask_groups = chosen.offset_groups, chosen.mask_groups
    layer.offset_limit = None if chosen.offset_limit is None else float(chosen.offset_limit)
    layer.offset_channels = chosen.offset_groups * taps * layer.rank if chosen.deformable else 0
    layer.mask_channels = chosen.mask_groups * taps if chosen.modulated else 0
    layer.conv_offset = layer.offset_features = None
    if layer.offset_channels + layer.mask_channels:
        _add_predictor(layer, chosen.prediction, **factory)
    layer.offset_activation = chosen.offset_activation if chosen.deformable else None
    activation = chosen.mask_activation if chosen.modulated else None
    if isinstance(activation, str):
        activation = MaskSigmoid() if activation == "sigmoid" else MaskSoftmax(taps)
    layer.mask_activation = activation


def _add_predictor(layer: Any, prediction: str, **options: Any) -> None:
    """Add ``conv_offset``, and with a separable prediction ``offset_features`` before it."""
    channels = layer.in_channels
    geometry: dict[str, Any] = dict(kernel_size=1)  # one prediction for each pixel of the input
    if not layer.transposed:  # the layer's geometry, so that the prediction has the output's size
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        geometry = {name: getattr(layer, name) for name in names}
    if prediction == "separable":
        depthwise = getattr(nn, f"Conv{layer.rank}d")
        layer.offset_features = nn.Sequential(
            depthwise(channels, channels, **geometry, groups=channels, **options),
            ChannelNorm(channels, **options),
            nn.GELU(),
        )
        geometry = dict(kernel_size=1)
    outputs = layer.offset_channels + layer.mask_channels
    predictor = getattr(offsets, f"OffsetConv{layer.rank}d")
    layer.conv_offset = predictor(channels, outputs, **geometry, **options)


# ``self``: these two functions are methods of both packed classes, and TorchScript compiles them. They
# are not in a mixin, because a layer has at most four classes (tests/layers/test_packed.py).
def predict(self, input: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the offset and the mask for ``input``, or None for one that the layer does not predict."""
    offset: Tensor | None = None
    mask: Tensor | None = None
    if self.conv_offset is None:
        return offset, mask
    unbatched = _is_unbatched(input, len(self.kernel_size))
    if unbatched:
        input = input.unsqueeze(0)
    values = self._predict_raw(input)
    if self.offset_channels > 0:
        raw = values[:, : self.offset_channels]
        if self.offset_activation is not None:
            raw = self.offset_activation(raw)
        if self.offset_limit is not None:
            raw = limit_offset(raw, self.offset_limit)
        offset = raw.squeeze(0) if unbatched else raw
    if self.mask_channels > 0:
        raw = values[:, self.offset_channels :]
        if self.mask_activation is not None:
            raw = self.mask_activation(raw)
        mask = raw.squeeze(0) if unbatched else raw
    return offset, mask


def _is_unbatched(input: Tensor, rank: int) -> bool:
    if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript skips the block only for a lone condition)
        if is_traced(input):
            return False
    return input.dim() == rank + 1


def _predict_raw(self, input: Tensor) -> Tensor:
    if not torch.jit.is_scripting():
        kind = input.device.type
        if self.float32_offsets and kind != "meta" and torch.is_autocast_enabled(kind):
            is_float32 = all(each.dtype == torch.float32 for each in self.conv_offset.parameters())
            if is_float32:
                with torch.autocast(kind, enabled=False):
                    return self._predict_raw(input.float())
    if self.offset_features is not None:
        input = self.offset_features(input)
    return self.conv_offset(input)


def _match_memory_format(output: Tensor, input: Tensor, weight: Tensor | None) -> Tensor:
    """Return the output, channels-last if the input or the weight is, as torch's convolution does."""
    if torch.jit.is_scripting():
        return output
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(output.dim())
    if last is None or weight is None or weight.dim() != output.dim() or transforms_active():
        return output  # vmap hides strides; a layer for pnnx has no weight
    is_last = [(x.stride(-1), x.stride(1)) == (x.shape[1], 1) for x in (input, weight)]
    return output.contiguous(memory_format=last) if any(is_last) else output


def _prediction_text(layer: Any) -> str:
    text = f", modulated={layer.mask_channels > 0}"
    if not layer.offset_channels:
        text += ", deformable=False"
    for name, default in (("offset_groups", 1), ("mask_groups", 1), ("offset_limit", None)):
        if getattr(layer, name) != default:
            text += f", {name}={getattr(layer, name)}"
    return text


class _PackedDeformConvNd(_DeformConvNd):
    """Base of the packed layers: a plain layer whose offsets and mask :func:`predict` computes."""

    if TYPE_CHECKING:  # for type checkers only: TorchScript must not see these annotations
        conv_offset: Any
    track_offsets = False
    predict = predict
    _predict_raw = _predict_raw

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
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        im2col_step: int | None = None,
        **options: Any,
    ) -> None:
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation)
        super().__init__(*sizes, groups, bias, padding_mode, device, dtype, im2col_step)
        _add_prediction(self, options, device=device, dtype=dtype)

    # no offset and mask arguments: the layer predicts them itself
    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        offset, mask = self.predict(input)
        if not torch.jit.is_scripting():  # noqa: SIM102  (as above)
            if self.track_offsets:
                record_offsets(self, offset, input.shape[-self.rank :])
                record_modulation(self, mask)
        return _match_memory_format(self._convolve(input, offset, mask), input, self.weight)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        state_dicts.convert(self, state_dict, prefix, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        return super().extra_repr() + _prediction_text(self)


class _PackedDeformConvTransposeNd(_DeformConvTransposeNd):
    """Base of the transposed packed layers, like :class:`_PackedDeformConvNd`."""

    track_offsets = False
    predict = predict
    _predict_raw = _predict_raw

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
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        im2col_step: int | None = None,
        **options: Any,
    ) -> None:
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, output_padding)
        super().__init__(*sizes, groups, bias, padding_mode, device, dtype, im2col_step)
        _add_prediction(self, options, device=device, dtype=dtype)

    # no offset and mask arguments: the layer predicts them itself
    def forward(  # type: ignore[override]
        self, input: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        offset, mask = self.predict(input)
        output = self._convolve(input, offset, mask, output_size)
        if not torch.jit.is_scripting():  # noqa: SIM102  (as above)
            if self.track_offsets:
                record_offsets(self, offset, output.shape[-self.rank :])
                record_modulation(self, mask)
        return _match_memory_format(output, input, self.weight)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        state_dicts.convert(self, state_dict, prefix, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        return super().extra_repr() + _prediction_text(self)


PACKED = (_PackedDeformConvNd, _PackedDeformConvTransposeNd)


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
