"""Triton kernels of 2-D deformable convolution: implicit matrix products, without columns in memory.

Maps are channels last. ``q`` is the index of an output pixel over all images, ``[N · oH · oW]``. A *slice* is
the channels with the same offset group, mask group and convolution group, and so with the same sampling
points. A sampling point is computed once per tap, slice and pixel, for all channels of the slice.

Sizes are arguments, not constants: one binary serves all shapes with the same divisibility. ``WIDE`` computes
indices in 64 bits, from the first factor on. ``WHOLE`` means that the blocks divide the channels, so that
loads and stores need no channel mask. ``UPCAST`` is for Triton's interpreter, whose ``tl.dot`` of bfloat16 is
wrong.
"""

import triton
import triton.language as tl

# Not specialised on divisibility by 16: vector loads depend only on the numbers of channels.
SIZES = (
    "pixels", "out_pixels", "out_w", "height", "width", "stride_y", "stride_x", "padding_y", "padding_x",
    "dilation_y", "dilation_x", "taps", "kernel_w", "offset_image", "mask_image", "group_slices",
    "offset_slices", "mask_slices", "offset_channel", "mask_channel", "tiles", "blocks", "splits",
)  # fmt: skip


@triton.jit
def pixels_of(block, pixels, out_pixels, out_w, WIDE: tl.constexpr, BM: tl.constexpr):
    """Indices of a block of output pixels: ``(q, live, image, pixel, y, x)``. ``live``: the pixel exists."""
    if WIDE:
        block = tl.cast(block, tl.int64)
    q = block * BM + tl.arange(0, BM)
    image = q // out_pixels
    pixel = q % out_pixels
    return q, q < pixels, image, pixel, pixel // out_w, pixel % out_w


@triton.jit
def index_of(value, WIDE: tl.constexpr):
    """``value`` as the first factor of an index: in 64 bits with ``WIDE``."""
    return tl.cast(value, tl.int64) if WIDE else value


@triton.jit
def sampling_plan(
    offset, mask, image, pixel, y, x, live, tap, slice, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, taps, kernel_w,
    offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel,
    offset_slices, mask_slices,
    HAS_OFFSET: tl.constexpr, HAS_MASK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tap's sampling points: ``(low corner's index, y and x fractions, mask, validity of 4 corners)``."""
    at_y = (y * stride_y - padding_y + tap // kernel_w * dilation_y).to(tl.float32)
    at_x = (x * stride_x - padding_x + tap % kernel_w * dilation_x).to(tl.float32)
    if HAS_OFFSET:
        channel = index_of((slice // offset_slices * taps + tap) * 2, WIDE)
        place = offset + image * offset_image + channel * offset_channel + pixel * offset_pixel
        at_y += tl.load(place, mask=live, other=0.0).to(tl.float32)
        at_x += tl.load(place + offset_channel, mask=live, other=0.0).to(tl.float32)
    factor = tl.full(at_y.shape, 1.0, tl.float32)
    if HAS_MASK:
        channel = index_of(slice // mask_slices * taps + tap, WIDE)
        place = mask + image * mask_image + channel * mask_channel + pixel * mask_pixel
        factor = tl.load(place, mask=live, other=0.0).to(tl.float32)
    inside = live & (at_y > -1) & (at_y < height) & (at_x > -1) & (at_x < width)  # false for NaN
    at_y = tl.where(inside, at_y, 0.0)  # before the cast: NaN has no integer
    at_x = tl.where(inside, at_x, 0.0)
    low_y = tl.floor(at_y)
    low_x = tl.floor(at_x)
    y0 = low_y.to(tl.int32)
    x0 = low_x.to(tl.int32)
    top = inside & (y0 >= 0)
    bottom = inside & (y0 + 1 < height)
    left = x0 >= 0
    right = x0 + 1 < width
    low = (image * height + y0) * width + x0
    return (
        low, at_y - low_y, at_x - low_x, factor,
        top & left, top & right, bottom & left, bottom & right,
    )  # fmt: skip


@triton.jit
def corner(input, low, step, channels, c, valid, in_slice, WHOLE: tl.constexpr):
    """Values of the pixels ``step`` after ``low``, ``[BM, channels]``, float32; zero where not ``valid``."""
    places = input + ((low + step) * channels)[:, None] + c[None, :]
    if WHOLE:
        return tl.load(places, mask=valid[:, None], other=0.0).to(tl.float32)
    return tl.load(places, mask=valid[:, None] & in_slice[None, :], other=0.0).to(tl.float32)


@triton.jit
def samples(
    input, low, ly, lx, factor, v00, v01, v10, v11, width, channels, c, in_slice, WHOLE: tl.constexpr
):
    """Bilinear samples times the mask, ``[BM, channels]``."""
    result = corner(input, low, 0, channels, c, v00, in_slice, WHOLE) * ((1 - ly) * (1 - lx))[:, None]
    result += corner(input, low, 1, channels, c, v01, in_slice, WHOLE) * ((1 - ly) * lx)[:, None]
    result += corner(input, low, width, channels, c, v10, in_slice, WHOLE) * (ly * (1 - lx))[:, None]
    result += corner(input, low, width + 1, channels, c, v11, in_slice, WHOLE) * (ly * lx)[:, None]
    result *= factor[:, None]
    # An Inf factor turns the zeros beyond the slice's channels into NaN, and the product sums over them too.
    return result if WHOLE else tl.where(in_slice[None, :], result, 0.0)


@triton.jit
def product(a, b, sum, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sum, input_precision="ieee")
    return tl.dot(a, b, sum, input_precision=PRECISION)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    input,  # [N, H, W, C]
    offset, mask,
    weight,  # [taps, O, C / groups]
    bias, output,
    pixels, out_pixels, out_w, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, taps, kernel_w,
    offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel,
    output_image, output_channel, output_pixel,
    channels, group_channels, outputs, group_outputs, slice_channels,
    group_slices, offset_slices, mask_slices, tiles,
    HAS_OFFSET: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, WIDE: tl.constexpr,
    WHOLE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program computes BM output pixels by BN channels; ``tiles`` programs cover a group's channels."""
    program = tl.program_id(0)
    groups = outputs // group_outputs
    group = program % (groups * tiles) // tiles
    block = program // (groups * tiles)  # programs that read the same points are neighbours
    _, live, image, pixel, y, x = pixels_of(block, pixels, out_pixels, out_w, WIDE, BM)
    inner = program % tiles * BN + tl.arange(0, BN)
    o = group * group_outputs + inner
    sum = tl.zeros((BM, BN), tl.float32)
    for step in range(taps * group_slices):
        tap = step // group_slices
        part = step % group_slices
        slice = group * group_slices + part
        low, ly, lx, factor, v00, v01, v10, v11 = sampling_plan(
            offset, mask, image, pixel, y, x, live, tap, slice, height, width,
            stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, taps, kernel_w,
            offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel,
            offset_slices, mask_slices, HAS_OFFSET, HAS_MASK, WIDE,
        )  # fmt: skip
        for first in range(0, slice_channels, BK):
            inside = first + tl.arange(0, BK)
            in_slice = inside < slice_channels
            a = samples(
                input, low, ly, lx, factor, v00, v01, v10, v11, width, channels,
                slice * slice_channels + inside, in_slice, WHOLE,
            )  # fmt: skip
            rows = weight + index_of(tap * outputs + o, WIDE)[None, :] * group_channels
            places = rows + (part * slice_channels + inside)[:, None]
            if WHOLE:
                b = tl.load(places)
            else:
                b = tl.load(places, mask=in_slice[:, None] & (inner < group_outputs)[None, :], other=0.0)
            sum = product(a.to(b.dtype), b, sum, UPCAST, PRECISION)
    written = live[:, None]
    if not WHOLE:
        written = written & (inner < group_outputs)[None, :]
    if HAS_BIAS:
        sum += tl.load(bias + o, mask=inner < group_outputs, other=0.0).to(tl.float32)[None, :]
    places = (image * output_image + pixel * output_pixel)[:, None]
    places += (index_of(o, WIDE) * output_channel)[None, :]
    tl.store(output + places, sum.to(output.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=SIZES)
def grad_weight_kernel(
    input,  # [N, H, W, C]
    offset, mask,
    grad_output,  # [N, oH, oW, O]
    partial,  # [splits, taps, C / groups, O]
    pixels, out_pixels, out_w, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, taps, kernel_w,
    offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel,
    channels, group_channels, outputs, group_outputs, slice_channels,
    group_slices, offset_slices, mask_slices, tiles, blocks, splits,
    HAS_OFFSET: tl.constexpr, HAS_MASK: tl.constexpr, WIDE: tl.constexpr,
    WHOLE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program computes BN input by BK output channels of a tap, from every ``splits``-th block of pixels.

    It recomputes the samples. The caller adds up the splits in a fixed order, without atomic additions.
    """
    split = tl.program_id(0) % splits
    program = tl.program_id(0) // splits
    slices = channels // slice_channels
    slice_tiles = tl.cdiv(slice_channels, BN)
    inner = program % tiles * BK + tl.arange(0, BK)
    program = program // tiles
    inside = program % slice_tiles * BN + tl.arange(0, BN)
    program = program // slice_tiles
    slice = program % slices
    tap = program // slices
    o = slice // group_slices * group_outputs + inner
    in_slice = inside < slice_channels
    in_group = inner < group_outputs
    sum = tl.zeros((BN, BK), tl.float32)
    for block in range(split, blocks, splits):
        q, live, image, pixel, y, x = pixels_of(block, pixels, out_pixels, out_w, WIDE, BM)
        low, ly, lx, factor, v00, v01, v10, v11 = sampling_plan(
            offset, mask, image, pixel, y, x, live, tap, slice, height, width,
            stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, taps, kernel_w,
            offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel,
            offset_slices, mask_slices, HAS_OFFSET, HAS_MASK, WIDE,
        )  # fmt: skip
        a = samples(
            input, low, ly, lx, factor, v00, v01, v10, v11, width, channels,
            slice * slice_channels + inside, in_slice, WHOLE,
        )  # fmt: skip
        read = live[:, None]
        if not WHOLE:
            read = read & in_group[None, :]
        g = tl.load(grad_output + (q * outputs)[:, None] + o[None, :], mask=read, other=0.0)
        sum = product(tl.trans(a.to(g.dtype)), g, sum, UPCAST, PRECISION)
    c = slice % group_slices * slice_channels + inside
    places = (((index_of(split, WIDE) * taps + tap) * group_channels + c) * outputs)[:, None] + o[None, :]
    tl.store(partial + places, sum, mask=in_slice[:, None] & in_group[None, :])


@triton.jit
def read_and_spread(
    input, grad_input, low, step, share, factor, valid, channels, c, in_slice, gradient,
    WANT_INPUT: tl.constexpr, WANT_FIELDS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Add a corner's share of ``gradient`` to ``grad_input``. Return ``gradient`` · the corner's values."""
    dot = tl.zeros(share.shape, tl.float32)
    if WANT_FIELDS:
        dot = tl.sum(gradient * corner(input, low, step, channels, c, valid, in_slice, WHOLE), 1)
        dot = tl.where(valid, dot, 0.0)
    if WANT_INPUT:
        places = grad_input + ((low + step) * channels)[:, None] + c[None, :]
        added = valid[:, None]
        if not WHOLE:
            added = added & in_slice[None, :]
        # atomic: neighbouring taps and pixels read the same input. relaxed: no other access depends on them
        tl.atomic_add(places, gradient * (share * factor)[:, None], mask=added, sem="relaxed")
    return dot


@triton.jit(do_not_specialize=SIZES)
def grad_samples_kernel(
    input,  # [N, H, W, C]
    offset, mask,
    weight,  # [taps, C / groups, O]
    grad_output,  # [N, oH, oW, O]
    grad_input,  # [N, H, W, C], float32
    grad_offset,  # [N, slices · taps · 2, oH, oW]
    grad_mask,  # [N, slices · taps, oH, oW]
    pixels, out_pixels, out_w, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, taps, kernel_w,
    offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel,
    channels, group_channels, outputs, group_outputs, slice_channels,
    group_slices, offset_slices, mask_slices,
    HAS_OFFSET: tl.constexpr, HAS_MASK: tl.constexpr, WANT_INPUT: tl.constexpr,
    WANT_OFFSET: tl.constexpr, WANT_MASK: tl.constexpr, WIDE: tl.constexpr,
    WHOLE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program handles BM output pixels, one tap and one slice, in blocks of BN channels and BK outputs."""
    slices = channels // slice_channels
    program = tl.program_id(0)
    slice = program % slices
    tap = program // slices % taps
    block = program // slices // taps
    q, live, image, pixel, y, x = pixels_of(block, pixels, out_pixels, out_w, WIDE, BM)
    low, ly, lx, factor, v00, v01, v10, v11 = sampling_plan(
        offset, mask, image, pixel, y, x, live, tap, slice, height, width,
        stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, taps, kernel_w,
        offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel,
        offset_slices, mask_slices, HAS_OFFSET, HAS_MASK, WIDE,
    )  # fmt: skip
    WANT_FIELDS: tl.constexpr = WANT_OFFSET or WANT_MASK
    dot00 = tl.zeros((BM,), tl.float32)  # columns' gradient · values of each corner
    dot01 = tl.zeros((BM,), tl.float32)
    dot10 = tl.zeros((BM,), tl.float32)
    dot11 = tl.zeros((BM,), tl.float32)
    beyond = tl.zeros((BM,), tl.float32)  # the same outside the map: zero, or NaN
    for first in range(0, slice_channels, BN):
        inside = first + tl.arange(0, BN)
        in_slice = inside < slice_channels
        gradient = tl.zeros((BM, BN), tl.float32)  # of the columns, before the mask
        for start in range(0, group_outputs, BK):
            inner = start + tl.arange(0, BK)
            o = slice // group_slices * group_outputs + inner
            row = tap * group_channels + slice % group_slices * slice_channels + inside
            places = weight + (index_of(row, WIDE) * outputs)[None, :] + o[:, None]
            read = live[:, None]
            if WHOLE:
                w = tl.load(places)
            else:
                in_group = inner < group_outputs
                read = read & in_group[None, :]
                w = tl.load(places, mask=in_slice[None, :] & in_group[:, None], other=0.0)
            g = tl.load(grad_output + (q * outputs)[:, None] + o[None, :], mask=read, other=0.0)
            gradient = product(g, w, gradient, UPCAST, PRECISION)
        c = slice * slice_channels + inside
        if WANT_MASK:
            beyond += tl.sum(gradient * 0.0, 1)
        dot00 += read_and_spread(
            input, grad_input, low, 0, (1 - ly) * (1 - lx), factor, v00, channels, c, in_slice, gradient,
            WANT_INPUT, WANT_FIELDS, WHOLE,
        )  # fmt: skip
        dot01 += read_and_spread(
            input, grad_input, low, 1, (1 - ly) * lx, factor, v01, channels, c, in_slice, gradient,
            WANT_INPUT, WANT_FIELDS, WHOLE,
        )  # fmt: skip
        dot10 += read_and_spread(
            input, grad_input, low, width, ly * (1 - lx), factor, v10, channels, c, in_slice, gradient,
            WANT_INPUT, WANT_FIELDS, WHOLE,
        )  # fmt: skip
        dot11 += read_and_spread(
            input, grad_input, low, width + 1, ly * lx, factor, v11, channels, c, in_slice, gradient,
            WANT_INPUT, WANT_FIELDS, WHOLE,
        )  # fmt: skip
    field = (image * slices + slice) * taps + tap
    reads = v00 | v01 | v10 | v11
    if WANT_OFFSET:
        of_y = tl.where(reads, factor * ((1 - lx) * (dot10 - dot00) + lx * (dot11 - dot01)), 0.0)
        of_x = tl.where(reads, factor * ((1 - ly) * (dot01 - dot00) + ly * (dot11 - dot10)), 0.0)
        places = grad_offset + field * 2 * out_pixels + pixel
        tl.store(places, of_y.to(grad_offset.dtype.element_ty), mask=live)
        tl.store(places + out_pixels, of_x.to(grad_offset.dtype.element_ty), mask=live)
    if WANT_MASK:
        value = (1 - ly) * ((1 - lx) * dot00 + lx * dot01) + ly * ((1 - lx) * dot10 + lx * dot11)
        value = tl.where(reads, value, beyond)
        tl.store(grad_mask + field * out_pixels + pixel, value.to(grad_mask.dtype.element_ty), mask=live)
