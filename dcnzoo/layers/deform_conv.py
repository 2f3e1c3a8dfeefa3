"""Layers of deformable convolution, plain and transposed, that take offsets as an input."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from dcnzoo.layers.base import call_as_leaf, integer, integers, refuse
from dcnzoo.ops import (
    deform_conv1d,
    deform_conv2d,
    deform_conv3d,
    deform_conv_transpose1d,
    deform_conv_transpose2d,
    deform_conv_transpose3d,
)
from dcnzoo.ops._torch_private import ConvNd, ConvTransposeNd


def _sizes(layer: Any, in_channels: int, im2col_step: int | None, **sizes: Any) -> dict[str, Any]:
    """Return ``sizes`` with one value per axis, after a check of all numbers.

    Raises:
        ValueError: an argument is invalid.
    """
    if in_channels < 1:  # nn.Conv2d accepts 0, but the operator does not
        refuse(layer, "in_channels", "at least 1", in_channels)
    if im2col_step is not None:
        integer(layer, "im2col_step", im2col_step)
    return {
        name: integers(layer, name, value, layer.rank, least=0 if "padding" in name else 1)
        for name, value in sizes.items()
    }


class _DeformConvNd(ConvNd):
    """Base of the plain layers. A subclass sets ``rank`` and the ``function`` to call.

    ``function`` is the only place where another program puts its own kernel.
    """

    rank: ClassVar[int]
    function: ClassVar[Callable[..., Tensor]]
    __call__ = call_as_leaf

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
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        im2col_step: int | None = None,
    ) -> None:
        sizes = dict(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
        options = _sizes(self, in_channels, im2col_step, **sizes, output_padding=0)
        options |= dict(groups=groups, bias=bias, padding_mode=padding_mode, device=device, dtype=dtype)
        super().__init__(in_channels, out_channels, **options, transposed=False)
        self.im2col_step = None if im2col_step is None else int(im2col_step)

    def forward(self, input: Tensor, offset: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self._convolve(input, offset, mask)

    def _convolve(self, input: Tensor, offset: Tensor | None, mask: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":  # offsets beyond the padded map read zero
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            options = (self.stride, 0, self.dilation, self.groups, self.im2col_step)
            return self.function(input, self.weight, offset, mask, self.bias, *options)
        geometry = (self.stride, self.padding, self.dilation, self.groups, self.im2col_step)
        return self.function(input, self.weight, offset, mask, self.bias, *geometry)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.im2col_step is None else f"{text}, im2col_step={self.im2col_step}"


class _DeformConvTransposeNd(ConvTransposeNd):
    """Base of the transposed layers, like :class:`_DeformConvNd`."""

    rank: ClassVar[int]
    function: ClassVar[Callable[..., Tensor]]
    __call__ = call_as_leaf

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
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        im2col_step: int | None = None,
    ) -> None:
        sizes = dict(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
        options = _sizes(self, in_channels, im2col_step, **sizes, output_padding=output_padding)
        options |= dict(groups=groups, bias=bias, padding_mode=padding_mode, device=device, dtype=dtype)
        super().__init__(in_channels, out_channels, **options, transposed=True)
        self.im2col_step = None if im2col_step is None else int(im2col_step)

    def forward(
        self,
        input: Tensor,
        offset: Tensor | None = None,
        mask: Tensor | None = None,
        output_size: list[int] | None = None,
    ) -> Tensor:
        return self._convolve(input, offset, mask, output_size)

    def _convolve(
        self, input: Tensor, offset: Tensor | None, mask: Tensor | None, output_size: list[int] | None
    ) -> Tensor:
        # torch annotates these as lists, for TorchScript
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            len(self.kernel_size),
            self.dilation,  # type: ignore[arg-type]
        )
        geometry = (self.stride, self.padding, output_padding, self.dilation, self.groups, self.im2col_step)
        return self.function(input, self.weight, offset, mask, self.bias, *geometry)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.im2col_step is None else f"{text}, im2col_step={self.im2col_step}"


class DeformConv1d(_DeformConvNd):
    """``nn.Conv1d`` with taps displaced by ``offset`` and weighted by ``mask``.

    Like :class:`DeformConv2d`, with ``input`` ``(N, in_channels, L)`` and one offset per tap:
    ``(N, offset_groups · K, oL)``.
    """

    rank = 1
    function = staticmethod(deform_conv1d)


class DeformConv2d(_DeformConvNd):
    """``nn.Conv2d`` with taps displaced by ``offset`` and weighted by ``mask``.

    Takes the arguments of ``nn.Conv2d`` (``padding`` must be numbers) and ``im2col_step``, the maximum number
    of images processed at a time, which bounds memory. Parameters and initialisation are those of
    ``nn.Conv2d``. Without ``offset`` and ``mask``, the output is that of ``nn.Conv2d``.

    ``forward(input, offset=None, mask=None)`` with

    - ``input`` ``(N, in_channels, H, W)``
    - ``offset`` ``(N, offset_groups · K · 2, oH, oW)``: ``(y, x)`` pairs in input pixels for each
      of the ``K`` taps of the kernel; the input channels are split among the offset groups
    - ``mask`` ``(N, mask_groups · K, oH, oW)`` or None (DCN v1)

    returns ``(N, out_channels, oH, oW)``. See :func:`dcnzoo.ops.deform_conv2d` for the errors raised.
    """

    rank = 2
    function = staticmethod(deform_conv2d)


class DeformConv3d(_DeformConvNd):
    """``nn.Conv3d`` with taps displaced by ``offset`` and weighted by ``mask``.

    Like :class:`DeformConv2d`, with ``input`` ``(N, in_channels, D, H, W)`` and a ``(z, y, x)`` offset per
    tap: ``(N, offset_groups · K · 3, oD, oH, oW)``.
    """

    rank = 3
    function = staticmethod(deform_conv3d)


class DeformConvTranspose1d(_DeformConvTransposeNd):
    """``nn.ConvTranspose1d`` with taps displaced by ``offset`` and weighted by ``mask``.

    Like :class:`DeformConvTranspose2d`, with ``input`` ``(N, in_channels, L)`` and one offset per tap:
    ``(N, offset_groups · K, L)``.
    """

    rank = 1
    function = staticmethod(deform_conv_transpose1d)


class DeformConvTranspose2d(_DeformConvTransposeNd):
    """``nn.ConvTranspose2d`` with taps displaced by ``offset`` and weighted by ``mask``.

    Takes the arguments of ``nn.ConvTranspose2d`` in tvdcn's order (``dilation`` before
    ``output_padding``) and ``im2col_step``. Parameters and initialisation are those of
    ``nn.ConvTranspose2d``. Without ``offset`` and ``mask``, the output is that of ``nn.ConvTranspose2d``.

    ``forward(input, offset=None, mask=None, output_size=None)`` with

    - ``input`` ``(N, in_channels, H, W)``
    - ``offset`` ``(N, offset_groups · K · 2, H, W)``: where each tap of each **input** pixel writes,
      ``(y, x)`` pairs in output pixels; the output channels are split among the offset groups
    - ``mask`` ``(N, mask_groups · K, H, W)`` or None
    - ``output_size``: as in ``nn.ConvTranspose2d``, instead of ``output_padding``

    returns ``(N, out_channels, oH, oW)``. See :func:`dcnzoo.ops.deform_conv_transpose2d` for the errors
    raised.
    """

    rank = 2
    function = staticmethod(deform_conv_transpose2d)


class DeformConvTranspose3d(_DeformConvTransposeNd):
    """``nn.ConvTranspose3d`` with taps displaced by ``offset`` and weighted by ``mask``.

    Like :class:`DeformConvTranspose2d`, with ``input`` ``(N, in_channels, D, H, W)`` and a ``(z, y, x)``
    offset per tap: ``(N, offset_groups · K · 3, D, H, W)``.
    """

    rank = 3
    function = staticmethod(deform_conv_transpose3d)
