"""mmcv's deformable convolutions without mmcv: functions and layers with the same arguments.

Checked against mmcv 2.1.0. Any batch size works with any ``im2col_step``. Import the names from
:mod:`dcnzoo.compat.mmcv`, as from ``mmcv.ops``. As in torch, functions raise ``RuntimeError`` for invalid
arguments, and constructors raise ``ValueError``.
"""

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dcnzoo import layers, ops
from dcnzoo.compat.signatures import renames
from dcnzoo.layers.base import refuse
from dcnzoo.layers.state_dicts import MMCVS_VERSION
from dcnzoo.ops._arguments import pair
from dcnzoo.ops.geometry import output_size
from dcnzoo.utils.text import counted

Pair = int | tuple[int, int]


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, deform_groups·2·kH·kW, oH, oW], (y, x) pairs, in input pixels
    weight: Tensor,  # [O, C / groups, kH, kW]
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
    bias: bool = False,
    im2col_step: int | None = 32,
) -> Tensor:  # [N, O, oH, oW]
    """``mmcv.ops.deform_conv2d``: deformable convolution v1.

    As in mmcv, the computation is in the dtype of ``offset``, also under autocast, and ``bias`` must be
    ``False``.

    Raises:
        RuntimeError: the channels of ``offset`` do not match ``deform_groups``, ``bias`` is not ``False``,
            or an argument of :func:`dcnzoo.ops.deform_conv2d` is invalid.
    """
    if bias is not False:
        value = bias if isinstance(bias, bool) else f"a {type(bias).__name__}"
        raise RuntimeError(f"deform_conv2d: bias: expected False (v1 has no bias), got {value}")
    check_groups("deform_conv2d", deform_groups, input, weight, offset=offset)
    return _convolve(input, weight, offset, None, None, stride, padding, dilation, groups, im2col_step)


def modulated_deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, deform_groups·2·kH·kW, oH, oW], (y, x) pairs, in input pixels
    mask: Tensor,  # [N, deform_groups·kH·kW, oH, oW]
    weight: Tensor,  # [O, C / groups, kH, kW]
    bias: Tensor | None = None,  # [O]
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:  # [N, O, oH, oW]
    """``mmcv.ops.modulated_deform_conv2d``: deformable convolution v2.

    As in mmcv, the computation is in the dtype of ``offset``, also under autocast. :func:`as_read` describes
    an ``offset`` or ``mask`` that is larger than the output.

    Raises:
        RuntimeError: the channels of ``offset`` or ``mask`` do not match ``deform_groups``, one of them is
            smaller than the output, or an argument of :func:`dcnzoo.ops.deform_conv2d` is invalid.
    """
    name, numbers = "modulated_deform_conv2d", {"stride": stride, "padding": padding, "dilation": dilation}
    pairs = [pair(name, argument, value) for argument, value in numbers.items()]
    check_groups(name, deform_groups, input, weight, offset=offset, mask=mask)
    if min(pairs[0]) > 0:  # else the operator raises
        size = tuple(output_size(input.shape[2:], weight.shape[2:], *pairs))
        offset, mask = as_read(offset, "offset", size), as_read(mask, "mask", size)
    return _convolve(input, weight, offset, mask, bias, stride, padding, dilation, groups, None)


def as_read(values: Tensor, name: str, size: tuple[int, ...]) -> Tensor:
    """Return ``values`` as mmcv's v2 kernels read them, which do not check the height and width.

    mmcv's kernels read the memory of each image as ``(channels, *size)`` with the output's ``size``, whatever
    the tensor's shape is. MMDetection's DyHead depends on this: some of its offsets come from a finer level
    than its input, and its published checkpoints were trained with the values at these memory addresses, not
    with a crop. As in mmcv, the first ``channels · size`` values of each image are read from a larger tensor.

    Raises:
        RuntimeError: the tensor has fewer values than mmcv's kernels read (they read past its end).
    """
    if values.shape[2:] == size:
        return values
    channels = values.shape[1]
    needed = channels * size[0] * size[1]
    if math.prod(values.shape[1:]) < needed:
        expected, shape = (" × ".join(map(str, s)) for s in ((channels, *size), values.shape[1:]))
        raise RuntimeError(
            f"modulated_deform_conv2d: {name}: expected values of at least {expected} per image, got {shape}"
        )
    return values.flatten(1)[:, :needed].reshape(-1, channels, *size)


def gradient_of_read(gradient: Tensor, values: Tensor) -> Tensor:
    """Return the gradient of ``values`` from that of what :func:`as_read` has read of them."""
    if gradient.shape == values.shape:
        return gradient
    read = gradient.flatten(1)
    unread = values[0].numel() - read.shape[1]
    return nn.functional.pad(read, (0, unread)).view(values.shape)


def check_groups(
    owner: str, deform_groups: int, input: Tensor, weight: Tensor, **offset_mask: Tensor
) -> None:
    """Raise unless the channels of ``offset_mask`` (offset and mask) match ``deform_groups``.

    The operator derives the groups from these channels, so it cannot check them.
    """
    for name, tensor in dict(input=input, weight=weight, **offset_mask).items():
        if tensor.dim() != 4:
            raise RuntimeError(f"{owner}: {name}: expected 4 dimensions, got shape {tuple(tensor.shape)}")
    height, width = weight.shape[2:]
    for name, tensor in offset_mask.items():
        per_tap = {"offset": 2, "mask": 1}[name]
        expected = deform_groups * per_tap * height * width
        if tensor.shape[1] != expected:
            meaning = f"{per_tap} · {height}·{width} taps · {deform_groups} deform_groups"
            raise RuntimeError(
                f"{owner}: {name}: expected {counted(expected, 'channels')} ({meaning}), "
                f"got {tensor.shape[1]}"
            )


def _convolve(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, *arguments
) -> Tensor:
    """Convolve in the dtype of ``offset``, as mmcv does for mixed precision."""
    dtype = offset.dtype
    mask, bias = (None if tensor is None else tensor.to(dtype) for tensor in (mask, bias))
    with torch.autocast(input.device.type, enabled=False):
        return ops.deform_conv2d(input.to(dtype), weight.to(dtype), offset, mask, bias, *arguments)


class _Arguments(nn.Module):
    """Mixin with mmcv's arguments. It must precede a layer of :mod:`dcnzoo.layers`."""

    modulated: ClassVar[bool] = False
    takes_bias: ClassVar[bool] = True
    if TYPE_CHECKING:  # for type checkers only: TorchScript must not see these annotations
        in_channels: int
        kernel_size: tuple[int, ...]
        weight: Tensor
        bias: Tensor | None

    @renames(deformable_groups="deform_groups")  # the argument's name before mmcv 1.0
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool | str | None = None,  # None: as in mmcv, True only for v2
        im2col_step: int | None = None,
        **options: Any,
    ) -> None:
        if bias and not self.takes_bias:
            refuse(self, "bias", "False (mmcv's v1 layers have no bias)", repr(bias))
        options |= self._grouping(deform_groups)
        options |= dict(bias=self.modulated if bias is None else bool(bias), im2col_step=im2col_step)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, **options)
        self.deform_groups = deform_groups

    def _grouping(self, deform_groups: int) -> dict[str, Any]:
        return {}

    def reset_parameters(self) -> None:
        """Set mmcv's initial weight, uniform within ±1/√(in_channels · taps) for v2, and a bias of zero."""
        if self.modulated:
            bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
            nn.init.uniform_(self.weight, -bound, bound)
        else:
            nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class _Layer(_Arguments, layers.DeformConv2d):
    """Base of mmcv's layers that take the offset, and with ``modulated`` the mask, as inputs."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, deform_groups={self.deform_groups}"

    def _geometry(self) -> tuple[Any, Any, Any, int, int]:
        return self.stride, self.padding, self.dilation, self.groups, self.deform_groups


class DeformConv2d(_Layer):
    """``mmcv.ops.DeformConv2d``: deformable convolution v1, with the offset as an input.

    Takes mmcv's arguments, and any batch size works with any ``im2col_step``. It has no bias. The call is
    ``forward(x, offset)``. An input smaller than the kernel, which mmcv pads first, gives the same result.
    """

    takes_bias = False

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:  # type: ignore[override]
        return deform_conv2d(x, offset, self.weight, *self._geometry(), False, self.im2col_step)


class ModulatedDeformConv2d(_Layer):
    """``mmcv.ops.ModulatedDeformConv2d``: deformable convolution v2, with offset and mask as inputs.

    Takes mmcv's arguments. The call is ``forward(x, offset, mask)``.
    """

    modulated = True

    def init_weights(self) -> None:
        """mmcv's name of :meth:`reset_parameters`."""
        self.reset_parameters()

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return modulated_deform_conv2d(x, offset, mask, self.weight, self.bias, *self._geometry())


class DeformConv2dPack(_Arguments, layers.PackedDeformConv2d):
    """``mmcv.ops.DeformConv2dPack``, ``DCN`` in configs: v1 that predicts its own offsets.

    :class:`dcnzoo.layers.PackedDeformConv2d` with mmcv's arguments and initial values. Also accepts
    ``bias=True``, which mmcv refuses, and ``offset_limit``. Parameters: ``weight``, ``conv_offset``, which
    starts at zero, and with ``bias=True`` ``bias``.
    """

    _version = MMCVS_VERSION

    def _grouping(self, deform_groups: int) -> dict[str, Any]:
        mask_groups = deform_groups if self.modulated else 1
        return dict(modulated=self.modulated, offset_groups=deform_groups, mask_groups=mask_groups)

    def init_offset(self) -> None:
        """Set the offsets to zero."""
        if self.conv_offset is not None:
            self.conv_offset.reset_parameters()


class ModulatedDeformConv2dPack(DeformConv2dPack):
    """``mmcv.ops.ModulatedDeformConv2dPack``, ``DCNv2`` in configs: v2 that predicts offsets and mask.

    Like :class:`DeformConv2dPack`, with a bias by default. A sigmoid of the last third of ``conv_offset``'s
    output is the mask.
    """

    modulated = True

    def init_weights(self) -> None:
        """Set all initial values."""
        self.reset_parameters()
        self.init_offset()
