"""``tvdcn.ops``: functions, layers, packed layers."""

# ruff: noqa: F401  imported for the caller

from typing import TYPE_CHECKING, Any

from torch import nn

from dcnzoo import layers
from dcnzoo.compat.signatures import takes
from dcnzoo.layers import (
    DeformConv1d,
    DeformConv2d,
    DeformConv3d,
    DeformConvTranspose1d,
    DeformConvTranspose2d,
    DeformConvTranspose3d,
)
from dcnzoo.ops import (
    deform_conv1d,
    deform_conv2d,
    deform_conv3d,
    deform_conv_transpose1d,
    deform_conv_transpose2d,
    deform_conv_transpose3d,
    mask_softmax1d,
    mask_softmax2d,
    mask_softmax3d,
)

PLAIN = "self in_channels out_channels kernel_size stride padding dilation groups"
TRANSPOSED = PLAIN.replace(" groups", " output_padding groups")
PREDICTION = (
    "offset_groups mask_groups bias generator_bias deformable modulated offset_activation mask_activation "
    "padding_mode device dtype"
)


class _Arguments(nn.Module):
    """Mixin with tvdcn's arguments. It must precede a packed layer of :mod:`dcnzoo.layers`."""

    if TYPE_CHECKING:  # for type checkers only: TorchScript must not see these annotations
        conv_offset: Any

    def _construct(
        self, mask_activation: str | nn.Module | None = "sigmoid", generator_bias: bool = False, **options
    ) -> None:
        if isinstance(mask_activation, str) and mask_activation == "sigmoid" and options.get("modulated"):
            mask_activation = layers.MaskSigmoid(scale=2.0)  # as in tvdcn: mask 1 for a prediction of 0
        super().__init__(mask_activation=mask_activation, **options)
        if self.conv_offset is not None and not generator_bias:
            self.conv_offset.register_parameter("bias", None)

    __init__ = takes(f"{PLAIN} {PREDICTION}")(_construct)


class _TransposedArguments(_Arguments):
    __init__ = takes(f"{TRANSPOSED} {PREDICTION}")(_Arguments._construct)


class PackedDeformConv1d(_Arguments, layers.PackedDeformConv1d):
    """Like :class:`PackedDeformConv2d`."""


class PackedDeformConv2d(_Arguments, layers.PackedDeformConv2d):
    """``tvdcn.PackedDeformConv2d``: :class:`dcnzoo.layers.PackedDeformConv2d` with tvdcn's arguments.

    ``mask_activation='sigmoid'`` is tvdcn's 2 · sigmoid, so a new layer starts as an ordinary convolution.

    One convolution, ``conv_offset``, predicts offset and mask; tvdcn's state dicts load. With several
    ``offset_groups`` or ``mask_groups``, it predicts each group from all input channels, tvdcn only from the
    group's channels. tvdcn's grouped weights load as full weights with zeros elsewhere.
    """


class PackedDeformConv3d(_Arguments, layers.PackedDeformConv3d):
    """Like :class:`PackedDeformConv2d`."""


class PackedDeformConvTranspose1d(_TransposedArguments, layers.PackedDeformConvTranspose1d):
    """Like :class:`PackedDeformConv2d`."""


class PackedDeformConvTranspose2d(_TransposedArguments, layers.PackedDeformConvTranspose2d):
    """Like :class:`PackedDeformConv2d`."""


class PackedDeformConvTranspose3d(_TransposedArguments, layers.PackedDeformConvTranspose3d):
    """Like :class:`PackedDeformConv2d`."""


__all__ = sorted(name for name in globals() if name.startswith(("Deform", "Packed", "deform_", "mask_")))
