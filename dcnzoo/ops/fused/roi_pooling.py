"""RoIAlign (the average) and deformable RoI pooling in Triton: kernels and plans.

The arithmetic is that of ops/common/roi_math.h. Maps are channels last. A program handles BLOCK_M bins of one
RoI; bins and samples that lie off the map are skipped, because a RoI far larger than the map has too many.
``MOVED``: an offset moves each bin.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .deform_conv import from_channels_last, to_channels_last
from .kernels import index_of
from .launch import Launch

BLOCK_M, BLOCK_C = 8, 64
SIZES = ("batch", "channels", "height", "width", "output_h", "output_w", "ratio")


@triton.jit
def is_finite(value):
    # not value - value == 0: if value is a product, Triton fuses this to the product's rounding error
    return tl.abs(value) < float("inf")  # false for NaN


@triton.jit
def axis_of(low, high, scale, gamma, bins, ratio, ALIGNED: tl.constexpr, MOVED: tl.constexpr):
    """Return a RoI's start along an axis, length of a bin, samples per bin (0 if the RoI is not finite or too
    large), and how far an offset of 1 moves a bin."""
    shift = 0.5 if ALIGNED else 0.0
    start = low * scale - shift
    length = high * scale - shift - start
    reach = gamma * length
    if not ALIGNED:
        length = tl.where(length < 1, 1.0, length)
    bin = length / bins
    samples = tl.where(ratio > 0, ratio.to(tl.float32), tl.ceil(bin))
    valid = is_finite(start) & is_finite(bin) & (samples > 0) & (samples <= 4194304)
    if MOVED:
        valid = valid & is_finite(reach)
    return start, bin, tl.where(valid, samples, 0.0).to(tl.int32), reach


@triton.jit
def bins_of(start, bin, samples, number, size):
    """Return the bins along an axis: start, length, samples per bin, number, and the samples [begin, end)
    that may lie on the map, with at most two others at each end."""
    valid = (samples > 0) & is_finite(start)
    count = tl.maximum(samples, 1).to(tl.float32)
    step = bin / count
    origin = tl.where(valid, start, 0.0) + number * bin
    per_step = 1 / tl.where(step > 0, step, 1.0)
    begin = tl.floor((-1 - origin) * per_step - 0.5) - 1
    end = tl.ceil((size - origin) * per_step - 0.5) + 2
    begin = tl.where(step > 0, tl.minimum(tl.maximum(begin, 0.0), count), 0.0)
    end = tl.where(step > 0, tl.minimum(tl.maximum(end, 0.0), count), count)
    begin, end = tl.where(valid, begin, 0.0).to(tl.int32), tl.where(valid, end, 0.0).to(tl.int32)
    return start, bin, samples, number, begin, end


@triton.jit
def samples_of(bins):
    """Return the largest number of samples of a bin."""
    _, _, _, _, begin, end = bins
    return tl.max(end - begin, 0)


@triton.jit
def sample_of(bins, i, size):
    """Return the low one of the two pixels beside a sample, the weight of the high one, whether the sample is
    on the map, and whether it reads two pixels."""
    start, bin, samples, number, begin, end = bins
    sample = begin + i
    at = start + number * bin + (sample.to(tl.float32) + 0.5) * bin / tl.maximum(samples, 1).to(tl.float32)
    on_map = (sample < end) & (at >= -1) & (at <= size)  # false for NaN
    at = tl.where(on_map, at, 0.0)
    two = on_map & (at >= 0) & (at < size - 1)
    low = tl.minimum(tl.maximum(tl.floor(at), 0.0), size - 1.0)
    return low.to(tl.int32), tl.where(two, at - low, 0.0), on_map, two


@triton.jit
def region_of(
    rois, offset, batch, height, width, output_h, output_w, scale, ratio, gamma,
    ALIGNED: tl.constexpr, MOVED: tl.constexpr, USE_INT64: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Return a program's RoI, its image's first pixel, bins, samples per bin, and reach and bins of axes."""
    bins = output_h * output_w
    tiles = tl.cdiv(bins, BLOCK_M)
    roi = index_of(tl.program_id(0) // tiles, USE_INT64)
    m = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    image = tl.load(rois + 5 * roi)
    on_batch = (image >= 0) & (image < batch)  # false for NaN. If false, the RoI gives zeros
    image = index_of(tl.where(on_batch, image, 0.0).to(tl.int32), USE_INT64)
    x1, y1 = tl.load(rois + 5 * roi + 1), tl.load(rois + 5 * roi + 2)
    x2, y2 = tl.load(rois + 5 * roi + 3), tl.load(rois + 5 * roi + 4)
    y, y_bin, y_samples, y_reach = axis_of(y1, y2, scale, gamma, output_h, ratio, ALIGNED, MOVED)
    x, x_bin, x_samples, x_reach = axis_of(x1, x2, scale, gamma, output_w, ratio, ALIGNED, MOVED)
    y_start, x_start = tl.zeros((BLOCK_M,), tl.float32) + y, tl.zeros((BLOCK_M,), tl.float32) + x
    if MOVED:
        at = offset + 2 * roi * bins + m
        x_start += x_reach * tl.load(at, mask=m < bins, other=0.0)
        y_start += y_reach * tl.load(at + bins, mask=m < bins, other=0.0)
    some = (m < bins) & (tl.where(on_batch, tl.minimum(y_samples, x_samples), 0) > 0)
    y_samples, x_samples = tl.where(some, y_samples, 0), tl.where(some, x_samples, 0)
    y_number, x_number = (m // output_w).to(tl.float32), (m % output_w).to(tl.float32)
    count = tl.maximum(y_samples.to(tl.float32) * x_samples.to(tl.float32), 1.0)
    return (
        roi, image * height * width, m, m < bins, count, y_reach, x_reach,
        bins_of(y_start, y_bin, y_samples, y_number, height),
        bins_of(x_start, x_bin, x_samples, x_number, width),
    )  # fmt: skip


# not corner and spread of kernels.py: with them, the backward spills registers on sm_100
@triton.jit
def pixel_of(input, pixel, channels, c, read):
    read = read[:, None] & (c < channels)[None, :]
    return tl.load(input + (pixel * channels)[:, None] + c[None, :], mask=read, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    input,  # [N, H, W, C]
    rois,  # [K, 5], float32
    offset,  # [K, 2, oH, oW], float32
    output,  # [K, C, oH, oW]
    batch, channels, height, width, output_h, output_w, scale, ratio, gamma,
    ALIGNED: tl.constexpr, MOVED: tl.constexpr, USE_INT64: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    roi, first, m, exists, count, _, _, y_bins, x_bins = region_of(
        rois, offset, batch, height, width, output_h, output_w, scale, ratio, gamma,
        ALIGNED, MOVED, USE_INT64, BLOCK_M,
    )  # fmt: skip
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    columns = samples_of(x_bins)
    for iy in range(samples_of(y_bins)):
        row, ly, on_y, two_y = sample_of(y_bins, iy, height)
        for ix in range(columns):
            column, lx, on_x, two_x = sample_of(x_bins, ix, width)
            pixel = first + row * width + column
            on_map = on_y & on_x
            value = pixel_of(input, pixel, channels, c, on_map) * ((1 - ly) * (1 - lx))[:, None]
            value += pixel_of(input, pixel + 1, channels, c, on_map & two_x) * ((1 - ly) * lx)[:, None]
            value += pixel_of(input, pixel + width, channels, c, on_map & two_y) * (ly * (1 - lx))[:, None]
            both = on_map & two_y & two_x
            value += pixel_of(input, pixel + width + 1, channels, c, both) * (ly * lx)[:, None]
            total += value
    places = (roi * channels + c) * (output_h * output_w)
    written = exists[:, None] & (c < channels)[None, :]
    average = total / count[:, None]
    tl.store(output + places[None, :] + m[:, None], average.to(output.dtype.element_ty), mask=written)


@triton.jit
def spread(grad_input, pixel, channels, c, share, read):
    read = read[:, None] & (c < channels)[None, :]
    # atomic: RoIs overlap, and so do the samples of neighbouring bins
    tl.atomic_add(grad_input + (pixel * channels)[:, None] + c[None, :], share, mask=read, sem="relaxed")


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    grad_output,  # [K, C, oH, oW]
    input, rois, offset,
    grad_input,  # [N, H, W, C], float32
    grad_offset,  # like offset
    batch, channels, height, width, output_h, output_w, scale, ratio, gamma,
    WANT_INPUT: tl.constexpr, WANT_OFFSET: tl.constexpr,
    ALIGNED: tl.constexpr, MOVED: tl.constexpr, USE_INT64: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program goes through all channels, so that it adds up the gradients of offsets in a fixed order."""
    roi, first, m, exists, count, y_reach, x_reach, y_bins, x_bins = region_of(
        rois, offset, batch, height, width, output_h, output_w, scale, ratio, gamma,
        ALIGNED, MOVED, USE_INT64, BLOCK_M,
    )  # fmt: skip
    bins = output_h * output_w
    of_y, of_x = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    columns = samples_of(x_bins)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        read = exists[:, None] & (c < channels)[None, :]
        places = (roi * channels + c)[None, :] * bins + m[:, None]
        gradient = tl.load(grad_output + places, mask=read, other=0.0).to(tl.float32)
        average = gradient / count[:, None]
        slope_y = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        slope_x = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        # a bin none of whose samples reads two pixels does not move: an Inf gradient must not give NaN
        moves_y, moves_x = tl.zeros((BLOCK_M,), tl.int32), tl.zeros((BLOCK_M,), tl.int32)
        for iy in range(samples_of(y_bins)):
            row, ly, on_y, two_y = sample_of(y_bins, iy, height)
            for ix in range(columns):
                column, lx, on_x, two_x = sample_of(x_bins, ix, width)
                pixel = first + row * width + column
                on_map = on_y & on_x
                right, below, both = on_map & two_x, on_map & two_y, on_map & two_x & two_y
                if WANT_INPUT:
                    share = average * ((1 - ly) * (1 - lx))[:, None]
                    spread(grad_input, pixel, channels, c, share, on_map)
                    spread(grad_input, pixel + 1, channels, c, average * ((1 - ly) * lx)[:, None], right)
                    spread(grad_input, pixel + width, channels, c, average * (ly * (1 - lx))[:, None], below)
                    spread(grad_input, pixel + width + 1, channels, c, average * (ly * lx)[:, None], both)
                if WANT_OFFSET:
                    v00 = pixel_of(input, pixel, channels, c, on_map)
                    v01 = pixel_of(input, pixel + 1, channels, c, right)
                    v10 = pixel_of(input, pixel + width, channels, c, below)
                    v11 = pixel_of(input, pixel + width + 1, channels, c, both)
                    along = (v01 - v00) * (1 - ly)[:, None]
                    along = tl.where(both[:, None], along + (v11 - v10) * ly[:, None], along)
                    slope_x += tl.where(right[:, None], along, 0.0)
                    along = (v10 - v00) * (1 - lx)[:, None]
                    along = tl.where(both[:, None], along + (v11 - v01) * lx[:, None], along)
                    slope_y += tl.where(below[:, None], along, 0.0)
                    moves_x |= right.to(tl.int32)
                    moves_y |= below.to(tl.int32)
        if WANT_OFFSET:
            moved = (tl.where(y_reach != 0, moves_y, 0) > 0)[:, None]
            of_y += tl.sum(tl.where(moved, gradient * slope_y, 0.0), 1)
            moved = (tl.where(x_reach != 0, moves_x, 0) > 0)[:, None]
            of_x += tl.sum(tl.where(moved, gradient * slope_x, 0.0), 1)
    if WANT_OFFSET:
        at = grad_offset + 2 * roi * bins + m
        tl.store(at, tl.where(of_x == 0, 0.0, of_x * (x_reach / count)), mask=exists)
        tl.store(at + bins, tl.where(of_y == 0, 0.0, of_y * (y_reach / count)), mask=exists)


def _launch(kernel: Any, call: Any, size: Sequence[int], bins: Sequence[int], **wanted: bool) -> Callable:
    """Prepare a launch for maps of this size, ``(N, C, H, W)``. Calls without ``offset`` are RoIAlign's."""
    batch, channels, height, width = size
    is_moved = "offset" in call._fields
    arguments = {
        "batch": batch, "channels": channels, "height": height, "width": width,
        "output_h": bins[0], "output_w": bins[1],
        "scale": call.spatial_scale, "ratio": max(call.sampling_ratio, 0),
        "gamma": call.gamma if is_moved else 0.0, "ALIGNED": is_moved or call.aligned, "MOVED": is_moved,
        "BLOCK_M": BLOCK_M, "BLOCK_C": BLOCK_C, **wanted,
    }  # fmt: skip
    launch, tiles = Launch(kernel, arguments, rows=True), triton.cdiv(math.prod(bins), BLOCK_M)
    blocks = triton.cdiv(channels, BLOCK_C) if kernel is forward_kernel else 1

    def run(call: Any, tensors: dict[str, Tensor]) -> None:
        tensors["rois"] = call.rois.float().contiguous()
        if is_moved:
            tensors["offset"] = call.offset.float().contiguous()
        launch(len(call.rois) * tiles, tensors, blocks)

    return run


def forward(call: Any) -> Callable[[Any], Tensor]:
    """Return the plan of the pooled maps."""
    shape = (call.input.shape[1], call.output_h, call.output_w)
    launch = _launch(forward_kernel, call, call.input.shape, shape[1:])
    to_last = to_channels_last(call.input)

    def run(call: Any) -> Tensor:
        output = call.input.new_empty((len(call.rois), *shape))
        launch(call, {"input": to_last(call.input), "output": output})
        return output

    return run


def backward(call: Any) -> Callable[[Any], Tensor | tuple[Tensor, ...]]:
    """Return the plan of the gradients of input and offset, which are empty if they are not needed."""
    is_moved = "offset" in call._fields
    size = call.input.shape if is_moved else tuple(call.input_size)
    want_input, want_offset = call.output_mask if is_moved else (True, False)
    bins, wanted = call.grad_output.shape[2:], {"WANT_INPUT": want_input, "WANT_OFFSET": want_offset}
    launch = _launch(backward_kernel, call, size, bins, **wanted)
    from_last = from_channels_last(size, call.grad_output.new_empty(0, 0, 0, 0))
    to_last = to_channels_last(call.input if is_moved else call.grad_output)
    new = partial(torch.empty, dtype=torch.float32, device=call.grad_output.device)

    def run(call: Any) -> Tensor | tuple[Tensor, ...]:
        tensors, grad_output = {"grad_output": call.grad_output.contiguous()}, call.grad_output
        of_input = grad_output.new_empty(0)
        if want_input:
            tensors["grad_input"] = new(size, memory_format=torch.channels_last).zero_()
        if want_offset:
            tensors |= {"input": to_last(call.input), "grad_offset": new(call.offset.shape).zero_()}
        launch(call, tensors)
        if want_input:
            of_input = from_last(tensors["grad_input"])
        if not is_moved:
            return of_input
        of_offset = tensors["grad_offset"] if want_offset else call.offset.new_empty(0)
        return of_input, of_offset.to(call.offset.dtype)

    return run
