"""Non-maximum suppression in Triton: one bit per pair of boxes, then a pass over the bits in one program."""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kernels import index_of
from .launch import Launch

WORD = 64  # boxes per word of the bit matrix


@triton.jit
def box_of(boxes, i, number):
    read = i < number
    return (
        tl.load(boxes + 4 * i, mask=read, other=0.0), tl.load(boxes + 4 * i + 1, mask=read, other=0.0),
        tl.load(boxes + 4 * i + 2, mask=read, other=0.0), tl.load(boxes + 4 * i + 3, mask=read, other=0.0),
    )  # fmt: skip


@triton.jit(do_not_specialize=("number", "words"))
def overlaps_kernel(
    boxes,  # [number, 4], by descending score
    bits,  # [number, words]
    number, words, threshold, offset,
    USE_INT64: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """Set bit j of ``bits[i, w]`` if box 64w + j comes after box i and overlaps it. A program computes one
    word of 64 boxes, if it is not left of the diagonal. The arithmetic is that of ops/nms/nms_math.h."""
    row, column = tl.program_id(0) // words, tl.program_id(0) % words
    if column >= row:
        lane = tl.arange(0, WORD)
        i = index_of(row, USE_INT64) * WORD + lane
        j = column * WORD + lane
        ax1, ay1, ax2, ay2 = box_of(boxes, i, number)
        bx1, by1, bx2, by2 = box_of(boxes, j, number)
        area_a = (ax2 - ax1 + offset) * (ay2 - ay1 + offset)
        area_b = (bx2 - bx1 + offset) * (by2 - by1 + offset)
        left = tl.where(ax1[:, None] < bx1[None, :], bx1[None, :], ax1[:, None])
        right = tl.where(bx2[None, :] < ax2[:, None], bx2[None, :], ax2[:, None])
        top = tl.where(ay1[:, None] < by1[None, :], by1[None, :], ay1[:, None])
        bottom = tl.where(by2[None, :] < ay2[:, None], by2[None, :], ay2[:, None])
        width, height = right - left + offset, bottom - top + offset
        inter = tl.where(width > 0, width, 0.0) * tl.where(height > 0, height, 0.0)
        overlap = tl.div_rn(inter, area_a[:, None] + area_b[None, :] - inter)
        hit = (overlap > threshold) & (j[None, :] > i[:, None]) & (j < number)[None, :]
        word = tl.sum(hit.to(tl.int64) << lane.to(tl.int64)[None, :], 1)
        tl.store(bits + i * words + column, word, mask=i < number)


@triton.jit
def either(a, b):
    return a | b


@triton.jit(do_not_specialize=("number", "words"))
def keep_kernel(
    bits,  # [number, words]
    removed,  # [words], zero at the start
    is_kept,  # [number], bool
    number, words,
    USE_INT64: tl.constexpr, WORD: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program decides 64 boxes at a time, then removes the later boxes that the kept ones overlap."""
    lane = tl.arange(0, WORD)
    for block in range(words):
        row = index_of(block, USE_INT64) * WORD + lane
        diagonal = tl.load(bits + row * words + block, mask=row < number, other=0)
        dead = tl.load(removed + block)
        for i in range(WORD):
            overlapped = tl.sum(tl.where(lane == i, diagonal, 0), 0)
            dead |= tl.where(((dead >> i) & 1) == 0, overlapped, 0)
        kept = (((dead >> lane.to(tl.int64)) & 1) == 0) & (row < number)
        tl.store(is_kept + row, kept, mask=row < number)
        for start in range(block + 1, words, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            read = kept[:, None] & (column < words)[None, :]
            overlapped = tl.load(bits + row[:, None] * words + column[None, :], mask=read, other=0)
            before = tl.load(removed + column, mask=column < words, other=0)
            tl.store(removed + column, before | tl.reduce(overlapped, 0, either), mask=column < words)
        tl.debug_barrier()  # other threads read `removed`


def nms(call: Any) -> Callable[[Any], Tensor]:
    """Return the plan of the indices of the kept boxes, by descending score."""
    threshold, offset, device = float(call.iou_threshold), float(call.offset), call.boxes.device
    # fuse=False: with fused multiply-adds, decisions could differ from those of the other kernels
    pairs = {"threshold": threshold, "offset": offset, "WORD": WORD}
    overlaps = Launch(overlaps_kernel, pairs, warps=8, fuse=False, rows=True)
    keep = Launch(keep_kernel, {"WORD": WORD, "COLUMNS": 32}, rows=True)

    def run(call: Any) -> Tensor:
        """Launch the kernels. This synchronises once with the GPU."""
        order = call.scores.argsort(descending=True, stable=True)
        number = len(call.boxes)
        words = triton.cdiv(number, WORD)
        sizes = {"number": number, "words": words}
        is_kept = torch.empty(number, dtype=torch.bool, device=device)
        bits = torch.empty((number, words), dtype=torch.int64, device=device)
        sorted_boxes = call.boxes.float()[order].contiguous()
        overlaps(words * words, {"boxes": sorted_boxes, "bits": bits, **sizes})
        removed = torch.zeros(words, dtype=torch.int64, device=device)
        keep(min(number, 1), {"bits": bits, "removed": removed, "is_kept": is_kept, **sizes})
        return order[is_kept]

    return run
