"""Triton kernels of 2-D deformable convolution: implicit matrix products, without columns in memory.

Maps are channels last. ``q`` is the index of an output pixel over all images, ``[N · oH · oW]``. A *channel
block* is the channels with the same offset group, mask group and convolution group, and so with the same
sampling points. ``points_kernel`` computes the points once, and the other kernels read them again for every
part of the channels. Computing them there would take a sixth of the instructions and spill registers.

Sizes are arguments, not constants: one binary serves all shapes with the same divisibility. ``USE_INT64``
computes indices in 64 bits, from the first factor on. ``EVEN`` means that the blocks divide the channels, so
that loads and stores need no channel mask. ``UPCAST`` is for Triton's interpreter, whose ``tl.dot`` of
bfloat16 is wrong.

In the loops of ``forward_kernel`` and ``grad_weight_kernel``, the samples of the next step are computed after
the product of this step, which does not depend on them. So the tensor cores and the other units work at the
same time. This also leaves the samples out of Triton's pipeline, which would copy the corners past the L1
cache; only the other operand is copied in advance.
"""

import triton
import triton.language as tl

# Not specialised on divisibility by 16: vector loads depend only on the numbers of channels.
SIZES = (
    "pixels", "out_pixels", "out_h", "out_w", "height", "width", "stride_y", "stride_x", "padding_y",
    "padding_x", "dilation_y", "dilation_x", "taps", "kernel_w", "offset_image", "mask_image", "group_blocks",
    "offset_blocks", "mask_blocks", "offset_channel", "mask_channel", "points", "tiles", "steps", "splits",
)  # fmt: skip


@triton.jit
def index_of(value, USE_INT64: tl.constexpr):
    """Return ``value``, the first factor of an index, in 64 bits if ``USE_INT64``."""
    return tl.cast(value, tl.int64) if USE_INT64 else value


@triton.jit(do_not_specialize=("rows", "columns"))
def transpose_kernel(
    source,  # [N, rows, columns]
    result,  # [N, columns, rows], may have another type
    rows, columns,
    USE_INT64: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Change between contiguous and channels-last order. A program copies BLOCK_M rows by BLOCK_N columns.

    torch's own copy takes up to seven times as long: it writes single elements far apart.
    """
    tiles = tl.cdiv(columns, BLOCK_N)
    program = tl.program_id(0)
    column = program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    program = program // tiles
    strips = tl.cdiv(rows, BLOCK_M)
    row = program % strips * BLOCK_M + tl.arange(0, BLOCK_M)
    start = index_of(program // strips, USE_INT64) * rows * columns
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    read = start + index_of(row, USE_INT64)[:, None] * columns + column[None, :]
    values = tl.load(source + read, mask=inside, other=0.0).to(result.dtype.element_ty)
    written = start + index_of(column, USE_INT64)[:, None] * rows + row[None, :]
    tl.store(result + written, tl.trans(values), mask=tl.trans(inside))


@triton.jit
def low_corner(y, x, height, width):
    """Return whether a point is on the map, its upper left pixel, and its distance from that pixel."""
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)  # false for NaN
    y = tl.where(inside, y, 0.0)  # before the cast: NaN has no integer
    x = tl.where(inside, x, 0.0)
    low_y, low_x = tl.floor(y), tl.floor(x)
    return inside, low_y.to(tl.int32), low_x.to(tl.int32), y - low_y, x - low_x


@triton.jit(do_not_specialize=SIZES)
def points_kernel(
    offset, mask,
    corners,  # [blocks, taps, pixels]: 16 · index of the low corner + validity of 4 corners as bits
    factors,  # [3, blocks, taps, pixels]: y fraction, x fraction and mask
    pixels, out_pixels, out_w, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, taps, kernel_w,
    offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel,
    offset_blocks, mask_blocks, points,
    AXES: tl.constexpr, HAS_OFFSET: tl.constexpr, HAS_MASK: tl.constexpr, USE_INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A program computes BLOCK_M sampling points of a tap and a channel block."""
    parts = tl.cdiv(pixels, BLOCK_M)
    q = index_of(tl.program_id(0) % parts, USE_INT64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(0) // parts
    block = row // taps
    tap = row % taps
    exists = q < pixels
    image = q // out_pixels
    pixel = q % out_pixels
    at_y = (pixel // out_w * stride_y - padding_y + tap // kernel_w * dilation_y).to(tl.float32)
    at_x = (pixel % out_w * stride_x - padding_x + tap % kernel_w * dilation_x).to(tl.float32)
    if HAS_OFFSET:
        channel = index_of((block // offset_blocks * taps + tap) * AXES, USE_INT64)
        pointer = offset + image * offset_image + channel * offset_channel + pixel * offset_pixel
        if AXES == 2:
            at_y += tl.load(pointer, mask=exists, other=0.0).to(tl.float32)
            pointer += offset_channel
        at_x += tl.load(pointer, mask=exists, other=0.0).to(tl.float32)
    factor = tl.full(at_y.shape, 1.0, tl.float32)
    if HAS_MASK:
        channel = index_of(block // mask_blocks * taps + tap, USE_INT64)
        pointer = mask + image * mask_image + channel * mask_channel + pixel * mask_pixel
        factor = tl.load(pointer, mask=exists, other=0.0).to(tl.float32)
    inside, y0, x0, ly, lx = low_corner(at_y, at_x, height, width)
    rows = tl.where(y0 >= 0, 3, 0) | tl.where(y0 + 1 < height, 12, 0)
    columns = tl.where(x0 >= 0, 5, 0) | tl.where(x0 + 1 < width, 10, 0)
    low = (image.to(corners.dtype.element_ty) * height + y0) * width + x0
    slot = index_of(row, USE_INT64) * pixels + q
    tl.store(corners + slot, low * 16 + tl.where(inside, rows & columns, 0), mask=exists)
    tl.store(factors + slot, ly, mask=exists)
    tl.store(factors + points + slot, lx, mask=exists)
    tl.store(factors + points + points + slot, factor, mask=exists)  # 2 · points may need 33 bits


@triton.jit
def points_of(corners, factors, slot, exists, points):
    """Return sampling points: ``(low corner's index, y and x fractions, mask, validity of 4 corners)``."""
    packed = tl.load(corners + slot, mask=exists, other=0)
    ly = tl.load(factors + slot, mask=exists, other=0.0)
    lx = tl.load(factors + points + slot, mask=exists, other=0.0)
    factor = tl.load(factors + points + points + slot, mask=exists, other=0.0)
    return (
        packed >> 4, ly, lx, factor,
        (packed & 1) > 0, (packed & 2) > 0, (packed & 4) > 0, (packed & 8) > 0,
    )  # fmt: skip


@triton.jit
def in_bands(number, out_pixels, out_h, out_w):
    """Return the index of an output pixel. The numbers go through bands of 8 rows, column by column.

    A block of numbers is then a nearly square block of pixels, whose samples share cache lines.
    """
    in_image = number % out_pixels
    top = in_image // (8 * out_w) * 8
    rows = tl.minimum(out_h - top, 8)
    in_band = in_image - top * out_w
    return number - in_image + (top + in_band % rows) * out_w + in_band // rows


@triton.jit
def corner(input, low, step, channels, c, valid, in_block, EVEN: tl.constexpr):
    """Return the pixels ``step`` after ``low``, ``[pixels, channels]``; zero where not ``valid``."""
    places = ((low + step) * channels)[:, None] + c[None, :]
    read = valid[:, None] if EVEN else valid[:, None] & in_block[None, :]
    return tl.load(input + places, mask=read, other=0.0).to(tl.float32)


@triton.jit
def spread(grad_input, low, step, channels, c, valid, in_block, share, gradient, EVEN: tl.constexpr):
    """Add a corner's ``share`` of ``gradient`` to the pixels that :func:`corner` reads."""
    places = ((low + step) * channels)[:, None] + c[None, :]
    added = valid[:, None] if EVEN else valid[:, None] & in_block[None, :]
    # atomic: neighbouring points read the same input. relaxed: no other access depends on them, and four
    # channels are then one instruction on sm_90
    tl.atomic_add(grad_input + places, gradient * share[:, None], mask=added, sem="relaxed")


@triton.jit
def point_gradients(ly, lx, inside, v00, v01, v10, v11, dot00, dot01, dot10, dot11):
    """Return the gradients of a point's y and x, without its factor (mask or weight), and of this factor.

    Args:
        v00, v01, v10, v11: whether a corner is on the map.
        dot00, dot01, dot10, dot11: the gradient of the sample · values of each corner.
    """
    beyond = dot00  # for points off the map: the gradient times zero, which is zero or NaN
    # an Inf gradient times the zero of a corner off the map would be NaN
    dot00 = tl.where(v00, dot00, 0.0)
    dot01 = tl.where(v01, dot01, 0.0)
    dot10 = tl.where(v10, dot10, 0.0)
    dot11 = tl.where(v11, dot11, 0.0)
    hy, hx = 1 - ly, 1 - lx
    # computed first: otherwise, the attention kernel spills registers with 256 channels on sm_86
    value = hy * (hx * dot00 + lx * dot01) + ly * (hx * dot10 + lx * dot11)
    of_y = hx * (dot10 - dot00) + lx * (dot11 - dot01)
    of_x = hy * (dot01 - dot00) + ly * (dot11 - dot10)
    return of_y, of_x, tl.where(inside, value, beyond)


@triton.jit
def samples(
    input, corners, factors, slot, exists, points, width, channels, c, in_block,
    USE_INT64: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Return bilinear samples times the mask, ``[pixels, channels]``, in float32."""
    low, ly, lx, factor, v00, v01, v10, v11 = points_of(corners, factors, slot, exists, points)
    low = index_of(low, USE_INT64)
    result = corner(input, low, 0, channels, c, v00, in_block, EVEN) * ((1 - ly) * (1 - lx))[:, None]
    result += corner(input, low, 1, channels, c, v01, in_block, EVEN) * ((1 - ly) * lx)[:, None]
    result += corner(input, low, width, channels, c, v10, in_block, EVEN) * (ly * (1 - lx))[:, None]
    result += corner(input, low, width + 1, channels, c, v11, in_block, EVEN) * (ly * lx)[:, None]
    result *= factor[:, None]  # not per corner: weight zero times an Inf mask would give NaN
    if not EVEN:
        # An Inf mask turns the zeros beyond the block's channels into NaN, which the product would add
        result = tl.where(in_block[None, :], result, 0.0)
    return result


@triton.jit
def loaded(places, read, EVEN: tl.constexpr):
    """Load a block of a matrix. ``EVEN``: all of ``read`` is true."""
    if EVEN:
        return tl.load(places)
    return tl.load(places, mask=read, other=0.0)


@triton.jit
def product(a, b, sum, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sum, input_precision="ieee")
    return tl.dot(a, b, sum, input_precision=PRECISION)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    input,  # [N, H, W, C]
    corners, factors,
    weight,  # [O, taps, C / groups]
    bias, output,
    pixels, out_pixels, out_h, out_w, width, taps, points, output_image, output_channel, output_pixel,
    channels, group_channels, outputs, group_outputs, block_channels, group_blocks, tiles,
    HAS_BIAS: tl.constexpr, USE_INT64: tl.constexpr,
    EVEN: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program computes BLOCK_M output pixels by BLOCK_N channels. ``tiles`` programs cover a group.

    For every BLOCK_K input channels it goes through the taps, whose windows overlap and stay in the L1 cache.
    """
    program = tl.program_id(0)
    groups = outputs // group_outputs
    group = program % (groups * tiles) // tiles
    # programs that read the same points are neighbours
    number = index_of(program // (groups * tiles), USE_INT64) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = number < pixels
    q = in_bands(number, out_pixels, out_h, out_w)
    inner = program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    in_group = inner < group_outputs
    o = group * group_outputs + inner
    k = tl.arange(0, BLOCK_K)
    sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for part in range(group_blocks):
        block = group * group_blocks + part
        c = block * block_channels + k
        in_row = part * block_channels + k
        rows = (index_of(o, USE_INT64) * taps * group_channels)[None, :] + in_row[:, None]
        start = index_of(block * taps, USE_INT64) * pixels
        a = samples(
            input, corners, factors, start + q, exists, points, width, channels, c, k < block_channels,
            USE_INT64, EVEN,
        ).to(input.dtype.element_ty)  # fmt: skip
        tap = 0
        first = 0
        for _ in range(tl.cdiv(block_channels, BLOCK_K) * taps):
            read = (first + k < block_channels)[:, None] & in_group[None, :]
            b = loaded(weight + (tap * group_channels + first) + rows, read, EVEN)
            sum = product(a, b, sum, UPCAST, PRECISION)
            # go to the next step; after the last step, to the first one, whose samples are not used
            tap += 1
            first = tl.where(tap == taps, first + BLOCK_K, first)
            first = tl.where(first < block_channels, first, 0)
            tap = tl.where(tap == taps, 0, tap)
            a = samples(
                input, corners, factors, start + index_of(tap, USE_INT64) * pixels + q, exists, points,
                width, channels, first + c, first + k < block_channels, USE_INT64, EVEN,
            ).to(input.dtype.element_ty)  # fmt: skip
    written = exists[:, None] if EVEN else exists[:, None] & in_group[None, :]
    if HAS_BIAS:
        sum += tl.load(bias + o, mask=in_group, other=0.0).to(tl.float32)[None, :]
    places = (q // out_pixels * output_image + q % out_pixels * output_pixel)[:, None]
    places += (index_of(o, USE_INT64) * output_channel)[None, :]
    tl.store(output + places, sum.to(output.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=SIZES)
def grad_weight_kernel(
    input,  # [N, H, W, C]
    corners, factors,
    grad_output,  # [N, oH, oW, O]
    partial,  # [splits, taps, C / groups, O]
    pixels, width, taps, points,
    channels, group_channels, outputs, group_outputs, block_channels, group_blocks, tiles, steps, splits,
    USE_INT64: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program sums a tap's BLOCK_N input by BLOCK_K output channels over ``steps`` blocks of pixels.

    It recomputes the samples. The caller adds up the splits in a fixed order, without atomic additions.
    """
    split = tl.program_id(0) % splits
    program = tl.program_id(0) // splits
    blocks = channels // block_channels
    block_tiles = tl.cdiv(block_channels, BLOCK_N)
    inner = program % tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    program = program // tiles
    inside = program % block_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    program = program // block_tiles
    block = program % blocks
    tap = program // blocks
    o = block // group_blocks * group_outputs + inner
    c = block * block_channels + inside
    in_block = inside < block_channels
    in_group = inner < group_outputs
    sum = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    slot = index_of(block * taps + tap, USE_INT64) * pixels
    q = index_of(split * steps, USE_INT64) * BLOCK_M + tl.arange(0, BLOCK_M)
    a = samples(
        input, corners, factors, slot + q, q < pixels, points, width, channels, c, in_block, USE_INT64, EVEN
    ).to(input.dtype.element_ty)
    for _ in range(steps):
        read = (q < pixels)[:, None] if EVEN else (q < pixels)[:, None] & in_group[None, :]
        g = tl.load(grad_output + ((q * outputs)[:, None] + o[None, :]), mask=read, other=0.0)
        sum = product(tl.trans(a), g, sum, UPCAST, PRECISION)
        q += BLOCK_M
        a = samples(
            input, corners, factors, slot + q, q < pixels, points, width, channels, c, in_block,
            USE_INT64, EVEN,
        ).to(input.dtype.element_ty)  # fmt: skip
    row = (index_of(split, USE_INT64) * taps + tap) * group_channels
    row += block % group_blocks * block_channels
    places = ((row + inside) * outputs)[:, None] + o[None, :]
    tl.store(partial + places, sum, mask=in_block[:, None] & in_group[None, :])


@triton.jit(do_not_specialize=SIZES)
def depthwise_forward_kernel(
    input,  # [N, H, W, C]
    corners, factors,
    weight,  # [taps, O]
    bias, output,
    pixels, out_pixels, out_h, out_w, width, taps, points, output_image, output_channel, output_pixel,
    channels, outputs, group_outputs, block_channels,
    HAS_BIAS: tl.constexpr, USE_INT64: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program computes one output channel per input channel, for BLOCK_M pixels and BLOCK_N channels."""
    tiles = tl.cdiv(block_channels, BLOCK_N)
    program = tl.program_id(0)
    turn = program % group_outputs
    program = program // group_outputs
    inside = program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    program = program // tiles
    block = program % (channels // block_channels)
    number = index_of(program // (channels // block_channels), USE_INT64) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = number < pixels
    q = in_bands(number, out_pixels, out_h, out_w)
    in_block = inside < block_channels
    c = block * block_channels + inside
    o = c * group_outputs + turn
    sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tap in range(taps):
        slot = index_of(block * taps + tap, USE_INT64) * pixels + q
        values = samples(
            input, corners, factors, slot, exists, points, width, channels, c, in_block, USE_INT64, EVEN
        )
        factor = tl.load(weight + tap * outputs + o, mask=in_block, other=0.0)
        sum += values * factor.to(tl.float32)[None, :]
    if HAS_BIAS:
        sum += tl.load(bias + o, mask=in_block, other=0.0).to(tl.float32)[None, :]
    places = (q // out_pixels * output_image + q % out_pixels * output_pixel)[:, None]
    places += (index_of(o, USE_INT64) * output_channel)[None, :]
    tl.store(output + places, sum.to(output.dtype.element_ty), mask=exists[:, None] & in_block[None, :])


@triton.jit(do_not_specialize=SIZES)
def depthwise_grad_weight_kernel(
    input,  # [N, H, W, C]
    corners, factors,
    grad_output,  # [N, oH, oW, O]
    partial,  # [splits, taps, O]
    pixels, width, taps, points, channels, outputs, group_outputs, block_channels, steps, splits,
    USE_INT64: tl.constexpr, EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program sums a tap of BLOCK_N input channels, with one output of each, over ``steps`` blocks."""
    split = tl.program_id(0) % splits
    program = tl.program_id(0) // splits
    turn = program % group_outputs
    program = program // group_outputs
    tiles = tl.cdiv(block_channels, BLOCK_N)
    inside = program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    program = program // tiles
    blocks = channels // block_channels
    block = program % blocks
    tap = program // blocks
    in_block = inside < block_channels
    c = block * block_channels + inside
    o = c * group_outputs + turn
    sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    slot = index_of(block * taps + tap, USE_INT64) * pixels
    q = index_of(split * steps, USE_INT64) * BLOCK_M + tl.arange(0, BLOCK_M)
    for _ in range(steps):
        exists = q < pixels
        values = samples(
            input, corners, factors, slot + q, exists, points, width, channels, c, in_block, USE_INT64, EVEN
        )
        read = exists[:, None] & in_block[None, :]
        g = tl.load(grad_output + ((q * outputs)[:, None] + o[None, :]), mask=read, other=0.0)
        sum += values * g.to(tl.float32)
        q += BLOCK_M
    places = (index_of(split, USE_INT64) * taps + tap) * outputs + o
    tl.store(partial + places, tl.sum(sum, 0), mask=in_block)


@triton.jit
def read_and_spread(
    input, grad_input, low, step, share, valid, channels, c, in_block, gradient,
    WANT_INPUT: tl.constexpr, WANT_OFFSET_MASK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Add a corner's ``share`` of ``gradient`` to ``grad_input``. Return ``gradient`` · corner values."""
    dot = tl.zeros(share.shape, tl.float32)
    if WANT_OFFSET_MASK:
        dot = tl.sum(gradient * corner(input, low, step, channels, c, valid, in_block, EVEN), 1)
    if WANT_INPUT:
        spread(grad_input, low, step, channels, c, valid, in_block, share, gradient, EVEN)
    return dot


@triton.jit
def depthwise_gradient(
    grad_output, weight, q, exists, c, in_block, tap, taps, outputs, group_outputs, gradient
):
    """Add the gradient of a tap's columns, where each input channel has outputs of its own."""
    read = exists[:, None] & in_block[None, :]
    for turn in range(group_outputs):
        o = c * group_outputs + turn
        w = tl.load(weight + tl.cast(o, tl.int64) * taps + tap, mask=in_block, other=0.0)
        g = tl.load(grad_output + ((q * outputs)[:, None] + o[None, :]), mask=read, other=0.0)
        gradient += g.to(tl.float32) * w.to(tl.float32)[None, :]
    return gradient


@triton.jit
def product_in_parts(
    grad_output, weight, inner, exists, in_block, row, group_outputs, gradient,
    EVEN: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Add ``grad_output · weight``, BLOCK_K outputs at a time. ``row`` is the stride between outputs."""
    for start in range(0, group_outputs, BLOCK_K):
        in_group = start + inner < group_outputs
        w = loaded(weight + start * row, in_group[:, None] & in_block[None, :], EVEN)
        read = exists[:, None] if EVEN else exists[:, None] & in_group[None, :]
        g = tl.load(grad_output + start, mask=read, other=0.0)
        gradient = product(g, w, gradient, UPCAST, PRECISION)
    return gradient


@triton.jit
def store_gradients(
    grad_offset, grad_mask, plane, pixel, out_pixels, exists, ly, lx, factor,
    v00, v01, v10, v11,  # [M], whether a corner is on the map
    dot00, dot01, dot10, dot11,  # [M], columns' gradient · values of each corner
    AXES: tl.constexpr, WANT_OFFSET: tl.constexpr, WANT_MASK: tl.constexpr,
):  # fmt: skip
    """Store the gradients of offset and mask for M output pixels."""
    reads = v00 | v01 | v10 | v11
    of_y, of_x, of_mask = point_gradients(ly, lx, reads, v00, v01, v10, v11, dot00, dot01, dot10, dot11)
    if WANT_OFFSET:
        of_y = tl.where(reads, factor * of_y, 0.0)
        of_x = tl.where(reads, factor * of_x, 0.0)
        places = grad_offset + plane * AXES * out_pixels + pixel
        if AXES == 2:
            tl.store(places, of_y.to(grad_offset.dtype.element_ty), mask=exists)
            places += out_pixels
        tl.store(places, of_x.to(grad_offset.dtype.element_ty), mask=exists)
    if WANT_MASK:
        tl.store(grad_mask + plane * out_pixels + pixel, of_mask.to(grad_mask.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=SIZES)
def grad_samples_kernel(
    input,  # [N, H, W, C]
    corners, factors,
    weight,  # [O, taps, C / groups]
    grad_output,  # [N, oH, oW, O]
    grad_input,  # [N, H, W, C], float32
    grad_offset,  # [N, blocks · taps · 2, oH, oW]
    grad_mask,  # [N, blocks · taps, oH, oW]
    pixels, out_pixels, out_h, out_w, width, taps, points,
    channels, group_channels, outputs, group_outputs, block_channels, group_blocks,
    WANT_INPUT: tl.constexpr, WANT_OFFSET: tl.constexpr, WANT_MASK: tl.constexpr, READ_ONCE: tl.constexpr,
    DEPTHWISE: tl.constexpr, AXES: tl.constexpr,
    USE_INT64: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program handles BLOCK_M output pixels, one tap and one channel block, BLOCK_N channels at a time.
    ``READ_ONCE``: BLOCK_K covers the group's outputs, so that the program reads ``grad_output`` only once.
    """
    blocks = channels // block_channels
    program = tl.program_id(0)
    block = program % blocks
    tap = program // blocks % taps
    number = index_of(program // blocks // taps, USE_INT64) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = number < pixels
    q = in_bands(number, out_pixels, out_h, out_w)
    slot = index_of(block * taps + tap, USE_INT64) * pixels + q
    low, ly, lx, factor, v00, v01, v10, v11 = points_of(corners, factors, slot, exists, points)
    low = index_of(low, USE_INT64)
    WANT_OFFSET_MASK: tl.constexpr = WANT_OFFSET or WANT_MASK
    top = (1 - ly) * factor
    bottom = ly * factor
    dot00 = tl.zeros((BLOCK_M,), tl.float32)  # columns' gradient · values of each corner
    dot01 = tl.zeros((BLOCK_M,), tl.float32)
    dot10 = tl.zeros((BLOCK_M,), tl.float32)
    dot11 = tl.zeros((BLOCK_M,), tl.float32)
    inner = tl.arange(0, BLOCK_K)
    o = block // group_blocks * group_outputs + inner
    g_rows = (q * outputs)[:, None] + o[None, :]
    in_group = inner < group_outputs
    if READ_ONCE:
        g = tl.load(grad_output + g_rows, mask=exists[:, None] & in_group[None, :], other=0.0)
    for first in range(0, block_channels, BLOCK_N):
        inside = first + tl.arange(0, BLOCK_N)
        in_block = inside < block_channels
        c = block * block_channels + inside
        row = tap * group_channels + block % group_blocks * block_channels + inside
        w_rows = (index_of(o, USE_INT64) * taps * group_channels)[:, None] + row[None, :]
        gradient = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)  # of the columns, before the mask
        if READ_ONCE:
            w = loaded(weight + w_rows, in_group[:, None] & in_block[None, :], EVEN)
            gradient = product(g, w, gradient, UPCAST, PRECISION)
        elif DEPTHWISE:
            gradient = depthwise_gradient(
                grad_output, weight, q, exists, c, in_block, tap, taps, outputs, group_outputs, gradient
            )
        else:
            gradient = product_in_parts(
                grad_output + g_rows, weight + w_rows, inner, exists, in_block, taps * group_channels,
                group_outputs, gradient, EVEN, UPCAST, PRECISION, BLOCK_K)  # fmt: skip
        dot00 += read_and_spread(
            input, grad_input, low, 0, top * (1 - lx), v00, channels, c, in_block, gradient,
            WANT_INPUT, WANT_OFFSET_MASK, EVEN,
        )  # fmt: skip
        dot01 += read_and_spread(
            input, grad_input, low, 1, top * lx, v01, channels, c, in_block, gradient,
            WANT_INPUT, WANT_OFFSET_MASK, EVEN,
        )  # fmt: skip
        dot10 += read_and_spread(
            input, grad_input, low, width, bottom * (1 - lx), v10, channels, c, in_block, gradient,
            WANT_INPUT, WANT_OFFSET_MASK, EVEN,
        )  # fmt: skip
        dot11 += read_and_spread(
            input, grad_input, low, width + 1, bottom * lx, v11, channels, c, in_block, gradient,
            WANT_INPUT, WANT_OFFSET_MASK, EVEN,
        )  # fmt: skip
    plane = (q // out_pixels * blocks + block) * taps + tap
    store_gradients(
        grad_offset, grad_mask, plane, q % out_pixels, out_pixels, exists, ly, lx, factor,
        v00, v01, v10, v11, dot00, dot01, dot10, dot11, AXES, WANT_OFFSET, WANT_MASK,
    )  # fmt: skip
