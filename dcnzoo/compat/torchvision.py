"""torchvision's ``deform_conv2d``, ``DeformConv2d``, ``roi_align`` and ``RoIAlign``, on dcnzoo's operators.

Same arguments in the same order, same layout of offset and mask, same border rule; torchvision is not
needed. ``DeformConv2d`` is dcnzoo's own: its arguments, parameters, initialisation and ``repr`` are
torchvision's.
"""

import torch
from torch import Tensor, nn

from dcnzoo import ops
from dcnzoo.layers import DeformConv2d

__all__ = ["DeformConv2d", "RoIAlign", "deform_conv2d", "roi_align"]


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, G·2·kH·kW, oH, oW], (y, x) pairs, in input pixels
    weight: Tensor,  # [O, C / groups, kH, kW]
    bias: Tensor | None = None,  # [O]
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    mask: Tensor | None = None,  # [N, M·kH·kW, oH, oW]
) -> Tensor:  # [N, O, oH, oW]
    """:func:`dcnzoo.ops.deform_conv2d` with torchvision's arguments.

    ``groups`` is read from the shapes: the channels of ``input`` by those of ``weight``. As there,
    ``stride``, ``padding`` and ``dilation`` may be single integers.

    Raises:
        RuntimeError: a shape, dtype, device or value that does not fit.
    """
    groups = 1  # a wrong number of dimensions is for the operator to report
    if input.dim() == 4 and weight.dim() == 4:
        channels, per_group = input.shape[1], weight.shape[1]
        if per_group == 0 or channels % per_group != 0:
            raise RuntimeError(
                f"deform_conv2d: weight: expected a number of input channels that divides the {channels} "
                f"of input, got {per_group} (torchvision's order is input, offset, weight)"
            )
        groups = channels // per_group
    return ops.deform_conv2d(input, weight, offset, mask, bias, stride, padding, dilation, groups)


def roi_align(
    input: Tensor,  # [N, C, H, W]
    boxes: Tensor | list[Tensor],  # [K, 5], (image, x1, y1, x2, y2), or [L, 4] for each image
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:  # [K, C, oH, oW]
    """:func:`dcnzoo.ops.roi_align` with torchvision's arguments and defaults.

    ``aligned`` is False by default, unlike in mmcv and in :mod:`dcnzoo.ops`: half a pixel aside, and what
    torchvision's detectors were trained with. As there, boxes get no gradient.

    Raises:
        RuntimeError: a shape, dtype, device or value that does not fit.
    """
    if not isinstance(boxes, Tensor):
        boxes = _with_image_numbers(input, list(boxes))
    return ops.roi_align(input, boxes, output_size, spatial_scale, max(sampling_ratio, 0), "avg", aligned)


def _with_image_numbers(input: Tensor, boxes: list[Tensor]) -> Tensor:
    if len(boxes) != input.shape[0]:
        raise RuntimeError(
            f"roi_align: boxes: expected {input.shape[0]} tensors, one for each image, got {len(boxes)}"
        )
    for image, each in enumerate(boxes):
        if each.dim() != 2 or each.shape[1] != 4:
            raise RuntimeError(
                f"roi_align: boxes: expected shape (L, 4) for image {image}, got {tuple(each.shape)}"
            )
    if not boxes:
        return input.new_zeros(0, 5)
    numbered = [torch.cat([each.new_full((len(each), 1), i), each], 1) for i, each in enumerate(boxes)]
    return torch.cat(numbered)


class RoIAlign(nn.Module):
    """``torchvision.ops.RoIAlign``: :func:`roi_align` as a layer, ``forward(input, rois)``."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def extra_repr(self) -> str:
        names = ("output_size", "spatial_scale", "sampling_ratio", "aligned")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
