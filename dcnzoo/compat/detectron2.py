"""detectron2's deformable convolutions: ``detectron2.layers.DeformConv`` and ``ModulatedDeformConv``.

They have the same arguments (also ``norm`` and ``activation``), parameters and initial values, so state dicts
load. detectron2 is not required. Unlike detectron2's layers, they also run on the CPU, with gradients and any
``deformable_groups``.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from dcnzoo.compat.mmcv.deform_conv import (
    DeformConv2d,
    ModulatedDeformConv2d,
    _Layer,
    deform_conv2d,
    modulated_deform_conv2d,
)
from dcnzoo.compat.signatures import renames, takes

__all__ = ["DeformConv", "ModulatedDeformConv", "deform_conv", "modulated_deform_conv"]


# detectron2 calls both with positional arguments only
_v1 = takes("input offset weight stride padding dilation groups deform_groups im2col_step")(deform_conv2d)
deform_conv = renames(deformable_groups="deform_groups")(_v1)
modulated_deform_conv = modulated_deform_conv2d


class _NormAndActivation(_Layer):
    """Mixin with detectron2's arguments, a norm and an activation. It must precede a layer of mmcv."""

    @takes(
        "self in_channels out_channels kernel_size stride padding dilation groups deformable_groups bias "
        "norm activation"
    )
    def __init__(
        self,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.deformable_groups = self.deform_groups
        self.norm = norm
        self.activation = activation

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, *offset_mask: Tensor) -> Tensor:  # type: ignore[override]
        empty = x.numel() == 0  # as in detectron2: batch norm raises an error for an empty map
        x = super().forward(x, *offset_mask)
        if self.norm is not None and not empty:
            x = self.norm(x)
        if self.activation is not None and not empty:
            x = self.activation(x)
        return x


class DeformConv(_NormAndActivation, DeformConv2d):
    """``detectron2.layers.DeformConv``: deformable convolution v1, with the offset as an input.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in ``nn.Conv2d``.
        deformable_groups: number of groups of input channels with their own offsets.
        bias: must be False.
        norm: a layer after the convolution, such as ``nn.BatchNorm2d(out_channels)``.
        activation: a function of a tensor after the norm, such as ``F.relu``.

    ``forward(x, offset)`` with ``offset`` ``(N, deformable_groups · 2 · K, oH, oW)``. For an empty ``x``, the
    result is an empty map, without ``norm`` and ``activation``.

    Raises:
        ValueError: an argument is invalid.
        RuntimeError: an input is invalid.
    """


class ModulatedDeformConv(_NormAndActivation, ModulatedDeformConv2d):
    """``detectron2.layers.ModulatedDeformConv``: deformable convolution v2, with offset and mask as inputs.

    Like :class:`DeformConv`, but with a bias by default. ``forward(x, offset, mask)`` with ``mask``
    ``(N, deformable_groups · K, oH, oW)``.
    """
