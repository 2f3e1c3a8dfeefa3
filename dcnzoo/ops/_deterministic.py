"""Deterministic gradients for ``torch.use_deterministic_algorithms``, where the kernels add atomically."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from ._arguments import memory_format


def deterministic(tensor: Tensor) -> bool:
    """Whether deterministic algorithms are required on a device whose kernels add atomically."""
    return tensor.device.type not in ("cpu", "meta") and torch.are_deterministic_algorithms_enabled()


def grad_input_in_order(
    grad_output: Tensor,  # [N, O, *out]
    input: Tensor,  # [N, C, *in]
    weight: Tensor,  # [O, C / groups, *kernel]
    offset: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:  # [N, C, *in]
    """The gradient of deformable convolution's input, bitwise identical at every call.

    torch's accumulating ``index_put_`` sorts the target pixels, once for all channels of an offset group, and
    adds the contributions to each pixel in this order. It processes one image at a time, which needs twice
    the memory of the image's columns: 2 · C · taps · pixels values.
    """
    wide = torch.promote_types(input.dtype, torch.float32)
    channels, in_size = input.shape[1], input.shape[2:]
    taps, outputs = math.prod(weight.shape[2:]), weight.shape[0]
    matrices = weight.to(wide).reshape(groups, outputs // groups, channels // groups * taps)
    gradients = torch.empty(
        input.shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input)
    )
    for image in range(input.shape[0]):
        grad = grad_output[image].to(wide).reshape(groups, outputs // groups, -1)
        columns = (matrices.transpose(1, 2) @ grad).reshape(channels, -1)  # [C, taps · pixels]
        if mask is not None:
            factors = mask[image].to(wide).reshape(mask.shape[1] // taps, 1, columns.shape[1])
            columns = (columns.unflatten(0, (len(factors), -1)) * factors).flatten(0, 1)
        shifts = None if offset is None else offset[image : image + 1]
        points = reference.sampling_points(
            shifts, weight.shape[2:], grad_output.shape[2:], stride, padding, dilation, columns
        )[0]  # [G, taps, rank, *out]
        points = points.transpose(1, 2).flatten(3).flatten(2)  # [G, rank, taps · pixels]
        rows = columns.unflatten(0, (len(points), -1)).transpose(1, 2)  # [G, taps · pixels, C / G]
        sums = rows.new_zeros(len(points) * math.prod(in_size), rows.shape[2])
        first = torch.arange(len(points), device=input.device)[:, None] * math.prod(in_size)
        for place, share, valid in reference.corners(points, in_size):
            parts = torch.where(valid[..., None], rows * share[..., None], rows.new_zeros(()))
            sums.index_put_(((first + place).flatten(),), parts.flatten(0, 1), accumulate=True)
        gradients[image] = sums.unflatten(0, (len(points), -1)).transpose(1, 2).reshape(input.shape[1:])
    return gradients


def pooling_grad_input_in_order(
    grad_output: Tensor,  # [K, C, oH, oW]
    input_size: Sequence[int],  # (N, C, H, W)
    rois: Tensor,  # [K, 5]
    offset: Tensor | None,  # [K, 2, oH, oW], x and y
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    gamma: float = 0.0,
) -> Tensor:  # [N, C, H, W]
    """The gradient of the input of average RoI pooling, bitwise identical at every call.

    The weight of a pixel in a bin is the product of a weight per row and a weight per column. A chunk of bins
    at a time, these weights form a matrix (bins, pixels), and a matrix product adds up the gradient. A
    gradient that is not finite therefore spreads to the whole map.
    """
    batch, channels, *size = input_size
    wide = torch.promote_types(grad_output.dtype, torch.float32)
    number, rois = rois[:, 0], rois.to(wide)
    bins = grad_output.shape[2:]
    shift = 0.5 if aligned else 0.0
    axes = []  # of y and x: a bin's origin, length and samples, each [K, oH, oW]
    for axis in range(2):
        start = rois[:, 2 - axis] * spatial_scale - shift
        length = rois[:, 4 - axis] * spatial_scale - shift - start
        if not aligned:
            length = torch.where(length < 1, torch.ones_like(length), length)
        one = (length / bins[axis]).view(-1, 1, 1)
        samples = one.ceil() if sampling_ratio <= 0 else torch.full_like(one, sampling_ratio)
        origin = start.view(-1, 1, 1).expand(-1, *bins)
        if offset is not None:
            reach = gamma * torch.where(length.isfinite(), length, torch.zeros_like(length))
            origin = origin + reach.view(-1, 1, 1) * offset[:, 1 - axis].to(wide)
        valid = origin.isfinite() & one.isfinite() & (samples > 0) & (samples <= reference.MOST_SAMPLES)
        place = torch.arange(bins[axis], device=rois.device, dtype=wide)
        origin = origin + place.view((-1, 1) if axis == 0 else (1, -1)) * one
        values = (origin, one.expand_as(origin), samples.expand_as(origin))
        axes.append([torch.where(valid, value, torch.zeros_like(value)) for value in values])
    count = (axes[0][2] * axes[1][2]).clamp(min=1)
    scaled = (grad_output.to(wide) / count[:, None]).permute(0, 2, 3, 1)  # [K, oH, oW, C]

    images = []
    together = max(_MOST_PLACES // max(math.prod(size), 1), 1)
    for image in range(batch):
        chosen = ((number >= image) & (number < image + 1)).nonzero().flatten()
        gradients = scaled[chosen].flatten(0, 2)  # [bins, C]
        fields = [[value[chosen].flatten() for value in axis] for axis in axes]
        total = scaled.new_zeros(channels, math.prod(size))
        for first in range(0, len(gradients), together):
            part = slice(first, first + together)
            rows, columns = (
                _shares(origin[part], length[part], samples[part], size[i])
                for i, (origin, length, samples) in enumerate(fields)
            )
            places = (rows[:, :, None] * columns[:, None]).flatten(1)  # [bins, H · W]
            total = total + gradients[part].T @ places
        images.append(total.view(channels, *size))
    grad_input = torch.stack(images) if images else scaled.new_zeros(input_size)
    return grad_input.to(grad_output.dtype)


_MOST_PLACES = 1 << 24  # bins · pixels per chunk: 64 MiB of float32


def _shares(origin: Tensor, length: Tensor, samples: Tensor, size: int) -> Tensor:
    """The weight of each pixel along an axis, summed over the samples of each bin: ``(B, size)``.

    Args:
        origin, length: start and length of each bin in pixels, ``(B,)``.
        samples: number of samples of each bin, ``(B,)``.
        size: pixels of the map along the axis.
    """
    pixels = torch.arange(size, device=origin.device, dtype=origin.dtype)
    shares = origin.new_zeros(len(origin), size)
    with torch.no_grad():  # the range of samples that may lie on the map: a bin may have far more
        step = length / samples
        begin = torch.where(step > 0, ((-1 - origin) / step - 0.5).floor() - 1, torch.zeros_like(step))
        end = torch.where(step > 0, ((size - origin) / step - 0.5).ceil() + 2, samples)
        begin = torch.minimum(begin.clamp(min=0), samples)
        most = int((torch.minimum(end, samples) - begin).max()) if len(origin) else 0
    for number in range(most):
        sample = begin + number
        point = origin + (sample + 0.5) * length / samples
        inside = (sample < samples) & (point >= -1) & (point <= size)
        nearby = (1 - (point.clamp(0, size - 1)[:, None] - pixels).abs()).clamp(min=0)
        shares = shares + torch.where(inside[:, None], nearby, torch.zeros_like(nearby))
    return shares
