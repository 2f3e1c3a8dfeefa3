"""Deformable convolution as a layer whose offsets come from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from dcnzoo.ops import deform_conv2d


class _DeformConvNd(_ConvNd):
    """What the ranks share. A subclass names its ``rank`` and the ``function`` it calls."""

    rank: ClassVar[int]
    function: ClassVar[Callable[..., Tensor]]

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
        im2col_step: int | None = None,
        device=None,
        dtype=None,
    ) -> None:
        def per_axis(name: str, value: int | tuple[int, ...]) -> tuple[int, ...]:
            values = (value,) * self.rank if isinstance(value, int) else tuple(value)
            if len(values) != self.rank or not all(isinstance(v, int) for v in values):
                raise ValueError(
                    f"{type(self).__name__}: {name}: "
                    f"expected an integer or {self.rank} of them, got {value!r}"
                )
            return values

        super().__init__(
            in_channels,
            out_channels,
            per_axis("kernel_size", kernel_size),
            per_axis("stride", stride),
            per_axis("padding", padding),
            per_axis("dilation", dilation),
            transposed=False,
            output_padding=(0,) * self.rank,
            groups=groups,
            bias=bias,
            padding_mode="zeros",
            device=device,
            dtype=dtype,
        )
        self.im2col_step = im2col_step

    def forward(self, input: Tensor, offset: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return type(self).function(
            input,
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


class DeformConv2d(_DeformConvNd):
    """``nn.Conv2d`` whose taps are moved by ``offset`` and weighted by ``mask``.

    Takes the arguments of ``nn.Conv2d`` (zero padding only) and ``im2col_step``, how many images
    are lowered at a time: it bounds memory and leaves the result alone. Parameters and
    initialisation are those of ``nn.Conv2d``; without ``offset`` and ``mask`` so is the output.

    ``forward(input, offset=None, mask=None)`` with

    - ``input`` ``(N, in_channels, H, W)``
    - ``offset`` ``(N, offset_groups · K · 2, oH, oW)``: ``(y, x)`` pairs in input pixels for each
      of the ``K`` taps of the kernel; the input channels are split among the offset groups
    - ``mask`` ``(N, mask_groups · K, oH, oW)`` or None (DCN v1)

    returns ``(N, out_channels, oH, oW)``. See :func:`dcnzoo.ops.deform_conv2d` for what it raises.
    """

    rank = 2
    function = staticmethod(deform_conv2d)
