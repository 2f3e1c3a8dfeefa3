"""Activations of predicted masks."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dcnzoo.ops.mask_softmax import softmax_of_taps


class ScaledMask(nn.Module):
    """Base of the activations of masks, which multiply their result by a factor.

    The factor is a buffer, so that it is saved with the weights of the layer, whose values depend on it.
    :mod:`dcnzoo.layers.state_dicts` reads it. A factor of 1 costs nothing: its buffer is None.

    Attributes:
        key: name of the buffer. Each activation has its own, so that the other's weights do not load.
    """

    if TYPE_CHECKING:  # for type checkers only: TorchScript must not see these annotations
        key: str
        scale: Tensor | None
        softmax_scale: Tensor | None

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self._initial_scale = float(scale)
        self.register_buffer(self.key, None if scale == 1 else torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for scale in self.buffers():
            scale.fill_(self._initial_scale)

    def extra_repr(self) -> str:
        return f"scale={next(self.buffers(), 1.0)}"


class MaskSigmoid(ScaledMask):
    """``scale · sigmoid(mask)``. With a scale of 2, a prediction of zero gives a mask of exactly one."""

    key = "scale"

    def forward(self, mask: Tensor) -> Tensor:
        factors = mask.sigmoid()
        return factors if self.scale is None else self.scale * factors


class MaskSoftmax(ScaledMask):
    """``scale ·`` softmax over the ``taps`` of each mask group, as in DCNv3 (Wang et al. 2023)."""

    key = "softmax_scale"

    def __init__(self, taps: int, scale: float = 1.0) -> None:
        super().__init__(scale)
        self.taps = taps

    def forward(self, mask: Tensor) -> Tensor:  # [N, mask_groups · taps, *out]
        factors = softmax_of_taps("MaskSoftmax", mask, self.taps)
        return factors if self.softmax_scale is None else self.softmax_scale * factors

    def extra_repr(self) -> str:
        return f"{self.taps}, {super().extra_repr()}"
