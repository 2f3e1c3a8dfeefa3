"""Box operators as plain loops, the oracles for the compiled kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int = 0) -> list[int]:
    """Greedy suppression, one box at a time, in the dtype of ``boxes``."""
    kept: list[int] = []
    for candidate in scores.sort(stable=True, descending=True).indices.tolist():
        box, others = boxes[candidate], boxes[kept]
        width = torch.minimum(box[2], others[:, 2]) - torch.maximum(box[0], others[:, 0]) + offset
        height = torch.minimum(box[3], others[:, 3]) - torch.maximum(box[1], others[:, 1]) + offset
        inter = width.clamp(min=0) * height.clamp(min=0)
        own, theirs = (
            (b[..., 2] - b[..., 0] + offset) * (b[..., 3] - b[..., 1] + offset) for b in (box, others)
        )
        if not (inter / (theirs + own - inter) > threshold).any():
            kept.append(candidate)
    return kept


def roi_align(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5]
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:  # [K, C, oH, oW]
    """RoIAlign one sample at a time; differentiable in ``input``."""
    bins_y, bins_x = output_size
    outputs = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (c * spatial_scale - 0.5 * aligned for c in corners)
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1), max(width, 1)
        count_y = sampling_ratio if sampling_ratio > 0 else math.ceil(height / bins_y)
        count_x = sampling_ratio if sampling_ratio > 0 else math.ceil(width / bins_x)
        for i in range(bins_y):
            for j in range(bins_x):
                samples = [
                    _bilinear(
                        input[int(image)],
                        y1 + (i + (sample_y + 0.5) / count_y) * height / bins_y,
                        x1 + (j + (sample_x + 0.5) / count_x) * width / bins_x,
                    )
                    for sample_y in range(count_y)
                    for sample_x in range(count_x)
                ] or [input.new_zeros(input.shape[1])]
                stacked = torch.stack(samples)
                outputs.append(stacked.mean(0) if pool_mode == "avg" else stacked.max(0).values)
    shape = (len(rois), bins_y, bins_x, input.shape[1])
    if not outputs:
        return input.new_zeros(shape).permute(0, 3, 1, 2)
    return torch.stack(outputs).view(shape).permute(0, 3, 1, 2)


def deform_roi_pool(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5]
    offset: Tensor,  # [K, 2, oH, oW]
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:  # [K, C, oH, oW]
    """Deformable RoI pooling one sample at a time; differentiable in ``input`` and ``offset``."""
    bins_y, bins_x = output_size
    outputs = []
    for k, (image, *corners) in enumerate(rois.tolist()):
        left, top, right, bottom = (c * spatial_scale - 0.5 for c in corners)
        height, width = bottom - top, right - left
        count_y = sampling_ratio or math.ceil(height / bins_y)
        count_x = sampling_ratio or math.ceil(width / bins_x)
        for i in range(bins_y):
            for j in range(bins_x):
                total = input.new_zeros(input.shape[1])
                for sample_y in range(count_y):
                    for sample_x in range(count_x):
                        y = top + (i + (sample_y + 0.5) / count_y) * height / bins_y
                        x = left + (j + (sample_x + 0.5) / count_x) * width / bins_x
                        y = y + offset[k, 1, i, j] * gamma * height
                        x = x + offset[k, 0, i, j] * gamma * width
                        total = total + _bilinear(input[int(image)], y, x)
                outputs.append(total / max(count_y * count_x, 1))
    shape = (len(rois), bins_y, bins_x, input.shape[1])
    return torch.stack(outputs).view(shape).permute(0, 3, 1, 2)


def _bilinear(maps: Tensor, y: float | Tensor, x: float | Tensor) -> Tensor:  # [C, H, W] -> [C]
    height, width = maps.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return maps.new_zeros(maps.shape[0])
    axes = []  # pixels and weights per axis
    for point, size in ((y, height), (x, width)):
        place = point.item() if isinstance(point, Tensor) else point
        low = math.floor(min(max(place, 0), size - 1))
        between = 0 <= point < size - 1  # otherwise only the border pixel is read
        axes.append([(low, 1 - (point - low)), (low + 1, point - low)] if between else [(low, 1)])
    rows, columns = axes
    return sum(maps[:, row, column] * (wy * wx) for row, wy in rows for column, wx in columns)
