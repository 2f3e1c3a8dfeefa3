"""The Triton kernel of dcnv3, dcnv4 and ms_deform_attn: the output, or all gradients.

As in ``ops/deform_attn``, the operators differ only in the positions of their points. A *part* is one
channel group (a head) of one query; a program computes BLOCK_M parts by all D channels of the group. D is a
constant, so that loads are vectors also for 24 or 36 channels; all other sizes are arguments.

``LEVELS`` distinguishes the two kinds of positions. Points are numbered ``outer · INNERS + inner``: a level
and a point in it, or a column and a row of the kernel, of which ``removed`` is left out.
"""

import triton
import triton.language as tl

from .kernels import corner, index_of, low_corner, point_gradients, spread

# Not specialised on divisibility by 16: vector loads depend only on the number of channels.
SIZES = (
    "parts", "queries", "pixels", "out_w", "height", "width", "outers", "removed", "stride_y", "stride_x",
    "dilation_y", "dilation_x", "groups", "offset_query", "offset_group", "weight_first", "weight_query",
    "weight_group",
)  # fmt: skip


@triton.jit
def level_of(level_sizes, level_starts, level, pixels):
    """Return a level's height, width and start. A level beyond the pixels is empty (LevelGrid::fits)."""
    height = tl.load(level_sizes + 2 * level)
    width = tl.load(level_sizes + 2 * level + 1)
    start = tl.load(level_starts + level)
    fits = (height > 0) & (width > 0) & (start >= 0)
    fits = fits & (start <= pixels) & (height <= pixels) & (width <= pixels)
    fits = fits & (height * width <= pixels - start)
    return (
        tl.where(fits, height, 0).to(tl.int32),
        tl.where(fits, width, 0).to(tl.int32),
        tl.where(fits, start, 0).to(tl.int32),
    )


@triton.jit
def part_of(
    parts, queries, pixels, out_w, stride_y, stride_x, base_y, base_x, groups,
    offset_query, offset_group, weight_first, weight_query, weight_group,
    LEVELS: tl.constexpr, USE_INT64: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Return a program's parts: number, whether it exists, first pixel of its image, group, indices of its
    fields, and position of its first point without the offset."""
    part = index_of(tl.program_id(0), USE_INT64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row, group = part // groups, part % groups
    query = row % queries
    y = tl.full(part.shape, -0.5, tl.float32)
    x = tl.full(part.shape, -0.5, tl.float32)
    if not LEVELS:
        y = base_y + (query // out_w * stride_y).to(tl.float32)
        x = base_x + (query % out_w * stride_x).to(tl.float32)
    offset_at = row * offset_query + group * offset_group
    weight_at = weight_first + row * weight_query + group * weight_group
    return part, part < parts, row // queries * pixels, group, offset_at, weight_at, y, x


@triton.jit
def point_of(
    offset, weight, offset_at, weight_at, read, base_y, base_x, tap_y, tap_x, scale_y, scale_x, height, width
):
    """Return a sampling point of every part: low corner, fractions, weight, whether it is on the map, and
    whether its low and high rows and columns are on the map."""
    x = tl.load(offset + offset_at, mask=read, other=0.0).to(tl.float32)
    y = tl.load(offset + offset_at + 1, mask=read, other=0.0).to(tl.float32)
    factor = tl.load(weight + weight_at, mask=read, other=0.0).to(tl.float32)
    y = base_y + (tap_y + y) * scale_y
    x = base_x + (tap_x + x) * scale_x
    inside, y0, x0, ly, lx = low_corner(y, x, height, width)
    inside = inside & read
    return (
        y0 * width + x0, ly, lx, factor, inside,
        inside & (y0 >= 0), inside & (y0 + 1 < height), x0 >= 0, x0 + 1 < width,
    )  # fmt: skip


@triton.jit
def store_fields(
    pair, grad_weight,  # places of the gradients
    read, inside, ly, lx, factor, scale_y, scale_x,
    v00, v01, v10, v11,  # [parts], whether a corner is on the map
    dot00, dot01, dot10, dot11,  # [parts], the output's gradient · values of each corner
):  # fmt: skip
    """Store the gradients of a sampling point's offset, (x, y), and weight for every part."""
    of_y, of_x, of_weight = point_gradients(ly, lx, inside, v00, v01, v10, v11, dot00, dot01, dot10, dot11)
    of_y, of_x = of_y * (factor * scale_y), of_x * (factor * scale_x)
    field = grad_weight.dtype.element_ty
    tl.store(pair, tl.where(inside, of_x, 0.0).to(field), mask=read)
    tl.store(pair + 1, tl.where(inside, of_y, 0.0).to(field), mask=read)
    tl.store(grad_weight, of_weight.to(field), mask=read)


@triton.jit(do_not_specialize=SIZES)
def attention_kernel(
    input,  # [N, pixels, groups, D]
    offset,  # (x, y) pairs, from query · offset_query + group · offset_group on
    weight,  # likewise, from weight_first on
    output,  # [N, queries, groups, D]
    grad_output,  # like output
    grad_input,  # like input, float32
    grad_offset, grad_weight,  # like offset and weight
    level_sizes, level_starts, parts, queries, pixels, out_w, height, width, outers, removed,
    stride_y, stride_x, dilation_y, dilation_x, base_y, base_x, scale, groups,
    offset_query, offset_group, weight_first, weight_query, weight_group,
    LEVELS: tl.constexpr, INNERS: tl.constexpr, D: tl.constexpr, USE_INT64: tl.constexpr,
    WANT_OUTPUT: tl.constexpr, WANT_INPUT: tl.constexpr, WANT_FIELDS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute the output, or gradients of input, offset and weight. Tensors that it does not use are None."""
    part, exists, image, group, offset_at, weight_at, at_y, at_x = part_of(
        parts, queries, pixels, out_w, stride_y, stride_x, base_y, base_x, groups,
        offset_query, offset_group, weight_first, weight_query, weight_group, LEVELS, USE_INT64, BLOCK_M,
    )  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    if not WANT_OUTPUT:
        # load in the layout of float32 additions: otherwise threads exchange values through shared memory
        d = tl.max_contiguous(d, 4)
    in_d = d < D
    EVEN: tl.constexpr = BLOCK_D == D
    is_channel = exists[:, None] if EVEN else exists[:, None] & in_d[None, :]
    places = (part * D)[:, None] + d[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if not WANT_OUTPUT:
        gradient = tl.load(grad_output + places, mask=is_channel, other=0.0).to(tl.float32)
    for outer in range(outers):
        first, tap_x, scale_y, scale_x = image, 0.0, scale, scale
        if LEVELS:
            height, width, start = level_of(level_sizes, level_starts, outer, pixels)
            first, scale_y, scale_x = image + start, height.to(tl.float32), width.to(tl.float32)
        else:
            tap_x = (outer * dilation_x).to(tl.float32)
        for inner in range(INNERS):
            tap = outer * INNERS + inner
            point = tl.where((removed >= 0) & (tap > removed), tap - 1, tap)
            read = exists & (tap != removed)
            tap_y = 0.0 if LEVELS else (inner * dilation_y).to(tl.float32)
            low, ly, lx, factor, inside, top, bottom, left, right = point_of(
                offset, weight, offset_at + 2 * point, weight_at + point, read,
                at_y, at_x, tap_y, tap_x, scale_y, scale_x, height, width,
            )  # fmt: skip
            at = (first + low) * groups + group
            down, diagonal = width * groups, (width + 1) * groups
            hy, hx = 1 - ly, 1 - lx
            if WANT_OUTPUT:
                value = corner(input, at, 0, D, d, top & left, in_d, EVEN) * (hy * hx)[:, None]
                value += corner(input, at, groups, D, d, top & right, in_d, EVEN) * (hy * lx)[:, None]
                value += corner(input, at, down, D, d, bottom & left, in_d, EVEN) * (ly * hx)[:, None]
                value += corner(input, at, diagonal, D, d, bottom & right, in_d, EVEN) * (ly * lx)[:, None]
                total += value * factor[:, None]  # also off the map: zero times Inf is NaN, as in the formula
            if WANT_FIELDS:
                dot00 = tl.sum(corner(input, at, 0, D, d, top & left, in_d, EVEN) * gradient, 1)
                dot01 = tl.sum(corner(input, at, groups, D, d, top & right, in_d, EVEN) * gradient, 1)
                dot10 = tl.sum(corner(input, at, down, D, d, bottom & left, in_d, EVEN) * gradient, 1)
                dot11 = tl.sum(corner(input, at, diagonal, D, d, bottom & right, in_d, EVEN) * gradient, 1)
                store_fields(
                    grad_offset + offset_at + 2 * point, grad_weight + weight_at + point, read, inside,
                    ly, lx, factor, scale_y, scale_x, top & left, top & right, bottom & left, bottom & right,
                    dot00, dot01, dot10, dot11,
                )  # fmt: skip
            if WANT_INPUT:
                spread(grad_input, at, 0, D, d, top & left, in_d, hy * hx * factor, gradient, EVEN)
                spread(grad_input, at, groups, D, d, top & right, in_d, hy * lx * factor, gradient, EVEN)
                spread(grad_input, at, down, D, d, bottom & left, in_d, ly * hx * factor, gradient, EVEN)
                spread(grad_input, at, diagonal, D, d, bottom & right, in_d, ly * lx * factor, gradient, EVEN)
    if WANT_OUTPUT:
        tl.store(output + places, total.to(output.dtype.element_ty), mask=is_channel)
