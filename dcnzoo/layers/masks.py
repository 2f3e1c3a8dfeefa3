"""Activations of predicted masks."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dcnzoo.ops.mask_softmax import softmax_of_taps


class _Scaled(nn.Module):
    """Base of the activations of masks, which multiply their result by a factor.

    A factor other than 1 is a buffer, ``scale``, so that it is saved with the weights of the layer, whose
    values depend on it. :mod:`dcnzoo.layers.state_dicts` reads it. A factor of 1 is a number, without cost.
    """

    if TYPE_CHECKING:  # for type checkers only: TorchScript must not see these annotations
        scale: float | Tensor

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self._initial_scale = float(scale)
        if scale == 1:
            self.scale = 1.0
        else:
            self.register_buffer("scale", torch.empty(()))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        if isinstance(self.scale, Tensor):
            self.scale.fill_(self._initial_scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class MaskSigmoid(_Scaled):
    """``scale · sigmoid(mask)``. With a scale of 2, a prediction of zero gives a mask of exactly one."""

    def forward(self, mask: Tensor) -> Tensor:
        factors = mask.sigmoid()
        return self.scale * factors if isinstance(self.scale, Tensor) else factors


class MaskSoftmax(_Scaled):
    """``scale ·`` softmax over the ``taps`` of each mask group, as in DCNv3 (Wang et al. 2023)."""

    def __init__(self, taps: int, scale: float = 1.0) -> None:
        super().__init__(scale)
        self.taps = taps

    def forward(self, mask: Tensor) -> Tensor:  # [N, mask_groups · taps, *out]
        factors = softmax_of_taps("MaskSoftmax", mask, self.taps)
        return self.scale * factors if isinstance(self.scale, Tensor) else factors

    def extra_repr(self) -> str:
        return f"{self.taps}, {super().extra_repr()}"
