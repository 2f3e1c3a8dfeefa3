"""The Triton kernel of dcnv3, dcnv4 and ms_deform_attn: the output, or all gradients.

As in ``ops/deform_attn``, the operators differ only in the positions of their points. A *part* is one
channel group (a head) of one query; a program computes BLOCK_M parts by all D channels of the group. D is a
constant, so that loads are vectors also for 24 or 36 channels; all other sizes are arguments.

``LEVELS`` distinguishes the two kinds of positions. Points are numbered ``outer · INNERS + inner``: a level
and a point in it, or a column and a row of the kernel, of which ``removed`` is left out.
"""

import triton
import triton.language as tl

from .kernels import index_of

# Not specialised on divisibility by 16: vector loads depend only on the number of channels.
SIZES = (
    "parts", "queries", "pixels", "out_w", "height", "width", "outers", "removed", "stride_y", "stride_x",
    "dilation_y", "dilation_x", "groups", "offset_query", "offset_group", "weight_first", "weight_query",
    "weight_group",
)  # fmt: skip


@triton.jit
def level_of(level_sizes, level_starts, level, pixels):
    """Height, width and start of a level. A level that exceeds the pixels is empty, as in LevelGrid::fits."""
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
    """A program's parts: number, whether it exists, first pixel of its image, group, places of its fields,
    position of the first point without its offset."""
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
    """A sampling point of every part: low corner, fractions, weight, whether it is on the map, and whether
    its low and high rows and columns are."""
    x = tl.load(offset + offset_at, mask=read, other=0.0).to(tl.float32)
    y = tl.load(offset + offset_at + 1, mask=read, other=0.0).to(tl.float32)
    factor = tl.load(weight + weight_at, mask=read, other=0.0).to(tl.float32)
    y = base_y + (tap_y + y) * scale_y
    x = base_x + (tap_x + x) * scale_x
    inside = read & (y > -1) & (y < height) & (x > -1) & (x < width)  # false for NaN
    y = tl.where(inside, y, 0.0)  # before the cast: NaN has no integer
    x = tl.where(inside, x, 0.0)
    low_y, low_x = tl.floor(y), tl.floor(x)
    y0, x0 = low_y.to(tl.int32), low_x.to(tl.int32)
    return (
        y0 * width + x0, y - low_y, x - low_x, factor, inside,
        inside & (y0 >= 0), inside & (y0 + 1 < height), x0 >= 0, x0 + 1 < width,
    )  # fmt: skip


@triton.jit
def corner(input, at, step, valid, d, groups, D: tl.constexpr):
    """Values of the pixels ``step`` after the low corners, ``[parts, D]``; zero where not ``valid``."""
    places = ((at + step * groups) * D)[:, None] + d[None, :]
    read = valid[:, None] if d.shape[0] == D else valid[:, None] & (d < D)[None, :]
    return tl.load(input + places, mask=read, other=0.0).to(tl.float32)


@triton.jit
def spread(grad_input, at, step, valid, d, share, gradient, groups, D: tl.constexpr):
    """Add a corner's ``share`` of ``gradient`` to ``grad_input``."""
    places = ((at + step * groups) * D)[:, None] + d[None, :]
    added = valid[:, None] if d.shape[0] == D else valid[:, None] & (d < D)[None, :]
    # atomic: points of other parts read the same pixel. relaxed: see read_and_spread
    tl.atomic_add(grad_input + places, gradient * share[:, None], mask=added, sem="relaxed")


@triton.jit
def store_fields(
    pair, grad_weight,  # places of the gradients
    read, inside, ly, lx, factor, scale_y, scale_x,
    v00, v01, v10, v11,  # [parts], whether a corner is on the map
    dot00, dot01, dot10, dot11,  # [parts], the output's gradient · values of each corner
):  # fmt: skip
    """Store the gradients of a sampling point's offset, (x, y), and weight for every part."""
    beyond = dot00  # of points off the map: the gradient times zero, which is zero or NaN
    # an Inf gradient times the zero of a corner off the map would be NaN
    dot00 = tl.where(v00, dot00, 0.0)
    dot01 = tl.where(v01, dot01, 0.0)
    dot10 = tl.where(v10, dot10, 0.0)
    dot11 = tl.where(v11, dot11, 0.0)
    hy, hx = 1 - ly, 1 - lx
    dot = tl.where(inside, hy * (hx * dot00 + lx * dot01) + ly * (hx * dot10 + lx * dot11), beyond)
    of_y = (hx * (dot10 - dot00) + lx * (dot11 - dot01)) * (factor * scale_y)
    of_x = (hy * (dot01 - dot00) + ly * (dot11 - dot10)) * (factor * scale_x)
    field = grad_weight.dtype.element_ty
    tl.store(pair, tl.where(inside, of_x, 0.0).to(field), mask=read)
    tl.store(pair + 1, tl.where(inside, of_y, 0.0).to(field), mask=read)
    tl.store(grad_weight, dot.to(field), mask=read)


@triton.jit(do_not_specialize=SIZES)
def attention_kernel(
    input,  # [N, pixels, groups, D]
    offset,  # (x, y) pairs; a query's for a group begin at query · offset_query + group · offset_group
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
    """The output, or gradients of the input and of the fields (offset and weight). Other tensors are None."""
    part, exists, image, group, offset_at, weight_at, at_y, at_x = part_of(
        parts, queries, pixels, out_w, stride_y, stride_x, base_y, base_x, groups,
        offset_query, offset_group, weight_first, weight_query, weight_group, LEVELS, USE_INT64, BLOCK_M,
    )  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    if not WANT_OUTPUT:
        # values in the layout of the additions of float32: otherwise threads exchange them by shared memory
        d = tl.max_contiguous(d, 4)
    is_channel = exists[:, None] if BLOCK_D == D else exists[:, None] & (d < D)[None, :]
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
            hy, hx = 1 - ly, 1 - lx
            if WANT_OUTPUT:
                value = corner(input, at, 0, top & left, d, groups, D) * (hy * hx)[:, None]
                value += corner(input, at, 1, top & right, d, groups, D) * (hy * lx)[:, None]
                value += corner(input, at, width, bottom & left, d, groups, D) * (ly * hx)[:, None]
                value += corner(input, at, width + 1, bottom & right, d, groups, D) * (ly * lx)[:, None]
                total += value * factor[:, None]  # also off the map: zero times Inf is NaN, as in the formula
            if WANT_FIELDS:
                dot00 = tl.sum(corner(input, at, 0, top & left, d, groups, D) * gradient, 1)
                dot01 = tl.sum(corner(input, at, 1, top & right, d, groups, D) * gradient, 1)
                dot10 = tl.sum(corner(input, at, width, bottom & left, d, groups, D) * gradient, 1)
                dot11 = tl.sum(corner(input, at, width + 1, bottom & right, d, groups, D) * gradient, 1)
                store_fields(
                    grad_offset + offset_at + 2 * point, grad_weight + weight_at + point, read, inside,
                    ly, lx, factor, scale_y, scale_x, top & left, top & right, bottom & left, bottom & right,
                    dot00, dot01, dot10, dot11,
                )  # fmt: skip
            if WANT_INPUT:
                spread(grad_input, at, 0, top & left, d, hy * hx * factor, gradient, groups, D)
                spread(grad_input, at, 1, top & right, d, hy * lx * factor, gradient, groups, D)
                spread(grad_input, at, width, bottom & left, d, ly * hx * factor, gradient, groups, D)
                spread(grad_input, at, width + 1, bottom & right, d, ly * lx * factor, gradient, groups, D)
    if WANT_OUTPUT:
        tl.store(output + places, total.to(output.dtype.element_ty), mask=is_channel)
