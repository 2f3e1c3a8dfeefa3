"""DCNv3 and DCNv4 as layers: channels last, with the official parameter names and initial values."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcnzoo.layers.base import call_as_leaf, integer, refuse
from dcnzoo.layers.channels_last import build_activation, build_norm
from dcnzoo.layers.offsets import OffsetLinear
from dcnzoo.layers.statistics import is_recorded, record_modulation, record_shifts
from dcnzoo.ops import dcnv3, dcnv4
from dcnzoo.ops.geometry import deform_attn_points
from dcnzoo.ops.tracing import exporting, is_traced


class _ChannelsLast(nn.Module):
    """Base of DCNv3 and DCNv4: geometry, checks and the blend with the centre."""

    __call__ = call_as_leaf
    track_offsets = False

    # TorchScript compiles only the branches that these constants select
    __constants__ = ["center_feature_scale"]

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int,
        pad: int,
        dilation: int,
        group: int,
        offset_scale: float,
        dw_kernel_size: int | None,
        center_feature_scale: bool,
        remove_center: bool,
    ) -> None:
        super().__init__()
        channels, group = integer(self, "channels", channels), integer(self, "group", group)
        kernel_size, stride = integer(self, "kernel_size", kernel_size), integer(self, "stride", stride)
        pad, dilation = integer(self, "pad", pad, least=0), integer(self, "dilation", dilation)
        if dw_kernel_size is not None:
            dw_kernel_size = integer(self, "dw_kernel_size", dw_kernel_size)
        if channels % group:
            refuse(self, "group", f"a divisor of the {channels} channels", group)
        if kernel_size % 2 == 0:
            refuse(self, "kernel_size", "an odd number", kernel_size)
        if remove_center and kernel_size == 1:
            refuse(self, "kernel_size", "at least 3 with remove_center", kernel_size)
        if dw_kernel_size is not None and dw_kernel_size % 2 == 0:
            refuse(self, "dw_kernel_size", "an odd number", dw_kernel_size)
        if 2 * pad != dilation * (kernel_size - 1):
            # Offsets are predicted at every stride-th pixel, so the kernel must be centred there.
            refuse(self, "pad", f"{dilation * (kernel_size - 1) // 2}, dilation · (kernel_size - 1) / 2", pad)
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.pad = pad
        self.dilation = dilation
        self.group = group
        self.group_channels = channels // group
        self.offset_scale = offset_scale
        self.dw_kernel_size = dw_kernel_size
        self.center_feature_scale = center_feature_scale
        self.remove_center = bool(remove_center)
        self.taps = group * (kernel_size**2 - self.remove_center)  # summed over groups
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))

    def reset_parameters(self) -> None:
        """Set the official initial values, except for the depth-wise convolution."""
        for parameter in self.parameters(recurse=False):  # of the centre's scale
            nn.init.zeros_(parameter)
        for layer in self.children():
            if isinstance(layer, OffsetLinear):
                layer.reset_parameters()
            elif isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def _reset_parameters(self) -> None:  # the official name, which networks call
        self.reset_parameters()

    def _check(self, input: Tensor) -> None:
        if not is_traced(input) and (input.dim() != 4 or input.shape[3] != self.channels):
            expected = f"(N, H, W, {self.channels}), channels last"
            refuse(self, "input", expected, tuple(input.shape), RuntimeError)

    def _record_grouped_offsets(
        self, offset: Tensor, size: Sequence[int]
    ) -> None:  # [N, oH, oW, group, P, 2]
        if not is_recorded(self, offset):
            return
        kernel, stride, pad, dilation = (
            (number, number) for number in (self.kernel_size, self.stride, self.pad, self.dilation)
        )
        offset = offset.detach().float()
        grid = deform_attn_points(
            offset.shape[1:3], kernel, stride, pad, dilation, self.offset_scale, self.remove_center, offset
        )
        record_shifts(self, grid, offset * self.offset_scale, size[::-1])

    def _subsample(self, x: Tensor) -> Tensor:  # [N, H, W, C] -> [N, oH, oW, C], at the kernel's centre
        return x if self.stride == 1 else x[:, :: self.stride, :: self.stride]

    def _blend_center(self, x: Tensor, value: Tensor, query: Tensor) -> Tensor:
        """Blend ``x`` with ``value`` at the kernel's centre. ``query`` predicts the share of each group."""
        if not self.center_feature_scale:
            return x
        scale = F.linear(query, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias)
        scale = scale.sigmoid().repeat_interleave(self.group_channels, dim=-1)
        return torch.lerp(x, self._subsample(value).to(x.dtype), scale.to(x.dtype))

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, pad={self.pad}, "
            f"dilation={self.dilation}, group={self.group}, offset_scale={self.offset_scale}, "
            f"remove_center={self.remove_center}"
        )


class DCNv3(_ChannelsLast):
    """Deformable convolution v3 (InternImage, Wang et al. 2023) for maps ``(N, H, W, channels)``.

    A depth-wise convolution of the input (``dw_conv``) and two linear layers predict the offsets (``offset``)
    and the mask (``mask``), a softmax over the taps of each group. :func:`dcnzoo.ops.dcnv3` runs between two
    linear projections (``input_proj``, ``output_proj``).

    Args:
        channels: number of channels of input and output.
        kernel_size: an odd number.
        dw_kernel_size: kernel size of the depth-wise convolution, an odd number. Default: ``kernel_size``.
        stride, dilation: as in a convolution. The output has ``ceil(size / stride)`` pixels.
        pad: must be ``dilation · (kernel_size - 1) / 2``.
        group: number of channel groups. The channels of a group share their sampling points.
        offset_scale: scales the kernel and the offsets.
        act_layer: ``'GELU'``, ``'ReLU'`` or ``'SiLU'``, after the norm.
        norm_layer: ``'LN'`` or ``'BN'``, after the depth-wise convolution.
        center_feature_scale: blend the output with the value at the kernel's centre, by a predicted share
            (InternImage-H and -G).
        remove_center: leave out the middle tap.

    Offsets start at zero and the mask at ``1 / taps``, so the layer starts as average pooling between two
    projections. ``init_weights()`` of an OpenMMLab model keeps these values.

    Raises:
        ValueError: an argument is invalid.
        RuntimeError: the input has the wrong shape.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ) -> None:
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        geometry = (kernel_size, stride, pad, dilation, group, offset_scale, dw_kernel_size)
        super().__init__(channels, *geometry, center_feature_scale, remove_center)
        self.dw_conv = nn.Sequential(
            nn.Conv2d(channels, channels, dw_kernel_size, stride, dw_kernel_size // 2, groups=channels),
            build_norm(norm_layer, channels, first_in=True),
            build_activation(act_layer),
        )
        self.offset = OffsetLinear(channels, self.taps * 2)
        self.mask = OffsetLinear(channels, self.taps)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:  # [N, H, W, C] -> [N, oH, oW, C]
        if not torch.jit.is_scripting():
            self._check(input)
        query = self.dw_conv(input.permute(0, 3, 1, 2))
        mask = self.mask(query).unflatten(-1, (self.group, -1)).softmax(-1).flatten(-2)
        value = self.input_proj(input)
        offset = self.offset(query)
        if not torch.jit.is_scripting():
            self._record_grouped_offsets(offset.unflatten(-1, (self.group, -1, 2)), input.shape[1:3])
            record_modulation(self, mask)
        geometry = (self.kernel_size, self.stride, self.pad, self.dilation, self.group, self.group_channels)
        x = dcnv3(value, offset, mask, *geometry, self.offset_scale, self.remove_center)
        return self.output_proj(self._blend_center(x, value, query))


class DCNv4(_ChannelsLast):
    """Deformable convolution v4 (Xiong et al. 2024) for maps ``(N, H, W, channels)``.

    One linear layer (``offset_mask``) predicts the offsets and the mask, without a softmax.
    :func:`dcnzoo.ops.dcnv4` runs between two linear projections (``value_proj``, ``output_proj``).

    Args:
        channels, kernel_size, stride, pad, dilation, group, offset_scale, remove_center: as in
            :class:`DCNv3`.
        dw_kernel_size: kernel size of a depth-wise convolution (``offset_mask_dw``) before ``offset_mask``.
            None: no such convolution.
        center_feature_scale: as in :class:`DCNv3`, but predicted from the operator's output.
        output_bias: whether ``output_proj`` has a bias.
        without_pointwise: leave out both projections.
        mask_start: initial value of the mask. With the official 0, the output does not depend on the input
            at first; a batch norm and a ReLU then make it zero, and no gradient ever changes that. With 1 / P
            for P taps, the operator starts as the average of the samples.
        act_layer, norm_layer: no effect, as in the official layer. Networks written for :class:`DCNv3` pass
            them.

    Offsets and, by default, mask start at zero, so the output starts at ``output_proj``'s bias.
    ``init_weights()`` of an OpenMMLab model keeps these values.

    ``forward(input, shape=None)`` takes maps ``(N, H, W, channels)`` or, like the official layer,
    ``(N, L, channels)`` with ``shape`` ``(H, W)`` (default: square). It returns the same form; ``shape``
    has no effect on maps.

    Raises:
        ValueError: an argument is invalid.
        RuntimeError: the input is invalid, or ``shape`` does not fit.
    """

    __constants__ = ["center_feature_scale", "dw_kernel_size", "without_pointwise"]

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        *,
        mask_start: float = 0.0,
        act_layer: str | None = None,
        norm_layer: str | None = None,
    ) -> None:
        geometry = (kernel_size, stride, pad, dilation, group, offset_scale, dw_kernel_size)
        super().__init__(channels, *geometry, center_feature_scale, remove_center)
        self.without_pointwise = without_pointwise
        if dw_kernel_size is not None:
            self.offset_mask_dw = nn.Conv2d(
                channels, channels, dw_kernel_size, stride, dw_kernel_size // 2, groups=channels
            )
        self.offset_mask = OffsetLinear(channels, math.ceil(self.taps * 3 / 8) * 8)
        self.set_mask_start(mask_start)
        if not without_pointwise:
            self.value_proj = nn.Linear(channels, channels)
            self.output_proj = nn.Linear(channels, channels, bias=output_bias)
        self.reset_parameters()

    def set_mask_start(self, value: float) -> None:
        """Change the initial value that :meth:`reset_parameters` gives the mask."""
        points = self.taps // self.group  # a group's 2P offsets, then its P factors
        start = ([0.0] * (2 * points) + [float(value)] * points) * self.group
        self.offset_mask.start = start + [0.0] * (self.offset_mask.out_features - len(start))

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript skips the block only for a lone condition)
            if is_traced(input):  # the root module; a proxy has no dim(), so assume (N, H, W, C)
                return self._forward(input)
        if input.dim() != 3:
            return self._forward(input)
        size = shape
        if size is None:
            side = int(math.sqrt(input.shape[1]))
            size = (side, side)
        if not torch.jit.is_scripting():  # noqa: SIM102  (as above)
            if not exporting() and math.prod(size) != input.shape[1]:
                expected = f"(height, width) of {input.shape[1]} pixels"
                refuse(self, "shape", expected, shape, RuntimeError)
        output = self._forward(input.unflatten(1, size))
        return output.flatten(1, 2)

    def _forward(self, input: Tensor) -> Tensor:  # [N, H, W, C] -> [N, oH, oW, C]
        if not torch.jit.is_scripting():
            self._check(input)
        value = input
        if not self.without_pointwise:
            value = self.value_proj(input)
        if self.dw_kernel_size is None:
            query = self._subsample(input)
        else:
            query = self.offset_mask_dw(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        offset_mask = self.offset_mask(query)
        if not torch.jit.is_scripting():
            self._record(offset_mask, input.shape[1:3])
        geometry = (self.kernel_size, self.stride, self.pad, self.dilation, self.group, self.group_channels)
        x = dcnv4(value, offset_mask, *geometry, self.offset_scale, self.remove_center)
        x = self._blend_center(x, value, x)
        if not self.without_pointwise:
            x = self.output_proj(x)
        return x

    def _record(self, offset_mask: Tensor, size: Sequence[int]) -> None:
        per_group = offset_mask[..., : self.taps * 3].unflatten(-1, (self.group, -1))  # 2P offsets, P factors
        offset, factors = per_group.tensor_split([self.taps // self.group * 2], dim=-1)
        self._record_grouped_offsets(offset.unflatten(-1, (-1, 2)), size)
        record_modulation(self, factors)
