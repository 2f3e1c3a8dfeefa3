"""Layers of deformable RoI pooling, with mmcv's arguments, parameters and initial values."""

import itertools
from typing import cast

from torch import Tensor, nn

from dcnzoo.layers.base import call_as_leaf, integer, integers
from dcnzoo.layers.offsets import OffsetLinear
from dcnzoo.ops import deform_roi_pool


class DeformRoIPool(nn.Module):
    """Deformable RoI pooling that takes offsets as an input.

    ``forward(input, rois, offset=None)`` with ``input`` ``(N, C, H, W)``, ``rois`` ``(K, 5)`` and
    ``offset`` ``(K, 2, oH, oW)``, x first, returns ``(K, C, oH, oW)``. See
    :func:`dcnzoo.ops.deform_roi_pool` for the arguments and the errors raised.
    """

    __call__ = call_as_leaf

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        self.output_size = cast(tuple[int, int], integers(self, "output_size", output_size, 2))
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.gamma = float(gamma)

    def forward(self, input: Tensor, rois: Tensor, offset: Tensor | None = None) -> Tensor:
        return self._pool(input, rois, offset)

    def _pool(self, input: Tensor, rois: Tensor, offset: Tensor | None) -> Tensor:
        return deform_roi_pool(
            input, rois, offset, self.output_size, self.spatial_scale, self.sampling_ratio, self.gamma
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, gamma={self.gamma}"
        )


class DeformRoIPoolPack(DeformRoIPool):
    """Deformable RoI pooling that predicts its own offsets (Dai et al. 2017, fig. 3).

    It pools the bins without offsets, predicts offsets from the result with three fully connected layers
    (``offset_fc``), and pools the displaced bins. The last layer starts at zero, and so do the offsets.

    Args:
        output_size, spatial_scale, sampling_ratio, gamma: as in :func:`dcnzoo.ops.deform_roi_pool`.
        output_channels: channels of the input and of the output.
        deform_fc_channels: width of the fully connected layers.

    ``forward(input, rois)`` with ``input`` ``(N, output_channels, H, W)`` and ``rois`` ``(K, 5)`` returns
    ``(K, output_channels, oH, oW)``.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling_ratio, gamma)
        self.output_channels = integer(self, "output_channels", output_channels)
        self.deform_fc_channels = integer(self, "deform_fc_channels", deform_fc_channels)
        self.bins = self.output_size[0] * self.output_size[1]
        self._add_branches()

    def _add_branches(self) -> None:
        width = self.deform_fc_channels
        self.offset_fc = branch(self.bins * self.output_channels, width, width, self.bins * 2)

    # no offset argument: the layer predicts the offset itself
    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # type: ignore[override]
        pooled = self._pool(input, rois, None).flatten(1)
        return self._pool(input, rois, self._predict_offset(pooled))

    def _predict_offset(self, pooled: Tensor) -> Tensor:  # [K, C · oH · oW] -> [K, 2, oH, oW]
        return self.offset_fc(pooled).unflatten(1, (2, self.output_size[0], self.output_size[1]))


class ModulatedDeformRoIPoolPack(DeformRoIPoolPack):
    """:class:`DeformRoIPoolPack` that also predicts a mask (Zhu et al. 2019, eq. 2).

    A second branch, ``mask_fc``, predicts a factor between 0 and 1 for each bin. All factors start at 0.5.
    """

    def _add_branches(self) -> None:
        super()._add_branches()
        widths = (self.bins * self.output_channels, self.deform_fc_channels, self.bins)
        self.mask_fc = branch(*widths).append(nn.Sigmoid())

    # no offset argument: the layer predicts the offset itself
    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # type: ignore[override]
        pooled = self._pool(input, rois, None).flatten(1)
        mask = self.mask_fc(pooled).unflatten(1, (1, self.output_size[0], self.output_size[1]))
        return self._pool(input, rois, self._predict_offset(pooled)) * mask


def branch(*widths: int) -> nn.Sequential:
    """Return fully connected layers, with a ReLU after each but the last, which starts at zero."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    last = OffsetLinear(widths[-2], widths[-1])
    nn.Linear.reset_parameters(last)  # draws mmcv's random numbers: the same seed gives the same network
    last.reset_parameters()
    return nn.Sequential(*layers, last)
